//! One error shape: `{"error": {message, type, param, code}}`.

use axum::Json;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dfastllm_engine::{EngineError, RequestError, SubmitError};
use serde_json::{Value, json};

use crate::BodyError;

/// Most characters of a client's text that an error repeats.
const MAX_ECHO: usize = 200;
/// Most characters of a wrong value that an error repeats.
const MAX_FOUND: usize = 64;
/// Seconds after which a client that met a full queue may try again.
const RETRY_AFTER: &str = "1";
/// What proxies log for such a request. No client library tries again on it.
const CLIENT_CLOSED_REQUEST: StatusCode = match StatusCode::from_u16(499) {
    Ok(status) => status,
    Err(_) => StatusCode::BAD_REQUEST,
};

/// Everything a request can be refused or broken by.
#[derive(Debug, Clone, PartialEq)]
pub enum ApiError {
    /// A parameter is wrong; the client has to change it.
    Invalid {
        /// The parameter, if one is to blame.
        param: Option<String>,
        /// A machine-readable reason.
        code: Option<&'static str>,
        /// What was found and what is expected.
        message: String,
    },
    /// A prompt without text, word for word as the replaced server says it.
    EmptyPrompt {
        /// Index in the list of prompts.
        index: usize,
    },
    /// A model that is not served, word for word as the replaced server says it.
    ModelNotFound {
        /// What was asked for.
        name: String,
        /// What there is.
        available: Vec<String>,
    },
    /// No running request has this id.
    RequestNotFound {
        /// What was asked for.
        id: String,
    },
    /// The request was cancelled by name.
    Cancelled,
    /// No or a wrong API key.
    Unauthorized,
    /// No such route.
    NotFound,
    /// The route exists for another method.
    MethodNotAllowed,
    /// The body was not read to its end.
    Body(BodyError),
    /// The body is not JSON by its content type.
    ContentType,
    /// A key or an address has used up its requests.
    RateLimited {
        /// Requests a minute.
        limit: u32,
        /// Seconds until there is another one.
        retry_after: u64,
    },
    /// The queue is full.
    QueueFull {
        /// Requests that may wait.
        capacity: usize,
    },
    /// Loading, draining or failed.
    Unavailable {
        /// Which.
        message: String,
    },
    /// The request ran out of time.
    Timeout {
        /// What the engine says.
        message: String,
    },
    /// Ours.
    Internal {
        /// A machine-readable reason.
        code: &'static str,
        /// What may be said about it.
        message: String,
    },
}

impl ApiError {
    /// A parameter with a wrong value.
    pub(crate) fn invalid(param: &str, message: impl Into<String>) -> Self {
        let param = Some(param.to_owned());
        Self::Invalid { param, code: Some("invalid_value"), message: message.into() }
    }

    /// A parameter whose value is not what was expected.
    pub(crate) fn wrong(param: &str, found: &Value, expected: &str) -> Self {
        let found: String = found.to_string().chars().take(MAX_FOUND).collect();
        Self::invalid(param, format!("{param} is {found}, expected {expected}"))
    }

    /// A parameter that is known and not honoured.
    pub(crate) fn unsupported(param: &str, message: impl Into<String>) -> Self {
        let param = Some(param.to_owned());
        Self::Invalid { param, code: Some("unsupported_parameter"), message: message.into() }
    }

    /// What was found and what is expected.
    pub(crate) fn message(&self) -> String {
        self.body()["error"]["message"].as_str().unwrap_or_default().to_owned()
    }

    /// The status of an answer that is this error.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Invalid { .. } | Self::EmptyPrompt { .. } => StatusCode::BAD_REQUEST,
            Self::ModelNotFound { .. } | Self::RequestNotFound { .. } | Self::NotFound => {
                StatusCode::NOT_FOUND
            }
            Self::Cancelled => CLIENT_CLOSED_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Body(error) => error.status(),
            Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::QueueFull { .. } | Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The error object, as it is also sent inside streams.
    pub(crate) fn body(&self) -> Value {
        let object = |message: String, kind: &str, param: Option<&str>, code: Value| json!({"error": {"message": message, "type": kind, "param": param, "code": code}});
        let request = "invalid_request_error";
        match self {
            Self::Invalid { param, code, message } => {
                object(message.clone(), request, param.as_deref(), json!(code))
            }
            Self::EmptyPrompt { index } => {
                let message = format!("Prompt at index {index} cannot be empty");
                object(message, "validation_error", Some("prompt"), json!(400))
            }
            Self::ModelNotFound { name, available } => {
                let name: String = name.chars().take(MAX_ECHO).collect();
                let available = available.join(", ");
                let message = format!("Model '{name}' not found. Available models: {available}");
                object(message, "model_not_found", Some("model"), json!(404))
            }
            Self::RequestNotFound { id } => {
                let id: String = id.chars().take(MAX_ECHO).collect();
                let message = format!("no queued or running request has the id '{id}'");
                object(message, "not_found_error", Some("id"), json!("request_not_found"))
            }
            Self::Cancelled => {
                let message = "the request was cancelled";
                object(message.into(), "request_cancelled", None, json!("request_cancelled"))
            }
            Self::Unauthorized => {
                let message = "Invalid or missing API key; send 'Authorization: Bearer KEY'";
                object(message.into(), "authentication_error", None, json!("invalid_api_key"))
            }
            Self::NotFound => object("no such route".into(), "not_found_error", None, Value::Null),
            Self::MethodNotAllowed => {
                object("this route has another method".into(), request, None, Value::Null)
            }
            Self::Body(error) => object(error.to_string(), request, None, Value::Null),
            Self::RateLimited { limit, retry_after } => {
                let again = format!("try again in {retry_after} s");
                let message = format!("rate limit reached: {limit} requests a minute; {again}");
                object(message, "requests", None, json!("rate_limit_exceeded"))
            }
            Self::ContentType => {
                let message = "expected 'Content-Type: application/json'";
                object(message.into(), request, None, Value::Null)
            }
            Self::QueueFull { capacity } => {
                let message = format!("the queue is full: {capacity} requests are waiting");
                object(message, "rate_limit_error", None, json!("rate_limit_exceeded"))
            }
            Self::Unavailable { message } => {
                object(message.clone(), "overloaded_error", None, json!("server_overloaded"))
            }
            Self::Timeout { message } => {
                object(message.clone(), "timeout_error", None, json!("timeout"))
            }
            Self::Internal { code, message } => {
                object(message.clone(), "server_error", None, json!(code))
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(self.body())).into_response();
        // For APIs that say errors in another shape.
        response.extensions_mut().insert(self.clone());
        let headers = response.headers_mut();
        match self {
            Self::QueueFull { .. } | Self::Unavailable { .. } => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
            }
            Self::RateLimited { retry_after, .. } => {
                headers.insert(header::RETRY_AFTER, retry_after.into());
            }
            // What is left of the body is not read, so nothing can follow it.
            Self::Body(_) => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Self::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

/// The last part of a route's path. One that is no text is refused like anything else.
pub(crate) struct PathId(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for PathId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(id)) => Ok(Self(id)),
            Err(_) => Err(ApiError::invalid("id", "the path is not UTF-8")),
        }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let code = if error.context_exceeded { "context_length_exceeded" } else { "invalid_value" };
        let param = Some(error.param.to_owned());
        Self::Invalid { param, code: Some(code), message: error.message }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::QueueFull { capacity } => Self::QueueFull { capacity },
            SubmitError::TooLong { .. } => Self::Invalid {
                param: Some("max_tokens".to_owned()),
                code: Some("context_length_exceeded"),
                message: error.to_string(),
            },
            other => Self::Unavailable { message: other.to_string() },
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::Timeout { .. } => Self::Timeout { message },
            EngineError::Cancelled => Self::Cancelled,
            EngineError::Numerical => Self::Internal { code: "numerical_error", message },
            EngineError::Structure { .. } => Self::Internal { code: "structure_error", message },
            EngineError::StepFailed => Self::Internal { code: "engine_error", message },
            EngineError::Stopped => Self::Unavailable { message },
        }
    }
}
