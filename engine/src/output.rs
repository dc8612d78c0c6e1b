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
    /// Which of the request's gaps it is in; 0 where there is one.
    pub gap: usize,
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
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, up to and including the end token.
    pub completion_tokens: usize,
    /// Prompt tokens whose keys and values were there already.
    pub cached_tokens: usize,
    /// Forward passes whose logits were used.
    pub forwards: usize,
    /// Passes of the model that verifies.
    pub verifier_forwards: usize,
    /// Passes that computed the whole canvas anew for a cache.
    pub refreshes: usize,
    /// How passes that reused keys and values compare with exact ones, if audited.
    pub audit: Option<Audit>,
}

impl Usage {
    /// Adds what another took.
    pub fn merge(&mut self, other: &Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.cached_tokens += other.cached_tokens;
        self.forwards += other.forwards;
        self.verifier_forwards += other.verifier_forwards;
        self.refreshes += other.refreshes;
        if let Some(audit) = &other.audit {
            self.audit.get_or_insert_default().merge(audit);
        }
    }
}

/// Predictions of passes that reused keys and values beside those of exact passes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Audit {
    /// Predictions compared.
    pub positions: usize,
    /// Those with the same most probable token.
    pub agreeing: usize,
    /// Largest difference of the two probabilities of the chosen tokens.
    pub max_drift: f64,
    /// Sum of those differences.
    pub total_drift: f64,
}

impl Audit {
    pub(crate) fn add(&mut self, agrees: bool, drift: f64) {
        let agreeing = usize::from(agrees);
        self.merge(&Self { positions: 1, agreeing, max_drift: drift, total_drift: drift });
    }

    /// Adds another's predictions.
    pub fn merge(&mut self, other: &Self) {
        self.positions += other.positions;
        self.agreeing += other.agreeing;
        self.max_drift = self.max_drift.max(other.max_drift);
        self.total_drift += other.total_drift;
    }

    /// Share of predictions that agree.
    #[must_use]
    pub fn agreement(&self) -> f64 {
        self.agreeing as f64 / self.positions.max(1) as f64
    }

    /// Mean difference of probabilities.
    #[must_use]
    pub fn mean_drift(&self) -> f64 {
        self.total_drift / self.positions.max(1) as f64
    }
}

/// One forward pass that changed something, or was audited; positions count from the first
/// generated one.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TraceStep {
    /// Number of the pass, from 1.
    pub step: usize,
    /// Position and token.
    pub committed: Vec<(usize, u32)>,
    /// Positions opened again.
    pub remasked: Vec<usize>,
    /// Comparison with the exact pass, if audited.
    pub audit: Option<Audit>,
}

/// What happened to a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// Still open; this is its most probable token.
    Tentative,
    /// It got this token.
    Committed,
    /// It is open again.
    Remasked,
}

/// A changed position, counted from the first generated one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// The position.
    pub position: usize,
    /// Its token, unless it was opened again.
    pub id: Option<u32>,
    /// The token's probability.
    pub confidence: f64,
    /// What happened.
    pub kind: ChangeKind,
}

/// How likely a given text is.
#[derive(Debug, Clone, PartialEq)]
pub enum PromptScores {
    /// Token by token, from the second on: nothing comes before the first.
    Tokens(Vec<SettledToken>),
    /// An estimate for the answer as a whole.
    Likelihood(Likelihood),
}

/// A Monte-Carlo estimate of a bound of the log-likelihood, in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct Likelihood {
    /// The estimate.
    pub total: f64,
    /// Its standard error; NaN of a single sample.
    pub standard_error: f64,
    /// What it is the mean of.
    pub samples: Vec<LikelihoodSample>,
}

/// One subset of masked positions, counted from the answer's first.
#[derive(Debug, Clone, PartialEq)]
pub struct LikelihoodSample {
    /// The positions.
    pub masked: Vec<usize>,
    /// Negative log-probabilities of their tokens.
    pub token_nll: Vec<f64>,
    /// Their sum divided by the masked share of the answer.
    pub loss: f64,
}

/// Turns settled tokens into text deltas and looks for stop strings in them.
#[derive(Debug)]
pub struct TextAssembler {
    stream: TokenStream,
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
    /// The stop string that was met.
    stopped_at: Option<String>,
    /// Whether what ended the text is part of it.
    keeps_stop: bool,
}

impl TextAssembler {
    /// `stops` may be empty; empty stop strings are ignored.
    #[must_use]
    pub fn new(stream: TokenStream, mut stops: Vec<String>) -> Self {
        stops.retain(|s| !s.is_empty());
        Self { stream, stops, held: String::new(), stopped_at: None, keeps_stop: false }
    }

    /// Leaves stop strings, and the texts of tokens that end the sequence, in the text.
    #[must_use]
    pub fn keeping_stop(self, keeps_stop: bool) -> Self {
        Self { keeps_stop, ..self }
    }

    /// Whether a stop string was met: nothing more will be given out.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped_at.is_some()
    }

    /// The stop string that was met, if one was; of several at one place the shortest.
    #[must_use]
    pub fn stopped_at(&self) -> Option<&str> {
        self.stopped_at.as_deref()
    }

    /// The text that became certain with a token.
    pub fn push(&mut self, token: &SettledToken) -> String {
        if self.is_stopped() || (token.is_end && !self.keeps_stop) {
            return String::new();
        }
        let text = self.stream.push(token.id);
        self.release(&text, false)
    }

    /// What was held back, at the end.
    pub fn finish(&mut self) -> String {
        if self.is_stopped() {
            return String::new();
        }
        let text = self.stream.finish();
        self.release(&text, true)
    }

    fn release(&mut self, text: &str, all: bool) -> String {
        self.held.push_str(text);
        // Of two that begin together the shorter was complete first.
        let found =
            |stop: &String| Some((self.held.find(stop.as_str())?, stop.len(), stop.clone()));
        let first = self.stops.iter().filter_map(found).min();
        if let Some((at, len, stop)) = first {
            self.stopped_at = Some(stop);
            self.held.truncate(if self.keeps_stop { at + len } else { at });
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
