//! Random checkpoints of a given shape, to measure speed without a download.
//!
//! A family's own loader says which tensors its config needs, so this file knows no family.

use std::borrow::Cow;
use std::path::Path;

use dfastllm_backends::ops::philox::{Counter, Purpose, uniform};
use dfastllm_backends::{DType, Device, Precision};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::View;
use serde_json::Value;

use crate::LoadError;
use crate::registry::family_of;
use crate::weights::{Missing, Weights};

/// Shapes by name, as `config.json` files.
const SHAPES: [(&str, &str); 6] = [
    ("phi-350m", include_str!("../shapes/phi-350m.json")),
    ("phi-2", include_str!("../shapes/phi-2.json")),
    ("llada-350m", include_str!("../shapes/llada-350m.json")),
    ("llada-1b", include_str!("../shapes/llada-1b.json")),
    ("llada-8b", include_str!("../shapes/llada-8b.json")),
    ("dream-7b", include_str!("../shapes/dream-7b.json")),
];

const TOKENIZER: &[u8] = include_bytes!("../builtin/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../builtin/tokenizer_config.json");
/// Standard deviation of the published models' initial weights.
const STD: f64 = 0.02;

/// Names that [`shape_config`] knows.
#[must_use]
pub fn shape_names() -> Vec<&'static str> {
    SHAPES.iter().map(|(name, _)| *name).collect()
}

/// The `config.json` of a named shape.
#[must_use]
pub fn shape_config(name: &str) -> Option<Value> {
    let (_, text) = SHAPES.iter().find(|(known, _)| *known == name)?;
    serde_json::from_str(text).ok()
}

/// A tensor to be made: its values depend on the seed and its place in the checkpoint only.
#[derive(Debug, Clone)]
pub struct SynthTensor {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    seed: u64,
    ordinal: u32,
}

/// The tensors a checkpoint with this config has.
///
/// # Errors
/// When the config asks for something that is not computed here, or `dtype` is no float of 16 or
/// 32 bits.
pub fn synth_tensors(
    config: &Value,
    dtype: DType,
    seed: u64,
) -> Result<Vec<SynthTensor>, LoadError> {
    let stored = match dtype {
        DType::F32 => Dtype::F32,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        _ => return Err(LoadError::WeightDType { tensor: "all".to_owned(), dtype }),
    };
    let precision = Precision::F32;
    let mut weights = Weights::new(Default::default(), Device::flex(), precision);
    // Every tensor is missing, and so gets listed; the model itself is not used.
    (family_of(config)?.load)(config, &mut weights)?;
    let tensors = weights.into_missing();
    Ok((0..)
        .zip(tensors)
        .map(|(ordinal, Missing { name, shape, .. })| SynthTensor {
            name,
            shape,
            dtype: stored,
            seed,
            ordinal,
        })
        .collect())
}

/// Writes a checkpoint: config, the built-in models' tokenizer, and the tensors one by one.
/// `progress` hears the bytes of each tensor before it is written.
///
/// # Errors
/// When the folder cannot be written.
pub fn write_synth(
    folder: &Path,
    config: &Value,
    tensors: Vec<SynthTensor>,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<(), LoadError> {
    let io = |source| LoadError::Io { file: folder.display().to_string(), source };
    std::fs::create_dir_all(folder).map_err(io)?;
    let config = format!("{config:#}\n");
    for (file, content) in [
        ("config.json", config.as_bytes()),
        ("generation_config.json", b"{\"temperature\": 0.0}\n"),
        ("tokenizer.json", TOKENIZER),
        ("tokenizer_config.json", TOKENIZER_CONFIG),
    ] {
        std::fs::write(folder.join(file), content).map_err(io)?;
    }
    let path = folder.join("model.safetensors");
    let views = tensors.iter().map(|t| (t.name.clone(), Watched { tensor: t, progress }));
    safetensors::serialize_to_file(views, None, &path).map_err(|e| LoadError::Io {
        file: path.display().to_string(),
        source: std::io::Error::other(e.to_string()),
    })
}

impl SynthTensor {
    /// Bytes it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }

    /// Matrices are uniform with the standard deviation of initial weights; norms are 1 and
    /// biases 0, as in a model before training.
    fn value(&self, index: usize) -> f32 {
        if self.shape.len() == 1 {
            return if self.name.ends_with("bias") { 0.0 } else { 1.0 };
        }
        let counter = Counter {
            position: index as u32,
            step: (index >> 32) as u32,
            purpose: Purpose::Token,
            draw: self.ordinal,
        };
        ((uniform(self.seed, counter) * 2.0 - 1.0) * STD * 3f64.sqrt()) as f32
    }

    fn values(&self) -> Vec<u8> {
        let values = (0..self.shape.iter().product()).into_par_iter().map(|i| self.value(i));
        match self.dtype {
            Dtype::BF16 => bytes_of(values.map(|x| bf16::from_f32(x).to_le_bytes())),
            Dtype::F16 => bytes_of(values.map(|x| f16::from_f32(x).to_le_bytes())),
            _ => bytes_of(values.map(f32::to_le_bytes)),
        }
    }
}

fn bytes_of<const N: usize>(values: impl IndexedParallelIterator<Item = [u8; N]>) -> Vec<u8> {
    values.collect::<Vec<_>>().into_flattened()
}

/// A tensor whose making is reported.
struct Watched<'a> {
    tensor: &'a SynthTensor,
    progress: &'a (dyn Fn(usize) + Sync),
}

impl View for Watched<'_> {
    fn dtype(&self) -> Dtype {
        self.tensor.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        (self.progress)(self.tensor.bytes());
        Cow::Owned(self.tensor.values())
    }

    fn data_len(&self) -> usize {
        self.tensor.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_one_its_family_computes() {
        for name in shape_names() {
            let tensors = synth_tensors(&shape_config(name).unwrap(), DType::BF16, 1).unwrap();
            let parameters: usize = tensors.iter().map(|t| t.bytes() / 2).sum();
            // The numbers of parameters that the published checkpoints state.
            let expected = match name {
                "phi-350m" => 356_794_368,
                "phi-2" => 2_779_683_840,
                "llada-350m" => 464_552_960,
                "llada-1b" => 1_077_208_832,
                "llada-8b" => 8_015_581_184,
                _ => 7_615_616_512,
            };
            assert_eq!(parameters, expected, "{name}");
        }
    }

    #[test]
    fn values_have_the_spread_of_initial_weights_and_depend_on_seed_and_place() {
        let tensor = |seed, ordinal| SynthTensor {
            name: "w".to_owned(),
            shape: vec![100, 100],
            dtype: Dtype::F32,
            seed,
            ordinal,
        };
        let values: Vec<f64> = (0..10_000).map(|i| f64::from(tensor(7, 0).value(i))).collect();
        let variance = values.iter().map(|x| x * x).sum::<f64>() / 1e4;
        assert!((variance.sqrt() - STD).abs() < 4e-4, "{}", variance.sqrt());
        assert_ne!(tensor(7, 0).values(), tensor(8, 0).values());
        assert_ne!(tensor(7, 0).values(), tensor(7, 1).values());
        let norm = SynthTensor { name: "norm.weight".to_owned(), shape: vec![4], ..tensor(7, 0) };
        assert_eq!(norm.values(), [1f32; 4].map(f32::to_le_bytes).concat());
    }
}
