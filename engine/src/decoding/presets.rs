//! Named points in the space of knobs.

use std::str::FromStr;

use dfastllm_models::ReferenceLoop;
use dfastllm_models::ops::ConfidenceOf;

use super::{
    Cache, Canvas, DecodingConfig, HeadRows, IdleSteps, Quota, Region, Revise, Score, Stop,
    TokenNoise,
};

/// Dream's default.
const EPS: f64 = 1e-3;
/// Block length of Fast-dLLM's main results (arXiv 2505.22618, table 1).
const FAST_BLOCK: usize = 32;
/// Bounds in nats, from the curves in BENCHMARKS.md.
const FAST_ENTROPY: f64 = 4.0;
const TURBO_ENTROPY: f64 = 6.0;

/// A named set of decoding knobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// The checkpoint's published loop, step by step.
    Reference,
    /// The same tokens without its wasted passes.
    Exact,
    /// Blocks of 32, as many positions as keep their entropies within 4 nats, dual cache.
    Fast,
    /// The same with 6 nats.
    Turbo,
}

impl Preset {
    /// All of them.
    pub const NAMES: [&'static str; 4] = ["reference", "exact", "fast", "turbo"];
}

impl FromStr for Preset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "reference" => Ok(Self::Reference),
            "exact" => Ok(Self::Exact),
            "fast" => Ok(Self::Fast),
            "turbo" => Ok(Self::Turbo),
            other => {
                let shown: String = other.chars().take(64).collect();
                Err(format!("unknown preset '{shown}', expected {}", Self::NAMES.join(", ")))
            }
        }
    }
}

impl std::fmt::Display for Preset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(Self::NAMES[*self as usize])
    }
}

/// The knobs of a preset for a checkpoint with this published loop and a canvas of `length`.
#[must_use]
pub fn preset(preset: Preset, published: ReferenceLoop, length: usize) -> DecodingConfig {
    let reference = reference(published, length);
    let stop = Stop::EndInSettledPrefix;
    match preset {
        Preset::Reference => reference,
        Preset::Exact => {
            DecodingConfig { stop, idle: IdleSteps::Skip, heads: HeadRows::Wanted, ..reference }
        }
        Preset::Fast => DecodingConfig {
            region: Region::Blocks(FAST_BLOCK),
            score: Score::Probability,
            quota: Quota::EntropyBound(FAST_ENTROPY),
            // Filters can leave one token, whose probability is then 1 however unsure the model is.
            confidence_of: ConfidenceOf::Raw,
            cache: Cache::Dual,
            stop,
            idle: IdleSteps::Skip,
            heads: HeadRows::Wanted,
            ..reference
        },
        Preset::Turbo => DecodingConfig {
            quota: Quota::EntropyBound(TURBO_ENTROPY),
            ..self::preset(Preset::Fast, published, length)
        },
    }
}

fn reference(published: ReferenceLoop, length: usize) -> DecodingConfig {
    let common = DecodingConfig {
        canvas: Canvas::Fixed,
        region: Region::Canvas,
        score: Score::Probability,
        quota: Quota::EvenSplit { steps: length },
        noise: TokenNoise::Gumbel,
        confidence_of: ConfidenceOf::Raw,
        order_temperature: 0.0,
        cache: Cache::None,
        refresh_every: None,
        revise: Revise::None,
        stop: Stop::Never,
        idle: IdleSteps::Run,
        heads: HeadRows::Every,
        cfg_scale: 0.0,
        credit: false,
        speculate: 0,
    };
    match published {
        // `generate` of ML-GSAI/LLaDA: steps = block_length = gen_length, low_confidence.
        ReferenceLoop::EvenSplit => common,
        // `diffusion_generate` of Dream: alg origin, eps 0.001, steps = max_new_tokens.
        ReferenceLoop::Timesteps => DecodingConfig {
            score: Score::Random,
            quota: Quota::Bernoulli { steps: length, eps: EPS },
            noise: TokenNoise::Categorical,
            confidence_of: ConfidenceOf::Filtered,
            ..common
        },
    }
}
