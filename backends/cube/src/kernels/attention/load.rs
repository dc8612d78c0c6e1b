//! What a cube of attention reads: its query vectors, and keys and values by turns.

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

/// Where the keys from lane `base` on are.
#[cube]
pub(super) fn find_keys<P: Float, N: Size>(
    table: &[i32],
    memory: &mut Memory<P, N>,
    work: &Work,
    base: usize,
    #[comptime] tile: Tile,
) {
    let mut key = UNIT_POS as usize;
    while key < comptime!(tile.keys) {
        let lane = base + key;
        let mut place = i32::new(0);
        let mut position = i32::new(-1);
        if lane < work.end {
            let piece = work.pieces + lane / work.lanes * comptime!(KeyLayout::PIECE);
            let offset = i32::cast_from(lane % work.lanes);
            if offset < table[piece + 2] {
                let first = table[piece];
                place = select(first >= 0, first + offset, first - offset);
                position = table[piece + 1] + offset;
            }
        }
        memory.places[key] = place;
        memory.positions[key] = position;
        key += comptime!(tile.units);
    }
}

/// Keys and values of the present lanes.
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
    let kv_heads = sizes.kv_heads as usize;
    for round in 0..comptime!(steps.div_ceil(chunk)) {
        let first = round * comptime!(chunk * tile.units) + UNIT_POS as usize;
        let mut k = Array::<Vector<P, N>>::new(chunk);
        let mut v = Array::<Vector<P, N>>::new(chunk);
        // No load waits for another, and none is behind a branch: what must not be there is replaced
        // afterwards, so that all of them are under way at once.
        #[unroll]
        for step in 0..chunk {
            let i = min(first + step * comptime!(tile.units), comptime!(total - 1));
            let (key, vector) = (i / comptime!(tile.vectors), i % comptime!(tile.vectors));
            let place = memory.places[key];
            let slot = u32::cast_from(max(place, 0)) as usize;
            let at = (slot * kv_heads + work.kv_head) * comptime!(tile.vectors) + vector;
            let (mut one_k, mut one_v) = (keys[at], values[at]);
            if comptime!(has_own) {
                let row = u32::cast_from(max(i32::new(-1) - place, 0)) as usize;
                let at = (row * kv_heads + work.kv_head) * comptime!(tile.vectors) + vector;
                one_k = select(place < 0, own_keys[at], one_k);
                one_v = select(place < 0, own_values[at], one_v);
            }
            k[step] = one_k;
            // A hidden key's score is not its own, but its value is weighed, by 0.
            let nothing = Vector::<P, N>::new(P::new(0.0));
            v[step] = select(memory.positions[key] < 0, nothing, one_v);
        }
        #[unroll]
        for step in 0..chunk {
            let i = first + step * comptime!(tile.units);
            if i < total {
                let (key, vector) = (i / comptime!(tile.vectors), i % comptime!(tile.vectors));
                memory.keys[key * comptime!(tile.vectors + 1) + vector] = k[step];
                memory.values[i] = v[step];
            }
        }
    }
}
