//! The list of families, and loading one.

use dfastllm_backends::{DType, OpenDevice, Precision, Quantize, WeightChoice, WeightFormat};
use serde_json::Value;

use crate::checkpoint::{self, StoredTensor, StoredTensors};
use crate::config::Header;
use crate::model::LanguageModel;
use crate::special::{ReferenceLoop, SpecialSources, special_ids};
use crate::weights::{Projections, Weights};
use crate::{
    ChatTemplate, GenerationDefaults, LoadError, ModelFiles, SpecialIds, Tokenizer, config, dream,
    llada, phi,
};

/// Builds a model from its config and weights.
pub(crate) type Load = fn(&Value, &mut Weights) -> Result<Box<dyn LanguageModel>, LoadError>;

/// A family: its `model_type` and what its file offers.
pub(crate) struct Family {
    model_type: &'static str,
    pub(crate) load: Load,
    special: SpecialSources,
    /// A template for checkpoints that bring none.
    chat_template: Option<&'static str>,
}

/// Phi's model card asks for this form; there is no published template.
const PHI_TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'assistant' %}\
    {{ 'Output: ' ~ m.content ~ '\\n' }}{% else %}{{ 'Instruct: ' ~ m.content ~ '\\n' }}\
    {% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Output:' }}{% endif %}";

static FAMILIES: [Family; 3] = [
    Family {
        model_type: "phi",
        load: phi::load,
        special: SpecialSources { family: "phi", turn_ends: &[], reference: None },
        chat_template: Some(PHI_TEMPLATE),
    },
    Family {
        model_type: "llada",
        load: llada::load,
        special: SpecialSources {
            family: "llada",
            turn_ends: &["<|eot_id|>"],
            reference: Some(ReferenceLoop::EvenSplit),
        },
        chat_template: None,
    },
    Family {
        model_type: "Dream",
        load: dream::load,
        special: SpecialSources {
            family: "Dream",
            turn_ends: &["<|im_end|>"],
            reference: Some(ReferenceLoop::Timesteps),
        },
        chat_template: None,
    },
];

/// A model with everything its checkpoint brings.
pub struct LoadedModel {
    /// The network.
    pub model: Box<dyn LanguageModel>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, if it has one.
    pub chat: Option<ChatTemplate>,
    /// End and mask ids.
    pub special: SpecialIds,
    /// The published loop, for models that denoise.
    pub reference: Option<ReferenceLoop>,
    /// Sampling defaults.
    pub generation: GenerationDefaults,
    /// Float types in use.
    pub precision: Precision,
    /// `model_type` of the config.
    pub family: &'static str,
    /// Size of the projections.
    pub projections: Projections,
    /// What they are made of.
    pub format: WeightFormat,
}

/// Loads a checkpoint onto a device.
///
/// # Errors
/// When a file is missing or damaged, or asks for something that is not computed here.
pub fn load(
    files: &ModelFiles,
    device: &OpenDevice,
    weights: impl Into<WeightChoice>,
) -> Result<LoadedModel, LoadError> {
    let config: Value = files.required_json("config.json")?;
    let family = family_of(&config)?;
    let tokenizer = Tokenizer::load(files)?;
    let chat = ChatTemplate::load(files, family.chat_template)?;
    let generation = files.json("generation_config.json")?.unwrap_or_default();
    let stored = checkpoint::open(files)?;
    refuse_legacy_phi(&stored)?;
    let own = weight_dtype(&stored)?;
    let packed = config::packed_format(&config)?;
    let choice = packed_choice(weights.into(), packed)?;
    let precision = Precision::resolve(choice, own, device.spec, &device.info.dtypes)?;
    let mut weights = Weights::new(stored, device.device.clone(), precision).with_packed(packed);
    let model = (family.load)(&config, &mut weights)?;
    let projections = weights.projections();
    weights.finish()?;
    let vocab = model.shape().vocab;
    if tokenizer.size() > vocab {
        return Err(LoadError::TokenizerTooLarge { tokens: tokenizer.size(), vocab });
    }
    let special = special_ids(&config, files, &tokenizer, family.special, vocab)?;
    Ok(LoadedModel {
        model,
        tokenizer,
        chat,
        special,
        reference: family.special.reference,
        generation,
        precision,
        family: family.model_type,
        projections,
        format: packed.unwrap_or(WeightFormat::of(precision.weights, precision.quantize)),
    })
}

/// What was asked of the weights, where a packed checkpoint has settled it.
fn packed_choice(
    asked: WeightChoice,
    packed: Option<WeightFormat>,
) -> Result<WeightChoice, LoadError> {
    let Some(format) = packed else { return Ok(asked) };
    let (dtype, quantize) = format.made_of();
    let other = |asked: String| Err(LoadError::Packed { found: format.name(), asked });
    if asked.quantize != Quantize::None && asked.quantize != quantize {
        return other(format!("--quantize {}", asked.quantize));
    }
    if dtype.is_some() && asked.dtype.dtype().is_some_and(|asked| Some(asked) != dtype) {
        return other(format!("--dtype {}", asked.dtype));
    }
    Ok(WeightChoice { quantize, ..asked })
}

/// The `model_type` of a checkpoint, if it is one of a family served here.
///
/// # Errors
/// When `config.json` is missing or damaged, or names another family.
pub fn family_name(files: &ModelFiles) -> Result<&'static str, LoadError> {
    let config: Value = files.required_json("config.json")?;
    family_of(&config).map(|family| family.model_type)
}

/// The family a config names.
pub(crate) fn family_of(config: &Value) -> Result<&'static Family, LoadError> {
    let Header { model_type } = config::read(config)?;
    FAMILIES.iter().find(|f| f.model_type == model_type).ok_or_else(|| {
        let expected: Vec<_> = FAMILIES.iter().map(|f| f.model_type).collect();
        LoadError::UnknownFamily { found: model_type.clone(), expected: expected.join(", ") }
    })
}

/// Checkpoints of Phi from before 2024 have other names and a fused projection.
fn refuse_legacy_phi(stored: &StoredTensors) -> Result<(), LoadError> {
    match stored.iter().find(|(name, _)| name.contains(".mixer.Wqkv.")) {
        None => Ok(()),
        Some((name, StoredTensor { file, .. })) => {
            let reason = format!(
                "{name} is the fused layout of phi-msft from before 2024; \
                 use a revision converted for PhiForCausalLM"
            );
            Err(LoadError::Damaged { file: file.clone(), reason })
        }
    }
}

/// The dtype of the checkpoint: that of its matrices.
pub(crate) fn weight_dtype(stored: &StoredTensors) -> Result<DType, LoadError> {
    let mut own = DType::F32;
    for (name, tensor) in stored {
        match tensor.dtype {
            DType::F32 | DType::BF16 | DType::F16 => {}
            // A packed projection, or refused when it is asked for.
            DType::U32 => continue,
            dtype => return Err(LoadError::WeightDType { tensor: name.clone(), dtype }),
        }
        if tensor.shape.len() == 2 {
            own = tensor.dtype;
        }
    }
    Ok(own)
}
