//! Request bodies: whole, in time, and not too large.

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, Request, State};
use axum::http::header::CONTENT_ENCODING;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::MAX_BODY_BYTES;
use crate::net::Unread;
use crate::{ApiError, AppState};

/// Reads a request's body before anything is done for it. What is too large, too slow or compressed
/// is refused without reading the rest.
pub(crate) async fn whole(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let limit = state.access().body_timeout;
    match tokio::time::timeout(limit, read(request)).await {
        Ok(Ok(request)) => next.run(request).await,
        Ok(Err(error)) => error.into_response(),
        Err(_) => ApiError::BodyTimeout { seconds: limit.as_secs_f64() }.into_response(),
    }
}

async fn read(request: Request) -> Result<Request, ApiError> {
    let encodings = request.headers().get_all(CONTENT_ENCODING);
    if encodings.iter().any(|e| !e.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(ApiError::ContentEncoding);
    }
    if request.body().is_end_stream() {
        return Ok(request);
    }
    if request.body().size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(ApiError::BodyTooLarge);
    }
    let (parts, body) = request.into_parts();
    let request = Request::from_parts(parts.clone(), body);
    let bytes = Bytes::from_request(request, &()).await.map_err(|rejection| match rejection {
        BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
            ApiError::BodyTooLarge
        }
        other => ApiError::BodyBroken { message: other.body_text() },
    })?;
    if let Some(unread) = parts.extensions.get::<Unread>() {
        unread.set(false);
    }
    Ok(Request::from_parts(parts, Body::from(bytes)))
}
