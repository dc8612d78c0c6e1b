use dfastllm_backends::Tensor;
use dfastllm_backends::ops::{Linear, gelu_new, linear, silu_gate};

use super::Pass;

/// `fc2(gelu(fc1(x)))`
#[derive(Debug)]
pub(crate) struct GeluMlp {
    pub(crate) fc1: Linear,
    pub(crate) fc2: Linear,
}

impl GeluMlp {
    /// # Shapes
    /// - `x`: `[rows, hidden]`; returns the same
    pub(crate) fn forward(&self, x: Tensor<2>, pass: &mut Pass<'_, '_>) -> Tensor<2> {
        let out = linear(gelu_new(linear(x, &self.fc1)), &self.fc2);
        pass.tap("mlp_out", &out);
        out
    }
}

/// `down(silu(gate(x)) · up(x))`
#[derive(Debug)]
pub(crate) struct GatedMlp {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

impl GatedMlp {
    /// # Shapes
    /// - `x`: `[rows, hidden]`; returns the same
    pub(crate) fn forward(&self, x: Tensor<2>, pass: &mut Pass<'_, '_>) -> Tensor<2> {
        let gated = silu_gate(linear(x.clone(), &self.gate), linear(x, &self.up));
        let out = linear(gated, &self.down);
        pass.tap("mlp_out", &out);
        out
    }
}
