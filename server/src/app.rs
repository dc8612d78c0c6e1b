//! The router and what its handlers share.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::{self, Access};
use crate::metrics::Metrics;
use crate::rate::{self, RateLimit};
use crate::requests::Requests;
use crate::{
    ApiError, ServedModel, anthropic, auth, body, health, infill_api, openai, openapi, requests,
    responses, tokenize,
};

/// Largest request body. Parsed JSON takes many times its text; the longest context served, 131072
/// token ids, is under 1 MB.
pub(crate) const MAX_BODY_BYTES: usize = 4 << 20;
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const MAX_REQUEST_ID: usize = 128;

/// What handlers share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AppState(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    served: OnceLock<ServedModel>,
    access: Access,
    rate_limit: Option<RateLimit>,
    metrics: Metrics,
    requests: Requests,
    started: Instant,
    created: u64,
}

impl AppState {
    /// A state without a model yet; requests are answered 503 until [`AppState::set_model`].
    #[must_use]
    pub fn new(model_name: &str, api_keys: Vec<String>) -> Self {
        Self::with_access(model_name, Access { api_keys, ..Access::default() })
    }

    /// The same, with all that can be said about who may ask.
    #[must_use]
    pub fn with_access(model_name: &str, access: Access) -> Self {
        let created = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        Self(Arc::new(Shared {
            served: OnceLock::new(),
            rate_limit: access.rate_limit.map(RateLimit::new),
            access,
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
        &self.0.access.api_keys
    }

    pub(crate) fn access(&self) -> &Access {
        &self.0.access
    }

    pub(crate) fn rate_limit(&self) -> Option<&RateLimit> {
        self.0.rate_limit.as_ref()
    }

    pub(crate) fn uptime_seconds(&self) -> f64 {
        self.0.started.elapsed().as_secs_f64()
    }

    /// Unix time of the start.
    pub(crate) fn created(&self) -> u64 {
        self.0.created
    }
}

/// Routes that want an API key, described by their handlers.
fn guarded() -> OpenApiRouter<AppState> {
    OpenApiRouter::default()
        .routes(routes!(openai::completions::create))
        .routes(routes!(openai::chat::create))
        .routes(routes!(openai::models::list))
        .routes(routes!(openai::models::get))
        .routes(routes!(requests::cancel))
        .routes(routes!(responses::create))
        .routes(routes!(anthropic::create))
        .routes(routes!(anthropic::count_tokens))
        .routes(routes!(infill_api::create))
        .routes(routes!(tokenize::tokenize))
        .routes(routes!(tokenize::detokenize))
        .routes(routes!(tokenize::info))
}

/// Routes for everybody, described by their handlers.
fn open() -> OpenApiRouter<AppState> {
    OpenApiRouter::default()
        .routes(routes!(health::health))
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(health::version))
        .routes(routes!(metrics))
        .routes(routes!(openapi::document))
        .routes(routes!(openapi::docs))
}

/// All routes in OpenAPI's words.
pub(crate) fn document() -> OpenApi {
    openapi::describe(guarded().into_openapi(), open().into_openapi())
}

/// The whole server.
pub fn app(state: AppState) -> Router {
    let guarded = Router::from(guarded())
        .route_layer(middleware::from_fn_with_state(state.clone(), body::whole))
        .route_layer(middleware::from_fn_with_state(state.clone(), rate::limit))
        .route_layer(middleware::from_fn_with_state(state.clone(), auth::require_key))
        .route_layer(middleware::from_fn(access::processing_time));
    let cors = state.access().cors();
    let router = Router::from(open())
        .merge(guarded)
        .fallback(|| async { ApiError::NotFound })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(CatchPanicLayer::custom(|_| internal_error()))
        .layer(middleware::from_fn(anthropic::error_shape))
        .layer(middleware::from_fn(request_id))
        .with_state(state);
    // Outermost, so that refusals can be read by pages too and preflights need no key.
    match cors {
        Some(cors) => router.layer(cors),
        None => router,
    }
}

/// Counters for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "Health", operation_id = "metrics", responses(
    (status = 200, description = "Text format", body = String, content_type = "text/plain")))]
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
        let visible = id.as_bytes().iter().all(u8::is_ascii_graphic);
        id.len() <= MAX_REQUEST_ID && !id.is_empty() && visible
    });
    let id =
        given.cloned().or_else(|| HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).ok());
    if let Some(id) = &id {
        request.headers_mut().insert(REQUEST_ID, id.clone());
    }
    let mut response = next.run(request).await;
    if let Some(id) = id {
        // A body may have named it.
        response.headers_mut().entry(REQUEST_ID).or_insert(id);
    }
    response
}
