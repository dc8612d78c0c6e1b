//! Settled tokens to text: characters and stop strings are never split.

use dfastllm_models::TokenStream;

/// A token that will not change any more.
#[derive(Debug, Clone, PartialEq)]
pub struct SettledToken {
    /// Its id.
    pub id: u32,
    /// Its natural log-probability: of the model's row before temperature, filters and bias, at
    /// the pass that committed it.
    pub logprob: f64,
    /// The most probable tokens of that row, if asked for.
    pub top: Vec<(u32, f64)>,
    /// Whether it ended the sequence; such a token has no text.
    pub is_end: bool,
}

/// Why a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// At an end token or stop string.
    Stop,
    /// At its length.
    Length,
}

/// What a request took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, up to and including the end token.
    pub completion_tokens: usize,
    /// Prompt tokens whose keys and values were there already.
    pub cached_tokens: usize,
    /// Forward passes whose logits were used.
    pub forwards: usize,
}

/// One forward pass that changed something; positions count from the first generated one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceStep {
    /// Number of the pass, from 1.
    pub step: usize,
    /// Position and token.
    pub committed: Vec<(usize, u32)>,
    /// Positions opened again.
    pub remasked: Vec<usize>,
}

/// Turns settled tokens into text deltas and looks for stop strings in them.
#[derive(Debug)]
pub struct TextAssembler {
    stream: TokenStream,
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl TextAssembler {
    /// `stops` may be empty; empty stop strings are ignored.
    #[must_use]
    pub fn new(stream: TokenStream, mut stops: Vec<String>) -> Self {
        stops.retain(|s| !s.is_empty());
        Self { stream, stops, held: String::new(), stopped: false }
    }

    /// Whether a stop string was met: nothing more will be given out.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The text that became certain with a token.
    pub fn push(&mut self, token: &SettledToken) -> String {
        if self.stopped || token.is_end {
            return String::new();
        }
        let text = self.stream.push(token.id);
        self.release(&text, false)
    }

    /// What was held back, at the end.
    pub fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        let text = self.stream.finish();
        self.release(&text, true)
    }

    fn release(&mut self, text: &str, all: bool) -> String {
        self.held.push_str(text);
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = first {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = if all { 0 } else { self.possible_stop() };
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Bytes at the end that are the beginning of a stop string.
    fn possible_stop(&self) -> usize {
        let longest = |stop: &String| {
            (1..stop.len())
                .rev()
                .find(|&n| stop.is_char_boundary(n) && self.held.ends_with(&stop[..n]))
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}
