//! `POST /v1/chat/completions`

use std::time::Instant;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use dfastllm_engine::{Task, Usage};
use dfastllm_models::{Guide, SpecialTokens};

use super::conversation::{Conversation, messages, template};
use super::respond::{Frame, Prepared, respond};
use super::types::{Body, ChatRequest, parse};
use crate::convert::{Endpoint, check_model, convert_request};
use crate::generation::Choices;
use crate::openapi::answers::{ChatChunk, ChatCompletion};
use crate::openapi::errors::RunErrors;
use crate::prompting::{rendering, special_tokens};
use crate::structured::guide;
use crate::tools::{Tools, tools_of};
use crate::{ApiError, AppState};

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
    let request: ChatRequest = parse(headers, body).await?;
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
    let template = template(served)?;
    let tools = tools_of(
        request.tools.as_ref(),
        request.tool_choice.as_ref(),
        request.parallel_tool_calls.as_ref(),
    )?;
    let messages = messages(request.messages)?;
    let rendering = rendering(
        request.add_generation_prompt,
        request.continue_final_message,
        request.chat_template_kwargs,
    )?;
    // The template writes all special tokens itself.
    let special = special_tokens(request.common.add_special_tokens, SpecialTokens::Skip);
    let conversation =
        Conversation::new(&messages, tools.as_ref(), &template, (rendering, special));
    let mut prompt = conversation.prompt(template, served.tokenizer.clone()).await?;
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
