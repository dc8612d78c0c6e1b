use dfastllm_backends::Tensor;
use dfastllm_backends::ops::{Epilogue, Linear, linear};

/// `down(silu(gate(x)) · up(x))`
#[derive(Debug)]
pub(crate) struct GatedMlp {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

impl GatedMlp {
    /// Added to the residual.
    ///
    /// # Shapes
    /// - `x`, `residual`: `[rows, hidden]`; returns the same
    pub(crate) fn forward(&self, x: Tensor<2>, residual: Tensor<2>) -> Tensor<2> {
        let gate = linear(x.clone(), &self.gate, Epilogue::Silu); // [rows, intermediate]
        let gated = linear(x, &self.up, Epilogue::Times(Box::new(gate)));
        linear(gated, &self.down, Epilogue::Plus(Box::new(residual)))
    }
}
