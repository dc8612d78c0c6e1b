//! The router and what its handlers share.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use tower_http::catch_panic::CatchPanicLayer;

use crate::metrics::Metrics;
use crate::requests::Requests;
use crate::{
    ApiError, ServedModel, anthropic, auth, health, infill_api, openai, requests, responses,
    tokenize,
};

/// Largest request body. Parsed JSON takes many times its text; the longest context served, 131072
/// token ids, is under 1 MB.
const MAX_BODY_BYTES: usize = 4 << 20;
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID: usize = 128;

/// What handlers share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AppState(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    served: OnceLock<ServedModel>,
    api_keys: Vec<String>,
    metrics: Metrics,
    requests: Requests,
    started: Instant,
    created: u64,
}

impl AppState {
    /// A state without a model yet; requests are answered 503 until [`AppState::set_model`].
    #[must_use]
    pub fn new(model_name: &str, api_keys: Vec<String>) -> Self {
        let created = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        Self(Arc::new(Shared {
            served: OnceLock::new(),
            api_keys,
            metrics: Metrics::new(model_name),
            requests: Requests::default(),
            started: Instant::now(),
            created,
        }))
    }

    /// Puts a model into service.
    pub fn set_model(&self, served: ServedModel) {
        self.0.metrics.model_loaded(&served);
        // A second model is not a case that exists.
        let _ = self.0.served.set(served);
    }

    /// The model in service, if it is loaded.
    #[must_use]
    pub fn model(&self) -> Option<&ServedModel> {
        self.0.served.get()
    }

    pub(crate) fn require_model(&self) -> Result<&ServedModel, ApiError> {
        let message = || "the model is still loading".to_owned();
        self.model().ok_or_else(|| ApiError::Unavailable { message: message() })
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(crate) fn requests(&self) -> &Requests {
        &self.0.requests
    }

    pub(crate) fn api_keys(&self) -> &[String] {
        &self.0.api_keys
    }

    pub(crate) fn uptime_seconds(&self) -> f64 {
        self.0.started.elapsed().as_secs_f64()
    }

    /// Unix time of the start.
    pub(crate) fn created(&self) -> u64 {
        self.0.created
    }
}

/// The whole server.
pub fn app(state: AppState) -> Router {
    let guarded = Router::new()
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{*id}", get(openai::models::get))
        .route("/v1/completions", post(openai::completions::create))
        .route("/v1/chat/completions", post(openai::chat::create))
        .route("/v1/requests/{id}", delete(requests::cancel))
        .route("/v1/responses", post(responses::create))
        .route("/v1/messages", post(anthropic::create))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/infill", post(infill_api::create))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/tokenizer_info", get(tokenize::info))
        .route_layer(middleware::from_fn_with_state(state.clone(), auth::require_key));
    Router::new()
        .merge(guarded)
        .route("/health", get(health::health))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/version", get(health::version))
        .route("/metrics", get(metrics))
        .fallback(|| async { ApiError::NotFound })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(CatchPanicLayer::custom(|_| internal_error()))
        .layer(middleware::from_fn(anthropic::error_shape))
        .layer(middleware::from_fn(request_id))
        .with_state(state)
}

async fn metrics(State(state): State<AppState>) -> impl IntoResponse {
    let text = state.metrics().render(state.model());
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], text)
}

fn internal_error() -> Response {
    let message = "the request could not be handled".to_owned();
    ApiError::Internal { code: "internal_error", message }.into_response()
}

/// Echoes the client's request id if it is short and visible ASCII, else makes one.
async fn request_id(mut request: Request, next: Next) -> Response {
    let given = request.headers().get(&REQUEST_ID).filter(|id| {
        id.len() <= MAX_REQUEST_ID && !id.is_empty() && id.to_str().is_ok_and(|s| s.is_ascii())
    });
    let id =
        given.cloned().or_else(|| HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).ok());
    if let Some(id) = &id {
        request.headers_mut().insert(REQUEST_ID, id.clone());
    }
    let mut response = next.run(request).await;
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}
