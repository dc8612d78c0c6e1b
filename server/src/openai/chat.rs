//! `POST /v1/chat/completions`

use std::time::Instant;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use dfastllm_engine::{Task, Usage};
use dfastllm_models::{ChatTemplate, SpecialTokens, Tokenizer};
use serde_json::{Map, Value};

use super::respond::{Frame, Prepared, respond};
use super::types::{Body, ChatRequest, parse};
use crate::convert::{Endpoint, check_model, convert};
use crate::generation::Choices;
use crate::{ApiError, AppState, ServedModel};

const MAX_MESSAGES: usize = 10_000;

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
    let request: ChatRequest = parse(headers, body)?;
    prepare_request((state, headers), request, Frame::new(Endpoint::Chat, served), arrival).await
}

/// Submits a chat request, whichever API it came through.
pub(crate) async fn prepare_request(
    (state, headers): (&AppState, &HeaderMap),
    request: ChatRequest,
    frame: Frame,
    arrival: Instant,
) -> Result<Prepared, ApiError> {
    let served = state.require_model()?;
    check_model(request.common.model.as_deref(), served)?;
    let prompt = prompt(request.messages, served).await?;
    let (mut params, options) = convert(
        request.common,
        (request.max_completion_tokens, None),
        prompt.len(),
        Endpoint::Chat,
        served,
    )?;
    params.arrival = arrival;
    if params.task != Task::Generate {
        let message = "a likelihood is asked of /v1/completions, whose prompt holds the answer";
        return Err(ApiError::invalid("diffusion.likelihood", message));
    }
    let names = frame.names(headers);
    let choices = Choices::submit((state, served), vec![prompt], &params, &options, names)?;
    let (tokenizer, echoes) = (served.tokenizer.clone(), Vec::new());
    Ok(Prepared { frame, choices, options, tokenizer, echoes, scoring: Usage::default() })
}

/// Renders and tokenises a chat: also for the command line.
pub(crate) fn encode_chat(
    messages: &Value,
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>, String> {
    let text = template.render(messages, None, true).map_err(|e| e.to_string())?;
    // The template writes all special tokens itself.
    tokenizer.encode(&text, SpecialTokens::Skip)
}

/// Token ids of a chat.
pub(crate) async fn prompt(
    given: Option<Vec<Value>>,
    served: &ServedModel,
) -> Result<Vec<u32>, ApiError> {
    let (template, tokenizer) = (template(served)?, served.tokenizer.clone());
    let messages = messages(given)?;
    tokio::task::spawn_blocking(move || encode_chat(&messages, &template, &tokenizer))
        .await
        .unwrap_or_else(|_| Err("rendering failed".to_owned()))
        .map_err(|message| ApiError::invalid("messages", message))
}

/// The model's chat template.
pub(crate) fn template(served: &ServedModel) -> Result<ChatTemplate, ApiError> {
    served.chat.clone().ok_or_else(|| {
        let message = "the model has no chat template; start the server with --chat-template FILE";
        ApiError::invalid("messages", message)
    })
}

/// Checks roles and contents and joins content parts, with nothing between.
pub(crate) fn messages(given: Option<Vec<Value>>) -> Result<Value, ApiError> {
    let given = given.ok_or_else(|| ApiError::invalid("messages", "messages is missing"))?;
    if given.is_empty() || given.len() > MAX_MESSAGES {
        let message = format!("{} messages, expected 1 to {MAX_MESSAGES}", given.len());
        return Err(ApiError::invalid("messages", message));
    }
    given.into_iter().enumerate().map(|(i, m)| message(i, m)).collect::<Result<_, _>>()
}

fn message(index: usize, message: Value) -> Result<Value, ApiError> {
    let refuse = |field: &str, expected: &str| {
        let param = format!("messages[{index}]{field}");
        ApiError::invalid(&param, format!("{param}: expected {expected}"))
    };
    let Value::Object(mut message) = message else { return Err(refuse("", "an object")) };
    let role = match message.get("role").and_then(Value::as_str) {
        // What OpenAI calls developer since 2024 is what templates call system.
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
        _ => return Err(refuse(".role", "system, developer, user, assistant or tool")),
    }
    .to_owned();
    let text = content(&message).ok_or_else(|| {
        refuse(".content", "a string, a list of text parts, or null beside tool_calls")
    })?;
    message.insert("role".to_owned(), role.into());
    message.insert("content".to_owned(), text.into());
    Ok(Value::Object(message))
}

fn content(message: &Map<String, Value>) -> Option<String> {
    match message.get("content") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(parts)) => {
            let text = |part: &Value| match part["type"].as_str() {
                Some("text") => part["text"].as_str().map(str::to_owned),
                _ => None,
            };
            parts.iter().map(text).collect()
        }
        None | Some(Value::Null) if message.get("tool_calls").is_some_and(Value::is_array) => {
            Some(String::new())
        }
        _ => None,
    }
}
