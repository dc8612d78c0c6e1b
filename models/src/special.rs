//! Special ids and sampling defaults, from wherever each family keeps them.

use serde::Deserialize;
use serde_json::Value;

use crate::{LoadError, ModelFiles, Tokenizer};

/// Ids with a meaning to decoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialIds {
    /// A sequence ends at the first of these.
    pub end_ids: Vec<u32>,
    /// The id of a position still to be filled; masked-diffusion models only.
    pub mask_id: Option<u32>,
}

/// Sampling defaults of `generation_config.json`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GenerationDefaults {
    /// Temperature.
    pub temperature: Option<f64>,
    /// Top-p.
    pub top_p: Option<f64>,
    /// Top-k; 0 is off.
    pub top_k: Option<usize>,
}

/// The sampling loop a masked-diffusion checkpoint was published with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReferenceLoop {
    /// LLaDA's `generate`: an even number of positions a step, confidence of the raw row.
    EvenSplit,
    /// Dream's `diffusion_generate`: time steps, confidence of the filtered row.
    Timesteps,
}

/// Where a family's special ids are besides the config files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SpecialSources {
    /// Family name, for messages.
    pub(crate) family: &'static str,
    /// Tokens that end a turn without being an end id of any config: LLaDA's `<|eot_id|>`,
    /// Dream's `<|im_end|>`.
    pub(crate) turn_ends: &'static [&'static str],
    /// The published loop of a family that denoises; such a family needs a mask id.
    pub(crate) reference: Option<ReferenceLoop>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u64),
    Many(Vec<u64>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<u64> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

/// Collects end ids from both config files and the tokenizer, and the mask id from `config.json`:
/// Dream's `generation_config.json` says null there.
pub(crate) fn special_ids(
    config: &Value,
    files: &ModelFiles,
    tokenizer: &Tokenizer,
    sources: SpecialSources,
    vocab: usize,
) -> Result<SpecialIds, LoadError> {
    let generation: Value = files.json("generation_config.json")?.unwrap_or_default();
    let ids = |value: &Value| -> Vec<u64> {
        OneOrMany::deserialize(value).map(OneOrMany::into_vec).unwrap_or_default()
    };
    let mut end_ids = ids(&generation["eos_token_id"]);
    end_ids.extend(ids(&config["eos_token_id"]));
    end_ids.extend(sources.turn_ends.iter().filter_map(|t| tokenizer.id_of(t)).map(u64::from));
    let mut checked = Vec::new();
    for id in end_ids {
        let id = in_vocabulary("eos_token_id", id, vocab)?;
        if !checked.contains(&id) {
            checked.push(id);
        }
    }
    let mask_id = match config["mask_token_id"].as_u64() {
        Some(id) if sources.reference.is_some() => Some(in_vocabulary("mask_token_id", id, vocab)?),
        None if sources.reference.is_some() => {
            return Err(LoadError::NoMaskToken { family: sources.family });
        }
        _ => None,
    };
    Ok(SpecialIds { end_ids: checked, mask_id })
}

fn in_vocabulary(name: &'static str, id: u64, vocab: usize) -> Result<u32, LoadError> {
    match u32::try_from(id) {
        Ok(id) if (id as usize) < vocab => Ok(id),
        _ => Err(LoadError::SpecialId { name, id, vocab }),
    }
}
