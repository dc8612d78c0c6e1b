//! Whether the server lives, is ready, and what it is.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use dfastllm_engine::EngineState;
use serde_json::{Value, json};

use crate::AppState;

/// Share of the queue from which the server calls itself degraded.
const CROWDED: f64 = 0.9;

/// `GET /health`: the fields of the replaced server, and ours.
pub(crate) async fn health(State(state): State<AppState>) -> Response {
    let (status, name) = status(&state);
    let mut body = json!({
        "status": status,
        "state": name,
        "model_loaded": state.model().is_some(),
        "uptime_seconds": state.uptime_seconds(),
    });
    if let Some(model) = state.model() {
        let stats = model.engine.stats().snapshot();
        body["model"] = model.name().into();
        body["device"] = model.device.spec.kind().into();
        body["queue_size"] = stats.queued.into();
        body["queue_capacity"] = model.engine.config().max_queue.into();
        body["running"] = stats.running.into();
    }
    let code = match status {
        "unhealthy" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    (code, Json(body)).into_response()
}

fn status(state: &AppState) -> (&'static str, &'static str) {
    let Some(model) = state.model() else { return ("unhealthy", "loading") };
    let stats = model.engine.stats().snapshot();
    match stats.state {
        EngineState::Failed => ("unhealthy", "failed"),
        EngineState::Draining => ("degraded", "draining"),
        EngineState::Ready if stats.silent_for > model.stall_timeout => ("unhealthy", "stalled"),
        EngineState::Ready => {
            let crowded = stats.queued as f64 > CROWDED * model.engine.config().max_queue as f64;
            (if crowded { "degraded" } else { "healthy" }, "ready")
        }
    }
}

/// `GET /health/live`: the process answers.
pub(crate) async fn live() -> Json<Value> {
    Json(json!({"status": "alive"}))
}

/// `GET /health/ready`: new requests are taken.
pub(crate) async fn ready(State(state): State<AppState>) -> Response {
    let (_, name) = status(&state);
    let code = if name == "ready" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({"status": name}))).into_response()
}

/// `GET /version`
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
