//! The kernel of paged attention.

use cubecl::prelude::*;

use super::load::{find_keys, load_keys, load_queries};
use super::plan::Tile;
use super::work::{HIDDEN, Memory, Sizes, Work, inverse, new_memory, query_row, work_of_cube};

/// A cube a tile, head block and part of the keys. Output is `[splits, rows, heads, head_dim]`: with
/// `is_split`, sums that are not divided yet, and `stats` the largest score and the divisor of each.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and sizes of a kernel")]
pub(super) fn attention_kernel<F: Float, P: Float, O: Float, N: Size>(
    query: &[Vector<F, N>],
    keys: &[Vector<P, N>],
    values: &[Vector<P, N>],
    own_keys: &[Vector<P, N>],
    own_values: &[Vector<P, N>],
    table: &[i32],
    out: &mut [Vector<O, N>],
    stats: &mut [f32],
    sizes: Sizes,
    #[comptime] tile: Tile,
    #[comptime] is_split: bool,
    #[comptime] has_own: bool,
    #[define(F)] _dtype: ElemType,
    #[define(P)] _pool_dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    let work = work_of_cube(table, &sizes, tile);
    let mut memory = new_memory::<P, N>(tile);
    let mut outputs = Array::<Vector<f32, N>>::new(comptime!(tile.items * tile.block));
    #[unroll]
    for i in 0..comptime!(tile.items * tile.block) {
        outputs[i] = Vector::new(0.0f32);
    }
    load_queries::<F, P, N>(query, table, &mut memory, &work, &sizes, tile);
    find_keys::<P, N>(table, &mut memory, &work, work.begin, tile);
    let mut base = work.begin;
    while base < work.end {
        sync_cube();
        load_keys::<P, N>(
            keys,
            own_keys,
            values,
            own_values,
            &mut memory,
            &work,
            &sizes,
            tile,
            has_own,
        );
        sync_cube();
        score::<P, N>(&mut memory, &work, tile);
        sync_cube();
        if comptime!(tile.parts > 1) {
            join_scores::<P, N>(&mut memory, &work, tile);
            sync_cube();
        }
        raise_max::<P, N>(&mut memory, tile);
        sync_cube();
        exponentiate::<P, N>(&mut memory, tile);
        sync_cube();
        add_values::<P, N>(&mut memory, &mut outputs, tile);
        base += comptime!(tile.keys);
        // Nobody reads the places of keys that are in shared memory.
        find_keys::<P, N>(table, &mut memory, &work, base, tile);
    }
    sync_cube();
    gather_outputs::<P, N>(&mut memory, &outputs, tile);
    write::<P, O, N>(out, stats, &memory, &work, &sizes, tile, is_split);
}

/// Scores of the present keys, or parts of them.
#[cube]
fn score<P: Float, N: Size>(memory: &mut Memory<P, N>, work: &Work, #[comptime] tile: Tile) {
    let blocks = comptime!(tile.queries / tile.block);
    let mut item = UNIT_POS as usize;
    while item < comptime!(tile.keys * blocks * tile.parts) {
        let (key, rest) = (item % comptime!(tile.keys), item / comptime!(tile.keys));
        let (first, part) = (rest % blocks * comptime!(tile.block), rest / blocks);
        let mut sums = Array::<Vector<f32, N>>::new(comptime!(tile.block));
        #[unroll]
        for i in 0..tile.block {
            sums[i] = Vector::new(0.0f32);
        }
        for step in 0..comptime!(tile.vectors / tile.parts) {
            let vector = step * comptime!(tile.parts) + part;
            add_products::<P, N>(memory, &mut sums, key, first, vector, tile);
        }
        if comptime!(!tile.vectors.is_multiple_of(tile.parts)) {
            let vector = comptime!(tile.vectors / tile.parts * tile.parts) + part;
            if vector < comptime!(tile.vectors) {
                add_products::<P, N>(memory, &mut sums, key, first, vector, tile);
            }
        }
        #[unroll]
        for i in 0..tile.block {
            let mut sum = f32::new(0.0);
            #[unroll]
            for n in 0..N::value() {
                sum += sums[i].extract(n);
            }
            if comptime!(tile.parts == 1) {
                sum = visible(
                    work,
                    memory.rows[first + i],
                    memory.positions[key],
                    memory.places[key],
                    sum,
                );
            }
            let at = ((first + i) * comptime!(tile.parts) + part) * comptime!(tile.keys) + key;
            memory.scores[at] = sum;
        }
        item += comptime!(tile.units);
    }
}

/// Adds one load's products of a key with a block of query vectors.
#[cube]
fn add_products<P: Float, N: Size>(
    memory: &mut Memory<P, N>,
    sums: &mut Array<Vector<f32, N>>,
    key: usize,
    first: usize,
    vector: usize,
    #[comptime] tile: Tile,
) {
    let k = Vector::<f32, N>::cast_from(memory.keys[key * comptime!(tile.vectors + 1) + vector]);
    #[unroll]
    for i in 0..tile.block {
        sums[i] += memory.queries[(first + i) * comptime!(tile.vectors) + vector] * k;
    }
}

/// The score of a key at `position` for a query vector at `row`, if it may see it.
#[cube]
fn visible(work: &Work, row: i32, position: i32, place: i32, score: f32) -> f32 {
    let hidden_later = work.sees == 1 && position > row;
    let hidden_same = work.sees == 2 && position == row && place >= 0;
    select(row < 0 || position < 0 || hidden_later || hidden_same, HIDDEN, score)
}

#[cube]
fn join_scores<P: Float, N: Size>(memory: &mut Memory<P, N>, work: &Work, #[comptime] tile: Tile) {
    let mut pair = UNIT_POS as usize;
    while pair < comptime!(tile.queries * tile.keys) {
        let (query, key) = (pair / comptime!(tile.keys), pair % comptime!(tile.keys));
        let at = query * comptime!(tile.parts * tile.keys) + key;
        let mut sum = f32::new(0.0);
        for part in 0..tile.parts {
            sum += memory.scores[at + part * comptime!(tile.keys)];
        }
        let (row, position) = (memory.rows[query], memory.positions[key]);
        memory.scores[at] = visible(work, row, position, memory.places[key], sum);
        pair += comptime!(tile.units);
    }
}

#[cube]
fn raise_max<P: Float, N: Size>(memory: &mut Memory<P, N>, #[comptime] tile: Tile) {
    let mut query = UNIT_POS as usize;
    while query < comptime!(tile.queries) {
        let at = query * comptime!(tile.parts * tile.keys);
        let before = memory.max[query];
        let mut largest = before;
        for key in 0..tile.keys {
            largest = max(largest, memory.scores[at + key]);
        }
        memory.rescale[query] = f32::exp(before - largest);
        memory.max[query] = largest;
        query += comptime!(tile.units);
    }
}

/// Scores become weights.
#[cube]
fn exponentiate<P: Float, N: Size>(memory: &mut Memory<P, N>, #[comptime] tile: Tile) {
    let mut pair = UNIT_POS as usize;
    while pair < comptime!(tile.queries * tile.keys) {
        let (query, key) = (pair / comptime!(tile.keys), pair % comptime!(tile.keys));
        let at = query * comptime!(tile.parts * tile.keys) + key;
        let score = memory.scores[at];
        // Where all keys are hidden the largest is no score.
        memory.scores[at] = select(score == HIDDEN, 0.0f32, f32::exp(score - memory.max[query]));
        pair += comptime!(tile.units);
    }
}

/// Adds the weighted values of the present keys; the first units also sum the weights.
#[cube]
fn add_values<P: Float, N: Size>(
    memory: &mut Memory<P, N>,
    outputs: &mut Array<Vector<f32, N>>,
    #[comptime] tile: Tile,
) {
    let count = comptime!(tile.queries / tile.block * tile.vectors);
    let across = comptime!(count.min(tile.units));
    let row = comptime!(tile.parts * tile.keys);
    let (lane, key_part) = (UNIT_POS as usize % across, UNIT_POS as usize / across);
    #[unroll]
    for item in 0..tile.items {
        let output = lane + item * across;
        if output < count && key_part < comptime!(tile.key_parts) {
            let vector = output % comptime!(tile.vectors);
            let first = output / comptime!(tile.vectors) * comptime!(tile.block);
            #[unroll]
            for i in 0..tile.block {
                outputs[item * tile.block + i] *= Vector::new(memory.rescale[first + i]);
            }
            let mut key = key_part;
            while key < comptime!(tile.keys) {
                let at = key * comptime!(tile.vectors) + vector;
                let value = Vector::<f32, N>::cast_from(memory.values[at]);
                #[unroll]
                for i in 0..tile.block {
                    let weight = memory.scores[(first + i) * row + key];
                    outputs[item * tile.block + i] += value * Vector::new(weight);
                }
                key += comptime!(tile.key_parts);
            }
        }
    }
    let mut query = UNIT_POS as usize;
    while query < comptime!(tile.queries) {
        let mut sum = memory.sum[query] * memory.rescale[query];
        for key in 0..tile.keys {
            sum += memory.scores[query * row + key];
        }
        memory.sum[query] = sum;
        query += comptime!(tile.units);
    }
}

/// Sums units' outputs where the queries were, one part of the keys after the other.
#[cube]
fn gather_outputs<P: Float, N: Size>(
    memory: &mut Memory<P, N>,
    outputs: &Array<Vector<f32, N>>,
    #[comptime] tile: Tile,
) {
    let count = comptime!(tile.queries / tile.block * tile.vectors);
    let across = comptime!(count.min(tile.units));
    let (lane, key_part) = (UNIT_POS as usize % across, UNIT_POS as usize / across);
    for part in 0..tile.key_parts {
        #[unroll]
        for item in 0..tile.items {
            let output = lane + item * across;
            if output < count && key_part == part {
                let vector = output % comptime!(tile.vectors);
                let first = output / comptime!(tile.vectors) * comptime!(tile.block);
                #[unroll]
                for i in 0..tile.block {
                    let at = (first + i) * comptime!(tile.vectors) + vector;
                    let mut sum = outputs[item * tile.block + i];
                    if part > 0 {
                        sum += memory.queries[at];
                    }
                    memory.queries[at] = sum;
                }
            }
        }
        sync_cube();
    }
}

#[cube]
fn write<P: Float, O: Float, N: Size>(
    out: &mut [Vector<O, N>],
    stats: &mut [f32],
    memory: &Memory<P, N>,
    work: &Work,
    sizes: &Sizes,
    #[comptime] tile: Tile,
    #[comptime] is_split: bool,
) {
    let split = CUBE_POS_Z as usize * (sizes.rows * sizes.heads) as usize;
    let mut i = UNIT_POS as usize;
    while i < comptime!(tile.queries * tile.vectors) {
        let query = i / comptime!(tile.vectors);
        let (exists, row) = query_row(work, sizes, query, tile);
        if exists {
            let at = (split + row) * comptime!(tile.vectors) + i % comptime!(tile.vectors);
            let mut factor = f32::new(1.0);
            if comptime!(!is_split) {
                factor = inverse(memory.sum[query]);
            }
            out[at] = Vector::cast_from(memory.queries[i] * Vector::new(factor));
        }
        i += comptime!(tile.units);
    }
    if comptime!(is_split) {
        let mut query = UNIT_POS as usize;
        while query < comptime!(tile.queries) {
            let (exists, row) = query_row(work, sizes, query, tile);
            if exists {
                stats[(split + row) * 2] = memory.max[query];
                stats[(split + row) * 2 + 1] = memory.sum[query];
            }
            query += comptime!(tile.units);
        }
    }
}
