//! `GET /v1/models` and `GET /v1/models/{id}`

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::convert::check_model;
use crate::error::PathId;
use crate::openapi::errors::{LoadingErrors, ModelErrors};
use crate::{ApiError, AppState, ServedModel};

/// A served model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Model {
    /// One of its names.
    id: String,
    /// `model`
    object: &'static str,
    /// Unix time of the start.
    created: u64,
    owned_by: &'static str,
    /// Its first name.
    root: String,
    /// Always null: OpenAI's fine-tuned models have one.
    #[schema(required)]
    parent: Option<String>,
    /// Longest prompt and answer together, in tokens.
    max_model_len: usize,
}

/// All names of the served model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// `list`
    object: &'static str,
    data: Vec<Model>,
}

/// Lists the served model under all its names.
#[utoipa::path(get, path = "/v1/models", tag = "Models", operation_id = "models",
    responses((status = 200, description = "The models", body = ModelList), LoadingErrors))]
pub(crate) async fn list(State(state): State<AppState>) -> Result<Json<ModelList>, ApiError> {
    let served = state.require_model()?;
    let model = |name: &String| model(name, served, state.created());
    Ok(Json(ModelList { object: "list", data: served.names.iter().map(model).collect() }))
}

/// Describes the served model.
#[utoipa::path(get, path = "/v1/models/{*id}", tag = "Models", operation_id = "model",
    params(("id" = String, Path, description = "A name of the model")),
    responses((status = 200, description = "The model", body = Model), ModelErrors))]
pub(crate) async fn get(
    State(state): State<AppState>,
    PathId(id): PathId,
) -> Result<Json<Model>, ApiError> {
    let served = state.require_model()?;
    check_model(Some(&id), served)?;
    Ok(Json(model(&id, served, state.created())))
}

fn model(name: &str, served: &ServedModel, created: u64) -> Model {
    Model {
        id: name.to_owned(),
        object: "model",
        created,
        owned_by: "dfastllm",
        root: served.name().to_owned(),
        parent: None,
        max_model_len: served.limits.max_model_len,
    }
}
