//! `POST /v1/completions`

use std::time::Instant;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use dfastllm_models::{SpecialTokens, Tokenizer};
use serde_json::Value;

use super::respond::{Frame, Prepared, respond};
use super::types::{Body, CompletionRequest, parse};
use crate::convert::{Endpoint, check_model, convert};
use crate::generation::Choices;
use crate::{ApiError, AppState};

const MAX_PROMPTS: usize = 1024;

pub(crate) async fn create(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let prepared = prepare(&state, &headers, body).await;
    respond(&state, prepared).await
}

async fn prepare(state: &AppState, headers: &HeaderMap, body: Body) -> Result<Prepared, ApiError> {
    let arrival = Instant::now();
    let served = state.require_model()?;
    let request: CompletionRequest = parse(headers, body)?;
    check_model(request.common.model.as_deref(), served)?;
    let prompts = prompts(request.prompt, served.tokenizer.clone()).await?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let (mut params, options) =
        convert(request.common, None, longest, Endpoint::Completions, served)?;
    params.arrival = arrival;
    let frame = Frame::new(Endpoint::Completions, served);
    let names = frame.names(headers);
    let choices = Choices::submit((state, served), prompts, &params, &options, names)?;
    Ok(Prepared { frame, choices, options })
}

/// Token ids of every prompt: a string, a list of strings, token ids, or a list of those.
async fn prompts(prompt: Option<Value>, tokenizer: Tokenizer) -> Result<Vec<Vec<u32>>, ApiError> {
    let list = match prompt {
        None | Some(Value::Null) => return Err(ApiError::invalid("prompt", "prompt is missing")),
        Some(Value::Array(items)) if items.first().is_some_and(Value::is_number) => {
            vec![Value::Array(items)]
        }
        Some(Value::Array(items)) => items,
        Some(single) => vec![single],
    };
    if list.is_empty() || list.len() > MAX_PROMPTS {
        let message = format!("{} prompts, expected 1 to {MAX_PROMPTS}", list.len());
        return Err(ApiError::invalid("prompt", message));
    }
    // Long prompts take milliseconds: not on the threads that answer health checks.
    tokio::task::spawn_blocking(move || {
        list.iter().enumerate().map(|(index, p)| tokens(p, index, &tokenizer)).collect()
    })
    .await
    .unwrap_or_else(|_| {
        let message = "tokenisation failed".to_owned();
        Err(ApiError::Internal { code: "internal_error", message })
    })
}

fn tokens(prompt: &Value, index: usize, tokenizer: &Tokenizer) -> Result<Vec<u32>, ApiError> {
    let tokens = match prompt {
        Value::String(text) if text.is_empty() => Vec::new(),
        Value::String(text) => tokenizer
            .encode(text, SpecialTokens::Include)
            .map_err(|e| ApiError::invalid("prompt", format!("prompt at index {index}: {e}")))?,
        Value::Array(ids) => ids
            .iter()
            .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect::<Option<_>>()
            .ok_or_else(|| {
                let message = format!("prompt at index {index} has entries that are no token ids");
                ApiError::invalid("prompt", message)
            })?,
        _ => {
            let message = format!("prompt at index {index}: expected a string or token ids");
            return Err(ApiError::invalid("prompt", message));
        }
    };
    if tokens.is_empty() {
        return Err(ApiError::EmptyPrompt { index });
    }
    Ok(tokens)
}
