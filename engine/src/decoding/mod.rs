//! Decoding as a set of independent knobs, each with one rule per value.
//!
//! Rules are pure over plain data: they see [`Candidate`]s, never a tensor, and know nothing of
//! each other. [`DecodingConfig`] holds one value per knob; `presets.rs` names useful points.

mod config;
mod presets;
mod quota;
mod score;
mod uniforms;

pub use config::{
    Cache, Canvas, DecodingConfig, IdleSteps, Quota, Region, Revise, Score, Stop, TokenNoise,
};
pub use presets::{Preset, preset};
pub use quota::{BlockState, QuotaRule, quota_rule};
pub use score::rank;
pub use uniforms::{Seeded, Uniforms};

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
    /// Rank value: higher is committed earlier. Set by the score rule.
    pub score: f64,
}
