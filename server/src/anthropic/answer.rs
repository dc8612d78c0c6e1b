//! The message object and the events of its stream.

use dfastllm_engine::Usage;
use serde_json::{Value, json};

use super::errors;
use crate::ApiError;
use crate::generation::Update;
use crate::openai::respond::{Prepared, usage};
use crate::translated::{Answered, Dialect, Ending, named_event};

/// Writes messages.
pub(super) struct Writer;

impl Dialect for Writer {
    fn whole(&self, prepared: &Prepared, answered: &Answered) -> Value {
        let mut message = message(prepared, answered.usage);
        message["content"] = json!([{"type": "text", "text": answered.text}]);
        (message["stop_reason"], message["stop_sequence"]) = stop(&answered.ending);
        message
    }

    fn start(&mut self, prepared: &Prepared) -> String {
        // Nothing has been said yet, whatever is done already.
        let usage = Usage { completion_tokens: 0, forwards: 0, ..prepared.usage() };
        let message = message(prepared, usage);
        let block = json!({"type": "text", "text": ""});
        event("message_start", json!({"message": message}))
            + &event("content_block_start", json!({"index": 0, "content_block": block}))
    }

    fn update(&mut self, _: &Prepared, update: &Update) -> String {
        if update.text.is_empty() {
            return String::new();
        }
        let delta = json!({"type": "text_delta", "text": update.text});
        event("content_block_delta", json!({"index": 0, "delta": delta}))
    }

    fn end(&mut self, _: &Prepared, answered: &Answered) -> String {
        let (reason, sequence) = stop(&answered.ending);
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        event("content_block_stop", json!({"index": 0}))
            + &event("message_delta", json!({"delta": delta, "usage": usage_of(answered.usage)}))
            + &event("message_stop", json!({}))
    }

    fn failed(&mut self, _: &Prepared, error: &ApiError) -> String {
        named_event("error", &errors::object(error, error.status()))
    }
}

/// A message that says nothing yet.
fn message(prepared: &Prepared, usage: Usage) -> Value {
    json!({
        "id": prepared.frame.id(),
        "type": "message",
        "role": "assistant",
        "model": prepared.frame.model(),
        "content": [],
        "stop_reason": null,
        "stop_sequence": null,
        "usage": usage_of(usage),
    })
}

fn stop(ending: &Ending) -> (Value, Value) {
    match ending {
        Ending::EndToken => (json!("end_turn"), Value::Null),
        Ending::StopString(stop) => (json!("stop_sequence"), json!(stop)),
        Ending::Length | Ending::Time => (json!("max_tokens"), Value::Null),
    }
}

/// `usage` in this API's names: tokens that were known are not among the input tokens.
fn usage_of(took: Usage) -> Value {
    let ours = usage(took);
    json!({
        "input_tokens": took.prompt_tokens.saturating_sub(took.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": took.cached_tokens,
        "output_tokens": took.completion_tokens,
        "forwards": ours["forwards"],
        "tokens_per_forward": ours["tokens_per_forward"],
        "cache_refreshes": ours["cache_refreshes"],
    })
}

fn event(name: &str, mut data: Value) -> String {
    data["type"] = name.into();
    named_event(name, &data)
}
