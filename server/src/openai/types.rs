//! Request bodies. Every field is optional, and `null` is the same as absent.
//!
//! Fields not named here arrive in `rest`; `convert.rs` ignores those that OpenAI's clients send
//! for bookkeeping and refuses the others by name.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::unique::Unique;
use crate::{ApiError, BodyError};

/// Fields both generation endpoints share.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Common {
    pub(crate) model: Option<String>,
    pub(crate) max_tokens: Option<Value>,
    pub(crate) min_tokens: Option<Value>,
    pub(crate) n: Option<Value>,
    pub(crate) temperature: Option<f64>,
    pub(crate) top_p: Option<f64>,
    pub(crate) top_k: Option<Value>,
    pub(crate) min_p: Option<f64>,
    pub(crate) seed: Option<Value>,
    pub(crate) stop: Option<Value>,
    pub(crate) stop_token_ids: Option<Vec<Value>>,
    pub(crate) ignore_eos: Option<bool>,
    pub(crate) skip_special_tokens: Option<bool>,
    pub(crate) logit_bias: Option<Map<String, Value>>,
    pub(crate) priority: Option<i64>,
    pub(crate) return_token_ids: Option<bool>,
    pub(crate) stream: Option<bool>,
    pub(crate) stream_options: Option<StreamOptions>,
    pub(crate) presence_penalty: Option<f64>,
    pub(crate) frequency_penalty: Option<f64>,
    pub(crate) repetition_penalty: Option<f64>,
    pub(crate) logprobs: Option<Value>,
    pub(crate) top_logprobs: Option<Value>,
    pub(crate) diffusion: Option<Map<String, Value>>,
    #[serde(flatten)]
    pub(crate) rest: Map<String, Value>,
}

/// `stream_options`
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StreamOptions {
    pub(crate) include_usage: Option<bool>,
    pub(crate) continuous_usage_stats: Option<bool>,
}

/// `POST /v1/completions`
#[derive(Debug, Deserialize)]
pub(crate) struct CompletionRequest {
    pub(crate) prompt: Option<Value>,
    pub(crate) suffix: Option<String>,
    pub(crate) echo: Option<bool>,
    #[serde(flatten)]
    pub(crate) common: Common,
}

/// `POST /v1/chat/completions`
#[derive(Debug, Deserialize)]
pub(crate) struct ChatRequest {
    pub(crate) messages: Option<Vec<Value>>,
    pub(crate) max_completion_tokens: Option<Value>,
    #[serde(flatten)]
    pub(crate) common: Common,
}

/// A request body, unless it could not be read.
pub(crate) type Body = Result<Bytes, BytesRejection>;

/// Parses a JSON body.
pub(crate) fn parse<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, ApiError> {
    let body = body.map_err(|_| ApiError::Body(BodyError::TooLarge))?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|h| h.to_str().ok());
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::ContentType);
    }
    let invalid = |e: serde_json::Error| {
        let message: String = e.to_string().chars().take(300).collect();
        ApiError::Invalid { param: None, code: None, message: format!("invalid body: {message}") }
    };
    serde_json::from_slice::<Unique>(&body).map_err(invalid)?;
    // First as any JSON: errors of flattened types do not say where they are.
    let value: Value = serde_json::from_slice(&body).map_err(invalid)?;
    if !value.is_object() {
        let message = "invalid body: expected a JSON object".to_owned();
        return Err(ApiError::Invalid { param: None, code: None, message });
    }
    T::deserialize(&value).map_err(|e| match wrong_field::<T>(&value) {
        Some((field, reason)) => ApiError::invalid(&field, format!("{field}: {reason}")),
        None => invalid(e),
    })
}

/// The field that does not parse: errors of flattened types do not name it, so each is tried alone.
fn wrong_field<T: DeserializeOwned>(value: &Value) -> Option<(String, String)> {
    value.as_object()?.iter().find_map(|(name, value)| {
        let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
        let reason = T::deserialize(alone).err()?.to_string();
        Some((name.chars().take(64).collect(), reason.chars().take(200).collect()))
    })
}
