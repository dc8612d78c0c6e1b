//! Streamed answers: events as they come, in the order clients expect.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use dfastllm_engine::{Change, ChangeKind, EngineError};
use dfastllm_models::Tokenizer;
use futures_util::FutureExt;
use futures_util::stream::{self, Stream, StreamExt};
use serde_json::{Value, json};

use super::frames::{Chunks, event};
use super::respond::{Prepared, finish_reason, ids, trace, usage};
use crate::ApiError;
use crate::convert::Endpoint;
use crate::generation::Update;
use crate::logprobs::{Place, logprobs, token_text};
use crate::tools::{CallParser, Tools};

/// Bytes of events that are sent at once, about.
const FULL: usize = 16 << 10;

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
    chunks: Chunks,
    /// What of each choice was sent so far.
    places: Vec<Place>,
    /// What finds the calls of each choice; none where there are no tools.
    calls: Vec<CallParser>,
    stage: Stage,
}

/// The answer to a submitted request whose first event is there.
pub(crate) fn streamed(prepared: Prepared, first: Option<Update>) -> Response {
    let place = |choice| match prepared.echo(choice) {
        Some(echo) => echo.end(&prepared.options, &prepared.tokenizer),
        None => Place::default(),
    };
    let places = (0..prepared.choices.len()).map(place).collect();
    let parser = prepared.tools.iter().map(Tools::parser).cycle();
    let calls = parser.take(prepared.choices.len()).collect();
    let chunks = Chunks::new(&prepared.frame, prepared.options.obfuscates);
    let streaming = Streaming { prepared, chunks, places, calls, stage: Stage::Start(first) };
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
    /// The next events, as text; `None` at the end. What is ready goes out together.
    async fn next(&mut self) -> Option<String> {
        let mut out = String::new();
        loop {
            match std::mem::replace(&mut self.stage, Stage::Over) {
                Stage::Start(first) => {
                    self.stage = Stage::Updates;
                    self.start(&mut out);
                    if let Some(update) = first {
                        self.add(&update, &mut out);
                    }
                }
                Stage::Updates => {
                    let next = match out.len() {
                        0 => Some(self.prepared.choices.next().await),
                        1..FULL => self.prepared.choices.next().now_or_never(),
                        _ => None,
                    };
                    let Some(next) = next else {
                        self.stage = Stage::Updates;
                        return Some(out);
                    };
                    self.stage = self.take(next, &mut out);
                }
                Stage::Usage => {
                    self.stage = Stage::Done;
                    if self.prepared.options.include_usage {
                        let mut chunk = self.prepared.frame.object(true, json!([]));
                        chunk["usage"] = usage(self.prepared.usage());
                        out.push_str(&event(&chunk));
                    }
                }
                Stage::Done => {
                    out.push_str("data: [DONE]\n\n");
                    return Some(out);
                }
                Stage::Over => return None,
            }
        }
    }

    /// Writes what happened; what comes then.
    fn take(&mut self, next: Result<Option<Update>, EngineError>, out: &mut String) -> Stage {
        match next {
            Ok(Some(update)) => {
                self.add(&update, out);
                Stage::Updates
            }
            Ok(None) => Stage::Usage,
            Err(error) => {
                self.prepared.choices.fail(&error);
                out.push_str(&event(&ApiError::from(error).body()));
                Stage::Done
            }
        }
    }

    fn start(&self, out: &mut String) {
        let role = json!({"role": "assistant", "content": ""});
        let choice = |index| match (self.prepared.frame.endpoint(), self.prepared.echo(index)) {
            (Endpoint::Chat, _) => Some(self.delta(index, role.clone())),
            (Endpoint::Completions, Some(echo)) => {
                let mut choice = self.delta(index, json!(echo.text));
                choice["logprobs"] = self.prepared.logprobs(index, &[]);
                Some(choice)
            }
            (Endpoint::Completions, None) => None,
        };
        for choice in (0..self.prepared.choices.len()).filter_map(choice) {
            self.chunks.choice(out, &choice, self.usage().as_ref());
        }
    }

    /// The chunks of an update: one for its text, one for changes of the canvas, one for its end.
    fn add(&mut self, update: &Update, out: &mut String) {
        let options = &self.prepared.options;
        let tells_tokens = options.return_token_ids || options.logprobs.is_some();
        if tells_tokens && !update.tokens.is_empty() {
            self.add_tokens(update, out);
        } else if !update.text.is_empty() && self.calls.is_empty() {
            self.chunks.text(out, update.index, &update.text, self.usage().as_ref());
        }
        self.add_calls(update, out);
        if !update.changes.is_empty() {
            let mut choice = self.delta(update.index, Value::Null);
            choice["denoising"] = denoising(&update.changes, &self.prepared.tokenizer);
            self.chunks.choice(out, &choice, self.usage().as_ref());
        }
        if let Some(reason) = update.finish {
            let mut choice = self.delta(update.index, Value::Null);
            choice["finish_reason"] = finish_reason(Some(reason));
            if let (Some(calls), Some(reason)) =
                (self.calls.get(update.index), choice["finish_reason"].as_str())
            {
                choice["finish_reason"] = calls.finish_reason(reason).into();
            }
            if self.prepared.options.trace {
                choice["trace"] = trace(&self.prepared.choices.take_trace(update.index));
            }
            if self.prepared.options.gaps {
                choice["gaps"] = json!(self.prepared.choices.take_gaps(update.index));
            }
            self.chunks.choice(out, &choice, self.usage().as_ref());
        }
    }

    /// What new text is where there are tools: content, or part of a call.
    fn add_calls(&mut self, update: &Update, out: &mut String) {
        let Some(calls) = self.calls.get_mut(update.index) else { return };
        let mut deltas = calls.push(&update.text);
        if update.finish.is_some() {
            deltas.extend(calls.finish());
        }
        for delta in deltas {
            let choice = self.delta(update.index, delta.to_json());
            self.chunks.choice(out, &choice, self.usage().as_ref());
        }
    }

    /// New text with what is told of its tokens; where there are tools, the text comes by itself.
    fn add_tokens(&mut self, update: &Update, out: &mut String) {
        let prepared = &self.prepared;
        let delta = match prepared.frame.endpoint() {
            Endpoint::Chat if !self.calls.is_empty() => json!({}),
            Endpoint::Chat => json!({"content": update.text}),
            Endpoint::Completions => json!(update.text),
        };
        let mut choice = self.delta(update.index, delta);
        choice["logprobs"] = logprobs(
            &update.tokens,
            prepared.frame.endpoint(),
            (&prepared.options, self.places[update.index]),
            &prepared.tokenizer,
        );
        if prepared.options.return_token_ids {
            choice["token_ids"] = ids(&update.tokens);
        }
        self.chunks.choice(out, &choice, self.usage().as_ref());
        if prepared.options.logprobs.is_some() {
            let place = &mut self.places[update.index];
            for token in &update.tokens {
                place.pass(token, &prepared.options, &prepared.tokenizer);
            }
        }
    }

    /// `usage` of a chunk before the last.
    fn usage(&self) -> Option<Value> {
        let options = &self.prepared.options;
        match options.continuous_usage {
            true => Some(usage(self.prepared.usage())),
            false => options.include_usage.then_some(Value::Null),
        }
    }

    fn delta(&self, index: usize, delta: Value) -> Value {
        match self.prepared.frame.endpoint() {
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
