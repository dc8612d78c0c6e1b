//! Answers, whole and streamed, for both generation endpoints.

use std::convert::Infallible;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use dfastllm_engine::{FinishReason, TraceStep, Usage};
use futures_util::stream;
use serde_json::{Value, json};

use crate::app::REQUEST_ID;
use crate::convert::{AnswerOptions, Endpoint};
use crate::generation::{Choices, Update};
use crate::{ApiError, AppState, ServedModel};

/// What stands in every object of one answer.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    endpoint: Endpoint,
    id: String,
    created: u64,
    model: String,
}

impl Frame {
    pub(crate) fn new(endpoint: Endpoint, served: &ServedModel) -> Self {
        let prefix = match endpoint {
            Endpoint::Completions => "cmpl",
            Endpoint::Chat => "chatcmpl",
        };
        let created = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        let id = format!("{prefix}-{}", uuid::Uuid::new_v4().simple());
        Self { endpoint, id, created, model: served.name().to_owned() }
    }

    /// What the request can be cancelled by: the answer's id and the request's own.
    pub(crate) fn names(&self, headers: &HeaderMap) -> Vec<String> {
        let given = headers.get(&REQUEST_ID).and_then(|id| id.to_str().ok());
        std::iter::once(self.id.as_str()).chain(given).map(str::to_owned).collect()
    }

    fn object(&self, streamed: bool, choices: Value) -> Value {
        let object = match (self.endpoint, streamed) {
            (Endpoint::Completions, _) => "text_completion",
            (Endpoint::Chat, false) => "chat.completion",
            (Endpoint::Chat, true) => "chat.completion.chunk",
        };
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }
}

/// A submitted request.
pub(crate) struct Prepared {
    pub(crate) frame: Frame,
    pub(crate) choices: Choices,
    pub(crate) options: AnswerOptions,
}

/// Answers a request, or counts it as refused if it was never submitted.
pub(crate) async fn respond(
    state: &AppState,
    prepared: Result<Prepared, ApiError>,
) -> Result<Response, ApiError> {
    let Prepared { frame, mut choices, options } =
        prepared.inspect_err(|_| state.metrics().refused())?;
    if options.stream {
        // An error before the first event still gets a status of its own.
        let first = next_update(&mut choices).await?;
        return Ok(streamed(frame, choices, options, first));
    }
    let mut answers = vec![Answer::default(); choices.len()];
    while let Some(update) = next_update(&mut choices).await? {
        answers[update.index].add(update);
    }
    for (index, answer) in answers.iter_mut().enumerate() {
        answer.trace = choices.take_trace(index);
    }
    let list: Vec<Value> =
        answers.iter().enumerate().map(|(i, a)| a.choice(i, frame.endpoint, &options)).collect();
    let mut body = frame.object(false, list.into());
    body["usage"] = usage(choices.usage(options.n));
    Ok(Json(body).into_response())
}

async fn next_update(choices: &mut Choices) -> Result<Option<Update>, ApiError> {
    choices.next().await.map_err(|error| {
        choices.fail(&error);
        ApiError::from(error)
    })
}

/// A choice as it comes together.
#[derive(Debug, Clone, Default)]
struct Answer {
    text: String,
    token_ids: Vec<u32>,
    finish: Option<FinishReason>,
    trace: Vec<TraceStep>,
}

impl Answer {
    fn add(&mut self, update: Update) {
        self.text.push_str(&update.text);
        self.token_ids.extend(update.token_ids);
        self.finish = update.finish.or(self.finish);
    }

    fn choice(&self, index: usize, endpoint: Endpoint, options: &AnswerOptions) -> Value {
        let mut choice = json!({"index": index});
        match endpoint {
            Endpoint::Completions => choice["text"] = self.text.as_str().into(),
            Endpoint::Chat => {
                choice["message"] =
                    json!({"role": "assistant", "content": self.text, "refusal": null});
            }
        }
        choice["logprobs"] = Value::Null;
        choice["finish_reason"] = finish_reason(self.finish);
        if options.return_token_ids {
            choice["token_ids"] = json!(self.token_ids);
        }
        if options.trace {
            choice["trace"] = trace(&self.trace);
        }
        choice
    }
}

fn finish_reason(reason: Option<FinishReason>) -> Value {
    match reason {
        Some(FinishReason::Stop) => "stop".into(),
        Some(FinishReason::Length) => "length".into(),
        None => Value::Null,
    }
}

/// `trace`: commits, pass by pass.
pub(crate) fn trace(steps: &[TraceStep]) -> Value {
    steps
        .iter()
        .map(|s| json!({"step": s.step, "committed": s.committed, "remasked": s.remasked}))
        .collect()
}

/// `usage`, with what diffusion adds to it.
pub(crate) fn usage(usage: Usage) -> Value {
    let per_forward = match usage.forwards {
        0 => 0.0,
        forwards => usage.completion_tokens as f64 / forwards as f64,
    };
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "forwards": usage.forwards,
        "tokens_per_forward": per_forward,
        "cache_refreshes": 0,
    })
}

/// Where a stream stands.
enum Stage {
    /// Chat names the role of every choice first.
    Roles(Option<Update>),
    Updates,
    Usage,
    Done,
    Over,
}

struct Streaming {
    frame: Frame,
    choices: Choices,
    options: AnswerOptions,
    stage: Stage,
}

fn streamed(
    frame: Frame,
    choices: Choices,
    options: AnswerOptions,
    first: Option<Update>,
) -> Response {
    let streaming = Streaming { frame, choices, options, stage: Stage::Roles(first) };
    let body = stream::unfold(streaming, |mut streaming| async {
        streaming.next().await.map(|text| (Ok::<_, Infallible>(Bytes::from(text)), streaming))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Body::from_stream(body)).into_response()
}

impl Streaming {
    /// The next events, as text; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            match std::mem::replace(&mut self.stage, Stage::Over) {
                Stage::Roles(first) => {
                    self.stage = Stage::Updates;
                    let text = self.roles() + &first.map(|u| self.chunks(&u)).unwrap_or_default();
                    if !text.is_empty() {
                        return Some(text);
                    }
                }
                Stage::Updates => {
                    let next = self.choices.next().await;
                    match next {
                        Ok(Some(update)) => {
                            self.stage = Stage::Updates;
                            let text = self.chunks(&update);
                            if !text.is_empty() {
                                return Some(text);
                            }
                        }
                        Ok(None) => self.stage = Stage::Usage,
                        Err(error) => {
                            self.choices.fail(&error);
                            self.stage = Stage::Done;
                            return Some(event(&ApiError::from(error).body()));
                        }
                    }
                }
                Stage::Usage => {
                    self.stage = Stage::Done;
                    if self.options.include_usage {
                        let mut chunk = self.frame.object(true, json!([]));
                        chunk["usage"] = usage(self.choices.usage(self.options.n));
                        return Some(event(&chunk));
                    }
                }
                Stage::Done => return Some("data: [DONE]\n\n".to_owned()),
                Stage::Over => return None,
            }
        }
    }

    fn roles(&self) -> String {
        if self.frame.endpoint == Endpoint::Completions {
            return String::new();
        }
        let role = json!({"role": "assistant", "content": ""});
        (0..self.choices.len()).map(|index| self.chunk(index, role.clone(), Value::Null)).collect()
    }

    /// The chunks of an update: one for its text, one for its end.
    fn chunks(&mut self, update: &Update) -> String {
        let mut out = String::new();
        let has_ids = self.options.return_token_ids && !update.token_ids.is_empty();
        if !update.text.is_empty() || has_ids {
            let delta = match self.frame.endpoint {
                Endpoint::Chat => json!({"content": update.text}),
                Endpoint::Completions => json!(update.text),
            };
            let ids = if has_ids { json!(update.token_ids) } else { Value::Null };
            out.push_str(&self.chunk(update.index, delta, ids));
        }
        if let Some(reason) = update.finish {
            let mut choice = self.delta(update.index, Value::Null);
            choice["finish_reason"] = finish_reason(Some(reason));
            if self.options.trace {
                choice["trace"] = trace(&self.choices.take_trace(update.index));
            }
            out.push_str(&self.event_of(choice));
        }
        out
    }

    fn chunk(&self, index: usize, delta: Value, token_ids: Value) -> String {
        let mut choice = self.delta(index, delta);
        if !token_ids.is_null() {
            choice["token_ids"] = token_ids;
        }
        self.event_of(choice)
    }

    fn delta(&self, index: usize, delta: Value) -> Value {
        match self.frame.endpoint {
            Endpoint::Chat => json!({
                "index": index,
                "delta": if delta.is_null() { json!({}) } else { delta },
                "logprobs": null,
                "finish_reason": null,
            }),
            Endpoint::Completions => json!({
                "index": index,
                "text": if delta.is_null() { json!("") } else { delta },
                "logprobs": null,
                "finish_reason": null,
            }),
        }
    }

    fn event_of(&self, choice: Value) -> String {
        let mut chunk = self.frame.object(true, json!([choice]));
        if self.options.continuous_usage {
            chunk["usage"] = usage(self.choices.usage(self.options.n));
        } else if self.options.include_usage {
            chunk["usage"] = Value::Null;
        }
        event(&chunk)
    }
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}
