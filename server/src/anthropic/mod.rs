//! `POST /v1/messages` and `POST /v1/messages/count_tokens`: Anthropic's Messages API for text.
//!
//! A request becomes a chat request ([`request`]); its answer is written back in the shapes of this
//! API ([`answer`]), and so are errors below this path ([`errors`]).

mod answer;
mod errors;
mod request;

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::{Value, json};

use crate::convert::{Endpoint, check_model};
use crate::foreign::{Fields, in_words_of};
use crate::openai::chat::prepare_request;
use crate::openai::conversation::{Conversation, messages, template};
use crate::openai::respond::{Frame, Prepared};
use crate::openai::types::Body;
use crate::openapi::answers::{CountedTokens, MessageEvent, MessageObject};
use crate::openapi::errors::{ReadErrors, RunErrors};
use crate::openapi::requests::{CountTokensRequest, MessagesRequest};
use crate::translated::respond;
use crate::{ApiError, AppState, ServedModel};
use answer::Writer;
pub(crate) use errors::ANTHROPIC_ID;
pub(crate) use errors::{error_shape, is_below};

/// Our fields, and what they are called here.
const NAMES: [(&str, &str); 2] = [("stop", "stop_sequences"), ("prompt", "messages")];

/// The answer.
#[utoipa::path(post, path = "/v1/messages", tag = "Other APIs", operation_id = "messages",
    params(("x-request-id" = Option<String>, Header, description = "A name to cancel it by")),
    request_body = MessagesRequest, responses((status = 200, description = "The answer",
        content((MessageObject = "application/json"), (MessageEvent = "text/event-stream"))),
        RunErrors))]
pub(crate) async fn create(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    respond(&state, prepare(&state, &headers, body).await).await
}

async fn prepare(
    state: &AppState,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Prepared, Writer), ApiError> {
    let arrival = Instant::now();
    let served = state.require_model()?;
    let chat = request::translate(Fields::parse(headers, body).await?)?;
    let frame = Frame::new(Endpoint::Chat, served).with_prefix("msg");
    let prepared = prepare_request((state, headers), chat, frame, arrival).await;
    Ok((prepared.map_err(|error| in_words_of(error, &NAMES))?, Writer))
}

/// Tokens of the prompt that a message request would have.
#[utoipa::path(post, path = "/v1/messages/count_tokens", tag = "Other APIs",
    operation_id = "count_tokens", request_body = CountTokensRequest, responses(
        (status = 200, description = "How many tokens the prompt has", body = CountedTokens),
        ReadErrors))]
pub(crate) async fn count_tokens(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let served = state.require_model()?;
    let chat = request::to_count(Fields::parse(&headers, body).await?)?;
    check_model(chat.common.model.as_deref(), served)?;
    let ids = prompt(chat.messages, served).await.map_err(|e| in_words_of(e, &NAMES))?;
    Ok(Json(json!({"input_tokens": ids.len()})))
}

async fn prompt(given: Option<Vec<Value>>, served: &ServedModel) -> Result<Vec<u32>, ApiError> {
    let conversation = Conversation::of(messages(given)?);
    conversation.prompt(template(served)?, served.tokenizer.clone()).await
}
