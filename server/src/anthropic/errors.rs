//! Errors as Anthropic's clients expect them: `{"type": "error", "error": {type, message}}`.

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::ApiError;
use crate::app::REQUEST_ID;

const PATH: &str = "/v1/messages";
/// What Anthropic's clients read instead of `x-request-id`.
pub(crate) const ANTHROPIC_ID: HeaderName = HeaderName::from_static("request-id");

/// Whether a path is this API's.
pub(crate) fn is_below(path: &str) -> bool {
    path.strip_prefix(PATH).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Says errors below `/v1/messages` in Anthropic's shape, wherever they come from.
pub(crate) async fn error_shape(request: Request, next: Next) -> Response {
    if !is_below(request.uri().path()) {
        return next.run(request).await;
    }
    let id = request.headers().get(&REQUEST_ID).cloned();
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions().get::<ApiError>() {
        let mut body = object(error, response.status());
        body["request_id"] = json!(id.as_ref().and_then(|id| id.to_str().ok()));
        let (status, mut headers) = (response.status(), response.headers().clone());
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response = (status, headers, Json(body)).into_response();
    }
    if let Some(id) = id {
        response.headers_mut().insert(ANTHROPIC_ID, id);
    }
    response
}

/// The error object, as it is also sent inside streams.
pub(super) fn object(error: &ApiError, status: StatusCode) -> Value {
    let kind = match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        StatusCode::GATEWAY_TIMEOUT => "timeout_error",
        // 499 is a request that somebody else cancelled.
        status if status.is_server_error() || status.as_u16() == 499 => "api_error",
        _ => "invalid_request_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": error.message()}})
}
