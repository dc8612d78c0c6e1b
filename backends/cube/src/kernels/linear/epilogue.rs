//! What is done to a sum before it is written.

use cubecl::prelude::*;
use dfastllm_backends::Tensor;
use dfastllm_backends::ops::Epilogue;

use super::TOGETHER;

/// [`Epilogue`] as a kernel is compiled for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Finish {
    Plain,
    Gelu,
    Silu,
    Times,
    Plus,
}

impl Finish {
    /// The kind, and the tensor beside the result if there is one.
    pub(super) fn of(epilogue: &Epilogue) -> (Self, Option<&Tensor<2>>) {
        match epilogue {
            Epilogue::None => (Self::Plain, None),
            Epilogue::Gelu => (Self::Gelu, None),
            Epilogue::Silu => (Self::Silu, None),
            Epilogue::Times(other) => (Self::Times, Some(other)),
            Epilogue::Plus(other) => (Self::Plus, Some(other)),
        }
    }

    /// Whether there is a tensor beside the result.
    pub(super) fn has_other(self) -> bool {
        matches!(self, Self::Times | Self::Plus)
    }
}

/// Those of the projections of one launch; only one alone has a tensor beside its result.
pub(super) type Finishes = [Finish; TOGETHER];

/// `value` finished; `other` counts where there is one.
#[cube]
pub(super) fn finished(value: f32, other: f32, #[comptime] finish: Finish) -> f32 {
    match finish {
        Finish::Plain => value,
        Finish::Gelu => {
            // As `gelu_new`: x · sigmoid(2u).
            let cubic = value * value * 0.044_715f32 + 1.0f32;
            value * sigmoid(value * cubic * 1.595_769_f32)
        }
        Finish::Silu => value * sigmoid(value),
        Finish::Times => value * other,
        Finish::Plus => value + other,
    }
}

#[cube]
fn sigmoid(x: f32) -> f32 {
    // Not every device has an infinity, and e^80 is large enough.
    1.0f32 / (1.0f32 + f32::exp(min(-x, 80.0f32)))
}
