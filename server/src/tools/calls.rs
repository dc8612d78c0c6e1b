//! Calls in an answer's text, as it comes.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{CLOSE, OPEN};

/// What a piece of text adds to a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Delta {
    /// Text that is no call.
    Content(String),
    /// A call begins.
    Call {
        /// Which of the message's calls, from 0.
        index: usize,
        /// What its result will name.
        id: String,
        /// The function.
        name: String,
    },
    /// More of a call's arguments, as text.
    Arguments {
        /// Which of the message's calls.
        index: usize,
        /// What comes next of the text.
        text: String,
    },
}

impl Delta {
    /// As it stands in a chunk's `delta`.
    pub(crate) fn to_json(&self) -> Value {
        let call = match self {
            Self::Content(text) => return json!({"content": text}),
            Self::Call { index, id, name } => json!({"index": index, "id": id, "type": "function",
                "function": {"name": name, "arguments": ""}}),
            Self::Arguments { index, text } => {
                json!({"index": index, "function": {"arguments": text}})
            }
        };
        json!({"tool_calls": [call]})
    }
}

/// A whole message's content and calls, of everything that was said about it.
pub(crate) fn message(deltas: &[Delta]) -> (Option<String>, Vec<Value>) {
    let mut content = String::new();
    let mut calls: Vec<(&str, &str, String)> = Vec::new();
    for delta in deltas {
        match delta {
            Delta::Content(text) => content.push_str(text),
            Delta::Call { id, name, .. } => calls.push((id, name, String::new())),
            Delta::Arguments { index, text } => {
                if let Some((_, _, arguments)) = calls.get_mut(*index) {
                    arguments.push_str(text);
                }
            }
        }
    }
    let call = |(id, name, arguments): (&str, &str, String)| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    let calls: Vec<Value> = calls.into_iter().map(call).collect();
    // OpenAI's content is null beside calls, and a text, be it empty, without.
    let content = Some(content).filter(|text| !text.is_empty() || calls.is_empty());
    (content, calls)
}

/// Splits an answer into content and calls.
///
/// Where calls are forced they are well-formed, and their arguments are told as they come. Where
/// the model decides, a call is told when it is whole; what turns out to be none is content.
#[derive(Debug, Clone)]
pub(crate) struct CallParser {
    names: Vec<String>,
    /// Whether there may be several calls.
    many: bool,
    forced: bool,
    /// Text that is not settled yet.
    pending: String,
    /// Bytes of `pending` in which no call ends.
    searched: usize,
    /// Whether `pending` begins with an opening mark.
    inside: bool,
    /// Of a forced call: bytes of `pending` that were told, once its arguments began.
    told: Option<Told>,
    calls: usize,
}

/// How far the arguments of a forced call were told.
#[derive(Debug, Clone, Copy)]
struct Told {
    at: usize,
    depth: usize,
    in_text: bool,
    escaped: bool,
    done: bool,
}

impl CallParser {
    pub(super) fn new(names: Vec<String>, many: bool, forced: bool) -> Self {
        let pending = String::new();
        Self { names, many, forced, pending, searched: 0, inside: false, told: None, calls: 0 }
    }

    /// What the next piece of text settles.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Delta> {
        if !self.is_done() {
            self.pending.push_str(text);
        }
        let mut deltas = Vec::new();
        while self.step(&mut deltas) {}
        deltas
    }

    /// What the end of the answer settles: an open call that is whole but for its mark is one,
    /// anything else is content. Arguments of a forced call stay as far as they came.
    pub(crate) fn finish(&mut self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        if self.inside && self.told.is_none() {
            let body = self.pending[OPEN.len()..].to_owned();
            // The mark may have been cut within.
            let cut = partial(&body, CLOSE);
            let call = self.read(&body[..body.len() - cut]);
            if let Some((name, arguments)) = call {
                self.call(name, arguments, &mut deltas);
                self.pending.clear();
            }
        }
        let rest = std::mem::take(&mut self.pending);
        let blank = self.calls > 0 && rest.trim().is_empty();
        // Part of a forced call, or of its mark, is no content either.
        if !(blank || self.is_done() || self.forced) {
            content(rest, &mut deltas);
        }
        deltas
    }

    /// Whether no further call is wanted: what follows is dropped.
    pub(crate) fn is_done(&self) -> bool {
        !self.many && self.calls > 0 && !self.inside
    }

    /// How the answer ended: with calls, if it did not end early and has some.
    pub(crate) fn finish_reason<'a>(&self, reason: &'a str) -> &'a str {
        if reason == "stop" && self.calls > 0 && !self.inside { "tool_calls" } else { reason }
    }

    /// Settles one thing; false when more text is needed.
    fn step(&mut self, deltas: &mut Vec<Delta>) -> bool {
        if self.is_done() {
            self.pending.clear();
            return false;
        }
        match (self.inside, self.forced) {
            (false, _) => self.outside(deltas),
            (true, false) => self.whole_call(deltas),
            (true, true) => self.forced_call(deltas),
        }
    }

    /// Tells text up to a mark, or to what may become one. Blanks before a mark belong to it.
    fn outside(&mut self, deltas: &mut Vec<Delta>) -> bool {
        let (end, opens) = match self.pending.find(OPEN) {
            Some(at) => (at, true),
            None => (self.pending.len() - partial(&self.pending, OPEN), false),
        };
        let settled = self.pending[..end].trim_end().len();
        let told: String = self.pending.drain(..settled).collect();
        if opens {
            self.pending.drain(..end - settled);
            self.inside = true;
        }
        content(told, deltas);
        opens
    }

    /// A call of a model that decides, once it is whole.
    fn whole_call(&mut self, deltas: &mut Vec<Delta>) -> bool {
        let from = self.pending.floor_char_boundary(self.searched.max(OPEN.len()));
        let Some(end) = self.pending[from..].find(CLOSE).map(|at| from + at) else {
            self.searched = self.pending.len().saturating_sub(CLOSE.len());
            return false;
        };
        let body = self.pending[OPEN.len()..end].to_owned();
        if ends_in_text(&body) {
            // The mark stands within a text of the call.
            self.searched = end + 1;
            return true;
        }
        self.searched = 0;
        let call = self.read(&body);
        let text: String = self.pending.drain(..end + CLOSE.len()).collect();
        self.inside = false;
        match call {
            Some((name, arguments)) => self.call(name, arguments, deltas),
            None => content(text, deltas),
        }
        true
    }

    /// A call that is known to be one, as far as it came.
    fn forced_call(&mut self, deltas: &mut Vec<Delta>) -> bool {
        let Some(mut told) = self.told.or_else(|| self.begin(deltas)) else { return false };
        let index = self.calls - 1;
        let rest = &self.pending[told.at..];
        let length = if told.done { 0 } else { told.take(rest) };
        if length > 0 {
            let text = rest[..length].to_owned();
            deltas.push(Delta::Arguments { index, text });
            told.at += length;
        }
        self.told = Some(told);
        let end = self.pending[told.at..].find(CLOSE).filter(|_| told.done);
        let Some(end) = end else { return false };
        self.pending.drain(..told.at + end + CLOSE.len());
        (self.inside, self.told) = (false, None);
        true
    }

    /// Tells the name, once the arguments begin: `{"name": "…", "arguments": `, with or without
    /// blanks.
    fn begin(&mut self, deltas: &mut Vec<Delta>) -> Option<Told> {
        let key = "\"arguments\":";
        // Names of functions need no escapes and hold no quotes.
        let at = self.pending.find(key)? + key.len();
        let arguments = at + self.pending[at..].find(|c: char| !c.is_whitespace())?;
        let head = self.pending[OPEN.len()..at - key.len()].trim().trim_end_matches(',');
        let head: Value = serde_json::from_str(&format!("{head}}}")).ok()?;
        let name = head["name"].as_str()?.to_owned();
        deltas.push(Delta::Call { index: self.calls, id: id(), name });
        self.calls += 1;
        Some(Told { at: arguments, depth: 0, in_text: false, escaped: false, done: false })
    }

    fn call(&mut self, name: String, arguments: String, deltas: &mut Vec<Delta>) {
        let index = self.calls;
        self.calls += 1;
        self.inside = false;
        deltas.push(Delta::Call { index, id: id(), name });
        deltas.push(Delta::Arguments { index, text: arguments });
    }

    /// Name and arguments, if it is a call of one of the tools.
    fn read(&self, body: &str) -> Option<(String, String)> {
        let call: Map<String, Value> = serde_json::from_str(body).ok()?;
        let name = call.get("name")?.as_str()?;
        if !self.names.iter().any(|known| known == name) {
            return None;
        }
        let arguments = match call.get("arguments") {
            None | Some(Value::Null) => "{}".to_owned(),
            Some(arguments @ Value::Object(_)) => arguments.to_string(),
            // Some models write the text of the arguments, as the API has them.
            Some(Value::String(text)) => {
                serde_json::from_str::<Map<String, Value>>(text).ok().map(|_| text.clone())?
            }
            Some(_) => return None,
        };
        Some((name.to_owned(), arguments))
    }
}

impl Told {
    /// How many bytes of a text still belong to the arguments, an object.
    fn take(&mut self, text: &str) -> usize {
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_text => self.escaped = true,
                b'"' => self.in_text = !self.in_text,
                _ if self.in_text => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        self.done = true;
                        return at + 1;
                    }
                }
                _ => {}
            }
        }
        text.len()
    }
}

/// Whether JSON breaks off within a text.
fn ends_in_text(json: &str) -> bool {
    let mut place = Told { at: 0, depth: 0, in_text: false, escaped: false, done: false };
    place.take(json);
    place.in_text
}

fn content(text: String, deltas: &mut Vec<Delta>) {
    if !text.is_empty() {
        deltas.push(Delta::Content(text));
    }
}

/// How many bytes at the end of a text may be the beginning of a mark.
fn partial(text: &str, mark: &str) -> usize {
    let fits = |length: &usize| text.ends_with(&mark[..*length]);
    (1..mark.len()).rev().find(fits).unwrap_or(0)
}

fn id() -> String {
    format!("call_{}", Uuid::new_v4().simple())
}
