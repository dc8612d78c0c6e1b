//! Products of few rows: as fast as the weights can be read.
//!
//! A group of units computes a few outputs for a tile of rows. Its units stride along `in`, 16 bytes
//! of a weight at a time, and add their sums up at the end. A row's sums have one order whatever the
//! tile it is in.

use cubecl::prelude::*;

use super::decode::{BLOCK, Format, stored};
use super::epilogue::{Ending, put_output};

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub(super) format: Format,
    pub(super) ending: Ending,
    /// Rows of a tile.
    pub(super) tile: usize,
    /// Outputs of a group.
    pub(super) outs: usize,
    /// Loads of each output under way.
    pub(super) ahead: usize,
    /// Units of a group.
    pub(super) lanes: u32,
    /// Groups of a cube.
    pub(super) groups: u32,
    /// Whether a group is a plane.
    pub(super) has_planes: bool,
    /// Whether `in` is whole blocks.
    pub(super) is_whole: bool,
}

impl Plan {
    /// Weights of one load; `vector` are those of a vector of floats.
    pub(super) fn step(self, vector: usize) -> usize {
        match self.format {
            Format::Floats => vector,
            Format::Blocks(format) => 4 * format.per_word(),
        }
    }

    /// Weights that are unpacked at a time.
    fn part(self, vector: usize) -> usize {
        match self.format {
            Format::Floats => vector,
            Format::Blocks(_) => 8,
        }
    }

    /// Units of a cube.
    pub(super) fn units(self) -> u32 {
        self.lanes * self.groups
    }
}

/// What a group of units computes: some outputs of a matrix for a tile of rows.
#[derive(CubeType)]
struct Tile {
    /// Its first row, and the rows there are.
    row: u32,
    rows: u32,
    /// Its first output, and the outputs there are.
    out: u32,
    outs: u32,
    /// Length of a row of the matrix.
    inputs: u32,
    #[cube(comptime)]
    matrix: usize,
}

/// Projections of `x [rows, inputs]`, of weights `[outs, inputs]`: cubes along x are tiles
/// of rows, those along y and z outputs, of one matrix after the other.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arguments are its bindings")]
pub(super) fn few_kernel<W: Numeric, S: Float, F: Float, NW: Size, NX: Size, NO: Size>(
    x: &[Vector<F, NX>],
    weights: &Sequence<Box<[Vector<W, NW>]>>,
    scales: &Sequence<Box<[S]>>,
    biases: &Sequence<Box<[F]>>,
    other: &Sequence<Box<[F]>>,
    results: &mut Sequence<Box<[F]>>,
    sizes: &Sequence<u32>,
    rows: u32,
    inputs: u32,
    #[comptime] plan: Plan,
    #[define(W, S, F)] _dtypes: [ElemType; 3],
) {
    let room = comptime!(if plan.has_planes { 1 } else { plan.units() as usize * plan.tile });
    let mut shared = Shared::<[Vector<f32, NO>]>::new_slice(room);
    let cube_outs = comptime!(plan.outs as u32 * plan.groups);
    let cube = CUBE_POS_Y + CUBE_POS_Z * CUBE_COUNT_Y;
    let mut first = 0u32.runtime();
    #[unroll]
    for matrix in 0..weights.len() {
        let outs = sizes[matrix];
        let end = first + outs.div_ceil(cube_outs);
        if cube >= first && cube < end {
            let row = CUBE_POS_X * comptime!(plan.tile as u32);
            let cube_out = (cube - first) * cube_outs;
            let out = cube_out + UNIT_POS_Y * comptime!(plan.outs as u32);
            let tile = Tile { row, rows, out, outs, inputs, matrix };
            let mut sums = Array::<Vector<f32, NO>>::new(plan.tile);
            sum_up::<W, S, F, NW, NX, NO>(x, weights, scales, &tile, &mut sums, plan);
            if comptime!(plan.has_planes) {
                put_planes::<F, NO>(&sums, biases, other, results, &tile, plan);
            } else {
                #[unroll]
                for r in 0..plan.tile {
                    shared[comptime!(r * plan.units() as usize) + UNIT_POS as usize] = sums[r];
                }
                sync_cube();
                let tile = Tile { row, rows, out: cube_out, outs, inputs, matrix };
                put_shared::<F, NO>(&shared, biases, other, results, &tile, plan);
            }
        }
        first = end;
    }
}

/// One unit's share of the sums of all rows of a tile.
#[cube]
fn sum_up<W: Numeric, S: Float, F: Float, NW: Size, NX: Size, NO: Size>(
    x: &[Vector<F, NX>],
    weights: &Sequence<Box<[Vector<W, NW>]>>,
    scales: &Sequence<Box<[S]>>,
    tile: &Tile,
    sums: &mut Array<Vector<f32, NO>>,
    #[comptime] plan: Plan,
) {
    let vector = NX::value();
    let row_vectors = tile.inputs / vector as u32;
    let mut rows = Array::<u32>::new(plan.tile);
    #[unroll]
    for r in 0..plan.tile {
        // Rows that are not there are computed as the last one and not written.
        rows[r] = min(tile.row + r as u32, tile.rows - 1) * row_vectors;
    }
    let steps = tile.inputs.div_ceil(comptime!(plan.step(vector) as u32));
    let lanes = comptime!(plan.lanes);
    let ahead = comptime!(plan.ahead as u32);
    let mut i = UNIT_POS_X;
    if comptime!(ahead > 1) {
        while i + comptime!((ahead - 1) * lanes) < steps {
            let count = comptime!(ahead as usize);
            advance::<W, S, F, NW, NX, NO>(x, weights, scales, tile, &rows, i, sums, count, plan);
            i += comptime!(ahead * lanes);
        }
    }
    while i < steps {
        advance::<W, S, F, NW, NX, NO>(x, weights, scales, tile, &rows, i, sums, 1usize, plan);
        i += lanes;
    }
}

/// Adds `count` steps of a unit, from step `first` on; `rows` are where rows of `x` begin.
#[cube]
#[expect(clippy::too_many_arguments, reason = "bindings cannot be put together")]
fn advance<W: Numeric, S: Float, F: Float, NW: Size, NX: Size, NO: Size>(
    x: &[Vector<F, NX>],
    weights: &Sequence<Box<[Vector<W, NW>]>>,
    scales: &Sequence<Box<[S]>>,
    tile: &Tile,
    rows: &Array<u32>,
    first: u32,
    sums: &mut Array<Vector<f32, NO>>,
    #[comptime] count: usize,
    #[comptime] plan: Plan,
) {
    let vector = NX::value();
    let step = comptime!(plan.step(vector));
    let outs = comptime!(plan.outs);
    let steps = tile.inputs.div_ceil(BLOCK as u32) * comptime!((BLOCK / step.min(BLOCK)) as u32);
    let row_steps = match plan.format {
        Format::Floats => tile.inputs / step as u32,
        Format::Blocks(_) => steps,
    };
    // All loads first, so that they are under way together.
    let mut loaded = Array::<Vector<W, NW>>::new(comptime!(count * outs));
    let mut factors = Array::<f32>::new(comptime!(count * outs));
    #[unroll]
    for n in 0..count {
        #[unroll]
        for o in 0..outs {
            // Outputs that are not there are computed as the last one and not written.
            let out = min(tile.out + o as u32, tile.outs - 1);
            let i = out * row_steps + first + comptime!(n as u32 * plan.lanes);
            loaded[n * outs + o] = weights[tile.matrix][i as usize];
            if comptime!(plan.format != Format::Floats) {
                // Rows are whole blocks.
                let block = i / comptime!((BLOCK / step.min(BLOCK)) as u32);
                factors[n * outs + o] = f32::cast_from(scales[tile.matrix][block as usize]);
            }
        }
    }
    let part = comptime!(plan.part(vector));
    #[unroll]
    for n in 0..count {
        let at = (first + comptime!(n as u32 * plan.lanes)) * step as u32;
        // A loop of the device: unrolled it would be eight times as much to compile.
        for p in 0..comptime!((step / part) as u32) {
            let mut unpacked = Array::<Vector<f32, NO>>::new(part);
            #[unroll]
            for k in 0..part {
                let mut of_outs = Vector::<f32, NO>::empty();
                #[unroll]
                for o in 0..outs {
                    let from = comptime!(n * outs + o);
                    of_outs.insert(o, unpack::<W, NW>(loaded[from], factors[from], k, plan));
                }
                unpacked[k] = of_outs;
            }
            multiply::<F, NX, NO>(x, &unpacked, tile, rows, at + p * part as u32, sums, plan);
            #[unroll]
            for o in 0..outs {
                loaded[n * outs + o] = next_part::<W, NW>(loaded[n * outs + o], plan);
            }
        }
    }
}

/// Weight `k` of the first part of a load.
#[cube]
fn unpack<W: Numeric, N: Size>(
    loaded: Vector<W, N>,
    factor: f32,
    #[comptime] k: usize,
    #[comptime] plan: Plan,
) -> f32 {
    match plan.format {
        Format::Floats => f32::cast_from(loaded.extract(k)),
        Format::Blocks(format) => {
            let word = u32::cast_from(loaded.extract(comptime!(k / format.per_word())));
            stored(word, comptime!(k % format.per_word()), format) * factor
        }
    }
}

/// A load with its next part first.
#[cube]
fn next_part<W: Numeric, N: Size>(loaded: Vector<W, N>, #[comptime] plan: Plan) -> Vector<W, N> {
    match plan.format {
        Format::Floats => loaded,
        Format::Blocks(format) => {
            let words = comptime!(8 / format.per_word());
            let mut next = loaded;
            #[unroll]
            for i in words..N::value() {
                next.insert(comptime!(i - words), loaded.extract(i));
            }
            next
        }
    }
}

/// Adds the products of all rows of a tile with the weights from `at` on.
#[cube]
fn multiply<F: Float, NX: Size, NO: Size>(
    x: &[Vector<F, NX>],
    weights: &Array<Vector<f32, NO>>,
    tile: &Tile,
    rows: &Array<u32>,
    at: u32,
    sums: &mut Array<Vector<f32, NO>>,
    #[comptime] plan: Plan,
) {
    let vector = NX::value();
    #[unroll]
    for v in 0..comptime!(plan.part(vector) / vector) {
        let mut i = at / vector as u32 + v as u32;
        if comptime!(!plan.is_whole) {
            // The filling of the last block is zeros: any number of the row will do.
            i = min(i, tile.inputs / vector as u32 - 1);
        }
        #[unroll]
        for r in 0..plan.tile {
            let values = x[(rows[r] + i) as usize];
            #[unroll]
            for k in 0..vector {
                let value = Vector::<f32, NO>::new(f32::cast_from(values.extract(k)));
                sums[r] = fma(weights[v * vector + k], value, sums[r]);
            }
        }
    }
}

/// Adds up the units of each plane and writes, a unit a row.
#[cube]
fn put_planes<F: Float, NO: Size>(
    sums: &Array<Vector<f32, NO>>,
    biases: &Sequence<Box<[F]>>,
    other: &Sequence<Box<[F]>>,
    results: &mut Sequence<Box<[F]>>,
    tile: &Tile,
    #[comptime] plan: Plan,
) {
    let lanes = comptime!(plan.lanes as usize);
    #[unroll]
    for pass in 0..comptime!(plan.tile.div_ceil(lanes)) {
        let from = comptime!(pass * lanes);
        let count = comptime!((plan.tile - from).min(lanes));
        let mut own = Vector::<f32, NO>::new(0.0f32);
        #[unroll]
        for r in 0..count {
            let total = plane_sum(sums[from + r]);
            if UNIT_POS_X == r as u32 {
                own = total;
            }
        }
        if UNIT_POS_X < count as u32 {
            let row = tile.row + from as u32 + UNIT_POS_X;
            put::<F, NO>(own, biases, other, results, (row, tile.out), tile, plan);
        }
    }
}

/// Adds up the units of each group, whose sums are `[tile, groups, lanes]`, and writes.
#[cube]
fn put_shared<F: Float, NO: Size>(
    shared: &Shared<[Vector<f32, NO>]>,
    biases: &Sequence<Box<[F]>>,
    other: &Sequence<Box<[F]>>,
    results: &mut Sequence<Box<[F]>>,
    tile: &Tile,
    #[comptime] plan: Plan,
) {
    let mut i = UNIT_POS;
    while i < comptime!(plan.groups * plan.tile as u32) {
        let (r, group) = (i / comptime!(plan.groups), i % comptime!(plan.groups));
        let first = (i * comptime!(plan.lanes)) as usize;
        let mut total = shared[first];
        for lane in 1..comptime!(plan.lanes as usize) {
            total += shared[first + lane];
        }
        let out = tile.out + group * comptime!(plan.outs as u32);
        put::<F, NO>(total, biases, other, results, (tile.row + r, out), tile, plan);
        i += comptime!(plan.units());
    }
}

/// Finishes and writes a row's outputs from the first of a group on, those that are there; `place` is
/// that row and output.
#[cube]
fn put<F: Float, NO: Size>(
    sums: Vector<f32, NO>,
    biases: &Sequence<Box<[F]>>,
    other: &Sequence<Box<[F]>>,
    results: &mut Sequence<Box<[F]>>,
    place: (u32, u32),
    tile: &Tile,
    #[comptime] plan: Plan,
) {
    let (row, first) = place;
    #[unroll]
    for o in 0..plan.outs {
        let out = first + o as u32;
        if row < tile.rows && out < tile.outs {
            let place = (out, row * tile.outs + out);
            put_output::<F>(
                sums.extract(o),
                place,
                biases,
                other,
                results,
                tile.matrix,
                plan.ending,
            );
        }
    }
}
