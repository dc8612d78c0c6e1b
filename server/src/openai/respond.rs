//! Answers for both generation endpoints; `streaming.rs` has the streamed ones.

use axum::Json;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use dfastllm_engine::{Audit, FinishReason, SettledToken, TraceStep, Usage};
use dfastllm_models::Tokenizer;
use serde_json::{Value, json};

use super::echo::Echo;
use super::streaming::streamed;
use crate::app::REQUEST_ID;
use crate::convert::{AnswerOptions, Endpoint};
use crate::generation::{Choices, Update};
use crate::logprobs::{Place, logprobs};
use crate::tools::{self, Tools};
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
    pub(crate) fn names(&self, headers: &HeaderMap, options: &AnswerOptions) -> Vec<String> {
        let given = [headers.get(&REQUEST_ID), options.request_id.as_ref()];
        let given = given.into_iter().flatten().filter_map(|id| id.to_str().ok());
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

    pub(crate) fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    pub(crate) fn object(&self, streamed: bool, choices: Value) -> Value {
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
    /// What the model may call.
    pub(crate) tools: Option<Tools>,
}

impl Prepared {
    /// The prompt in front of a choice.
    pub(crate) fn echo(&self, choice: usize) -> Option<&Echo> {
        self.echoes.get(choice / self.options.best_of.max(1))
    }

    pub(crate) fn usage(&self) -> Usage {
        let mut usage = self.choices.usage(self.options.best_of);
        usage.merge(&self.scoring);
        usage
    }

    /// `logprobs` of a choice's tokens, after the prompt where that is part of it.
    pub(crate) fn logprobs(&self, choice: usize, tokens: &[SettledToken]) -> Value {
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
        let request_id = prepared.options.request_id.clone();
        return Ok(named(streamed(prepared, first), request_id));
    }
    let mut answers = vec![Answer::default(); prepared.choices.len()];
    while let Some(update) = next_update(&mut prepared.choices).await? {
        answers[update.index].add(update);
    }
    let best = best(&answers, &prepared.options);
    let mut choice = |(index, made): (usize, &usize)| {
        let mut choice = answers[*made].finish(*made, &mut prepared);
        choice["index"] = index.into();
        choice
    };
    let list: Vec<Value> = best.iter().enumerate().map(&mut choice).collect();
    let mut body = prepared.frame.object(false, list.into());
    body["usage"] = usage(prepared.usage());
    Ok(named(Json(body).into_response(), prepared.options.request_id))
}

/// Which choices of each prompt are in the answer: those of the highest mean log-probability, best
/// first, or all.
fn best(answers: &[Answer], options: &AnswerOptions) -> Vec<usize> {
    let all: Vec<usize> = (0..answers.len()).collect();
    if options.best_of == options.n {
        return all;
    }
    let of_prompt = |made: &[usize]| {
        let mut made = made.to_vec();
        made.sort_by(|&a, &b| answers[b].mean_logprob().total_cmp(&answers[a].mean_logprob()));
        made.truncate(options.n);
        made
    };
    all.chunks(options.best_of).flat_map(of_prompt).collect()
}

/// A response under the id that the request's body gives it.
pub(crate) fn named(mut response: Response, request_id: Option<HeaderValue>) -> Response {
    if let Some(id) = request_id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
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

    /// Separates calls from text.
    fn find_calls(&self, tools: &Tools, choice: &mut Value) {
        let mut parser = tools.parser();
        let mut deltas = parser.push(&self.text);
        deltas.extend(parser.finish());
        let (content, calls) = tools::message(&deltas);
        choice["message"]["content"] = content.into();
        if !calls.is_empty() {
            choice["message"]["tool_calls"] = calls.into();
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            choice["finish_reason"] = parser.finish_reason(reason).into();
        }
    }

    fn mean_logprob(&self) -> f64 {
        let sum: f64 = self.tokens.iter().map(|token| token.logprob).sum();
        sum / self.tokens.len().max(1) as f64
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
        choice["finish_reason"] = finish_reason(self.finish);
        if let Some(tools) = &prepared.tools {
            self.find_calls(tools, &mut choice);
        }
        choice["logprobs"] = prepared.logprobs(index, &self.tokens);
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

pub(crate) fn ids(tokens: &[SettledToken]) -> Value {
    tokens.iter().map(|token| token.id).collect::<Vec<u32>>().into()
}

pub(crate) fn finish_reason(reason: Option<FinishReason>) -> Value {
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
