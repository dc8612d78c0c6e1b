//! Rotary embedding of queries and keys, and the writes into the cache's pages: one launch.

use cubecl::prelude::*;
use dfastllm_backends::ops::{KeyLayout, KeyTables, RopeAngles, RopePrecision, RopeShape};
use dfastllm_backends::{DType, Tensor};

use super::buffers::{buffer, buffer_in_place, element, int_buffer, room, tensor, units};

/// Most units of a cube.
const UNITS: u32 = 256;

/// Queries, keys and values of the rows, and the pool's keys and values of all slots. A unit has the
/// dimensions `i` and `i + half` of one head of one row, or one dimension that does not turn.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and sizes of a kernel")]
fn rotate_kernel<F: Float, A: Float, P: Float>(
    query: &[F],
    keys: &[F],
    values: &[F],
    angles: &[A],
    table: &[i32],
    turned: &mut [F],
    own_keys: &mut [P],
    own_values: &mut [P],
    pool_keys: &mut [P],
    pool_values: &mut [P],
    rows: u32,
    heads: u32,
    kv_heads: u32,
    #[comptime] head_dim: u32,
    #[comptime] half: u32,
    #[comptime] rounds: bool,
    #[comptime] keeps: bool,
    #[define(F)] _dtype: ElemType,
    #[define(A)] _angle_dtype: ElemType,
    #[define(P)] _pool_dtype: ElemType,
) {
    let parts = comptime!(head_dim - half);
    let unit = CUBE_POS_X * CUBE_DIM_X + UNIT_POS;
    let (head, i) = (unit / parts, (unit % parts) as usize);
    let row = CUBE_POS_Y;
    if head >= heads + 2 * kv_heads {
        terminate!();
    }
    let half = comptime!(half as usize);
    let dim = comptime!(head_dim as usize);
    // The second of the unit's dimensions, or its only one.
    let second = i + half;
    let angle = (row as usize) * half + i;
    let sines = (rows as usize) * half;
    if head < heads {
        let at = ((row * heads + head) as usize) * dim;
        if i < half {
            let (a, b) = (query[at + i], query[at + second]);
            let (cos, sin) = (angles[angle], angles[sines + angle]);
            turned[at + i] = turned_first::<F, A>(a, b, cos, sin, rounds);
            turned[at + second] = turned_second::<F, A>(a, b, cos, sin, rounds);
        } else {
            turned[at + second] = query[at + second];
        }
    } else {
        let is_key = head < heads + kv_heads;
        let kv_head = select(is_key, head - heads, head - heads - kv_heads);
        let at = ((row * kv_heads + kv_head) as usize) * dim;
        let slot = table[(row as usize) * comptime!(KeyLayout::ROW)];
        let to =
            (u32::cast_from(max(slot, 0)) as usize * (kv_heads as usize) + kv_head as usize) * dim;
        if is_key {
            let mut b = keys[at + second];
            if i < half {
                let a = keys[at + i];
                let (cos, sin) = (angles[angle], angles[sines + angle]);
                let first = P::cast_from(turned_first::<F, A>(a, b, cos, sin, rounds));
                b = turned_second::<F, A>(a, b, cos, sin, rounds);
                store::<P>(first, own_keys, pool_keys, at + i, to + i, slot, keeps);
            }
            store::<P>(P::cast_from(b), own_keys, pool_keys, at + second, to + second, slot, keeps);
        } else {
            if i < half {
                let first = P::cast_from(values[at + i]);
                store::<P>(first, own_values, pool_values, at + i, to + i, slot, keeps);
            }
            let b = P::cast_from(values[at + second]);
            store::<P>(b, own_values, pool_values, at + second, to + second, slot, keeps);
        }
    }
}

#[cube]
fn store<P: Float>(
    value: P,
    own: &mut [P],
    pool: &mut [P],
    at: usize,
    to: usize,
    slot: i32,
    #[comptime] keeps: bool,
) {
    if slot >= 0 {
        pool[to] = value;
    }
    if comptime!(keeps) {
        own[at] = value;
    }
}

#[cube]
fn turned_first<F: Float, A: Float>(a: F, b: F, cos: A, sin: A, #[comptime] rounds: bool) -> F {
    F::cast_from(product::<F, A>(a, cos, rounds) - product::<F, A>(b, sin, rounds))
}

#[cube]
fn turned_second<F: Float, A: Float>(a: F, b: F, cos: A, sin: A, #[comptime] rounds: bool) -> F {
    F::cast_from(product::<F, A>(b, cos, rounds) + product::<F, A>(a, sin, rounds))
}

/// In f32, where the product of two narrower floats is exact: rounding it is what their own
/// arithmetic gives, and no compiler can fuse it with the sum.
#[cube]
fn product<F: Float, A: Float>(x: F, angle: A, #[comptime] rounds: bool) -> f32 {
    let product = f32::cast_from(x) * f32::cast_from(angle);
    if comptime!(rounds) { f32::cast_from(F::cast_from(product)) } else { product }
}

/// Turned queries, and turned keys beside values in the pool's dtype if some row attends to them.
pub(super) fn rotate_and_store(
    query: Tensor<2>,
    own: [Tensor<2>; 2],
    (shape, angles): (RopeShape, &RopeAngles),
    tables: &KeyTables,
    pool: [&mut Tensor<2>; 2],
) -> (Tensor<2>, [Tensor<2>; 2]) {
    let [rows, width] = query.dims();
    let kv_width = own[0].dims()[1];
    let (dtype, pool_dtype) = (query.dtype(), pool[0].dtype());
    let keeps = tables.layout.has_own_keys;
    let (heads, kv_heads) = (width / shape.head_dim, kv_width / shape.head_dim);
    let [keys, values] = own.map(|x| buffer(x.cast(dtype)));
    let (query, angles) = (buffer(query), buffer(angles.table.clone()));
    let client = query.client.clone();
    let turned = room(&query, [rows, width], dtype);
    // One element stands for a result that nobody reads.
    let kept = if keeps { [rows, kv_width] } else { [1, 1] };
    let kept = [0, 1].map(|_| room(&query, kept, pool_dtype));
    // The pool's own buffers, whoever else holds a handle: it holds the only one between calls, and a
    // pass is to see what it wrote, so writing where they are is what is wanted.
    let [pool_keys, pool_values] = pool.map(|pages| buffer_in_place(pages));
    let parts = (heads + 2 * kv_heads) * (shape.head_dim - shape.half);
    let units = units(&client, UNITS);
    rotate_kernel::launch(
        &client,
        CubeCount::Static((parts as u32).div_ceil(units), rows as u32, 1),
        CubeDim::new_1d(units),
        query.into_buffer_arg(),
        keys.into_buffer_arg(),
        values.into_buffer_arg(),
        angles.clone().into_buffer_arg(),
        int_buffer(tables.table.clone()).into_buffer_arg(),
        turned.clone().into_buffer_arg(),
        kept[0].clone().into_buffer_arg(),
        kept[1].clone().into_buffer_arg(),
        pool_keys.into_buffer_arg(),
        pool_values.into_buffer_arg(),
        rows as u32,
        heads as u32,
        kv_heads as u32,
        shape.head_dim as u32,
        shape.half as u32,
        shape.precision == RopePrecision::Activations && dtype != DType::F32,
        keeps,
        element(dtype),
        element(angles.dtype),
        element(pool_dtype),
    );
    (tensor(turned), kept.map(tensor))
}

/// `from` and `to` in elements.
#[cube(launch)]
fn copy_kernel<P: Float>(
    x: &mut [P],
    from: u32,
    to: u32,
    count: u32,
    #[define(P)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < count as usize {
        let value = x[from as usize + i];
        x[to as usize + i] = value;
    }
}

/// Copies rows within a tensor, in place.
pub(super) fn copy_rows(x: &mut Tensor<2>, from: usize, to: usize, count: usize) {
    let (width, dtype) = (x.dims()[1], x.dtype());
    let x = buffer_in_place(x);
    let client = x.client.clone();
    let units = units(&client, UNITS);
    copy_kernel::launch(
        &client,
        CubeCount::Static(((count * width) as u32).div_ceil(units), 1, 1),
        CubeDim::new_1d(units),
        x.into_buffer_arg(),
        (from * width) as u32,
        (to * width) as u32,
        (count * width) as u32,
        element(dtype),
    );
}
