use burn::tensor::{DType, Tensor};

use super::kernels::kernels;
use crate::cpu;

/// What rows are normalised to.
#[derive(Debug, Clone, Copy)]
pub enum Normal<'a> {
    /// Mean 0 and variance 1, then times a weight and moved by a bias, all in f32.
    Layer {
        /// `[features]`
        weight: &'a Tensor<1>,
        /// `[features]`
        bias: &'a Tensor<1>,
    },
    /// A mean square of 1, rounded to the dtype of the row, then times a weight in that dtype.
    Rms {
        /// `[features]`
        weight: &'a Tensor<1>,
    },
}

/// LayerNorm over the features, statistics in f32, `eps` inside the root.
///
/// # Shapes
/// - `x`: `[rows, features]`; `weight`, `bias`: `[features]`; returns the shape and dtype of `x`
#[must_use]
pub fn layer_norm(x: Tensor<2>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f64) -> Tensor<2> {
    if cpu::is_flex_f32(&x) && weight.dtype() == DType::F32 && bias.dtype() == DType::F32 {
        return cpu::normalise(x, weight, Some(bias), eps as f32);
    }
    if let Some(kernels) = kernels(&x.device()) {
        return kernels.normalise(x, Normal::Layer { weight, bias }, eps);
    }
    portable_layer_norm(x, weight, bias, eps)
}

/// The portable default of [`layer_norm`].
fn portable_layer_norm(x: Tensor<2>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f64) -> Tensor<2> {
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1); // [rows, 1]
    let normal = centred / (variance + eps).sqrt();
    let scaled = normal * weight.clone().cast(DType::F32).unsqueeze();
    (scaled + bias.clone().cast(DType::F32).unsqueeze()).cast(dtype)
}

/// RMSNorm over the features: f32 statistics, rounded to the dtype of `x`, then times the weight,
/// in the order of the LLaDA and Qwen2 code.
///
/// # Shapes
/// - `x`: `[rows, features]`; `weight`: `[features]`; returns the shape and dtype of `x`
#[must_use]
pub fn rms_norm(x: Tensor<2>, weight: &Tensor<1>, eps: f64) -> Tensor<2> {
    if cpu::is_flex_f32(&x) && weight.dtype() == DType::F32 {
        return cpu::normalise(x, weight, None, eps as f32);
    }
    if let Some(kernels) = kernels(&x.device()) {
        return kernels.normalise(x, Normal::Rms { weight }, eps);
    }
    portable_rms_norm(x, weight, eps)
}

/// The portable default of [`rms_norm`].
fn portable_rms_norm(x: Tensor<2>, weight: &Tensor<1>, eps: f64) -> Tensor<2> {
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let variance = x.clone().square().mean_dim(1); // [rows, 1]
    let normal = x / (variance + eps).sqrt();
    normal.cast(dtype) * weight.clone().unsqueeze()
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    #[test]
    fn kernels_equal_their_portable_defaults() {
        let device = Device::flex();
        let values = |n: usize| (0..n).map(|i| (i * 29 % 83) as f32 / 20.0 - 1.5).collect();
        let vector = |n| {
            let data: Vec<f32> = values(n);
            Tensor::<1>::from_data(TensorData::new(data, [n]), (&device, DType::F32))
        };
        for (rows, features) in [(1, 1), (3, 33), (40, 1000)] {
            let x = vector(rows * features).reshape([rows, features]);
            let (weight, bias) = (vector(features), vector(features));
            for (got, want) in [
                (
                    layer_norm(x.clone(), &weight, &bias, 1e-5),
                    portable_layer_norm(x.clone(), &weight, &bias, 1e-5),
                ),
                (rms_norm(x.clone(), &weight, 1e-6), portable_rms_norm(x, &weight, 1e-6)),
            ] {
                let far: f32 = (got - want).abs().max().into_scalar();
                assert!(far < 1e-5, "{rows}x{features}: {far}");
            }
        }
    }
}
