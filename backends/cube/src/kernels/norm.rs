//! LayerNorm and RMSNorm: a cube a row.

use cubecl::prelude::*;
use dfastllm_backends::Tensor;
use dfastllm_backends::ops::Normal;

use super::buffers::{buffer, element, plane_size, room, tensor, units, vector_size};
use super::reduce::cube_sum;

/// Most units of a cube.
const UNITS: u32 = 512;
/// Most loads of a unit in a loop that is unrolled.
const UNROLLED: usize = 8;

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Plan {
    is_layer: bool,
    units: u32,
    /// Units of a plane, or nothing where planes do not add up.
    plane: Option<u32>,
    /// Loads of a unit.
    loads: usize,
}

/// `x [rows, features]`; statistics in f32, the mean before the squares. A row is read once.
#[cube(launch)]
fn normalise_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    bias: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    vectors: u32,
    eps: f32,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: ElemType,
) {
    let mut shared = Shared::<[f32]>::new_slice(plan.units as usize);
    let features = f32::cast_from(vectors * N::value() as u32);
    let count = vectors as usize;
    let first = CUBE_POS * count;
    let unroll = comptime!(plan.loads <= UNROLLED);
    let mut values = Array::<Vector<f32, N>>::new(plan.loads);
    let mut mean = f32::new(0.0);
    let mut sum = Vector::<f32, N>::new(0.0f32);
    #[unroll(unroll)]
    for i in 0..plan.loads {
        let at = i * plan.units as usize + UNIT_POS as usize;
        values[i] = Vector::new(0.0f32);
        if at < count {
            values[i] = Vector::cast_from(x[first + at]);
        }
        sum += values[i];
    }
    if comptime!(plan.is_layer) {
        mean = cube_sum(sum_of::<N>(sum), &mut shared, plan.units, plan.plane) / features;
    }
    let mut squares = Vector::<f32, N>::new(0.0f32);
    #[unroll(unroll)]
    for i in 0..plan.loads {
        if i * (plan.units as usize) + (UNIT_POS as usize) < count {
            values[i] -= Vector::new(mean);
            squares += values[i] * values[i];
        }
    }
    let squares = cube_sum(sum_of::<N>(squares), &mut shared, plan.units, plan.plane);
    let root = Vector::<f32, N>::new(f32::sqrt(squares / features + eps));
    #[unroll(unroll)]
    for i in 0..plan.loads {
        let at = i * plan.units as usize + UNIT_POS as usize;
        if at < count {
            let normal = values[i] / root;
            if comptime!(plan.is_layer) {
                let weighted = normal * Vector::cast_from(weight[at]);
                y[first + at] = Vector::cast_from(weighted + Vector::cast_from(bias[at]));
            } else {
                y[first + at] = Vector::cast_from(normal) * weight[at];
            }
        }
    }
}

#[cube]
fn sum_of<N: Size>(values: Vector<f32, N>) -> f32 {
    let mut sum = f32::new(0.0);
    #[unroll]
    for i in 0..N::value() {
        sum += values.extract(i);
    }
    sum
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
    let vector = vector_size(&x.client, dtype, features);
    let vectors = features / vector;
    let units = units(&x.client, UNITS.min((vectors as u32).next_power_of_two()));
    let plan = Plan {
        is_layer: matches!(normal, Normal::Layer { .. }),
        units,
        plane: plane_size(&x.client).filter(|plane| units.is_multiple_of(*plane)),
        loads: vectors.div_ceil(units as usize),
    };
    normalise_kernel::launch(
        &x.client.clone(),
        CubeCount::Static(rows as u32, 1, 1),
        CubeDim::new_1d(units),
        vector,
        x.into_buffer_arg(),
        weight.into_buffer_arg(),
        bias.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        vectors as u32,
        eps as f32,
        plan,
        element(dtype),
    );
    tensor(y)
}
