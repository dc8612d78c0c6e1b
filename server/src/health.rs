//! Whether the server lives, is ready, and what it is.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use dfastllm_engine::EngineState;
use serde::Serialize;
use utoipa::ToSchema;

use crate::AppState;
use crate::gpu::GpuMemory;

/// Share of the queue from which the server calls itself degraded.
const CROWDED: f64 = 0.9;

/// How the server is: the fields of the replaced server, and ours.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// `healthy`, `degraded` or `unhealthy`
    status: &'static str,
    /// `loading`, `ready`, `draining`, `stalled` or `failed`
    state: &'static str,
    model_loaded: bool,
    uptime_seconds: f64,
    /// The first name of the model, once it is loaded; so are the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// `cpu`, `cuda`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<&'static str>,
    /// Requests that wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_size: Option<usize>,
    /// Requests that may wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_capacity: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    running: Option<usize>,
    /// On a GPU that tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_memory: Option<GpuMemory>,
}

/// The answer of a probe.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Probe {
    status: &'static str,
}

/// What this program is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Version {
    version: &'static str,
}

/// How the server is.
#[utoipa::path(get, path = "/health", tag = "Health", operation_id = "health", responses(
    (status = 200, description = "Healthy or degraded", body = Health),
    (status = 503, description = "Unhealthy", body = Health)))]
pub(crate) async fn health(State(state): State<AppState>) -> Response {
    let (status, name) = status(&state);
    let model = state.model();
    let stats = model.map(|model| model.engine.stats().snapshot());
    let body = Health {
        status,
        state: name,
        model_loaded: model.is_some(),
        uptime_seconds: state.uptime_seconds(),
        model: model.map(|model| model.name().to_owned()),
        device: model.map(|model| model.device.spec.kind()),
        queue_size: stats.as_ref().map(|stats| stats.queued),
        queue_capacity: model.map(|model| model.engine.config().max_queue),
        running: stats.as_ref().map(|stats| stats.running),
        gpu_memory: model.and_then(GpuMemory::of),
    };
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

/// The process answers.
#[utoipa::path(get, path = "/health/live", tag = "Health", operation_id = "live",
    responses((status = 200, description = "It does", body = Probe)))]
pub(crate) async fn live() -> Json<Probe> {
    Json(Probe { status: "alive" })
}

/// Whether new requests are taken.
#[utoipa::path(get, path = "/health/ready", tag = "Health", operation_id = "ready", responses(
    (status = 200, description = "They are", body = Probe),
    (status = 503, description = "They are not", body = Probe)))]
pub(crate) async fn ready(State(state): State<AppState>) -> Response {
    let (_, name) = status(&state);
    let code = if name == "ready" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(Probe { status: name })).into_response()
}

/// What this program is.
#[utoipa::path(get, path = "/version", tag = "About", operation_id = "version",
    responses((status = 200, description = "Its version", body = Version)))]
pub(crate) async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION") })
}
