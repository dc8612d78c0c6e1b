//! The response object and the events of its stream.

use serde_json::{Map, Value, json};

use crate::ApiError;
use crate::convert::Endpoint;
use crate::generation::Update;
use crate::logprobs::{Place, logprobs};
use crate::openai::respond::{Prepared, usage};
use crate::translated::{Answered, Dialect, Ending, named_event};

/// Writes one response.
pub(super) struct Writer {
    /// Fields of the response that repeat the request.
    echo: Map<String, Value>,
    item_id: String,
    /// Number of the next event.
    sequence: u64,
}

impl Writer {
    pub(super) fn new(echo: Map<String, Value>) -> Self {
        let item_id = format!("msg_{}", uuid::Uuid::new_v4().simple());
        Self { echo, item_id, sequence: 0 }
    }

    fn event(&mut self, name: &str, fields: Value) -> String {
        let mut data = json!({"type": name, "sequence_number": self.sequence});
        self.sequence += 1;
        if let (Some(data), Value::Object(fields)) = (data.as_object_mut(), fields) {
            data.extend(fields);
        }
        named_event(name, &data)
    }

    /// An event about the text of the answer.
    fn text_event(&mut self, name: &str, field: (&str, Value), logprobs: Option<Value>) -> String {
        let mut fields = json!({"item_id": self.item_id, "output_index": 0, "content_index": 0});
        fields[field.0] = field.1;
        if let Some(logprobs) = logprobs {
            fields["logprobs"] = logprobs;
        }
        self.event(name, fields)
    }

    fn item(&self, status: &str, content: Value) -> Value {
        json!({
            "id": self.item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        })
    }

    /// The response object; `done` once it has ended.
    fn response(&self, prepared: &Prepared, status: &str, done: Option<(Value, Value)>) -> Value {
        let is_done = done.is_some();
        let (output, usage) = done.unwrap_or((json!([]), Value::Null));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.map_or(0, |time| time.as_secs());
        let incomplete = json!({"reason": "max_output_tokens"});
        let mut response = json!({
            "id": prepared.frame.id(),
            "object": "response",
            "created_at": prepared.frame.created(),
            "completed_at": (is_done && status == "completed").then_some(now),
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": (status == "incomplete").then_some(incomplete),
            "model": prepared.frame.model(),
            "output": output,
            "parallel_tool_calls": false,
            "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null},
            "service_tier": "default",
            "store": false,
            "tool_choice": "none",
            "tools": [],
            "truncation": "disabled",
            "usage": usage,
        });
        if let Some(response) = response.as_object_mut() {
            response.extend(self.echo.clone());
        }
        response
    }

    fn ended(&self, prepared: &Prepared, answered: &Answered) -> Value {
        let status = status(answered);
        let output = json!([self.item(status, json!([part(answered)]))]);
        self.response(prepared, status, Some((output, usage_of(answered))))
    }
}

impl Dialect for Writer {
    fn whole(&self, prepared: &Prepared, answered: &Answered) -> Value {
        self.ended(prepared, answered)
    }

    fn start(&mut self, prepared: &Prepared) -> String {
        let response = self.response(prepared, "in_progress", None);
        let item = self.item("in_progress", json!([]));
        let part = json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []});
        self.event("response.created", json!({"response": response}))
            + &self.event("response.in_progress", json!({"response": response}))
            + &self.event("response.output_item.added", json!({"output_index": 0, "item": item}))
            + &self.text_event("response.content_part.added", ("part", part), None)
    }

    fn update(&mut self, prepared: &Prepared, update: &Update) -> String {
        let found = logprobs(
            &update.tokens,
            Endpoint::Chat,
            (&prepared.options, Place::default()),
            &prepared.tokenizer,
        );
        let list = found.get("content").cloned().unwrap_or_else(|| json!([]));
        if update.text.is_empty() && list.as_array().is_none_or(Vec::is_empty) {
            return String::new();
        }
        let delta = ("delta", json!(update.text));
        self.text_event("response.output_text.delta", delta, Some(list))
    }

    fn end(&mut self, prepared: &Prepared, answered: &Answered) -> String {
        let part = part(answered);
        let item = self.item(status(answered), json!([part]));
        let response = self.ended(prepared, answered);
        let last = match answered.ending {
            Ending::Length | Ending::Time => "response.incomplete",
            Ending::EndToken | Ending::StopString(_) => "response.completed",
        };
        let (text, list) = (("text", json!(answered.text)), Some(part["logprobs"].clone()));
        self.text_event("response.output_text.done", text, list)
            + &self.text_event("response.content_part.done", ("part", part), None)
            + &self.event("response.output_item.done", json!({"output_index": 0, "item": item}))
            + &self.event(last, json!({"response": response}))
    }

    fn failed(&mut self, prepared: &Prepared, error: &ApiError) -> String {
        let mut response = self.response(prepared, "failed", None);
        response["error"] = json!({"code": "server_error", "message": error.message()});
        self.event("response.failed", json!({"response": response}))
    }
}

fn status(answered: &Answered) -> &'static str {
    match answered.ending {
        Ending::Length | Ending::Time => "incomplete",
        Ending::EndToken | Ending::StopString(_) => "completed",
    }
}

/// The text of an answer, with whatever else of ours was asked for.
fn part(answered: &Answered) -> Value {
    let choice = &answered.choice;
    let list = choice["logprobs"].get("content").cloned().unwrap_or_else(|| json!([]));
    let mut part = json!({
        "type": "output_text",
        "text": answered.text,
        "annotations": [],
        "logprobs": list,
    });
    for name in ["token_ids", "gaps", "trace"] {
        if let Some(value) = choice.get(name) {
            part[name] = value.clone();
        }
    }
    if let Some(measured) = choice["logprobs"].get("measured") {
        part["measured"] = measured.clone();
    }
    part
}

/// `usage` in this API's names, with what diffusion adds to it.
fn usage_of(answered: &Answered) -> Value {
    let mut found = usage(answered.usage);
    let cached = answered.usage.cached_tokens;
    let mut object = json!({
        "input_tokens": found["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": found["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": found["total_tokens"],
    });
    if let (Some(object), Some(found)) = (object.as_object_mut(), found.as_object_mut()) {
        found.retain(|name, _| !name.contains("prompt") && !name.contains("completion"));
        object.extend(std::mem::take(found));
    }
    object
}
