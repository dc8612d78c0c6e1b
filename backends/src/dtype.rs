//! Which float type holds what, per device.

use std::fmt;
use std::str::FromStr;

use burn::tensor::DType;

use crate::{DeviceError, DeviceSpec};

/// What a user may ask for with `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DTypeChoice {
    /// The checkpoint's own, where the device computes in it; else f32.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl DTypeChoice {
    /// The float type named; `None` for auto.
    #[must_use]
    pub fn dtype(self) -> Option<DType> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(DType::F32),
            Self::Bf16 => Some(DType::BF16),
            Self::F16 => Some(DType::F16),
        }
    }
}

impl fmt::Display for DTypeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

impl FromStr for DTypeChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "f16" | "float16" => Ok(Self::F16),
            _ => Err(DeviceError::UnknownDType { found: text.chars().take(64).collect() }),
        }
    }
}

/// How projections are kept in memory (`--quantize`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quantize {
    /// In the weights' float type.
    #[default]
    None,
    /// A byte each, a scale for every 32.
    Int8,
    /// Half a byte each, a scale for every 32.
    Int4,
}

impl fmt::Display for Quantize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        })
    }
}

impl FromStr for Quantize {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "none" => Ok(Self::None),
            "int8" => Ok(Self::Int8),
            "int4" => Ok(Self::Int4),
            _ => Err(DeviceError::UnknownQuantize { found: text.chars().take(64).collect() }),
        }
    }
}

/// What a user may ask for of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WeightChoice {
    /// Float type.
    pub dtype: DTypeChoice,
    /// Quantisation of the projections.
    pub quantize: Quantize,
}

impl From<DTypeChoice> for WeightChoice {
    fn from(dtype: DTypeChoice) -> Self {
        Self { dtype, quantize: Quantize::None }
    }
}

/// The types of one loaded model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precision {
    /// Projection and embedding matrices.
    pub weights: DType,
    /// Hidden states, norms, biases. On CPU always f32: elementwise work is cheap there and stock
    /// bf16 arithmetic is not.
    pub activations: DType,
    /// Cached keys and values.
    pub kv: DType,
    /// Quantisation of the projections.
    pub quantize: Quantize,
}

impl Precision {
    /// Everything in f32, as golden records and accuracy tables are measured.
    pub const F32: Self = Self {
        weights: DType::F32,
        activations: DType::F32,
        kv: DType::F32,
        quantize: Quantize::None,
    };

    /// Settles `--dtype` and `--quantize` for a checkpoint of `checkpoint` floats on a device that
    /// supports `supported`.
    ///
    /// # Errors
    /// When what was named is not supported by the device.
    pub fn resolve(
        choice: impl Into<WeightChoice>,
        checkpoint: DType,
        spec: DeviceSpec,
        supported: &[DType],
    ) -> Result<Self, DeviceError> {
        let WeightChoice { dtype: choice, quantize } = choice.into();
        if quantize != Quantize::None && spec == DeviceSpec::NdArray {
            return Err(DeviceError::UnsupportedQuantize { spec, quantize: quantize.to_string() });
        }
        let weights = match choice.dtype() {
            Some(dtype) if supported.contains(&dtype) => dtype,
            Some(_) => {
                return Err(DeviceError::UnsupportedDType {
                    spec,
                    dtype: choice.to_string(),
                    supported: names(supported),
                });
            }
            None if supported.contains(&checkpoint) => checkpoint,
            None => DType::F32,
        };
        let activations = if spec == DeviceSpec::Cpu { DType::F32 } else { weights };
        Ok(Self { weights, activations, kv: weights, quantize })
    }
}

/// Dtype names, comma separated.
pub(crate) fn names(dtypes: &[DType]) -> String {
    dtypes.iter().map(|d| format!("{d:?}").to_lowercase()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_the_checkpoints_type_where_the_device_can() {
        let all = [DType::F32, DType::BF16];
        let p = Precision::resolve(DTypeChoice::Auto, DType::BF16, DeviceSpec::Cpu, &all).unwrap();
        assert_eq!((p.weights, p.activations, p.kv), (DType::BF16, DType::F32, DType::BF16));
        let p = Precision::resolve(DTypeChoice::Auto, DType::F16, DeviceSpec::Cpu, &all).unwrap();
        assert_eq!(p, Precision::F32);
        let p =
            Precision::resolve(DTypeChoice::Auto, DType::BF16, DeviceSpec::Cuda(0), &all).unwrap();
        assert_eq!(p.activations, DType::BF16);
    }

    #[test]
    fn a_named_type_is_honoured_or_refused() {
        let f32_only = [DType::F32];
        let error =
            Precision::resolve(DTypeChoice::Bf16, DType::F32, DeviceSpec::NdArray, &f32_only)
                .unwrap_err();
        assert_eq!(error.to_string(), "device 'ndarray' cannot compute in bf16: it supports f32");
        let int8 = WeightChoice { dtype: DTypeChoice::Auto, quantize: Quantize::Int8 };
        let resolve = |spec| Precision::resolve(int8, DType::F32, spec, &f32_only);
        for spec in [DeviceSpec::Cpu, DeviceSpec::Vulkan(0), DeviceSpec::Cuda(1)] {
            assert_eq!(resolve(spec).unwrap().quantize, Quantize::Int8, "{spec}");
        }
        let error = resolve(DeviceSpec::NdArray).unwrap_err().to_string();
        assert_eq!(error, "device 'ndarray' has no int8 weights: cpu and GPUs have");
        let error = "int2".parse::<Quantize>().unwrap_err().to_string();
        assert_eq!(error, "unknown quantisation 'int2': expected none, int8 or int4");
    }
}
