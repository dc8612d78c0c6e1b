use dfastllm_models::ops::ConfidenceOf;

use crate::RequestError;

/// Most steps or positions of anything; requests are also bounded by the context.
const MAX_STEPS: usize = 1 << 20;

/// How long the canvas is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Canvas {
    /// `max_tokens` open positions from the start.
    Fixed,
}

/// Which open positions compete in a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Region {
    /// All of them.
    Canvas,
    /// Blocks of this many, each finished before the next is begun; the last may be short.
    Blocks(usize),
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
    /// The best one.
    One,
}

impl Quota {
    /// Steps of the rules that have a number of them.
    #[must_use]
    pub fn steps(self) -> Option<usize> {
        match self {
            Self::EvenSplit { steps } | Self::Timesteps { steps, .. } => Some(steps),
            Self::Bernoulli { steps, .. } => Some(steps),
            Self::Threshold(_) | Self::One => None,
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

/// Which keys and values are reused between passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// None: every pass reads the whole canvas, exactly.
    None,
}

/// Whether committed positions may be opened again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revise {
    /// Never.
    None,
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
    /// Revision of committed positions.
    pub revise: Revise,
    /// Early end.
    pub stop: Stop,
    /// Steps without a quota.
    pub idle: IdleSteps,
    /// Classifier-free guidance; 0 is off.
    pub cfg_scale: f64,
}

impl DecodingConfig {
    /// Refuses values and combinations that cannot work, by name.
    ///
    /// # Errors
    /// [`RequestError`] with the field to blame.
    pub fn validate(&self) -> Result<(), RequestError> {
        if let Region::Blocks(size) = self.region
            && (size == 0 || size > MAX_STEPS)
        {
            let message = format!("block_length is {size}, expected 1 to {MAX_STEPS}");
            return Err(RequestError::new("diffusion.block_length", message));
        }
        self.validate_quota()?;
        for (param, value, limit) in [
            ("diffusion.order_temperature", self.order_temperature, 1e6),
            ("diffusion.cfg_scale", self.cfg_scale, 1e3),
        ] {
            if !(0.0..=limit).contains(&value) {
                let message = format!("{param} is {value}, expected 0 to {limit}");
                return Err(RequestError::new(param, message));
            }
        }
        Ok(())
    }

    fn validate_quota(&self) -> Result<(), RequestError> {
        if let Some(steps) = self.quota.steps()
            && !(1..=MAX_STEPS).contains(&steps)
        {
            let message = format!("steps is {steps}, expected 1 to {MAX_STEPS}");
            return Err(RequestError::new("diffusion.steps", message));
        }
        match self.quota {
            Quota::Timesteps { eps, .. } | Quota::Bernoulli { eps, .. }
                if !(eps > 0.0 && eps < 1.0) =>
            {
                let message = format!("eps is {eps}, expected a number between 0 and 1");
                Err(RequestError::new("diffusion.eps", message))
            }
            Quota::Bernoulli { .. } if self.score != Score::Random => {
                let message = "quota bernoulli reveals positions at random; it needs score random";
                Err(RequestError::new("diffusion.score", message))
            }
            Quota::Bernoulli { .. } if self.order_temperature > 0.0 => {
                let message = "quota bernoulli has no order that a temperature could change";
                Err(RequestError::new("diffusion.order_temperature", message))
            }
            Quota::Threshold(threshold) if threshold.is_nan() || threshold < 0.0 => {
                let message = format!("threshold is {threshold}, expected at least 0");
                Err(RequestError::new("diffusion.threshold", message))
            }
            _ => Ok(()),
        }
    }

    /// Blocks on a canvas of `length`.
    #[must_use]
    pub fn blocks(&self, length: usize) -> usize {
        match self.region {
            Region::Canvas => 1,
            Region::Blocks(size) => length.div_ceil(size.max(1)).max(1),
        }
    }
}
