//! Answers, whole and streamed, for both generation endpoints.

use std::convert::Infallible;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use dfastllm_engine::{Audit, Change, ChangeKind, FinishReason, SettledToken, TraceStep, Usage};
use dfastllm_models::Tokenizer;
use futures_util::stream::{self, Stream, StreamExt};
use serde_json::{Value, json};

use super::echo::Echo;
use crate::app::REQUEST_ID;
use crate::convert::{AnswerOptions, Endpoint};
use crate::generation::{Choices, Update};
use crate::logprobs::{Place, logprobs, token_text};
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

    /// Another API's answer: its id begins otherwise.
    pub(crate) fn with_prefix(self, prefix: &str) -> Self {
        let id = format!("{prefix}_{}", uuid::Uuid::new_v4().simple());
        Self { id, ..self }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Unix time.
    pub(crate) fn created(&self) -> u64 {
        self.created
    }

    /// The model's name in answers.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// What the request can be cancelled by: the answer's id and the request's own.
    pub(crate) fn names(&self, headers: &HeaderMap) -> Vec<String> {
        let given = headers.get(&REQUEST_ID).and_then(|id| id.to_str().ok());
        std::iter::once(self.id.as_str()).chain(given).map(str::to_owned).collect()
    }

    /// The answer to a request that only scored its prompts.
    pub(crate) fn scored(
        &self,
        choices: Vec<Value>,
        took: Usage,
        prompts: &[(String, Vec<u32>)],
    ) -> Value {
        let mut body = self.object(false, choices.into());
        let prompt_tokens = prompts.iter().map(|(_, ids)| ids.len()).sum();
        body["usage"] = usage(Usage { prompt_tokens, ..took });
        body
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
    pub(crate) tokenizer: Tokenizer,
    /// Prompts that are part of the answer, one for each; none if they are not.
    pub(crate) echoes: Vec<Echo>,
    /// What scoring them took.
    pub(crate) scoring: Usage,
}

impl Prepared {
    /// The prompt in front of a choice.
    fn echo(&self, choice: usize) -> Option<&Echo> {
        self.echoes.get(choice / self.options.n.max(1))
    }

    pub(crate) fn usage(&self) -> Usage {
        let mut usage = self.choices.usage(self.options.n);
        usage.merge(&self.scoring);
        usage
    }

    /// `logprobs` of a choice's tokens, after the prompt where that is part of it.
    fn logprobs(&self, choice: usize, tokens: &[SettledToken]) -> Value {
        match self.echo(choice).filter(|_| self.options.logprobs.is_some()) {
            Some(echo) => echo.logprobs(tokens, &self.options, &self.tokenizer),
            None => logprobs(
                tokens,
                self.frame.endpoint,
                (&self.options, Place::default()),
                &self.tokenizer,
            ),
        }
    }
}

/// Answers a request, or counts it as refused if it was never submitted.
pub(crate) async fn respond(
    state: &AppState,
    prepared: Result<Prepared, ApiError>,
) -> Result<Response, ApiError> {
    let mut prepared = prepared.inspect_err(|_| state.metrics().refused())?;
    if prepared.options.stream {
        // An error before the first event still gets a status of its own.
        let first = next_update(&mut prepared.choices).await?;
        return Ok(streamed(prepared, first));
    }
    let mut answers = vec![Answer::default(); prepared.choices.len()];
    while let Some(update) = next_update(&mut prepared.choices).await? {
        answers[update.index].add(update);
    }
    let list: Vec<Value> =
        answers.iter_mut().enumerate().map(|(i, a)| a.finish(i, &mut prepared)).collect();
    let mut body = prepared.frame.object(false, list.into());
    body["usage"] = usage(prepared.usage());
    Ok(Json(body).into_response())
}

/// What became certain next; an error ends the request.
pub(crate) async fn next_update(choices: &mut Choices) -> Result<Option<Update>, ApiError> {
    choices.next().await.map_err(|error| {
        choices.fail(&error);
        ApiError::from(error)
    })
}

/// A choice as it comes together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) text: String,
    tokens: Vec<SettledToken>,
    pub(crate) finish: Option<FinishReason>,
    trace: Vec<TraceStep>,
    gaps: Vec<String>,
}

impl Answer {
    pub(crate) fn add(&mut self, update: Update) {
        self.text.push_str(&update.text);
        self.tokens.extend(update.tokens);
        self.finish = update.finish.or(self.finish);
    }

    /// The choice object, once the choice has ended.
    pub(crate) fn finish(&mut self, index: usize, prepared: &mut Prepared) -> Value {
        self.trace = prepared.choices.take_trace(index);
        self.gaps = prepared.choices.take_gaps(index);
        self.choice(index, prepared)
    }

    fn choice(&self, index: usize, prepared: &Prepared) -> Value {
        let options = &prepared.options;
        let mut choice = json!({"index": index});
        match prepared.frame.endpoint {
            Endpoint::Completions => {
                let prompt = prepared.echo(index).map_or("", |echo| &echo.text);
                choice["text"] = format!("{prompt}{}", self.text).into();
            }
            Endpoint::Chat => {
                choice["message"] =
                    json!({"role": "assistant", "content": self.text, "refusal": null});
            }
        }
        choice["logprobs"] = prepared.logprobs(index, &self.tokens);
        choice["finish_reason"] = finish_reason(self.finish);
        if options.return_token_ids {
            choice["token_ids"] = ids(&self.tokens);
        }
        if options.gaps {
            choice["gaps"] = json!(self.gaps);
        }
        if options.trace {
            choice["trace"] = trace(&self.trace);
        }
        choice
    }
}

fn ids(tokens: &[SettledToken]) -> Value {
    tokens.iter().map(|token| token.id).collect::<Vec<u32>>().into()
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
        .map(|s| {
            let (step, committed, remasked) = (s.step, &s.committed, &s.remasked);
            let mut entry = json!({"step": step, "committed": committed, "remasked": remasked});
            if let Some(found) = &s.audit {
                entry["audit"] = audit(found);
            }
            entry
        })
        .collect()
}

/// `usage`, with what diffusion adds to it.
pub(crate) fn usage(usage: Usage) -> Value {
    let per_forward = match usage.forwards {
        0 => 0.0,
        forwards => usage.completion_tokens as f64 / forwards as f64,
    };
    let mut object = json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "forwards": usage.forwards,
        "tokens_per_forward": per_forward,
        "cache_refreshes": usage.refreshes,
    });
    if usage.verifier_forwards > 0 {
        object["draft_model_forwards"] = usage.verifier_forwards.into();
    }
    if let Some(found) = &usage.audit {
        object["audit"] = audit(found);
    }
    object
}

/// How predictions from reused keys and values compare with exact ones.
fn audit(audit: &Audit) -> Value {
    json!({
        "positions": audit.positions,
        "agreement": audit.agreement(),
        "mean_drift": audit.mean_drift(),
        "max_drift": audit.max_drift,
    })
}

/// Where a stream stands.
enum Stage {
    /// Chat names the role of every choice first; completions repeat the prompt if asked to.
    Start(Option<Update>),
    Updates,
    Usage,
    Done,
    Over,
}

struct Streaming {
    prepared: Prepared,
    /// What of each choice was sent so far.
    places: Vec<Place>,
    stage: Stage,
}

fn streamed(prepared: Prepared, first: Option<Update>) -> Response {
    let prompt = |choice| prepared.echo(choice).map_or(0, |echo| echo.text.chars().count());
    let place = |choice| Place { chars: prompt(choice), gap: 0 };
    let places = (0..prepared.choices.len()).map(place).collect();
    let streaming = Streaming { prepared, places, stage: Stage::Start(first) };
    event_stream(stream::unfold(streaming, |mut streaming| async {
        streaming.next().await.map(|text| (text, streaming))
    }))
}

/// An answer of server-sent events, each item one or more of them.
pub(crate) fn event_stream(events: impl Stream<Item = String> + Send + 'static) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    let body = events.map(|text| Ok::<_, Infallible>(Bytes::from(text)));
    (headers, Body::from_stream(body)).into_response()
}

impl Streaming {
    /// The next events, as text; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            match std::mem::replace(&mut self.stage, Stage::Over) {
                Stage::Start(first) => {
                    self.stage = Stage::Updates;
                    let text = self.start() + &first.map(|u| self.chunks(&u)).unwrap_or_default();
                    if !text.is_empty() {
                        return Some(text);
                    }
                }
                Stage::Updates => {
                    let next = self.prepared.choices.next().await;
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
                            self.prepared.choices.fail(&error);
                            self.stage = Stage::Done;
                            return Some(event(&ApiError::from(error).body()));
                        }
                    }
                }
                Stage::Usage => {
                    self.stage = Stage::Done;
                    if self.prepared.options.include_usage {
                        let mut chunk = self.prepared.frame.object(true, json!([]));
                        chunk["usage"] = usage(self.prepared.usage());
                        return Some(event(&chunk));
                    }
                }
                Stage::Done => return Some("data: [DONE]\n\n".to_owned()),
                Stage::Over => return None,
            }
        }
    }

    fn start(&self) -> String {
        let role = json!({"role": "assistant", "content": ""});
        let choice = |index| match (self.prepared.frame.endpoint, self.prepared.echo(index)) {
            (Endpoint::Chat, _) => Some(self.delta(index, role.clone())),
            (Endpoint::Completions, Some(echo)) => {
                let mut choice = self.delta(index, json!(echo.text));
                choice["logprobs"] = self.prepared.logprobs(index, &[]);
                Some(choice)
            }
            (Endpoint::Completions, None) => None,
        };
        (0..self.prepared.choices.len()).filter_map(choice).map(|c| self.event_of(c)).collect()
    }

    /// The chunks of an update: one for its text, one for changes of the canvas, one for its end.
    fn chunks(&mut self, update: &Update) -> String {
        let mut out = String::new();
        let options = &self.prepared.options;
        let wants_tokens = options.return_token_ids || options.logprobs.is_some();
        if !update.text.is_empty() || (wants_tokens && !update.tokens.is_empty()) {
            let delta = match self.prepared.frame.endpoint {
                Endpoint::Chat => json!({"content": update.text}),
                Endpoint::Completions => json!(update.text),
            };
            let mut choice = self.delta(update.index, delta);
            let prepared = &self.prepared;
            choice["logprobs"] = logprobs(
                &update.tokens,
                prepared.frame.endpoint,
                (&prepared.options, self.places[update.index]),
                &prepared.tokenizer,
            );
            if self.prepared.options.return_token_ids {
                choice["token_ids"] = ids(&update.tokens);
            }
            out.push_str(&self.event_of(choice));
        }
        let place = &mut self.places[update.index];
        place.chars += update.text.chars().count();
        place.gap = update.tokens.last().map_or(place.gap, |token| token.gap);
        if !update.changes.is_empty() {
            let mut choice = self.delta(update.index, Value::Null);
            choice["denoising"] = denoising(&update.changes, &self.prepared.tokenizer);
            out.push_str(&self.event_of(choice));
        }
        if let Some(reason) = update.finish {
            let mut choice = self.delta(update.index, Value::Null);
            choice["finish_reason"] = finish_reason(Some(reason));
            if self.prepared.options.trace {
                choice["trace"] = trace(&self.prepared.choices.take_trace(update.index));
            }
            if self.prepared.options.gaps {
                choice["gaps"] = json!(self.prepared.choices.take_gaps(update.index));
            }
            out.push_str(&self.event_of(choice));
        }
        out
    }

    fn delta(&self, index: usize, delta: Value) -> Value {
        match self.prepared.frame.endpoint {
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
        let mut chunk = self.prepared.frame.object(true, json!([choice]));
        if self.prepared.options.continuous_usage {
            chunk["usage"] = usage(self.prepared.usage());
        } else if self.prepared.options.include_usage {
            chunk["usage"] = Value::Null;
        }
        event(&chunk)
    }
}

/// Changed positions: `[position, token id, text, confidence, what happened]`.
fn denoising(changes: &[Change], tokenizer: &Tokenizer) -> Value {
    let entry = |c: &Change| {
        let kind = match c.kind {
            ChangeKind::Tentative => "tentative",
            ChangeKind::Committed => "committed",
            ChangeKind::Remasked => "remasked",
        };
        let text = c.id.map(|id| token_text(id, tokenizer));
        json!([c.position, c.id, text, c.confidence, kind])
    };
    changes.iter().map(entry).collect()
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}
