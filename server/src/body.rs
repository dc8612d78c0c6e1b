//! Request bodies: whole, in time, and not too large.

use std::fmt;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_ENCODING;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::MAX_BODY_BYTES;
use crate::net::Unread;
use crate::{ApiError, AppState};

/// Why a body was not read to its end.
#[derive(Debug, Clone, PartialEq)]
pub enum BodyError {
    /// It is larger than allowed.
    TooLarge,
    /// It did not arrive in time.
    TooSlow {
        /// How long it may take.
        seconds: f64,
    },
    /// It did not arrive as its headers said.
    Broken {
        /// What was wrong.
        message: String,
    },
    /// It is compressed.
    Compressed,
}

impl BodyError {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::Broken { .. } => StatusCode::BAD_REQUEST,
            Self::Compressed => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => write!(f, "the request body is larger than {MAX_BODY_BYTES} bytes"),
            Self::TooSlow { seconds } => {
                write!(f, "the request body did not arrive within {seconds} s")
            }
            Self::Broken { message } => write!(f, "invalid body: {message:.200}"),
            Self::Compressed => f.write_str("the request body is compressed; send it as it is"),
        }
    }
}

/// Reads a request's body before anything is done for it. What is too large, too slow or compressed
/// is refused without reading the rest.
pub(crate) async fn whole(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let limit = state.access().body_timeout;
    let error = match tokio::time::timeout(limit, read(request)).await {
        Ok(Ok(request)) => return next.run(request).await,
        Ok(Err(error)) => error,
        Err(_) => BodyError::TooSlow { seconds: limit.as_secs_f64() },
    };
    ApiError::Body(error).into_response()
}

async fn read(request: Request) -> Result<Request, BodyError> {
    let encodings = request.headers().get_all(CONTENT_ENCODING);
    if encodings.iter().any(|e| !e.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(BodyError::Compressed);
    }
    if request.body().is_end_stream() {
        return Ok(request);
    }
    if request.body().size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(BodyError::TooLarge);
    }
    let (parts, body) = request.into_parts();
    let request = Request::from_parts(parts.clone(), body);
    let bytes = Bytes::from_request(request, &()).await.map_err(|rejection| match rejection {
        BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
            BodyError::TooLarge
        }
        other => BodyError::Broken { message: other.body_text() },
    })?;
    if let Some(unread) = parts.extensions.get::<Unread>() {
        unread.set(false);
    }
    Ok(Request::from_parts(parts, Body::from(bytes)))
}
