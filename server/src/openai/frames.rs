//! Chunks of a stream as text. Most of them hold a few letters and nothing else; those are written
//! without a tree of values in between.

use std::fmt::Write;

use serde_json::{Value, json};

use super::respond::Frame;
use crate::convert::Endpoint;

/// Bytes that a chunk's text is padded to a multiple of.
const PADDED: usize = 32;

/// Writes the chunks of one stream.
#[derive(Debug)]
pub(crate) struct Chunks {
    /// `data: {"id": …, "choices": [`
    head: String,
    endpoint: Endpoint,
    obfuscates: bool,
}

impl Chunks {
    pub(crate) fn new(frame: &Frame, obfuscates: bool) -> Self {
        let empty = frame.object(true, json!([])).to_string();
        let open = empty.strip_suffix("]}").unwrap_or_default();
        Self { head: format!("data: {open}"), endpoint: frame.endpoint(), obfuscates }
    }

    /// A chunk with a choice's new text.
    pub(crate) fn text(&self, out: &mut String, index: usize, text: &str, usage: Option<&Value>) {
        let quoted = serde_json::to_string(text).unwrap_or_default();
        out.push_str(&self.head);
        // Writing to a string does not fail.
        let _ = match self.endpoint {
            Endpoint::Chat => write!(out, r#"{{"index":{index},"delta":{{"content":{quoted}}}"#),
            Endpoint::Completions => write!(out, r#"{{"index":{index},"text":{quoted}"#),
        };
        out.push_str(r#","logprobs":null,"finish_reason":null}"#);
        self.close(out, text.len(), usage);
    }

    /// A chunk with a choice, whatever it holds.
    pub(crate) fn choice(&self, out: &mut String, choice: &Value, usage: Option<&Value>) {
        out.push_str(&self.head);
        let _ = write!(out, "{choice}");
        let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
        self.close(out, text.map_or(0, str::len), usage);
    }

    fn close(&self, out: &mut String, text_len: usize, usage: Option<&Value>) {
        out.push(']');
        if let Some(usage) = usage {
            let _ = write!(out, r#","usage":{usage}"#);
        }
        if self.obfuscates {
            let random = uuid::Uuid::new_v4().simple().to_string();
            let _ = write!(out, r#","obfuscation":"{}""#, &random[..PADDED - text_len % PADDED]);
        }
        out.push_str("}\n\n");
    }
}

/// An event that is no chunk.
pub(crate) fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}
