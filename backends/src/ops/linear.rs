use burn::tensor::{DType, Tensor, activation};

use super::gelu_new;
use crate::cpu::{self, PackedLinear};
use crate::{PackedMatrix, Quantize, WeightFormat};

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
    /// A projection of `weight [out, in]` and `bias [out]`. On CPU the weight is packed for its
    /// kernels, one copy in memory; elsewhere `quantize` has no effect
    /// ([`crate::Precision::resolve`] refuses it).
    #[must_use]
    pub fn new(weight: Tensor<2>, bias: Option<Tensor<1>>, quantize: Quantize) -> Self {
        if cpu::is_flex(&weight.device()) {
            let format = WeightFormat::of(weight.dtype(), quantize);
            return Self::packed(PackedMatrix::pack(weight, format), bias);
        }
        Self { weight: Weight::Plain(Box::new(weight)), bias }
    }

    /// A projection on CPU of a weight that is packed already.
    #[must_use]
    pub fn packed(matrix: PackedMatrix, bias: Option<Tensor<1>>) -> Self {
        Self { weight: Weight::Packed(PackedLinear::new(matrix, bias)), bias: None }
    }
}

/// What is done to a projection's result on its way to memory.
#[derive(Debug, Clone)]
pub enum Epilogue {
    /// Nothing.
    None,
    /// [`gelu_new`].
    Gelu,
    /// `x · sigmoid(x)`.
    Silu,
    /// Multiplied with `[rows, out]`: the other half of a gated MLP.
    Times(Box<Tensor<2>>),
}

/// `epilogue(x Wᵀ + b)`.
///
/// On CPU a row's result is bitwise the same for any number of rows; beside bf16 weights
/// activations are rounded to bf16, beside quantised ones to bytes in blocks of 32.
///
/// # Shapes
/// - `x`: `[rows, in]`; returns `[rows, out]` in the dtype of `x`
#[must_use]
pub fn linear(x: Tensor<2>, layer: &Linear, epilogue: Epilogue) -> Tensor<2> {
    match &layer.weight {
        Weight::Packed(packed) => {
            let dtype = x.dtype();
            cpu::packed_linear(x.cast(DType::F32), packed, epilogue).cast(dtype)
        }
        Weight::Plain(weight) => portable_linear(x, weight, layer.bias.as_ref(), epilogue),
    }
}

/// The portable default of [`linear`]: multiplied in the weight's dtype.
#[must_use]
pub fn portable_linear(
    x: Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    epilogue: Epilogue,
) -> Tensor<2> {
    let dtype = x.dtype();
    let y = x.cast(weight.dtype()).matmul(weight.clone().transpose()).cast(dtype);
    let y = match bias {
        Some(bias) => y + bias.clone().unsqueeze(),
        None => y,
    };
    match epilogue {
        Epilogue::None => y,
        Epilogue::Gelu => gelu_new(y),
        Epilogue::Silu => activation::silu(y),
        Epilogue::Times(other) => y * *other,
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    fn tensor<const D: usize>(shape: [usize; D], seed: usize) -> Tensor<D> {
        let n = shape.iter().product::<usize>();
        let values: Vec<f32> =
            (0..n).map(|i| ((i * 37 + seed * 11) % 101) as f32 / 25.0 - 2.0).collect();
        Tensor::from_data(TensorData::new(values, shape), (&Device::flex(), DType::F32))
    }

    #[test]
    fn every_epilogue_equals_its_portable_default() {
        // Outputs and rows beside panels and tiles; the last is shared between threads.
        for (rows, k, out) in [(1, 24, 33), (5, 40, 70), (60, 33, 130)] {
            let (x, w, b) = (tensor([rows, k], 1), tensor([out, k], 2), tensor([out], 3));
            let layer = Linear::new(w.clone(), Some(b.clone()), Quantize::None);
            let other = Box::new(tensor([rows, out], 4));
            for epilogue in
                [Epilogue::None, Epilogue::Gelu, Epilogue::Silu, Epilogue::Times(other.clone())]
            {
                let got = linear(x.clone(), &layer, epilogue.clone());
                let want = portable_linear(x.clone(), &w, Some(&b), epilogue.clone());
                // Sums of at most 40 products of at most 4, then a function of slope about 1, or a
                // factor of at most 2.
                let far: f32 = (got - want).abs().max().into_scalar();
                assert!(far < 1e-4, "{epilogue:?} {rows} rows: {far}");
            }
        }
    }
}
