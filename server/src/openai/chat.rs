//! `POST /v1/chat/completions`

use std::time::Instant;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use dfastllm_engine::{Task, Usage};
use dfastllm_models::{ChatTemplate, Guide, Rendering, SpecialTokens, Tokenizer};
use serde_json::{Map, Value};

use super::respond::{Frame, Prepared, respond};
use super::types::{Body, ChatRequest, parse};
use crate::convert::{Endpoint, check_model, convert_request};
use crate::generation::Choices;
use crate::openapi::answers::{ChatChunk, ChatCompletion};
use crate::openapi::errors::RunErrors;
use crate::prompting::{rendering, special_tokens};
use crate::structured::guide;
use crate::tools::{self, Tools, tools_of};
use crate::{ApiError, AppState};

const MAX_MESSAGES: usize = 10_000;

/// Answers a conversation.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "Generation", operation_id = "chat",
    params(("x-request-id" = Option<String>, Header, description = "A name to cancel it by")),
    request_body = ChatRequest, responses((status = 200, description = "The answers",
        content((ChatCompletion = "application/json"), (ChatChunk = "text/event-stream"))),
        RunErrors))]
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
    check_model(request.common.model.as_deref(), served)?;
    let template = served.chat.clone().ok_or_else(|| {
        let message = "the model has no chat template; start the server with --chat-template FILE";
        ApiError::invalid("messages", message)
    })?;
    let tools = tools_of(
        request.tools.as_ref(),
        request.tool_choice.as_ref(),
        request.parallel_tool_calls.as_ref(),
    )?;
    let messages = messages(request.messages)?;
    let conversation = tools::render(&messages, tools.as_ref(), template.takes_tools());
    let rendering = rendering(
        request.add_generation_prompt,
        request.continue_final_message,
        request.chat_template_kwargs,
    )?;
    // The template writes all special tokens itself.
    let special = special_tokens(request.common.add_special_tokens, SpecialTokens::Skip);
    let how = (rendering, special);
    let mut prompt = prompt(conversation, template, served.tokenizer.clone(), how).await?;
    let (mut params, options) = convert_request(
        request.common,
        (request.max_completion_tokens, None),
        prompt.len(),
        Endpoint::Chat,
        state,
    )
    .await?;
    if let Some(cut) = options.cut {
        cut.apply(&mut prompt);
    }
    params.arrival = arrival;
    if let Some(tools) = &tools {
        params.structure = structure(tools, params.structure.take(), state).await?;
    }
    if params.task != Task::Generate {
        let message = "a likelihood is asked of /v1/completions, whose prompt holds the answer";
        return Err(ApiError::invalid("diffusion.likelihood", message));
    }
    let frame = Frame::new(Endpoint::Chat, served);
    let names = frame.names(headers, &options);
    let choices = Choices::submit((state, served), vec![prompt], &params, &options, names)?;
    let (tokenizer, echoes) = (served.tokenizer.clone(), Vec::new());
    Ok(Prepared { frame, choices, options, tokenizer, echoes, scoring: Usage::default(), tools })
}

/// What an answer has to be that may have to be a call.
async fn structure(
    tools: &Tools,
    format: Option<Guide>,
    state: &AppState,
) -> Result<Option<Guide>, ApiError> {
    if format.is_some() {
        let message = "tools do not go with response_format or structured_outputs: a call has \
                       another form";
        return Err(ApiError::invalid("tools", message));
    }
    match tools.structure() {
        None => Ok(None),
        Some(calls) => guide(calls, state).await?.map(Some).map_err(|e| tools.refusal(&e)),
    }
}

/// Renders and tokenises a chat: also for the command line.
pub(crate) fn encode_chat(
    messages: &Value,
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>, String> {
    let rendering = Rendering { add_generation_prompt: true, ..Rendering::default() };
    let text = template.render_with(messages, None, &rendering).map_err(|e| e.to_string())?;
    tokenizer.encode(&text, SpecialTokens::Skip)
}

async fn prompt(
    (messages, tools): (Value, Option<Value>),
    template: ChatTemplate,
    tokenizer: Tokenizer,
    (rendering, special): (Rendering, SpecialTokens),
) -> Result<Vec<u32>, ApiError> {
    let encode = move || {
        let text = template.render_with(&messages, tools.as_ref(), &rendering);
        tokenizer.encode(&text.map_err(|e| e.to_string())?, special)
    };
    tokio::task::spawn_blocking(encode)
        .await
        .unwrap_or_else(|_| Err("rendering failed".to_owned()))
        .map_err(|message| ApiError::invalid("messages", message))
}

/// Checks roles and contents and joins content parts, with nothing between.
fn messages(given: Option<Vec<Value>>) -> Result<Value, ApiError> {
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
