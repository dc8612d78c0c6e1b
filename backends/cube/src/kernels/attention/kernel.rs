//! The kernels of paged attention.

use cubecl::prelude::*;
use dfastllm_backends::ops::KeyLayout;

use super::plan::Tile;

/// What hidden keys score: lower than any score, and WGSL has no infinity.
const HIDDEN: f32 = -3.0e38;

/// Loads of keys, and as many of values, that a unit has under way.
const LOADS: usize = 4;

/// Runtime numbers of a launch.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Sizes {
    rows: u32,
    heads: u32,
    kv_heads: u32,
    pieces_at: u32,
    tiles_at: u32,
    splits: u32,
    scale: f32,
}

/// What a cube has to do.
#[derive(CubeType, Clone, Copy)]
struct Work {
    /// Its first row, and how many there are.
    row: usize,
    rows: usize,
    /// Its first query head, and where those of the group end.
    head: usize,
    heads_end: usize,
    kv_head: usize,
    /// Where the pieces of its span stand in the table, and the lanes of each.
    pieces: usize,
    lanes: usize,
    /// What rows see, as in [`KeyLayout`].
    sees: i32,
    /// The lanes it visits.
    begin: usize,
    end: usize,
}

/// Shared memory of a cube.
#[derive(CubeType)]
struct Memory<P: Float, N: Size> {
    /// `[queries, vectors]`, scaled; at the end what the cube found.
    queries: Shared<[Vector<f32, N>]>,
    /// `[keys, vectors + 1]`: units that read neighbouring keys must not meet in a bank.
    keys: Shared<[Vector<P, N>]>,
    /// `[keys, vectors]`
    values: Shared<[Vector<P, N>]>,
    /// `[queries, parts, keys]`
    scores: Shared<[f32]>,
    /// Positions of query vectors, -1 where there is none.
    rows: Shared<[i32]>,
    /// Of query vectors: the largest score so far, the sum of what was added to the output, and
    /// what a new largest score makes of all that was added before.
    max: Shared<[f32]>,
    sum: Shared<[f32]>,
    rescale: Shared<[f32]>,
    /// Of the present keys: slot or `-1 - row`, and position or -1.
    places: Shared<[i32]>,
    positions: Shared<[i32]>,
}

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

#[cube]
fn entry(table: &[i32], at: usize) -> usize {
    u32::cast_from(table[at]) as usize
}

#[cube]
fn work_of_cube(table: &[i32], sizes: &Sizes, #[comptime] tile: Tile) -> Work {
    let at = sizes.tiles_at as usize + CUBE_POS_X as usize * comptime!(KeyLayout::TILE);
    let lanes = entry(table, at + 4);
    let total = entry(table, at + 3) * lanes;
    let steps = total.div_ceil(comptime!(tile.keys));
    let part = steps.div_ceil(sizes.splits as usize) * comptime!(tile.keys);
    let begin = min(CUBE_POS_Z as usize * part, total);
    let group = (sizes.heads / sizes.kv_heads) as usize;
    let in_group = group.div_ceil(comptime!(tile.heads));
    let kv_head = CUBE_POS_Y as usize / in_group;
    Work {
        row: entry(table, at),
        rows: entry(table, at + 1),
        head: kv_head * group + CUBE_POS_Y as usize % in_group * comptime!(tile.heads),
        heads_end: kv_head * group + group,
        kv_head,
        pieces: sizes.pieces_at as usize + entry(table, at + 2) * comptime!(KeyLayout::PIECE),
        lanes,
        sees: table[at + 5],
        begin,
        end: min(begin + part, total),
    }
}

#[cube]
fn new_memory<P: Float, N: Size>(#[comptime] tile: Tile) -> Memory<P, N> {
    Memory::<P, N> {
        queries: Shared::<[Vector<f32, N>]>::new_slice(comptime!(tile.queries * tile.vectors)),
        keys: Shared::<[Vector<P, N>]>::new_slice(comptime!(tile.keys * (tile.vectors + 1))),
        values: Shared::<[Vector<P, N>]>::new_slice(comptime!(tile.keys * tile.vectors)),
        scores: Shared::<[f32]>::new_slice(comptime!(tile.queries * tile.parts * tile.keys)),
        rows: Shared::<[i32]>::new_slice(comptime!(tile.queries)),
        max: Shared::<[f32]>::new_slice(comptime!(tile.queries)),
        sum: Shared::<[f32]>::new_slice(comptime!(tile.queries)),
        rescale: Shared::<[f32]>::new_slice(comptime!(tile.queries)),
        places: Shared::<[i32]>::new_slice(comptime!(tile.keys)),
        positions: Shared::<[i32]>::new_slice(comptime!(tile.keys)),
    }
}

/// Whether the tile has a query vector, and which row of all heads' vectors it is.
#[cube]
fn query_row(work: &Work, sizes: &Sizes, query: usize, #[comptime] tile: Tile) -> (bool, usize) {
    let row = query / comptime!(tile.heads);
    let head = work.head + query % comptime!(tile.heads);
    let exists = row < work.rows && head < work.heads_end;
    (exists, (work.row + row) * sizes.heads as usize + head)
}

#[cube]
fn load_queries<F: Float, P: Float, N: Size>(
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
fn find_keys<P: Float, N: Size>(
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
fn load_keys<P: Float, N: Size>(
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

/// Scores of the present keys, or parts of them.
#[cube]
fn score<P: Float, N: Size>(memory: &mut Memory<P, N>, work: &Work, #[comptime] tile: Tile) {
    let blocks = comptime!(tile.queries / tile.block);
    let steps = comptime!(tile.vectors.div_ceil(tile.parts));
    let mut item = UNIT_POS as usize;
    while item < comptime!(tile.keys * blocks * tile.parts) {
        let (key, rest) = (item % comptime!(tile.keys), item / comptime!(tile.keys));
        let (first, part) = (rest % blocks * comptime!(tile.block), rest / blocks);
        let mut sums = Array::<Vector<f32, N>>::new(comptime!(tile.block));
        #[unroll]
        for i in 0..tile.block {
            sums[i] = Vector::new(0.0f32);
        }
        for step in 0..steps {
            let vector = step * comptime!(tile.parts) + part;
            if vector < comptime!(tile.vectors) {
                let at = key * comptime!(tile.vectors + 1) + vector;
                let k = Vector::<f32, N>::cast_from(memory.keys[at]);
                #[unroll]
                for i in 0..tile.block {
                    let query = memory.queries[(first + i) * comptime!(tile.vectors) + vector];
                    sums[i] += query * k;
                }
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

/// Of the sum of weights; 0 of a row that sees no key, which gets zeros.
#[cube]
fn inverse(sum: f32) -> f32 {
    let mut inverse = f32::new(0.0);
    if sum != 0.0 {
        inverse = 1.0 / sum;
    }
    inverse
}

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
