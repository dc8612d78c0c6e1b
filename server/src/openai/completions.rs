//! `POST /v1/completions`

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use dfastllm_engine::{FinishReason, PenaltyScales, RequestParams, Task, Usage};
use dfastllm_models::{SpecialTokens, Tokenizer};
use serde_json::{Value, json};

use super::echo::{Echo, echoes, likelihoods, text_of};
use super::respond::{Frame, Prepared, named, respond};
use super::types::{Body, CompletionRequest, parse};
use crate::convert::{AnswerOptions, Endpoint, check_model, convert_request};
use crate::generation::{Choices, Scorer};
use crate::metrics::{Outcome, Times};
use crate::openapi::answers::Completion;
use crate::openapi::errors::RunErrors;
use crate::prompting::{Cut, special_tokens};
use crate::{ApiError, AppState};

const MAX_PROMPTS: usize = 1024;

/// Continues texts.
#[utoipa::path(post, path = "/v1/completions", tag = "Generation", operation_id = "completions",
    params(("x-request-id" = Option<String>, Header, description = "A name to cancel it by")),
    request_body = CompletionRequest, responses((status = 200, description = "The texts",
        content((Completion = "application/json"), (Completion = "text/event-stream"))), RunErrors))]
pub(crate) async fn create(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    match prepare(&state, &headers, body).await {
        Ok(Prepare::Run(prepared)) => respond(&state, Ok(*prepared)).await,
        Ok(Prepare::Scored(body, id)) => Ok(named(Json(body).into_response(), id)),
        Err(error) => respond(&state, Err(error)).await,
    }
}

/// A request that generates, or the answer to one that only scored its prompts.
pub(crate) enum Prepare {
    Run(Box<Prepared>),
    Scored(Value, Option<HeaderValue>),
}

async fn prepare(state: &AppState, headers: &HeaderMap, body: Body) -> Result<Prepare, ApiError> {
    let arrival = Instant::now();
    let served = state.require_model()?;
    let request: CompletionRequest = parse(headers, body).await?;
    let frame = Frame::new(Endpoint::Completions, served);
    prepare_request((state, headers), request, frame, arrival).await
}

/// Submits a completion request, whichever API it came through.
pub(crate) async fn prepare_request(
    (state, headers): (&AppState, &HeaderMap),
    request: CompletionRequest,
    frame: Frame,
    arrival: Instant,
) -> Result<Prepare, ApiError> {
    let served = state.require_model()?;
    check_model(request.common.model.as_deref(), served)?;
    let echo = request.echo.unwrap_or(false);
    let special = special_tokens(request.common.add_special_tokens, SpecialTokens::Include);
    let fields = (None, request.suffix);
    // How long an answer is depends on its prompt in chats only.
    let (mut params, options) =
        convert_request(request.common, fields, 0, Endpoint::Completions, state).await?;
    let prompts = prompts(request.prompt, served.tokenizer.clone(), (special, options.cut)).await?;
    params.arrival = arrival;
    let names = frame.names(headers, &options);
    let scorer = Scorer { state, served, names: &names };
    if params.task != Task::Generate {
        refuse_stream(&options, "a likelihood is one number")?;
        refuse_for_answers(&params, &options, "diffusion.likelihood")?;
        let sampling = &params.sampling;
        refuse_given(
            "diffusion.likelihood",
            [
                ("echo", echo),
                ("logprobs", options.logprobs.is_some()),
                ("logit_bias", !sampling.logit_bias.is_empty()),
                ("presence_penalty", sampling.penalties != PenaltyScales::default()),
            ],
        )?;
        let (choices, usage) = likelihoods(&prompts, &params, scorer).await?;
        count_scored(state, &prompts, (usage, arrival));
        let body = frame.scored(choices, usage, &prompts);
        return Ok(Prepare::Scored(body, options.request_id));
    }
    if echo && params.max_tokens == 0 {
        refuse_stream(&options, "an answer of 0 tokens comes at once")?;
        refuse_for_answers(&params, &options, "max_tokens 0")?;
    }
    let (echoes, scoring) = match echo {
        true => echoes(&prompts, &params, options.logprobs.is_some(), scorer).await?,
        false => (Vec::new(), Usage::default()),
    };
    if echo && params.max_tokens == 0 {
        count_scored(state, &prompts, (scoring, arrival));
        let choice = |(index, echo)| echoed_choice(index, echo, &options, &served.tokenizer);
        let choices = echoes.iter().enumerate().map(choice).collect();
        let body = frame.scored(choices, scoring, &prompts);
        return Ok(Prepare::Scored(body, options.request_id));
    }
    let prompts = prompts.into_iter().map(|(_, ids)| ids).collect();
    let choices = Choices::submit((state, served), prompts, &params, &options, names)?;
    let tokenizer = served.tokenizer.clone();
    let prepared = Prepared { frame, choices, options, tokenizer, echoes, scoring, tools: None };
    Ok(Prepare::Run(Box::new(prepared)))
}

/// Refuses what only an answer could honour.
fn refuse_for_answers(
    params: &RequestParams,
    options: &AnswerOptions,
    beside: &str,
) -> Result<(), ApiError> {
    refuse_given(
        beside,
        [
            ("n", options.n > 1),
            ("best_of", options.best_of > 1),
            ("allowed_token_ids", params.sampling.allowed_token_ids.is_some()),
            ("bad_words", !params.sampling.bad_words.is_empty()),
            ("include_stop_str_in_output", options.keeps_stop),
            ("suffix", !params.infill.is_empty()),
            ("stop", !options.stops.is_empty()),
            ("stop_token_ids", !params.stop_token_ids.is_empty()),
            ("min_tokens", params.min_tokens > 0),
            ("ignore_eos", params.ignore_eos),
            ("return_token_ids", options.return_token_ids),
            ("diffusion.trace", options.trace),
            ("response_format", params.structure.is_some()),
        ],
    )
}

fn refuse_given<const N: usize>(beside: &str, given: [(&str, bool); N]) -> Result<(), ApiError> {
    match given.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((param, _)) => {
            let message = format!("{param} does not go with {beside}: there is no answer");
            Err(ApiError::invalid(param, message))
        }
    }
}

/// Counts a request that only scored its prompts, each of them as one.
fn count_scored(
    state: &AppState,
    prompts: &[(String, Vec<u32>)],
    (usage, arrival): (Usage, Instant),
) {
    let times = Times { total: arrival.elapsed(), first_token: None };
    for (index, (_, ids)) in prompts.iter().enumerate() {
        state.metrics().received(ids.len());
        let took = if index == 0 { usage } else { Usage::default() };
        let took = Usage { prompt_tokens: ids.len(), ..took };
        state.metrics().ended(Outcome::Finished(FinishReason::Length), took, times);
    }
}

fn refuse_stream(options: &AnswerOptions, reason: &str) -> Result<(), ApiError> {
    match options.stream {
        true => Err(ApiError::invalid("stream", format!("{reason}; it is not streamed"))),
        false => Ok(()),
    }
}

/// A prompt without an answer.
fn echoed_choice(
    index: usize,
    echo: &Echo,
    options: &AnswerOptions,
    tokenizer: &Tokenizer,
) -> Value {
    let scored = options.logprobs.map(|_| echo.logprobs(&[], options, tokenizer));
    json!({"index": index, "text": echo.text, "logprobs": scored, "finish_reason": "length"})
}

/// Text and token ids of every prompt: a string, a list of strings, token ids, or a list of those.
async fn prompts(
    prompt: Option<Value>,
    tokenizer: Tokenizer,
    (special, cut): (SpecialTokens, Option<Cut>),
) -> Result<Vec<(String, Vec<u32>)>, ApiError> {
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
        let prompt = |(index, given): (usize, &Value)| {
            let mut ids = tokens(given, index, &tokenizer, special)?;
            let len = ids.len();
            if let Some(cut) = cut {
                cut.apply(&mut ids);
            }
            let given = given.as_str().filter(|_| ids.len() == len);
            Ok((text_of(given, &ids, &tokenizer), ids))
        };
        list.iter().enumerate().map(prompt).collect()
    })
    .await
    .unwrap_or_else(|_| {
        let message = "tokenisation failed".to_owned();
        Err(ApiError::Internal { code: "internal_error", message })
    })
}

fn tokens(
    prompt: &Value,
    index: usize,
    tokenizer: &Tokenizer,
    special: SpecialTokens,
) -> Result<Vec<u32>, ApiError> {
    let tokens = match prompt {
        Value::String(text) if text.is_empty() => Vec::new(),
        Value::String(text) => tokenizer
            .encode(text, special)
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
