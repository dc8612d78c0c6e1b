//! How products of tensor cores are cut.

use cubecl::client::Client;
use cubecl::features::MmaConfig;
use dfastllm_backends::DType;

use super::super::super::buffers::element;
use super::super::epilogue::Ending;
use super::super::job::Job;

/// Outputs, rows and inputs of a product of the tensor cores.
pub(crate) const SHAPE: [usize; 3] = [16, 8, 16];
/// Inputs of a step of a plane: two products.
pub(crate) const STEP: usize = 32;
/// Units of a plane.
pub(crate) const LANES: u32 = 32;
/// Floats of a load.
pub(crate) const VECTOR: usize = 8;

/// What a kernel is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MmaPlan {
    pub(crate) ending: Ending,
    /// Sixteens of outputs of a cube.
    pub(crate) out_tiles: usize,
    /// Eights of rows of a cube.
    pub(crate) row_tiles: usize,
    /// Steps that are loaded together, of which a matrix has a whole number.
    pub(crate) ahead: usize,
    pub(crate) planes: u32,
}

impl MmaPlan {
    pub(crate) fn outs(self) -> usize {
        SHAPE[0] * self.out_tiles
    }

    pub(crate) fn rows(self) -> usize {
        SHAPE[1] * self.row_tiles
    }

    /// Sums of a plane for sixteen outputs: four of a unit for every eight of rows.
    pub(super) fn tile(self) -> u32 {
        self.row_tiles as u32 * 4 * LANES
    }

    /// Floats of a cube's shared memory, 32 KiB at most.
    pub(super) fn shared(self) -> usize {
        (self.tile() * self.planes) as usize
    }
}

/// Fewest rows for which tensor cores pay.
const LEAST_ROWS: usize = 3;
/// Most rows of a cube.
const MOST_ROWS: usize = 32;
/// Outputs from which a cube has two sixteens of them.
const TWO_TILES: usize = 4096;
/// Outputs from which eight planes a cube are enough.
const EIGHT_PLANES: usize = 8192;
/// Steps of a sixteen of outputs that are loaded together.
const AHEAD: usize = 4;

/// How rows and outputs are cut; nothing where the device has no tensor cores for these matrices, or another
/// kernel is better. Of the cuts tried on an H200 (BENCHMARKS.md) among the fastest for each projection of Phi-2
/// and LLaDA-8B.
pub(crate) fn plan(job: &Job<'_>) -> Option<MmaPlan> {
    let [rows, inputs] = job.x.meta.shape.dims();
    let outs: usize = job.sizes.iter().sum();
    let can = has_tensor_cores(&job.x.client, job.x.dtype)
        && job.weights.iter().all(|weight| weight.dtype == job.x.dtype)
        && inputs.is_multiple_of(STEP);
    if rows < LEAST_ROWS || !can {
        return None;
    }
    // A power of two, so that all kernels have run once powers of two of rows have.
    let row_tiles = rows.min(MOST_ROWS).div_ceil(SHAPE[1]).next_power_of_two();
    let out_tiles = if outs < TWO_TILES { 1 } else { 2 };
    let divides = |ahead: &usize| (inputs / STEP).is_multiple_of(*ahead);
    let ahead = [AHEAD / out_tiles, 2].into_iter().find(divides).unwrap_or(1);
    // Few outputs want more planes for each, as far as there are registers.
    let planes = if outs >= EIGHT_PLANES || (out_tiles == 1 && row_tiles > 2) { 8 } else { 16 };
    Some(MmaPlan { ending: job.ending, out_tiles, row_tiles, ahead, planes })
}

fn has_tensor_cores(client: &Client, dtype: DType) -> bool {
    let [m, n, k] = SHAPE.map(|size| size as u32);
    let (own, sum) = (element(dtype), element(DType::F32));
    let product = MmaConfig { a_type: own, b_type: own, cd_type: sum, m, n, k };
    matches!(dtype, DType::BF16 | DType::F16) && client.features().matmul.mma.contains(&product)
}
