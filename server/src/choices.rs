//! How many choices there are, what streams tell besides, and what a request is called.

use axum::http::HeaderValue;
use serde_json::Value;

use crate::ApiError;
use crate::app::MAX_REQUEST_ID;
use crate::openai::types::{Common, StreamOptions};

const MAX_CHOICES: u64 = 128;
/// OpenAI's bound.
const MAX_BEST_OF: u64 = 20;

/// `n` and `best_of`.
pub(crate) fn choices(common: &Common) -> Result<(usize, usize), ApiError> {
    let number = |name: &str, value: &Option<Value>, most: u64| match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(n) if (1..=most).contains(&n) => Ok(Some(n as usize)),
            _ => Err(ApiError::wrong(name, value, &format!("1 to {most}"))),
        },
    };
    let n = number("n", &common.n, MAX_CHOICES)?.unwrap_or(1);
    let best_of = number("best_of", &common.best_of, MAX_BEST_OF)?.unwrap_or(n);
    if best_of < n {
        let message = format!("best_of is {best_of}, expected at least n, {n}");
        return Err(ApiError::invalid("best_of", message));
    }
    if best_of > n && common.stream == Some(true) {
        let message = "which choices are best is known at the end; best_of above n does not stream";
        return Err(ApiError::invalid("best_of", message));
    }
    Ok((n, best_of))
}

pub(crate) fn stream_options(common: &Common, stream: bool) -> Result<StreamOptions, ApiError> {
    let Some(options) = &common.stream_options else { return Ok(StreamOptions::default()) };
    if !stream {
        let message = "stream_options is only allowed where stream is true";
        return Err(ApiError::invalid("stream_options", message));
    }
    match options.rest.iter().find(|(_, value)| !value.is_null()) {
        None => Ok(options.clone()),
        Some((name, _)) => {
            let param: String = format!("stream_options.{name}").chars().take(64).collect();
            let message = format!("'{param}' is not supported by this server");
            Err(ApiError::unsupported(&param, message))
        }
    }
}

pub(crate) fn request_id(common: &Common) -> Result<Option<HeaderValue>, ApiError> {
    let Some(id) = &common.request_id else { return Ok(None) };
    let is_fit =
        (1..=MAX_REQUEST_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    match HeaderValue::from_str(id) {
        Ok(value) if is_fit => Ok(Some(value)),
        _ => {
            let message =
                format!("request_id: expected 1 to {MAX_REQUEST_ID} visible ASCII letters");
            Err(ApiError::invalid("request_id", message))
        }
    }
}
