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

/// What is done to the sums of one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ending {
    /// Of each projection; only one alone has a tensor beside its result.
    pub(super) finishes: [Finish; TOGETHER],
    pub(super) has_bias: bool,
}

/// Finishes and writes an output; `place` is its number and its index in the result of its matrix.
#[cube]
pub(super) fn put_output<F: Float>(
    sum: f32,
    place: (u32, u32),
    biases: &Sequence<Box<[F]>>,
    other: &Sequence<Box<[F]>>,
    results: &mut Sequence<Box<[F]>>,
    #[comptime] matrix: usize,
    #[comptime] ending: Ending,
) {
    let (out, at) = place;
    let mut value = sum;
    if comptime!(ending.has_bias) {
        value += f32::cast_from(biases[matrix][out as usize]);
    }
    let finish = comptime!(ending.finishes[matrix]);
    let mut beside = 0.0f32.runtime();
    if comptime!(finish.has_other()) {
        beside = f32::cast_from(other[0][at as usize]);
    }
    let result = results.index_mut(matrix);
    result[at as usize] = F::cast_from(finished(value, beside, finish));
}

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
