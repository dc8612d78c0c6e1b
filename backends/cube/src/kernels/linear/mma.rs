//! Products of some rows on tensor cores, which read weights as fast as memory gives them where the
//! other kernel for few rows is busy multiplying.
//!
//! Planes of a cube share its outputs' inputs, 32 at a time each, and add their sums up at the end. A
//! unit's four numbers of each row in a product of 16 are those that lie together in memory: a sum
//! over inputs is the same in any order, so that all units load 16 bytes at once, and no shared memory
//! is needed before the end.

use cubecl::client::Client;
use cubecl::cmma::MmaDefinition;
use cubecl::features::MmaConfig;
use cubecl::prelude::*;
use dfastllm_backends::DType;

use super::super::buffers::element;
use super::epilogue::{Finishes, finished};
use super::job::Job;

/// Outputs, rows and inputs of a product of the tensor cores.
pub(super) const SHAPE: [usize; 3] = [16, 8, 16];
/// Inputs of a step of a plane: two products.
pub(super) const STEP: usize = 32;
/// Units of a plane.
pub(super) const LANES: u32 = 32;
/// Floats of a load.
pub(super) const VECTOR: usize = 8;

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct MmaPlan {
    pub(super) finishes: Finishes,
    pub(super) has_bias: bool,
    /// Sixteens of outputs of a cube.
    pub(super) out_tiles: usize,
    /// Eights of rows of a cube.
    pub(super) row_tiles: usize,
    /// Steps that are loaded together, of which a matrix has a whole number.
    pub(super) ahead: usize,
    pub(super) planes: u32,
}

impl MmaPlan {
    pub(super) fn outs(self) -> usize {
        SHAPE[0] * self.out_tiles
    }

    pub(super) fn rows(self) -> usize {
        SHAPE[1] * self.row_tiles
    }
}

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
            put::<F>(&sums, biases, other, results, &part, plan);
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

/// Adds up the planes' sums, a sixteen of outputs after the other, and writes.
#[cube]
fn put<F: Float>(
    sums: &Registers<f32>,
    biases: &Sequence<Box<[F]>>,
    other: &Sequence<Box<[F]>>,
    results: &mut Sequence<Box<[F]>>,
    part: &Part,
    #[comptime] plan: MmaPlan,
) {
    // Four sums of a unit for every eight of rows.
    let tile = comptime!(plan.row_tiles as u32 * 4 * LANES);
    let mut shared = Shared::<[f32]>::new_slice(comptime!((tile * plan.planes) as usize));
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
            put_one::<F>(total, biases, other, results, (row, out), part, plan);
            at += comptime!(plan.planes * LANES);
        }
        sync_cube();
    }
}

/// Finishes and writes an output of a row, if they are there; `place` is the row and the output.
#[cube]
fn put_one<F: Float>(
    sum: f32,
    biases: &Sequence<Box<[F]>>,
    other: &Sequence<Box<[F]>>,
    results: &mut Sequence<Box<[F]>>,
    place: (u32, u32),
    part: &Part,
    #[comptime] plan: MmaPlan,
) {
    let (row, out) = place;
    if row < part.rows && out < part.outs {
        let at = (row * part.outs + out) as usize;
        let mut value = sum;
        if comptime!(plan.has_bias) {
            value += f32::cast_from(biases[part.matrix][out as usize]);
        }
        let mut beside = 0.0f32.runtime();
        let finish = comptime!(plan.finishes[part.matrix]);
        if comptime!(finish.has_other()) {
            beside = f32::cast_from(other[0][at]);
        }
        let result = results.index_mut(part.matrix);
        result[at] = F::cast_from(finished(value, beside, finish));
    }
}

/// Fewest rows for which they pay, and most of a cube.
const LEAST_ROWS: usize = 3;
const MOST_ROWS: usize = 32;
/// Outputs from which a cube has two sixteens of them, and from which half the planes are as fast.
const MANY_OUTS: usize = 4096;
const MOST_OUTS: usize = 8192;
/// Steps of a sixteen of outputs that are loaded together.
const AHEAD: usize = 4;

/// How rows and outputs are cut, as was fastest on an H200 (BENCHMARKS.md); nothing where the device has
/// no tensor cores for these matrices, or another kernel is better.
pub(super) fn plan(job: &Job<'_>) -> Option<MmaPlan> {
    let Job { x, has_bias, finishes, .. } = *job;
    let [rows, inputs] = x.meta.shape.dims();
    let outs: usize = job.sizes.iter().sum();
    let can = has_tensor_cores(&x.client, x.dtype)
        && job.weights.iter().all(|weight| weight.dtype == x.dtype)
        && inputs.is_multiple_of(STEP);
    if rows < LEAST_ROWS || !can {
        return None;
    }
    let row_tiles = rows.div_ceil(rows.div_ceil(MOST_ROWS)).div_ceil(SHAPE[1]);
    let out_tiles = if outs < MANY_OUTS { 1 } else { 2 };
    let divides = |ahead: &usize| (inputs / STEP).is_multiple_of(*ahead);
    let ahead = [AHEAD / out_tiles, 2].into_iter().find(divides).unwrap_or(1);
    // Few outputs want more planes for each, as far as there are registers.
    let planes = if outs >= MOST_OUTS || (out_tiles == 1 && row_tiles > 2) { 8 } else { 16 };
    Some(MmaPlan { finishes, has_bias, out_tiles, row_tiles, ahead, planes })
}

fn has_tensor_cores(client: &Client, dtype: DType) -> bool {
    let [m, n, k] = SHAPE.map(|size| size as u32);
    let (own, sum) = (element(dtype), element(DType::F32));
    let product = MmaConfig { a_type: own, b_type: own, cd_type: sum, m, n, k };
    matches!(dtype, DType::BF16 | DType::F16) && client.features().matmul.mma.contains(&product)
}
