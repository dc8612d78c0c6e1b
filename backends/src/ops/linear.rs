use burn::tensor::{DType, Tensor};

use crate::Quantize;
use crate::cpu::{self, PackedLinear};

/// A projection.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    /// `[out]`, in the activations' dtype.
    bias: Option<Tensor<1>>,
}

#[derive(Debug, Clone)]
enum Weight {
    /// `[out, in]`
    Plain(Box<Tensor<2>>),
    /// For the CPU's kernels; the bias is with it.
    Packed(PackedLinear),
}

impl Linear {
    /// A projection of `weight [out, in]` and `bias [out]`. On CPU, bf16 and quantised weights are
    /// packed for its kernels, one copy in memory; elsewhere `quantize` has no effect
    /// ([`crate::Precision::resolve`] refuses it).
    #[must_use]
    pub fn new(weight: Tensor<2>, bias: Option<Tensor<1>>, quantize: Quantize) -> Self {
        if cpu::is_flex(&weight.device())
            && let Some(format) = PackedLinear::format(weight.dtype(), quantize)
        {
            let packed = PackedLinear::new(weight, bias, format);
            return Self { weight: Weight::Packed(packed), bias: None };
        }
        Self { weight: Weight::Plain(Box::new(weight)), bias }
    }
}

/// `x Wᵀ + b`.
///
/// On CPU a row's result is bitwise the same for any number of rows; beside bf16 weights
/// activations are rounded to bf16, beside quantised ones to bytes in blocks of 32.
///
/// # Shapes
/// - `x`: `[rows, in]`; returns `[rows, out]` in the dtype of `x`
#[must_use]
pub fn linear(x: Tensor<2>, layer: &Linear) -> Tensor<2> {
    match &layer.weight {
        Weight::Packed(packed) => {
            let dtype = x.dtype();
            cpu::packed_linear(x.cast(DType::F32), packed.clone()).cast(dtype)
        }
        Weight::Plain(weight) => {
            let both_f32 = weight.dtype() == DType::F32 && x.dtype() == DType::F32;
            if both_f32 && cpu::is_flex(&x.device()) {
                return cpu::flex_linear(x, (**weight).clone(), layer.bias.clone());
            }
            portable_linear(x, weight, layer.bias.as_ref())
        }
    }
}

/// The portable default of [`linear`]: multiplied in the weight's dtype.
#[must_use]
pub fn portable_linear(x: Tensor<2>, weight: &Tensor<2>, bias: Option<&Tensor<1>>) -> Tensor<2> {
    let dtype = x.dtype();
    let y = x.cast(weight.dtype()).matmul(weight.clone().transpose()).cast(dtype);
    match bias {
        Some(bias) => y + bias.clone().unsqueeze(),
        None => y,
    }
}
