//! `POST /infill`, as llama-server has it: what stands between two texts. Editors ask it.
//!
//! A request becomes a completion request with a `suffix` ([`request`]); its answer is written back
//! in llama-server's shapes ([`answer`]).

mod answer;
mod request;

use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use crate::convert::Endpoint;
use crate::foreign::{Fields, in_words_of};
use crate::openai::completions::{Prepare, prepare_request};
use crate::openai::respond::{Frame, Prepared};
use crate::openai::types::Body;
use crate::openapi::answers::{InfillAnswer, InfillEvent};
use crate::openapi::errors::RunErrors;
use crate::openapi::requests::InfillRequest;
use crate::translated::respond;
use crate::{ApiError, AppState};
use answer::Writer;

/// Our fields, and what they are called here.
const NAMES: [(&str, &str); 4] = [
    ("max_tokens", "n_predict"),
    ("repetition_penalty", "repeat_penalty"),
    ("prompt", "input_prefix"),
    ("suffix", "input_suffix"),
];

/// The text of the gap.
#[utoipa::path(post, path = "/infill", tag = "Other APIs", operation_id = "infill",
    params(("x-request-id" = Option<String>, Header, description = "A name to cancel it by")),
    request_body = InfillRequest, responses((status = 200, description = "The text of the gap",
        content((InfillAnswer = "application/json"), (InfillEvent = "text/event-stream"))),
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
    if served.limits.mask_id.is_none() {
        let message = "this model writes from left to right; it cannot fill gaps";
        return Err(ApiError::unsupported("input_suffix", message));
    }
    let asked = request::translate(Fields::parse(headers, body).await?, served).await?;
    let frame = Frame::new(Endpoint::Completions, served).with_prefix("infill");
    let prompt = asked.shown.clone();
    let prepared = prepare_request((state, headers), asked.completion, frame, arrival).await;
    let prepared = match prepared.map_err(|error| in_words_of(error, &NAMES))? {
        Prepare::Run(prepared) => *prepared,
        Prepare::Scored(..) => {
            let message = "a gap has no likelihood; ask /v1/completions";
            return Err(ApiError::unsupported("diffusion.likelihood", message));
        }
    };
    let deadline = asked.limit_ms.and_then(|ms| arrival.checked_add(Duration::from_millis(ms)));
    Ok((prepared, Writer::new((arrival, deadline), prompt, asked.response_fields)))
}
