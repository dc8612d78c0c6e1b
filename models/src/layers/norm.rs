use dfastllm_backends::{Tensor, ops};

use crate::weights::Weights;

/// A normalisation over the features.
#[derive(Debug)]
pub(crate) enum Norm {
    /// To mean 0 and variance 1, with weight and bias.
    Layer { weight: Tensor<1>, bias: Tensor<1>, eps: f64 },
    /// To a mean square of 1, with weight.
    Rms { weight: Tensor<1>, eps: f64 },
}

impl Norm {
    pub(crate) fn layer(weights: &mut Weights, prefix: &str, size: usize, eps: f64) -> Self {
        Self::Layer {
            weight: weights.vector(&format!("{prefix}.weight"), size),
            bias: weights.vector(&format!("{prefix}.bias"), size),
            eps,
        }
    }

    pub(crate) fn rms(weights: &mut Weights, prefix: &str, size: usize, eps: f64) -> Self {
        Self::Rms { weight: weights.vector(&format!("{prefix}.weight"), size), eps }
    }

    /// # Shapes
    /// - `x`: `[rows, hidden]`; returns the same
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Layer { weight, bias, eps } => ops::layer_norm(x, weight, bias, *eps),
            Self::Rms { weight, eps } => ops::rms_norm(x, weight, *eps),
        }
    }
}
