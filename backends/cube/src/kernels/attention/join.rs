//! The second kernel of attention whose keys are split.

use cubecl::prelude::*;
use dfastllm_backends::ops::KeyLayout;

use super::work::{HIDDEN, entry, inverse};

/// Joins the parts of the keys: a cube a row and head. `parts [splits, rows, heads, vectors]`, and
/// `stats` the largest score and the sum of weights of each.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and sizes of a kernel")]
pub(super) fn join_kernel<O: Float, N: Size>(
    parts: &[Vector<f32, N>],
    stats: &[f32],
    table: &[i32],
    out: &mut [Vector<O, N>],
    rows: u32,
    tiles_at: u32,
    splits: u32,
    tile_rows: u32,
    vectors: u32,
    #[define(O)] _dtype: ElemType,
) {
    let at = tiles_at as usize + (CUBE_POS_X / tile_rows) as usize * comptime!(KeyLayout::TILE);
    let in_tile = (CUBE_POS_X % tile_rows) as usize;
    if in_tile >= entry(table, at + 1) {
        terminate!();
    }
    let heads = CUBE_COUNT_Y as usize;
    let row = (entry(table, at) + in_tile) * heads + CUBE_POS_Y as usize;
    let step = rows as usize * heads;
    let splits = splits as usize;
    let mut largest = HIDDEN.runtime();
    for split in 0..splits {
        largest = max(largest, stats[(split * step + row) * 2]);
    }
    let mut sum = f32::new(0.0);
    for split in 0..splits {
        let stat = (split * step + row) * 2;
        sum += stats[stat + 1] * f32::exp(stats[stat] - largest);
    }
    let factor = inverse(sum);
    let vectors = vectors as usize;
    let mut vector = UNIT_POS as usize;
    while vector < vectors {
        let mut value = Vector::<f32, N>::new(0.0f32);
        for split in 0..splits {
            let weight = f32::exp(stats[(split * step + row) * 2] - largest);
            value += parts[(split * step + row) * vectors + vector] * Vector::new(weight);
        }
        out[row * vectors + vector] = Vector::cast_from(value * Vector::new(factor));
        vector += CUBE_DIM_X as usize;
    }
}
