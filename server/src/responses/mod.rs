//! `POST /v1/responses`: OpenAI's Responses API for text. Nothing is stored.
//!
//! A request becomes a chat request ([`request`]); its answer is written back in the shapes of this
//! API ([`answer`]).

mod answer;
mod request;

use std::time::Instant;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use crate::convert::Endpoint;
use crate::foreign::{Fields, in_words_of};
use crate::openai::chat::prepare_request;
use crate::openai::respond::{Frame, Prepared};
use crate::openai::types::Body;
use crate::openapi::answers::{ResponseEvent, ResponseObject};
use crate::openapi::errors::RunErrors;
use crate::openapi::requests::ResponsesRequest;
use crate::translated::respond;
use crate::{ApiError, AppState};
use answer::Writer;

/// Our fields, and what they are called here.
const NAMES: [(&str, &str); 7] = [
    ("response_format.json_schema.schema", "text.format.schema"),
    ("response_format.type", "text.format.type"),
    ("max_tokens", "max_output_tokens"),
    ("messages", "input"),
    ("prompt", "input"),
    ("logprobs", "top_logprobs"),
    ("gen_length", "diffusion.gen_length"),
];

/// The answer.
#[utoipa::path(post, path = "/v1/responses", tag = "Other APIs", operation_id = "responses",
    params(("x-request-id" = Option<String>, Header, description = "A name to cancel it by")),
    request_body = ResponsesRequest, responses((status = 200, description = "The answer",
        content((ResponseObject = "application/json"), (ResponseEvent = "text/event-stream"))),
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
    let (chat, echo) = request::translate(Fields::parse(headers, body).await?)?;
    let frame = Frame::new(Endpoint::Chat, served).with_prefix("resp");
    let prepared = prepare_request((state, headers), chat, frame, arrival).await;
    Ok((prepared.map_err(|error| in_words_of(error, &NAMES))?, Writer::new(echo)))
}
