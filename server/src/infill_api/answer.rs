//! llama-server's answer object and its stream.

use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::ApiError;
use crate::generation::Update;
use crate::openai::respond::{Prepared, usage};
use crate::translated::{Answered, Dialect, Ending};

/// Writes one answer.
pub(super) struct Writer {
    arrival: Instant,
    deadline: Option<Instant>,
    /// The text before the gap.
    prompt: String,
    /// Parts of the whole answer that are wanted, if not all.
    response_fields: Option<Vec<String>>,
}

impl Writer {
    pub(super) fn new(
        (arrival, deadline): (Instant, Option<Instant>),
        prompt: String,
        response_fields: Option<Vec<String>>,
    ) -> Self {
        Self { arrival, deadline, prompt, response_fields }
    }

    /// The answer; in streams the text has been said before.
    fn object(&self, prepared: &Prepared, answered: &Answered, text: &str) -> Value {
        let (stop_type, word) = match &answered.ending {
            Ending::EndToken => ("eos", ""),
            Ending::StopString(word) => ("word", word.as_str()),
            Ending::Length | Ending::Time => ("limit", ""),
        };
        let took = answered.usage;
        let ms = self.arrival.elapsed().as_secs_f64() * 1000.0;
        let mut object = json!({
            "index": 0,
            "content": text,
            "tokens": answered.choice.get("token_ids").cloned().unwrap_or_else(|| json!([])),
            "id_slot": -1,
            "stop": true,
            "model": prepared.frame.model(),
            "tokens_predicted": took.completion_tokens,
            "tokens_evaluated": took.prompt_tokens,
            "tokens_cached": took.cached_tokens,
            "prompt": self.prompt,
            "has_new_line": answered.text.contains('\n'),
            "truncated": false,
            "stop_type": stop_type,
            "stopping_word": word,
            "timings": {
                "prompt_n": took.prompt_tokens,
                "predicted_n": took.completion_tokens,
                "predicted_ms": ms,
                "predicted_per_token_ms": ms / took.completion_tokens.max(1) as f64,
                "predicted_per_second": took.completion_tokens as f64 / ms.max(1e-3) * 1000.0,
            },
        });
        object["usage"] = usage(took);
        object
    }

    /// The wanted parts, `a/b` for `b` in `a`; names of nothing are left out.
    fn chosen(&self, object: Value) -> Value {
        let Some(names) = &self.response_fields else { return object };
        let mut chosen = Map::new();
        for name in names {
            let path = format!("/{}", name.trim_matches('/'));
            if let Some(value) = object.pointer(&path) {
                chosen.insert(name.clone(), value.clone());
            }
        }
        Value::Object(chosen)
    }
}

impl Dialect for Writer {
    fn whole(&self, prepared: &Prepared, answered: &Answered) -> Value {
        self.chosen(self.object(prepared, answered, &answered.text))
    }

    fn start(&mut self, _: &Prepared) -> String {
        String::new()
    }

    fn update(&mut self, prepared: &Prepared, update: &Update) -> String {
        let wants_ids = prepared.options.return_token_ids;
        if update.text.is_empty() && (!wants_ids || update.tokens.is_empty()) {
            return String::new();
        }
        let ids: Vec<u32> =
            update.tokens.iter().map(|token| token.id).filter(|_| wants_ids).collect();
        let usage = prepared.usage();
        event(&json!({
            "index": 0,
            "content": update.text,
            "tokens": ids,
            "stop": false,
            "id_slot": -1,
            "tokens_predicted": usage.completion_tokens,
            "tokens_evaluated": usage.prompt_tokens,
        }))
    }

    fn end(&mut self, prepared: &Prepared, answered: &Answered) -> String {
        let mut object = self.object(prepared, answered, "");
        object["tokens"] = json!([]);
        event(&self.chosen(object))
    }

    fn failed(&mut self, _: &Prepared, error: &ApiError) -> String {
        event(&error.body())
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}
