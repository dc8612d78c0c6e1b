//! Errors.

use utoipa::ToSchema;

/// Why a request was refused or broken.
#[derive(ToSchema)]
pub(crate) struct ErrorBody {
    error: ErrorObject,
}

/// OpenAI's error object.
#[derive(ToSchema)]
struct ErrorObject {
    /// What was found and what is expected.
    message: String,
    /// `invalid_request_error`, `authentication_error`, `rate_limit_error`, `server_error`, …
    r#type: String,
    /// The field to blame, if one is.
    #[schema(required)]
    param: Option<String>,
    /// A machine-readable reason. Of unknown models and empty prompts it is the status.
    #[schema(required)]
    code: Option<ErrorCode>,
}

/// A reason, or a status.
#[derive(ToSchema)]
#[serde(untagged)]
enum ErrorCode {
    /// OpenAI's words.
    Reason(String),
    /// As the replaced server has it.
    Status(u16),
}
