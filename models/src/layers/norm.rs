use dfastllm_backends::{Tensor, ops};

use crate::weights::Weights;

/// A normalisation over the features.
#[derive(Debug)]
pub(crate) struct Norm {
    weight: Tensor<1>,
    kind: Kind,
    eps: f64,
}

#[derive(Debug)]
enum Kind {
    /// To mean 0 and variance 1, then moved by a bias.
    Layer(Box<Tensor<1>>),
    /// To a mean square of 1.
    Rms,
}

impl Norm {
    pub(crate) fn layer(weights: &mut Weights, prefix: &str, size: usize, eps: f64) -> Self {
        let bias = weights.vector(&format!("{prefix}.bias"), size);
        let weight = weights.vector(&format!("{prefix}.weight"), size);
        Self { weight, kind: Kind::Layer(Box::new(bias)), eps }
    }

    pub(crate) fn rms(weights: &mut Weights, prefix: &str, size: usize, eps: f64) -> Self {
        let weight = weights.vector(&format!("{prefix}.weight"), size);
        Self { weight, kind: Kind::Rms, eps }
    }

    /// # Shapes
    /// - `x`: `[rows, hidden]`; returns the same
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match &self.kind {
            Kind::Layer(bias) => ops::layer_norm(x, &self.weight, bias, self.eps),
            Kind::Rms => ops::rms_norm(x, &self.weight, self.eps),
        }
    }
}
