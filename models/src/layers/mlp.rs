use dfastllm_backends::Tensor;
use dfastllm_backends::ops::{Epilogue, Linear, linear};

/// `fc2(gelu(fc1(x)))`
#[derive(Debug)]
pub(crate) struct GeluMlp {
    pub(crate) fc1: Linear,
    pub(crate) fc2: Linear,
}

impl GeluMlp {
    /// Added to the residual.
    ///
    /// # Shapes
    /// - `x`, `residual`: `[rows, hidden]`; returns the same
    pub(crate) fn forward(&self, x: Tensor<2>, residual: Tensor<2>) -> Tensor<2> {
        let inner = linear(x, &self.fc1, Epilogue::Gelu); // [rows, intermediate]
        linear(inner, &self.fc2, Epilogue::Plus(Box::new(residual)))
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
