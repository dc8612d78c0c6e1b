//! The knobs and their values.

use dfastllm_models::ops::ConfidenceOf;

/// How long the canvas is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Canvas {
    /// `max_tokens` open positions from the start.
    Fixed,
    /// A block at a time: later blocks appear when the ones before them are done, so the model
    /// never sees how long the answer could become (Fast-dLLM's and LLaDA2's block-wise canvas).
    Grow,
    /// Starts short and grows where the model is unsure (DAEDAL, arXiv 2508.00819).
    Daedal,
}

/// Which open positions compete in a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Region {
    /// All of them.
    Canvas,
    /// Blocks of this many, each finished before the next is begun; the last may be short.
    Blocks(usize),
    /// This many from the first open position on.
    Window(usize),
}

/// What positions are ranked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Score {
    /// Probability of the chosen token (LLaDA's `low_confidence`, Dream's `maskgit_plus`).
    Probability,
    /// Best minus second probability (Dream's `topk_margin`).
    Margin,
    /// Negative entropy (Dream's `entropy`).
    Entropy,
    /// A uniform draw (LLaDA's `random`, Dream's `origin`).
    Random,
    /// The leftmost position first.
    LeftToRight,
}

/// How many positions a pass commits, best first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Quota {
    /// The positions of a block, divided evenly over its share of `steps` (LLaDA).
    EvenSplit {
        /// Passes over the whole canvas.
        steps: usize,
    },
    /// As many as time steps from 1 to `eps` ask for (Dream).
    Timesteps {
        /// Passes over the whole canvas.
        steps: usize,
        /// Last time.
        eps: f64,
    },
    /// Each position with the probability of its time step (Dream's `origin`); ranks by
    /// [`Score::Random`].
    Bernoulli {
        /// Passes over the whole canvas.
        steps: usize,
        /// Last time.
        eps: f64,
    },
    /// Every position at least this confident, and always the best (Fast-dLLM).
    Threshold(f64),
    /// As many as the least confident of them still allows: `(n + 1)(1 - c) < factor` (Fast-dLLM).
    Factor(f64),
    /// As many as keep the entropy shared between them, in nats, within a bound (EB-sampler).
    EntropyBound(f64),
    /// The best of every run of open positions (dInfer).
    Hierarchical {
        /// Confidence from which the best of a run is taken.
        low: f64,
        /// Confidence from which any position is taken.
        high: f64,
    },
    /// Positions whose distribution stands still (KLASS).
    Stable {
        /// Confidence needed.
        threshold: f64,
        /// Largest divergence from the pass before, in nats.
        divergence: f64,
        /// Passes for which it has to stay below.
        passes: usize,
    },
    /// The best one.
    One,
    /// Drafts from left to right, as far as a causal model agrees (adaptive parallel decoding).
    Adaptive {
        /// Share of the diffusion model in what counts as agreement.
        weight: f64,
    },
}

impl Quota {
    /// Steps of the rules that have a number of them.
    #[must_use]
    pub fn steps(self) -> Option<usize> {
        match self {
            Self::EvenSplit { steps }
            | Self::Timesteps { steps, .. }
            | Self::Bernoulli { steps, .. } => Some(steps),
            _ => None,
        }
    }

    /// The value's name in requests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EvenSplit { .. } | Self::Timesteps { .. } => "schedule",
            Self::Bernoulli { .. } => "bernoulli",
            Self::Threshold(_) => "threshold",
            Self::Factor(_) => "factor",
            Self::EntropyBound(_) => "entropy_bound",
            Self::Hierarchical { .. } => "hierarchical",
            Self::Stable { .. } => "stable",
            Self::One => "one",
            Self::Adaptive { .. } => "adaptive",
        }
    }
}

/// How a temperature above 0 enters the choice of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenNoise {
    /// Gumbel noise on the logits in f64 (LLaDA).
    Gumbel,
    /// A draw from the filtered softmax (Dream).
    Categorical,
}

/// Which keys and values are reused between passes. All but [`Cache::None`] are approximations:
/// what is not computed anew was computed for an earlier canvas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// None: every pass reads the whole canvas, exactly.
    None,
    /// What lies before the region (Fast-dLLM's prefix cache).
    Prefix,
    /// What lies outside the region (Fast-dLLM's dual cache).
    Dual,
    /// What lies further from the region than this (dInfer's vicinity refresh).
    Vicinity {
        /// Positions to its left that are computed with it.
        left: usize,
        /// Positions to its right.
        right: usize,
    },
    /// Everything but open positions and those committed by the last pass (dKV-Cache,
    /// arXiv 2505.15781).
    Interval,
}

/// Whether committed positions may be opened again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Revise {
    /// Never.
    None,
    /// When their token's probability has fallen below this, fewer than the pass commits
    /// (dInfer's `remask_threshold`).
    Below(f64),
    /// When, hidden from themselves, they are less probable than this (WINO).
    Wino(f64),
}

/// When a request ends before its canvas is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Never: the published loops fill the canvas.
    Never,
    /// At an end token with nothing open before it: the text is final then.
    EndInSettledPrefix,
}

/// What happens with steps whose quota is known to be 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleSteps {
    /// A pass is run for nothing, as the published loops do.
    Run,
    /// The step is counted without a pass.
    Skip,
}

/// Rows the head is computed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadRows {
    /// All of the pass, as the published loops do.
    Every,
    /// Those whose logits decide something.
    Wanted,
}

/// One value per knob.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodingConfig {
    /// Length of the canvas.
    pub canvas: Canvas,
    /// Positions that compete.
    pub region: Region,
    /// Ranking.
    pub score: Score,
    /// How many are committed.
    pub quota: Quota,
    /// Kind of token noise.
    pub noise: TokenNoise,
    /// What confidence is measured on.
    pub confidence_of: ConfidenceOf,
    /// Randomness of the order: Gumbel noise of this temperature on the scores (Dream's `alg_temp`).
    pub order_temperature: f64,
    /// Reuse of keys and values.
    pub cache: Cache,
    /// Passes after which everything is computed anew, whatever else the cache does.
    pub refresh_every: Option<usize>,
    /// Revision of committed positions.
    pub revise: Revise,
    /// Early end.
    pub stop: Stop,
    /// Steps without a quota.
    pub idle: IdleSteps,
    /// Rows of the head.
    pub heads: HeadRows,
    /// Classifier-free guidance; 0 is off.
    pub cfg_scale: f64,
    /// Whether tokens that earlier passes favoured are raised (CreditDecoding).
    pub credit: bool,
    /// Later steps drafted by the model itself and verified in the same pass; the tokens stay
    /// those of one step a pass (self-speculative decoding, arXiv 2510.04147).
    pub speculate: usize,
}

impl DecodingConfig {
    /// Blocks on a canvas of `length`.
    #[must_use]
    pub fn blocks(&self, length: usize) -> usize {
        match self.region {
            Region::Canvas | Region::Window(_) => 1,
            Region::Blocks(size) => length.div_ceil(size.max(1)).max(1),
        }
    }

    /// Whether passes read or write keys and values in pages.
    #[must_use]
    pub fn needs_pages(&self) -> bool {
        self.cache != Cache::None
            || matches!(self.revise, Revise::Wino(_))
            || matches!(self.quota, Quota::Adaptive { .. })
    }
}
