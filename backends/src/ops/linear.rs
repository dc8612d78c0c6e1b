use burn::tensor::{DType, Tensor};

use crate::cpu;

/// A projection in its checkpoint layout.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`, in the precision's weight dtype.
    pub weight: Tensor<2>,
    /// `[out]`, in the activations' dtype.
    pub bias: Option<Tensor<1>>,
}

/// `x Wᵀ + b`.
///
/// On CPU, in f32 and bf16, a row's result is bitwise the same for any number of rows.
///
/// # Shapes
/// - `x`: `[rows, in]`; returns `[rows, out]` in the dtype of `x`
#[must_use]
pub fn linear(x: Tensor<2>, layer: &Linear) -> Tensor<2> {
    let has_kernel = matches!(layer.weight.dtype(), DType::F32 | DType::BF16);
    if has_kernel && x.dtype() == DType::F32 && cpu::is_flex(&x.device()) {
        return cpu::flex_linear(x, layer.weight.clone(), layer.bias.clone());
    }
    portable_linear(x, layer)
}

/// The portable default of [`linear`]: multiplied in the weight's dtype.
#[must_use]
pub fn portable_linear(x: Tensor<2>, layer: &Linear) -> Tensor<2> {
    let dtype = x.dtype();
    let y = x.cast(layer.weight.dtype()).matmul(layer.weight.clone().transpose()).cast(dtype);
    match &layer.bias {
        Some(bias) => y + bias.clone().unsqueeze(),
        None => y,
    }
}
