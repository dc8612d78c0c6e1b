//! `GET /v1/models` and `GET /v1/models/{id}`

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::convert::check_model;
use crate::{ApiError, AppState, ServedModel};

pub(crate) async fn list(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    let served = state.require_model()?;
    let data: Vec<Value> =
        served.names.iter().map(|name| object(name, served, state.created())).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

pub(crate) async fn get(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let served = state.require_model()?;
    check_model(Some(&id), served)?;
    Ok(Json(object(&id, served, state.created())))
}

fn object(name: &str, served: &ServedModel, created: u64) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "dfastllm",
        "root": served.name(),
        "parent": null,
        "max_model_len": served.limits.max_model_len,
    })
}
