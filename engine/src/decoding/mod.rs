//! Decoding as a set of independent knobs, each with one rule per value.
//!
//! Rules are pure over plain data: they see [`Candidate`]s, never a tensor, and know nothing of
//! each other. [`DecodingConfig`] holds one value per knob; `presets.rs` names useful points.

mod cache;
mod config;
mod presets;
mod quota;
mod revise;
mod score;
mod uniforms;
mod validate;

pub use cache::{CacheRule, CacheView, Pass, cache_rule};
pub use config::{
    Cache, Canvas, DecodingConfig, HeadRows, IdleSteps, Quota, Region, Revise, Score, Stop,
    TokenNoise,
};
pub use presets::{Preset, preset};
pub use quota::{BlockState, QuotaRule, quota_rule};
pub(crate) use revise::{Doubt, Reviser};
pub use score::rank;
pub use uniforms::{Seeded, Uniforms};

/// Rules that replace those of the configuration, to replay what another program did.
pub struct Rules {
    /// Which positions a pass commits.
    pub quota: Box<dyn QuotaRule>,
    /// Which rows it computes.
    pub cache: Box<dyn CacheRule>,
}

impl std::fmt::Debug for Rules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rules")
    }
}

/// What rules know of an open position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Position, counted from the first generated one.
    pub position: usize,
    /// The token it would get.
    pub id: u32,
    /// Probability of that token.
    pub confidence: f64,
    /// Entropy of the row in nats.
    pub entropy: f64,
    /// Best minus second probability.
    pub margin: f64,
    /// Divergence of the row from that of the pass before, in nats, where a rule asks for it.
    pub divergence: Option<f64>,
    /// Rank value: higher is committed earlier. Set by the score rule.
    pub score: f64,
}
