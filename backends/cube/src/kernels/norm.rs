//! LayerNorm and RMSNorm: a cube a row.

use cubecl::prelude::*;
use dfastllm_backends::Tensor;
use dfastllm_backends::ops::Normal;

use super::buffers::{buffer, element, room, tensor, units};
use super::reduce::cube_sum;

/// Most units of a cube.
const UNITS: u32 = 256;

/// `x [rows, features]`; statistics in f32, two passes over the row.
#[cube(launch)]
fn normalise_kernel<F: Float>(
    x: &[F],
    weight: &[F],
    bias: &[F],
    y: &mut [F],
    features: u32,
    eps: f32,
    #[comptime] is_layer: bool,
    #[comptime] units: u32,
    #[define(F)] _dtype: ElemType,
) {
    let mut shared = Shared::<[f32]>::new_slice(units as usize);
    let n = features as usize;
    let first = CUBE_POS * n;
    let mut mean = f32::new(0.0);
    if comptime!(is_layer) {
        let mut sum = f32::new(0.0);
        let mut i = UNIT_POS as usize;
        while i < n {
            sum += f32::cast_from(x[first + i]);
            i += units as usize;
        }
        mean = cube_sum(sum, &mut shared, units) / f32::cast_from(features);
    }
    let mut squares = f32::new(0.0);
    let mut i = UNIT_POS as usize;
    while i < n {
        let centred = f32::cast_from(x[first + i]) - mean;
        squares += centred * centred;
        i += units as usize;
    }
    let variance = cube_sum(squares, &mut shared, units) / f32::cast_from(features);
    let root = f32::sqrt(variance + eps);
    let mut i = UNIT_POS as usize;
    while i < n {
        let normal = (f32::cast_from(x[first + i]) - mean) / root;
        if comptime!(is_layer) {
            y[first + i] =
                F::cast_from(normal * f32::cast_from(weight[i]) + f32::cast_from(bias[i]));
        } else {
            y[first + i] = F::cast_from(normal) * weight[i];
        }
        i += units as usize;
    }
}

/// Normalises rows, in the dtype of `x`.
pub(super) fn normalise(x: Tensor<2>, normal: Normal<'_>, eps: f64) -> Tensor<2> {
    let [rows, features] = x.dims();
    let dtype = x.dtype();
    let (weight, bias) = match normal {
        Normal::Layer { weight, bias } => (weight, bias),
        Normal::Rms { weight } => (weight, weight),
    };
    let (x, weight, bias) =
        (buffer(x), buffer(weight.clone().cast(dtype)), buffer(bias.clone().cast(dtype)));
    let y = room(&x, [rows, features], dtype);
    let units = units(&x.client, UNITS.min((features as u32).next_power_of_two()));
    normalise_kernel::launch(
        &x.client.clone(),
        CubeCount::Static(rows as u32, 1, 1),
        CubeDim::new_1d(units),
        x.into_buffer_arg(),
        weight.into_buffer_arg(),
        bias.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        features as u32,
        eps as f32,
        matches!(normal, Normal::Layer { .. }),
        units,
        element(dtype),
    );
    tensor(y)
}
