//! What a cube of attention reads: its query vectors, and keys and values by turns.
#![allow(clippy::if_same_then_else, reason = "only one of the branches is compiled")]

use cubecl::prelude::*;
use dfastllm_backends::ops::KeyLayout;

use super::plan::Tile;
use super::work::{HIDDEN, Memory, Sizes, Work, query_row};

/// Loads of keys, and as many of values, that a unit has under way.
const LOADS: usize = 4;

#[cube]
pub(super) fn load_queries<F: Float, P: Float, N: Size>(
    query: &[Vector<F, N>],
    table: &[i32],
    memory: &mut Memory<P, N>,
    work: &Work,
    sizes: &Sizes,
    #[comptime] tile: Tile,
) {
    let mut i = UNIT_POS as usize;
    while i < comptime!(tile.queries * tile.vectors) {
        let (exists, row) = query_row(work, sizes, i / comptime!(tile.vectors), tile);
        let mut value = Vector::<f32, N>::new(0.0f32);
        if exists {
            let at = row * comptime!(tile.vectors) + i % comptime!(tile.vectors);
            value = Vector::<f32, N>::cast_from(query[at]) * Vector::new(sizes.scale);
        }
        memory.queries[i] = value;
        i += comptime!(tile.units);
    }
    let mut q = UNIT_POS as usize;
    while q < comptime!(tile.queries) {
        let (exists, row) = query_row(work, sizes, q, tile);
        let mut position = i32::new(-1);
        if exists {
            let row = row / sizes.heads as usize;
            position = table[row * comptime!(KeyLayout::ROW) + 1];
        }
        memory.rows[q] = position;
        memory.max[q] = HIDDEN;
        memory.sum[q] = 0.0f32;
        q += comptime!(tile.units);
    }
}

/// Where the keys from lane `base` on are. A lane that has none gets the place of another key of the
/// span, so that no load reads what is not the sequence's own, and no position.
#[cube]
pub(super) fn find_keys<P: Float, N: Size>(
    table: &[i32],
    memory: &mut Memory<P, N>,
    work: &Work,
    base: usize,
    #[comptime] tile: Tile,
) {
    let mut key = UNIT_POS as usize;
    while key < comptime!(tile.keys) && base < work.end {
        let lane = min(base + key, work.end - 1);
        let piece = work.pieces + lane / work.lanes * comptime!(KeyLayout::PIECE);
        let wanted = i32::cast_from(lane % work.lanes);
        let first = table[piece];
        let count = table[piece + 2];
        let offset = min(wanted, count - 1);
        memory.places[key] = select(first >= 0, first + offset, first - offset);
        let is_there = base + key < work.end && wanted < count;
        memory.positions[key] = select(is_there, table[piece + 1] + offset, i32::new(-1));
        key += comptime!(tile.units);
    }
}

/// Keys and values of the lanes.
#[cube]
#[expect(clippy::too_many_arguments, reason = "buffers of a kernel")]
pub(super) fn load_keys<P: Float, N: Size>(
    keys: &[Vector<P, N>],
    own_keys: &[Vector<P, N>],
    values: &[Vector<P, N>],
    own_values: &[Vector<P, N>],
    memory: &mut Memory<P, N>,
    work: &Work,
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[comptime] has_own: bool,
) {
    let total = comptime!(tile.keys * tile.vectors);
    let steps = comptime!(total.div_ceil(tile.units));
    let chunk = comptime!(steps.min(LOADS));
    let is_exact = comptime!(total.is_multiple_of(chunk * tile.units));
    let kv_heads = sizes.kv_heads as usize;
    for round in 0..comptime!(steps.div_ceil(chunk)) {
        let first = round * comptime!(chunk * tile.units) + UNIT_POS as usize;
        let mut k = Array::<Vector<P, N>>::new(chunk);
        let mut v = Array::<Vector<P, N>>::new(chunk);
        // All loads before the first is stored, so that none waits for another.
        #[unroll]
        for step in 0..chunk {
            let mut i = first + step * comptime!(tile.units);
            if comptime!(!is_exact) {
                i = min(i, comptime!(total - 1));
            }
            let (key, vector) = (i / comptime!(tile.vectors), i % comptime!(tile.vectors));
            let place = memory.places[key];
            let row = u32::cast_from(max(place, i32::new(-1) - place)) as usize;
            let at = (row * kv_heads + work.kv_head) * comptime!(tile.vectors) + vector;
            if comptime!(has_own) {
                if place < 0 {
                    k[step] = own_keys[at];
                    v[step] = own_values[at];
                } else {
                    k[step] = keys[at];
                    v[step] = values[at];
                }
            } else {
                k[step] = keys[at];
                v[step] = values[at];
            }
        }
        #[unroll]
        for step in 0..chunk {
            let i = first + step * comptime!(tile.units);
            if comptime!(is_exact) {
                put::<P, N>(memory, i, k[step], v[step], tile);
            } else if i < total {
                put::<P, N>(memory, i, k[step], v[step], tile);
            }
        }
    }
}

#[cube]
fn put<P: Float, N: Size>(
    memory: &mut Memory<P, N>,
    i: usize,
    k: Vector<P, N>,
    v: Vector<P, N>,
    #[comptime] tile: Tile,
) {
    let (key, vector) = (i / comptime!(tile.vectors), i % comptime!(tile.vectors));
    memory.keys[key * comptime!(tile.vectors + 1) + vector] = k;
    memory.values[i] = v;
}
