//! The `diffusion` object of a request, its aliases, and the knobs they set.

use std::str::FromStr;

use dfastllm_engine::decoding::{DecodingConfig, Preset, Quota, Region, Score, preset};
use dfastllm_models::ReferenceLoop;
use serde_json::{Map, Value};

use crate::ApiError;

/// Spellings of the original scripts and of the replaced server, and the field each stands for.
const ALIASES: [(&str, &str); 6] = [
    ("remasking", "score"),
    ("alg", "score"),
    ("alg_temp", "order_temperature"),
    ("confidence_threshold", "threshold"),
    ("parallel_decoding", "parallel_decoding"),
    ("gen_length", "max_tokens"),
];

/// Values of `remasking` and `alg` in our words.
const SCORE_ALIASES: [(&str, &str); 4] = [
    ("low_confidence", "probability"),
    ("maskgit_plus", "probability"),
    ("topk_margin", "margin"),
    ("origin", "random"),
];

/// Fields of the contract that this version does not compute yet; refused, never ignored.
const NOT_YET: [&str; 17] = [
    "factor",
    "entropy_bound",
    "refresh_every",
    "vicinity",
    "window",
    "low_threshold",
    "stable_kl",
    "stable_steps",
    "verify_threshold",
    "credit",
    "remask_threshold",
    "progress",
    "likelihood",
    "cache",
    "remask",
    "canvas",
    "logits_eos_inf",
];

/// Values of those fields that ask for what is done anyway.
const NEUTRAL: [(&str, &str); 3] = [("cache", "none"), ("remask", "none"), ("canvas", "fixed")];

/// Fields that are computed.
const FIELDS: [&str; 11] = [
    "preset",
    "steps",
    "block_length",
    "eps",
    "region",
    "score",
    "quota",
    "threshold",
    "order_temperature",
    "cfg_scale",
    "trace",
];

/// Moves aliases from the top level of a request into its `diffusion` object, under their own
/// names, where [`DiffusionFields::new`] reads them.
pub(crate) fn collect_aliases(
    rest: &mut Map<String, Value>,
    diffusion: &mut Map<String, Value>,
) -> Result<(), ApiError> {
    for (alias, _) in ALIASES {
        let Some(value) = rest.remove(alias).filter(|v| !v.is_null()) else { continue };
        if let Some(inner) = diffusion.insert(alias.to_owned(), value.clone())
            && !inner.is_null()
            && inner != value
        {
            let message = format!("{alias} is {value}, but diffusion.{alias} is {inner}");
            return Err(ApiError::invalid(alias, message));
        }
    }
    Ok(())
}

/// A request's diffusion fields under their own names, `null`s left out.
#[derive(Debug, Default)]
pub(crate) struct DiffusionFields(Map<String, Value>);

impl DiffusionFields {
    /// Resolves aliases and refuses unknown fields.
    pub(crate) fn new(given: Map<String, Value>) -> Result<Self, ApiError> {
        let mut fields = Map::new();
        for (name, value) in given.into_iter().filter(|(_, v)| !v.is_null()) {
            let Some((field, value)) = resolve(&name, value)? else { continue };
            if let Some(other) = fields.insert(field.to_owned(), value.clone())
                && other != value
            {
                let message = format!("{name} says {value}, but {field} is {other}");
                return Err(ApiError::invalid(&format!("diffusion.{field}"), message));
            }
        }
        Ok(Self(fields))
    }

    pub(crate) fn trace(&self) -> Result<bool, ApiError> {
        match self.0.get("trace") {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| wrong("trace", value, "a boolean")),
        }
    }

    /// Generated length, where the alias gives it.
    pub(crate) fn max_tokens(&self) -> Option<&Value> {
        self.0.get("max_tokens")
    }

    /// The knobs for a canvas of `length`.
    pub(crate) fn config(
        &self,
        default: Preset,
        published: ReferenceLoop,
        length: usize,
    ) -> Result<DecodingConfig, ApiError> {
        let named = match self.text("preset")? {
            Some(name) => {
                Preset::from_str(name).map_err(|m| ApiError::invalid("diffusion.preset", m))?
            }
            None => default,
        };
        let base = preset(named, published, length);
        let region = self.region(base.region)?;
        let score = self.score(base.score)?;
        let config = DecodingConfig {
            region,
            quota: self.quota(base.quota, score, published, length)?,
            score,
            order_temperature: self.number("order_temperature")?.unwrap_or(base.order_temperature),
            cfg_scale: self.number("cfg_scale")?.unwrap_or(base.cfg_scale),
            ..base
        };
        if named == Preset::Reference {
            check_division(&config, length)?;
        }
        Ok(config)
    }

    fn region(&self, base: Region) -> Result<Region, ApiError> {
        let length = self.integer("block_length")?;
        match (self.text("region")?, length) {
            (None, None) => Ok(base),
            (None | Some("blocks"), Some(length)) => Ok(Region::Blocks(length)),
            (Some("canvas"), None) => Ok(Region::Canvas),
            (Some("blocks"), None) => match base {
                Region::Blocks(_) => Ok(base),
                Region::Canvas => Ok(Region::Blocks(32)),
            },
            (Some("canvas"), Some(_)) => {
                let message = "region is canvas, which has no block_length";
                Err(ApiError::invalid("diffusion.block_length", message))
            }
            (Some(other), _) => Err(choice("region", other, "canvas, blocks")),
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

    /// A parameter selects its rule; two rules at once are refused.
    fn quota(
        &self,
        base: Quota,
        score: Score,
        published: ReferenceLoop,
        length: usize,
    ) -> Result<Quota, ApiError> {
        let (steps, eps) = (self.integer("steps")?, self.number("eps")?);
        let threshold = self.number("threshold")?;
        let base_eps = match base {
            Quota::Timesteps { eps, .. } | Quota::Bernoulli { eps, .. } => Some(eps),
            _ => None,
        };
        let scheduled = steps.is_some() || eps.is_some();
        let implied = match (scheduled, threshold) {
            (true, Some(_)) => {
                let message = "steps or eps select the quota schedule, threshold another one";
                return Err(ApiError::invalid("diffusion.threshold", message));
            }
            (true, None) => Some("schedule"),
            (false, Some(_)) => Some("threshold"),
            (false, None) => None,
        };
        let named = self.text("quota")?;
        if let (Some(named), Some(implied)) = (named, implied)
            && named != implied
            && !(implied == "schedule" && named == "bernoulli")
        {
            let message = format!("quota is {named}, but its parameters are those of {implied}");
            return Err(ApiError::invalid("diffusion.quota", message));
        }
        let steps = steps.or(base.steps()).unwrap_or(length);
        let origin = published == ReferenceLoop::Timesteps && score == Score::Random;
        match named.or(implied) {
            Some("bernoulli") => {
                Ok(Quota::Bernoulli { steps, eps: eps.or(base_eps).unwrap_or(1e-3) })
            }
            Some("schedule") => Ok(match eps.or(base_eps) {
                Some(eps) if origin && named.is_none() => Quota::Bernoulli { steps, eps },
                Some(eps) => Quota::Timesteps { steps, eps },
                None => Quota::EvenSplit { steps },
            }),
            Some("threshold") => Ok(Quota::Threshold(threshold.unwrap_or(0.9))),
            Some("one") => Ok(Quota::One),
            Some(other) => Err(choice("quota", other, "schedule, bernoulli, threshold, one")),
            // Dream's `alg` other than origin turns its draws into a schedule.
            None => Ok(match base {
                Quota::Bernoulli { steps, eps } if score != Score::Random => {
                    Quota::Timesteps { steps, eps }
                }
                other => other,
            }),
        }
    }

    fn text(&self, field: &str) -> Result<Option<&str>, ApiError> {
        match self.0.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(field, other, "a string")),
        }
    }

    fn number(&self, field: &str) -> Result<Option<f64>, ApiError> {
        match self.0.get(field) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| wrong(field, value, "a number")),
        }
    }

    fn integer(&self, field: &str) -> Result<Option<usize>, ApiError> {
        match self.0.get(field) {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) => Ok(Some(n)),
                None => Err(wrong(field, value, "a positive whole number")),
            },
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

/// The field and value an entry stands for; `None` if it stands for the default.
fn resolve(name: &str, value: Value) -> Result<Option<(&str, Value)>, ApiError> {
    if NOT_YET.contains(&name) {
        if NEUTRAL.iter().any(|(field, neutral)| *field == name && value == *neutral) {
            return Ok(None);
        }
        let message = format!("diffusion.{name} is not available in this version");
        return Err(ApiError::unsupported(&format!("diffusion.{name}"), message));
    }
    if FIELDS.contains(&name) {
        return Ok(Some((name, value)));
    }
    match name {
        "remasking" | "alg" => {
            let text = value.as_str().unwrap_or_default();
            let ours = SCORE_ALIASES.iter().find(|(alias, _)| *alias == text);
            Ok(Some(("score", ours.map_or(value.clone(), |(_, ours)| (*ours).into()))))
        }
        // The replaced server's switch: false asks for one token a pass.
        "parallel_decoding" => match value.as_bool() {
            Some(true) => Ok(None),
            Some(false) => Ok(Some(("quota", "one".into()))),
            None => Err(wrong(name, &value, "a boolean")),
        },
        _ => match ALIASES.iter().find(|(alias, _)| *alias == name) {
            Some((_, field)) => Ok(Some((field, value))),
            None => {
                let shown: String = name.chars().take(64).collect();
                let message = format!("unknown field diffusion.{shown}");
                Err(ApiError::unsupported(&format!("diffusion.{shown}"), message))
            }
        },
    }
}

fn wrong(field: &str, found: &Value, expected: &str) -> ApiError {
    let found: String = found.to_string().chars().take(64).collect();
    let param = format!("diffusion.{field}");
    ApiError::invalid(&param, format!("{param} is {found}, expected {expected}"))
}

fn choice(field: &str, found: &str, expected: &str) -> ApiError {
    let found: String = found.chars().take(64).collect();
    let param = format!("diffusion.{field}");
    ApiError::invalid(&param, format!("{param} is '{found}', expected one of {expected}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(fields: Value, published: ReferenceLoop) -> Result<DecodingConfig, String> {
        let Value::Object(fields) = fields else { panic!("an object") };
        DiffusionFields::new(fields)
            .and_then(|f| f.config(Preset::Fast, published, 64))
            .map_err(|e| e.body()["error"]["message"].as_str().unwrap().to_owned())
    }

    #[test]
    fn parameters_select_their_rules() {
        let llada = |fields| config(fields, ReferenceLoop::EvenSplit).unwrap();
        assert_eq!(llada(json!({})).quota, Quota::Threshold(0.9));
        assert_eq!(llada(json!({"threshold": 0.5})).quota, Quota::Threshold(0.5));
        assert_eq!(llada(json!({"steps": 8})).quota, Quota::EvenSplit { steps: 8 });
        let eps = llada(json!({"eps": 0.01})).quota;
        assert_eq!(eps, Quota::Timesteps { steps: 64, eps: 0.01 });
        assert_eq!(llada(json!({"quota": "one"})).quota, Quota::One);
        assert_eq!(llada(json!({"parallel_decoding": false})).quota, Quota::One);
        assert_eq!(llada(json!({"block_length": 8})).region, Region::Blocks(8));
        assert_eq!(llada(json!({"remasking": "random"})).score, Score::Random);
        assert_eq!(llada(json!({"steps": null, "cache": "none"})).quota, Quota::Threshold(0.9));
    }

    #[test]
    fn dreams_own_spellings_give_its_own_loop() {
        let dream = |fields| config(fields, ReferenceLoop::Timesteps).unwrap();
        let origin = dream(json!({"preset": "reference", "steps": 32}));
        assert_eq!(origin.quota, Quota::Bernoulli { steps: 32, eps: 1e-3 });
        let entropy = dream(json!({"preset": "reference", "alg": "entropy", "alg_temp": 0.5}));
        assert_eq!(entropy.quota, Quota::Timesteps { steps: 64, eps: 1e-3 });
        assert_eq!((entropy.score, entropy.order_temperature), (Score::Entropy, 0.5));
        let plus = dream(json!({"preset": "reference", "alg": "maskgit_plus", "steps": 16}));
        assert_eq!(plus.quota, Quota::Timesteps { steps: 16, eps: 1e-3 });
    }

    #[test]
    fn contradictions_and_unknown_fields_are_refused_by_name() {
        for (fields, want) in [
            (json!({"steps": 8, "threshold": 0.9}), "threshold another one"),
            (json!({"quota": "one", "threshold": 0.9}), "quota is one"),
            (json!({"alg": "entropy", "score": "margin"}), "score is"),
            (json!({"preset": "reference", "block_length": 32, "steps": 7}), "a multiple"),
            (json!({"window": "none"}), "diffusion.window is not available"),
            (json!({"cache": "dual"}), "diffusion.cache is not available"),
            (json!({"factor": 1.0}), "diffusion.factor is not available"),
            (json!({"stepz": 1}), "unknown field diffusion.stepz"),
            (json!({"preset": "turbo"}), "turbo"),
            (json!({"score": "best"}), "expected one of probability"),
            (json!({"steps": -1}), "a positive whole number"),
            (json!({"preset": "reference", "block_length": 24}), "does not divide"),
            (json!({"region": "canvas", "block_length": 8}), "no block_length"),
        ] {
            let message = config(fields.clone(), ReferenceLoop::EvenSplit).unwrap_err();
            assert!(message.contains(want), "{fields}: {message}");
        }
    }
}
