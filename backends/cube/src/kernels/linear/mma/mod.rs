//! Products of some rows on tensor cores, which read weights as fast as memory gives them where the
//! other kernel for few rows is busy multiplying.
//!
//! Planes of a cube share its outputs' inputs, some 32 at a time each, and add their sums up at the end. A
//! unit's four numbers of each row in a product of 16 are those that lie together in memory: a sum
//! over inputs is the same in any order, so that all units load 16 bytes at once, and no shared memory
//! is needed before the end.

mod plan;

use cubecl::cmma::MmaDefinition;
use cubecl::prelude::*;

use self::plan::SHAPE;
pub(super) use self::plan::{LANES, MmaPlan, STEP, VECTOR, plan};
use super::epilogue::put_output;

/// What a cube computes: some outputs of a matrix for some rows.
#[derive(CubeType)]
struct Part {
    row: u32,
    rows: u32,
    out: u32,
    outs: u32,
    inputs: u32,
    #[cube(comptime)]
    matrix: usize,
}

/// Projections of `x [rows, inputs]`, of weights `[outs, inputs]`, all of 16 bits: cubes
/// along x are rows, those along y and z outputs, of one matrix after the other.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arguments are its bindings")]
pub(super) fn mma_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weights: &Sequence<Box<[Vector<F, N>]>>,
    biases: &Sequence<Box<[F]>>,
    other: &Sequence<Box<[F]>>,
    results: &mut Sequence<Box<[F]>>,
    sizes: &Sequence<u32>,
    rows: u32,
    inputs: u32,
    #[comptime] plan: MmaPlan,
    #[define(F)] _dtype: ElemType,
) {
    // One for all matrices: each would have its own otherwise.
    let mut shared = Shared::<[f32]>::new_slice(comptime!(plan.shared()));
    let cube = CUBE_POS_Y + CUBE_POS_Z * CUBE_COUNT_Y;
    let mut first = 0u32.runtime();
    #[unroll]
    for matrix in 0..weights.len() {
        let outs = sizes[matrix];
        let end = first + outs.div_ceil(comptime!(plan.outs() as u32));
        if cube >= first && cube < end {
            let row = CUBE_POS_X * comptime!(plan.rows() as u32);
            let out = (cube - first) * comptime!(plan.outs() as u32);
            let part = Part { row, rows, out, outs, inputs, matrix };
            let sums = sum_up::<F, N>(x, weights, &part, plan);
            put::<F>(&sums, &mut shared, biases, other, results, &part, plan);
        }
        first = end;
    }
}

/// Registers of a product's factors or sums.
type Registers<F> = Sequence<Array<Vector<F, Const<2>>>>;

/// A plane's share of the sums: for each sixteen of outputs and eight of rows the tensor cores' registers.
#[cube]
fn sum_up<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weights: &Sequence<Box<[Vector<F, N>]>>,
    part: &Part,
    #[comptime] plan: MmaPlan,
) -> Registers<f32> {
    let mut sums = Registers::<f32>::new();
    #[unroll]
    for _ in 0..comptime!(plan.out_tiles * plan.row_tiles) {
        let mut tile = Array::<Vector<f32, Const<2>>>::new(2usize);
        tile[0] = Vector::new(0.0f32);
        tile[1] = Vector::new(0.0f32);
        sums.push(tile);
    }
    let (group, quad) = (UNIT_POS_X / 4, UNIT_POS_X % 4);
    let stride = part.inputs / comptime!(VECTOR as u32);
    let steps = part.inputs / comptime!(STEP as u32);
    let mut step = UNIT_POS_Y * comptime!(plan.ahead as u32);
    while step < steps {
        let at = step * 4 + quad;
        // All loads first, so that they are under way together.
        let mut loaded = Array::<Vector<F, N>>::new(comptime!(plan.ahead * plan.out_tiles * 2));
        let mut values = Array::<Vector<F, N>>::new(comptime!(plan.ahead * plan.row_tiles));
        #[unroll]
        for o in 0..comptime!(plan.out_tiles * 2) {
            // Outputs and rows that are not there are computed as the last ones and not written.
            let out = min(part.out + comptime!(8 * o as u32) + group, part.outs - 1);
            #[unroll]
            for n in 0..plan.ahead {
                let i = out * stride + at + comptime!(4 * n as u32);
                loaded[comptime!(n * plan.out_tiles * 2 + o)] = weights[part.matrix][i as usize];
            }
        }
        #[unroll]
        for r in 0..plan.row_tiles {
            let row = min(part.row + comptime!(8 * r as u32) + group, part.rows - 1);
            #[unroll]
            for n in 0..plan.ahead {
                let i = row * stride + at + comptime!(4 * n as u32);
                values[comptime!(n * plan.row_tiles + r)] = x[i as usize];
            }
        }
        #[unroll]
        for n in 0..plan.ahead {
            multiply::<F, N>(&loaded, &values, &mut sums, n, plan);
        }
        step += comptime!(plan.planes * plan.ahead as u32);
    }
    sums
}

/// Adds the products of step `n` of those that are loaded.
#[cube]
fn multiply<F: Float, N: Size>(
    loaded: &Array<Vector<F, N>>,
    values: &Array<Vector<F, N>>,
    sums: &mut Registers<f32>,
    #[comptime] n: usize,
    #[comptime] plan: MmaPlan,
) {
    let product = MmaDefinition::<F, F, f32>::new(SHAPE[0], SHAPE[1], SHAPE[2]);
    #[unroll]
    for half in 0..2usize {
        let mut columns = Registers::<F>::new();
        #[unroll]
        for r in 0..plan.row_tiles {
            let from = values[comptime!(n * plan.row_tiles + r)];
            let mut column = Array::<Vector<F, Const<2>>>::new(2usize);
            column[0] = pair::<F, N>(from, comptime!(4 * half));
            column[1] = pair::<F, N>(from, comptime!(4 * half + 2));
            columns.push(column);
        }
        #[unroll]
        for o in 0..plan.out_tiles {
            let upper = loaded[comptime!((n * plan.out_tiles + o) * 2)];
            let lower = loaded[comptime!((n * plan.out_tiles + o) * 2 + 1)];
            let mut tile = Array::<Vector<F, Const<2>>>::new(4usize);
            tile[0] = pair::<F, N>(upper, comptime!(4 * half));
            tile[1] = pair::<F, N>(lower, comptime!(4 * half));
            tile[2] = pair::<F, N>(upper, comptime!(4 * half + 2));
            tile[3] = pair::<F, N>(lower, comptime!(4 * half + 2));
            #[unroll]
            for r in 0..plan.row_tiles {
                let sum = sums.index_mut(comptime!(o * plan.row_tiles + r));
                product.execute_inplace(&tile, &columns[r], sum);
            }
        }
    }
}

/// Two neighbours of a load, the first of them number `i`.
#[cube]
fn pair<F: Float, N: Size>(loaded: Vector<F, N>, #[comptime] i: usize) -> Vector<F, Const<2>> {
    let mut pair = Vector::empty();
    pair.insert(0usize, loaded.extract(i));
    pair.insert(1usize, loaded.extract(comptime!(i + 1)));
    pair
}

/// Adds up the planes' sums, a sixteen of outputs after the other, and writes those that are there.
#[cube]
fn put<F: Float>(
    sums: &Registers<f32>,
    shared: &mut Shared<[f32]>,
    biases: &Sequence<Box<[F]>>,
    other: &Sequence<Box<[F]>>,
    results: &mut Sequence<Box<[F]>>,
    part: &Part,
    #[comptime] plan: MmaPlan,
) {
    let tile = comptime!(plan.tile());
    #[unroll]
    for o in 0..plan.out_tiles {
        #[unroll]
        for r in 0..plan.row_tiles {
            let sum = &sums[comptime!(o * plan.row_tiles + r)];
            #[unroll]
            for i in 0..4usize {
                let at = comptime!((r * 4 + i) as u32 * LANES) + UNIT_POS_Y * tile + UNIT_POS_X;
                shared[at as usize] = sum[comptime!(i / 2)].extract(comptime!(i % 2));
            }
        }
        sync_cube();
        let mut at = UNIT_POS;
        while at < tile {
            let mut total = 0.0f32;
            #[unroll]
            for plane in 0..plan.planes {
                total += shared[(plane * tile + at) as usize];
            }
            let (lane, i) = (at % LANES, at / LANES % 4);
            let out = part.out + comptime!((SHAPE[0] * o) as u32) + lane / 4 + i / 2 * 8;
            let row = part.row + at / comptime!(4 * LANES) * 8 + lane % 4 * 2 + i % 2;
            if row < part.rows && out < part.outs {
                let place = (out, row * part.outs + out);
                put_output::<F>(total, place, biases, other, results, part.matrix, plan.ending);
            }
            at += comptime!(plan.planes * LANES);
        }
        if comptime!(o + 1 < plan.out_tiles) {
            sync_cube();
        }
    }
}
