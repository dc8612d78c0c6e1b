//! The `diffusion` object of a request, its aliases, and the knobs they set.

mod knobs;
mod xargs;

pub(crate) use xargs::collect_xargs;

use dfastllm_engine::{Patterns, Task};
use serde_json::{Map, Value};

use crate::ApiError;

/// Samples of a likelihood, unless it says otherwise (EVAL.md of ML-GSAI/LLaDA).
const SAMPLES: usize = 128;

/// Fields that enter a likelihood; `max_tokens` is refused where it is read.
const LIKELIHOOD: [&str; 3] = ["likelihood", "cfg_scale", "max_tokens"];

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

/// Fields under their own names.
const FIELDS: [&str; 30] = [
    "preset",
    "steps",
    "block_length",
    "eps",
    "region",
    "window",
    "score",
    "quota",
    "threshold",
    "factor",
    "entropy_bound",
    "low_threshold",
    "stable_kl",
    "stable_steps",
    "draft_weight",
    "order_temperature",
    "cfg_scale",
    "cache",
    "refresh_every",
    "vicinity",
    "remask",
    "remask_threshold",
    "verify_threshold",
    "credit",
    "canvas",
    "speculate",
    "trace",
    "progress",
    "likelihood",
    "infill",
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
        let is_parallel = given.get("parallel_decoding") == Some(&Value::Bool(true));
        for (name, value) in given.into_iter().filter(|(_, v)| !v.is_null()) {
            let Some((field, value)) = resolve(&name, value)? else { continue };
            if let Some(other) = fields.insert(field.to_owned(), value.clone())
                && other != value
            {
                let message = format!("{name} says {value}, but {field} is {other}");
                return Err(ApiError::invalid(&format!("diffusion.{field}"), message));
            }
        }
        if is_parallel && fields.get("quota").is_some_and(|quota| quota == "one") {
            let message = "parallel_decoding is true, but quota one commits a token a pass";
            return Err(ApiError::invalid("diffusion.parallel_decoding", message));
        }
        Ok(Self(fields))
    }

    /// The same with a number of steps.
    pub(crate) fn with_steps(&self, steps: usize) -> Self {
        let mut fields = self.0.clone();
        fields.insert("steps".to_owned(), steps.into());
        Self(fields)
    }

    /// Generated length, where the alias gives it.
    pub(crate) fn max_tokens(&self) -> Option<&Value> {
        self.0.get("max_tokens")
    }

    fn has(&self, field: &str) -> bool {
        self.0.contains_key(field)
    }

    /// A field that is true or false.
    pub(crate) fn flag(&self, field: &str) -> Result<Option<bool>, ApiError> {
        match self.0.get(field) {
            None => Ok(None),
            Some(value) => match value.as_bool() {
                Some(value) => Ok(Some(value)),
                None => Err(wrong(field, value, "a boolean")),
            },
        }
    }

    /// Refuses fields that the caller does not honour.
    pub(crate) fn refuse(&self, fields: &[&str]) -> Result<(), ApiError> {
        match fields.iter().find(|field| self.has(field)) {
            None => Ok(()),
            Some(field) => {
                let message = format!("diffusion.{field} is for the server's API");
                Err(ApiError::unsupported(&format!("diffusion.{field}"), message))
            }
        }
    }

    /// The gaps and texts to fill, as given.
    pub(crate) fn infill(&self) -> Option<&Value> {
        self.0.get("infill")
    }

    /// What `likelihood` asks for.
    pub(crate) fn likelihood(&self) -> Result<Option<Task>, ApiError> {
        let Some(value) = self.0.get("likelihood") else { return Ok(None) };
        let others = self.0.keys().find(|name| !LIKELIHOOD.contains(&name.as_str()));
        if let Some(other) = others {
            let message = format!("diffusion.{other} does not go with diffusion.likelihood");
            return Err(ApiError::invalid(&format!("diffusion.{other}"), message));
        }
        let expected = "{\"answer_start\": tokens, \"samples\": number}";
        let whole = |field: &str| value[field].as_u64().and_then(|n| usize::try_from(n).ok());
        let known = |name: &String| matches!(name.as_str(), "answer_start" | "samples");
        let is_known = value.as_object().is_some_and(|fields| fields.keys().all(known));
        let samples = if value["samples"].is_null() { Some(SAMPLES) } else { whole("samples") };
        match (whole("answer_start"), samples, is_known) {
            (Some(answer_start), Some(samples), true) => {
                Ok(Some(Task::Likelihood { answer_start, patterns: Patterns::Drawn(samples) }))
            }
            _ => Err(wrong("likelihood", value, expected)),
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

/// The field and value an entry stands for; `None` if it stands for the default.
fn resolve(name: &str, value: Value) -> Result<Option<(&str, Value)>, ApiError> {
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
    ApiError::wrong(&format!("diffusion.{field}"), found, expected)
}

fn choice(field: &str, found: &str, expected: &str) -> ApiError {
    let found: String = found.chars().take(64).collect();
    let param = format!("diffusion.{field}");
    ApiError::invalid(&param, format!("{param} is '{found}', expected one of {expected}"))
}

#[cfg(test)]
mod tests {
    use dfastllm_engine::decoding::{
        Cache, Canvas, DecodingConfig, Preset, Quota, Region, Revise, Score,
    };
    use dfastllm_models::ReferenceLoop;
    use serde_json::json;
    use std::collections::BTreeSet;
    use utoipa::PartialSchema;

    use super::*;
    use crate::openapi::requests::Diffusion;

    fn config(fields: Value, published: ReferenceLoop) -> Result<DecodingConfig, String> {
        let Value::Object(fields) = fields else { panic!("an object") };
        DiffusionFields::new(fields)
            .and_then(|f| f.config(Preset::Fast, published, 64))
            .map_err(|e| e.body()["error"]["message"].as_str().unwrap().to_owned())
    }

    #[test]
    fn every_field_is_documented() {
        let schema = serde_json::to_value(Diffusion::schema()).unwrap();
        let documented: BTreeSet<&String> =
            schema["properties"].as_object().unwrap().keys().collect();
        let aliases = ALIASES.iter().map(|(alias, _)| (*alias).to_owned());
        let known: Vec<String> = FIELDS.iter().map(|f| (*f).to_owned()).chain(aliases).collect();
        assert_eq!(documented, known.iter().collect());
    }

    #[test]
    fn parameters_select_their_rules() {
        let llada = |fields| config(fields, ReferenceLoop::EvenSplit).unwrap();
        assert_eq!(llada(json!({})).quota, Quota::EntropyBound(4.0));
        assert_eq!(llada(json!({"threshold": 0.5})).quota, Quota::Threshold(0.5));
        assert_eq!(llada(json!({"steps": 8})).quota, Quota::EvenSplit { steps: 8 });
        let eps = llada(json!({"eps": 0.01})).quota;
        assert_eq!(eps, Quota::Timesteps { steps: 64, eps: 0.01 });
        assert_eq!(llada(json!({"quota": "one"})).quota, Quota::One);
        assert_eq!(llada(json!({"parallel_decoding": false})).quota, Quota::One);
        assert_eq!(llada(json!({"block_length": 8})).region, Region::Blocks(8));
        assert_eq!(llada(json!({"remasking": "random"})).score, Score::Random);
        assert_eq!(llada(json!({"steps": null, "cache": "none"})).cache, Cache::None);
        assert_eq!(llada(json!({"factor": 0.5})).quota, Quota::Factor(0.5));
        assert_eq!(llada(json!({"entropy_bound": 0.2})).quota, Quota::EntropyBound(0.2));
        let runs = Quota::Hierarchical { low: 0.3, high: 0.8 };
        assert_eq!(llada(json!({"threshold": 0.8, "low_threshold": 0.3})).quota, runs);
        let stable = Quota::Stable { threshold: 0.9, divergence: 0.5, passes: 2 };
        assert_eq!(llada(json!({"stable_kl": 0.5})).quota, stable);
        assert_eq!(llada(json!({"window": 8})).region, Region::Window(8));
        let wide = Cache::Vicinity { left: 1, right: 2 };
        assert_eq!(llada(json!({"vicinity": [1, 2]})).cache, wide);
        let interval = llada(json!({"cache": "interval"}));
        assert_eq!((interval.cache, interval.refresh_every), (Cache::Interval, Some(8)));
        let wino = llada(json!({"remask": "wino"}));
        assert_eq!((wino.revise, wino.quota), (Revise::Wino(0.9), Quota::Threshold(0.6)));
        assert_eq!(llada(json!({"remask_threshold": 0.2})).revise, Revise::Below(0.2));
        let daedal = llada(json!({"canvas": "daedal"}));
        assert_eq!((daedal.canvas, daedal.cache), (Canvas::Daedal, Cache::Prefix));
        let adaptive = llada(json!({"quota": "adaptive"}));
        assert_eq!((adaptive.region, adaptive.score), (Region::Window(16), Score::LeftToRight));
        for config in [wino, interval, daedal, adaptive] {
            config.validate().unwrap();
        }
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
            (json!({"parallel_decoding": true, "quota": "one"}), "parallel_decoding is true"),
            (json!({"quota": "one", "threshold": 0.9}), "quota is one"),
            (json!({"alg": "entropy", "score": "margin"}), "score is"),
            (json!({"preset": "reference", "block_length": 32, "steps": 7}), "a multiple"),
            (json!({"window": "none"}), "diffusion.window is"),
            (json!({"cache": "full"}), "expected one of none, prefix"),
            (json!({"factor": 1.0, "entropy_bound": 1.0}), "selects the quota factor"),
            (json!({"quota": "factor", "stable_kl": 1.0}), "stable_kl is for stable"),
            (json!({"cache": "dual", "vicinity": [1, 1]}), "cache is dual"),
            (json!({"remask": "wino", "remask_threshold": 0.5}), "remask is wino"),
            (json!({"block_length": 8, "window": 8}), "window another one"),
            (json!({"canvas": "grow", "region": "canvas"}), "expected blocks"),
            (json!({"stepz": 1}), "unknown field diffusion.stepz"),
            (json!({"preset": "best"}), "turbo"),
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
