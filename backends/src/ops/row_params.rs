//! What can be asked of a row of logits.

use std::sync::Arc;

use super::TokenSet;

/// Order of the two probability filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FilterOrder {
    /// As transformers and vLLM do.
    #[default]
    TopKFirst,
    /// As Dream's `sample_tokens` does.
    TopPFirst,
}

/// Temperature and filters of a draw.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Filters {
    /// Divides the logits; 0 leaves them as they are.
    pub temperature: f64,
    /// Keep this many tokens.
    pub top_k: Option<usize>,
    /// Keep the most probable tokens up to this probability.
    pub top_p: Option<f64>,
    /// Keep tokens at least this probable relative to the best.
    pub min_p: Option<f64>,
    /// Which of top-k and top-p comes first.
    pub order: FilterOrder,
}

impl Filters {
    /// Whether they leave a row as it is.
    #[must_use]
    pub fn is_neutral(&self) -> bool {
        let scaled = self.temperature > 0.0 && self.temperature != 1.0;
        !scaled && self.top_k.is_none() && self.top_p.is_none() && self.min_p.is_none()
    }
}

/// How the token of a row is chosen. Draws are keyed by seed, position and step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// The largest logit, lowest id at a tie.
    Greedy,
    /// The largest `logit / T + Gumbel noise` in f64 among what the filters leave (LLaDA).
    Gumbel {
        /// Key of the request's random numbers.
        seed: u64,
        /// Position in the sequence.
        position: u32,
        /// Step of the reference algorithm.
        step: u32,
    },
    /// This one, whatever the row says.
    Given(u32),
    /// From the softmax of the filtered row.
    Categorical {
        /// Key of the request's random numbers.
        seed: u64,
        /// Position in the sequence.
        position: u32,
        /// Step of the reference algorithm; 0 for autoregressive draws.
        step: u32,
    },
}

/// Which row confidence, entropy and margin are measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConfidenceOf {
    /// The row before temperature and filters (LLaDA).
    #[default]
    Raw,
    /// The row the token was chosen from (Dream).
    Filtered,
}

/// A second row to mix in: `u + (scale + 1) (c - u)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    /// Row of the unconditional logits.
    pub row: usize,
    /// `cfg_scale`.
    pub scale: f32,
}

/// Lowers what the text holds already (OpenAI's penalties, and the repetition penalty of
/// arXiv 1909.05858).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Penalties {
    /// Tokens generated so far and how often, once each.
    pub generated: Vec<(u32, u32)>,
    /// Tokens of prompt and answer, once each.
    pub seen: Vec<u32>,
    /// Subtracted from every generated token.
    pub presence: f32,
    /// Subtracted for every time a token was generated.
    pub frequency: f32,
    /// Divides positive and multiplies negative logits of seen tokens; 1 is none.
    pub repetition: f32,
}

/// Adds `alpha ln(1 + credit)` to the logits, the row's own best token first gaining
/// `p^gamma` (CreditDecoding, arXiv 2510.06133).
#[derive(Debug, Clone, PartialEq)]
pub struct Credit {
    /// Credit of earlier passes, already decayed.
    pub earned: Vec<(u32, f32)>,
    /// Weight of the credit.
    pub alpha: f32,
    /// Exponent of the probability that is earned.
    pub gamma: f32,
}

/// Another model's row to mix in: `weight * other + (1 - weight) * row`, a product of powers of
/// the two distributions, each after its own penalties and bias.
#[derive(Debug, Clone, PartialEq)]
pub struct Mix {
    /// Its natural log-probabilities.
    pub other: Arc<[f32]>,
    /// Its share, above 0.
    pub weight: f32,
}

/// Most probable tokens that a device's kernels list.
const MOST_TOPS: usize = 32;

/// What is wanted of one row.
#[derive(Debug, Clone)]
pub struct RowParams {
    /// Row of the logits.
    pub row: usize,
    /// Classifier-free guidance.
    pub guidance: Option<Guidance>,
    /// Another model's opinion.
    pub mix: Option<Mix>,
    /// Lowers repeated tokens.
    pub penalties: Option<Arc<Penalties>>,
    /// Added to single logits; `-inf` bans a token.
    pub bias: Arc<[(u32, f32)]>,
    /// Tokens that may be chosen; all if not given.
    pub allowed: Option<TokenSet>,
    /// Raises tokens that earlier passes favoured.
    pub credit: Option<Credit>,
    /// Temperature and filters.
    pub filters: Filters,
    /// How to choose the token.
    pub draw: Draw,
    /// What to measure confidence on.
    pub confidence_of: ConfidenceOf,
    /// How many most probable tokens to report.
    pub top_logprobs: usize,
    /// Tokens whose probability is reported together.
    pub mass_of: Arc<[u32]>,
    /// An earlier row of log-probabilities to measure the divergence from.
    pub previous: Option<Arc<[f32]>>,
    /// Whether the row's log-probabilities are wanted.
    pub keep_row: bool,
}

impl RowParams {
    /// The most probable token of a row and its plain softmax probability.
    #[must_use]
    pub fn greedy(row: usize) -> Self {
        Self {
            row,
            guidance: None,
            mix: None,
            penalties: None,
            bias: Arc::new([]),
            allowed: None,
            credit: None,
            filters: Filters::default(),
            draw: Draw::Greedy,
            confidence_of: ConfidenceOf::Raw,
            top_logprobs: 0,
            mass_of: Arc::new([]),
            previous: None,
            keep_row: false,
        }
    }

    /// Whether a device's kernels find everything that is wanted. What they do not: rows that come
    /// from the host or go there whole, credit (a softmax before the row's own), long lists of
    /// probable tokens, and noise without a temperature.
    #[must_use]
    pub fn is_reducible(&self) -> bool {
        let has_rows = self.mix.is_some() || self.previous.is_some() || self.keep_row;
        let is_cold = matches!(self.draw, Draw::Gumbel { .. }) && self.filters.temperature <= 0.0;
        !has_rows && self.credit.is_none() && self.top_logprobs <= MOST_TOPS && !is_cold
    }
}
