//! From fields to knobs: a parameter selects its rule, and two rules at once are refused.

use dfastllm_engine::decoding::{
    Cache, Canvas, DecodingConfig, Preset, Quota, Region, Revise, Score, preset,
};
use dfastllm_models::ReferenceLoop;
use serde_json::Value;

use super::{DiffusionFields, choice, wrong};
use crate::ApiError;

/// Where a knob's value is asked for by name without its parameter.
const BLOCK_LENGTH: usize = 32;
const WINDOW: usize = 16;
const THRESHOLD: f64 = 0.9;
const LOW_THRESHOLD: f64 = 0.4;
const FACTOR: f64 = 1.0;
const ENTROPY_BOUND: f64 = 0.1;
const STABLE_KL: f64 = 0.01;
const STABLE_STEPS: usize = 2;
const DRAFT_WEIGHT: f64 = 0.7;
const VICINITY: usize = 16;
const REFRESH_EVERY: usize = 8;
const REMASK_THRESHOLD: f64 = 0.4;
/// WINO's two thresholds: drafting widely, verifying narrowly.
const WINO_THRESHOLDS: (f64, f64) = (0.6, 0.9);
const EPS: f64 = 1e-3;

/// Parameters, and the quotas each of them belongs to; the first is the one it selects.
const QUOTA_PARAMETERS: [(&str, &[&str]); 9] = [
    ("steps", &["schedule", "bernoulli"]),
    ("eps", &["schedule", "bernoulli"]),
    ("factor", &["factor"]),
    ("entropy_bound", &["entropy_bound"]),
    ("low_threshold", &["hierarchical"]),
    ("stable_kl", &["stable"]),
    ("stable_steps", &["stable"]),
    ("draft_weight", &["adaptive"]),
    ("threshold", &["threshold", "hierarchical", "stable"]),
];

impl DiffusionFields {
    /// The knobs for a canvas of `length`.
    pub(crate) fn config(
        &self,
        default: Preset,
        published: ReferenceLoop,
        length: usize,
    ) -> Result<DecodingConfig, ApiError> {
        let named = match self.text("preset")? {
            Some(name) => {
                name.parse().map_err(|m: String| ApiError::invalid("diffusion.preset", m))?
            }
            None => default,
        };
        let base = preset(named, published, length);
        let revise = self.revise(base.revise)?;
        let quota_name = self.quota_name()?;
        let is_adaptive = quota_name == Some("adaptive");
        let score = self.score(if is_adaptive { Score::LeftToRight } else { base.score })?;
        let canvas = self.canvas(base.canvas)?;
        let cache = self.cache(base.cache, canvas)?;
        let refresh_every = match (self.integer("refresh_every")?, cache) {
            (None, Cache::Interval) => Some(REFRESH_EVERY),
            (given, _) => given,
        };
        let quota = match (quota_name, revise) {
            // WINO takes back what it should not have committed, and so commits early.
            (None, Revise::Wino(_)) => Quota::Threshold(WINO_THRESHOLDS.0),
            (name, _) => self.quota(name, base.quota, (score, published), length)?,
        };
        let config = DecodingConfig {
            canvas,
            region: self.region(base.region, canvas, is_adaptive)?,
            quota,
            score,
            cache,
            refresh_every,
            revise,
            credit: self.flag("credit")?.unwrap_or(base.credit),
            speculate: self.integer("speculate")?.unwrap_or(base.speculate),
            order_temperature: self.number("order_temperature")?.unwrap_or(base.order_temperature),
            cfg_scale: self.number("cfg_scale")?.unwrap_or(base.cfg_scale),
            ..base
        };
        if named == Preset::Reference {
            check_division(&config, length)?;
        }
        Ok(config)
    }

    fn canvas(&self, base: Canvas) -> Result<Canvas, ApiError> {
        match self.text("canvas")? {
            None => Ok(base),
            Some("fixed") => Ok(Canvas::Fixed),
            Some("grow") => Ok(Canvas::Grow),
            Some("daedal") => Ok(Canvas::Daedal),
            Some(other) => Err(choice("canvas", other, "fixed, grow, daedal")),
        }
    }

    fn region(&self, base: Region, canvas: Canvas, adaptive: bool) -> Result<Region, ApiError> {
        let (length, window) = (self.integer("block_length")?, self.integer("window")?);
        if length.is_some() && window.is_some() {
            let message = "block_length selects region blocks, window another one";
            return Err(ApiError::invalid("diffusion.window", message));
        }
        let implied = match (length, window) {
            (Some(_), _) => Some("blocks"),
            (_, Some(_)) => Some("window"),
            _ if adaptive => Some("window"),
            _ if canvas != Canvas::Fixed => Some("blocks"),
            _ => None,
        };
        let named = self.text("region")?;
        if let (Some(named), Some(implied)) = (named, implied)
            && named != implied
        {
            let (param, message) = match (length, window) {
                (Some(_), _) => {
                    ("block_length", format!("region is {named}, which has no block_length"))
                }
                (_, Some(_)) => ("window", format!("region is {named}, which has no window")),
                _ => ("region", format!("region is {named}, expected {implied} here")),
            };
            return Err(ApiError::invalid(&format!("diffusion.{param}"), message));
        }
        match (named.or(implied), base) {
            (None, base) => Ok(base),
            (Some("canvas"), _) => Ok(Region::Canvas),
            (Some("blocks"), Region::Blocks(base)) => Ok(Region::Blocks(length.unwrap_or(base))),
            (Some("blocks"), _) => Ok(Region::Blocks(length.unwrap_or(BLOCK_LENGTH))),
            (Some("window"), _) => Ok(Region::Window(window.unwrap_or(WINDOW))),
            (Some(other), _) => Err(choice("region", other, "canvas, blocks, window")),
        }
    }

    fn score(&self, base: Score) -> Result<Score, ApiError> {
        match self.text("score")? {
            None => Ok(base),
            Some("probability") => Ok(Score::Probability),
            Some("margin") => Ok(Score::Margin),
            Some("entropy") => Ok(Score::Entropy),
            Some("random") => Ok(Score::Random),
            Some("left_to_right") => Ok(Score::LeftToRight),
            Some(other) => {
                Err(choice("score", other, "probability, margin, entropy, random, left_to_right"))
            }
        }
    }

    /// `vicinity` selects its cache. A canvas that moves what it holds keeps the prefix only.
    fn cache(&self, base: Cache, canvas: Canvas) -> Result<Cache, ApiError> {
        let vicinity = self.pair("vicinity")?;
        let named = self.text("cache")?;
        if let (Some(named), true) = (named, vicinity.is_some())
            && named != "vicinity"
        {
            let message = format!("cache is {named}, but vicinity is given");
            return Err(ApiError::invalid("diffusion.vicinity", message));
        }
        match named.or(vicinity.map(|_| "vicinity")) {
            None if canvas == Canvas::Daedal && base == Cache::Dual => Ok(Cache::Prefix),
            None => Ok(base),
            Some("none") => Ok(Cache::None),
            Some("prefix") => Ok(Cache::Prefix),
            Some("dual") => Ok(Cache::Dual),
            Some("vicinity") => {
                let (left, right) = vicinity.unwrap_or((VICINITY, VICINITY));
                Ok(Cache::Vicinity { left, right })
            }
            Some("interval") => Ok(Cache::Interval),
            Some(other) => Err(choice("cache", other, "none, prefix, dual, vicinity, interval")),
        }
    }

    fn revise(&self, base: Revise) -> Result<Revise, ApiError> {
        let below = self.number("remask_threshold")?;
        let verify = self.number("verify_threshold")?;
        let implied = match (below, verify) {
            (Some(_), Some(_)) => {
                let message = "remask_threshold selects remask below, verify_threshold wino";
                return Err(ApiError::invalid("diffusion.verify_threshold", message));
            }
            (Some(_), None) => Some("below"),
            (None, Some(_)) => Some("wino"),
            (None, None) => None,
        };
        let named = self.text("remask")?;
        if let (Some(named), Some(implied)) = (named, implied)
            && named != implied
        {
            let message = format!("remask is {named}, but its parameters are those of {implied}");
            return Err(ApiError::invalid("diffusion.remask", message));
        }
        match named.or(implied) {
            None => Ok(base),
            Some("none") => Ok(Revise::None),
            Some("below") => Ok(Revise::Below(below.unwrap_or(REMASK_THRESHOLD))),
            Some("wino") => Ok(Revise::Wino(verify.unwrap_or(WINO_THRESHOLDS.1))),
            Some(other) => Err(choice("remask", other, "none, below, wino")),
        }
    }

    /// The quota asked for, by name or by its parameters.
    fn quota_name(&self) -> Result<Option<&str>, ApiError> {
        let mut found = self.text("quota")?.map(|name| ("quota", name));
        for (parameter, quotas) in QUOTA_PARAMETERS {
            if !self.has(parameter) {
                continue;
            }
            match found {
                None => found = Some((parameter, quotas[0])),
                Some((_, name)) if quotas.contains(&name) => {}
                Some((by, name)) => {
                    let message = match by {
                        "quota" => format!("quota is {name}, but {parameter} is for {}", quotas[0]),
                        _ => format!(
                            "{by} selects the quota {name}, {parameter} another one: {}",
                            quotas[0]
                        ),
                    };
                    return Err(ApiError::invalid(&format!("diffusion.{parameter}"), message));
                }
            }
        }
        Ok(found.map(|(_, name)| name))
    }

    fn quota(
        &self,
        name: Option<&str>,
        base: Quota,
        (score, published): (Score, ReferenceLoop),
        length: usize,
    ) -> Result<Quota, ApiError> {
        let number = |field, default| Ok::<f64, ApiError>(self.number(field)?.unwrap_or(default));
        let threshold = number("threshold", THRESHOLD)?;
        Ok(match name {
            Some("schedule" | "bernoulli") => {
                return self.schedule(base, (score, published), length);
            }
            Some("threshold") => Quota::Threshold(threshold),
            Some("factor") => Quota::Factor(number("factor", FACTOR)?),
            Some("entropy_bound") => Quota::EntropyBound(number("entropy_bound", ENTROPY_BOUND)?),
            Some("hierarchical") => Quota::Hierarchical {
                low: number("low_threshold", LOW_THRESHOLD)?,
                high: threshold,
            },
            Some("stable") => Quota::Stable {
                threshold,
                divergence: number("stable_kl", STABLE_KL)?,
                passes: self.integer("stable_steps")?.unwrap_or(STABLE_STEPS),
            },
            Some("one") => Quota::One,
            Some("adaptive") => Quota::Adaptive { weight: number("draft_weight", DRAFT_WEIGHT)? },
            Some(other) => {
                let known = "schedule, bernoulli, threshold, factor, entropy_bound, hierarchical, \
                             stable, adaptive, one";
                return Err(choice("quota", other, known));
            }
            // Dream's `alg` other than origin turns its draws into a schedule.
            None => match base {
                Quota::Bernoulli { steps, eps } if score != Score::Random => {
                    Quota::Timesteps { steps, eps }
                }
                other => other,
            },
        })
    }

    /// LLaDA's even split, or Dream's time steps where there is an `eps`.
    fn schedule(
        &self,
        base: Quota,
        (score, published): (Score, ReferenceLoop),
        length: usize,
    ) -> Result<Quota, ApiError> {
        let base_eps = match base {
            Quota::Timesteps { eps, .. } | Quota::Bernoulli { eps, .. } => Some(eps),
            _ => None,
        };
        let steps = self.integer("steps")?.or(base.steps()).unwrap_or(length);
        let eps = self.number("eps")?.or(base_eps);
        let named = self.text("quota")?;
        let is_origin = published == ReferenceLoop::Timesteps && score == Score::Random;
        Ok(match eps {
            _ if named == Some("bernoulli") => Quota::Bernoulli { steps, eps: eps.unwrap_or(EPS) },
            Some(eps) if is_origin && named.is_none() => Quota::Bernoulli { steps, eps },
            Some(eps) => Quota::Timesteps { steps, eps },
            None => Quota::EvenSplit { steps },
        })
    }

    /// Two whole numbers.
    fn pair(&self, field: &str) -> Result<Option<(usize, usize)>, ApiError> {
        let Some(value) = self.0.get(field) else { return Ok(None) };
        let whole = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        match value.as_array().map(Vec::as_slice) {
            Some([left, right]) if whole(left).is_some() => Ok(whole(left).zip(whole(right))),
            _ => Err(wrong(field, value, "[left, right], two whole numbers")),
        }
    }
}

/// The published loops need blocks to divide the canvas and steps to divide among the blocks.
fn check_division(config: &DecodingConfig, length: usize) -> Result<(), ApiError> {
    if let Region::Blocks(size) = config.region
        && size > 0
        && !length.is_multiple_of(size)
    {
        let message = format!(
            "block_length is {size}, which does not divide the generated length {length}; \
             the reference loop needs it to"
        );
        return Err(ApiError::invalid("diffusion.block_length", message));
    }
    let blocks = config.blocks(length);
    match config.quota.steps() {
        Some(steps) if !steps.is_multiple_of(blocks) => {
            let message = format!(
                "steps is {steps}, expected a multiple of the number of blocks ({blocks}) \
                 in the reference loop"
            );
            Err(ApiError::invalid("diffusion.steps", message))
        }
        _ => Ok(()),
    }
}
