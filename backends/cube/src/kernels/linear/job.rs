//! Launches of the kernels for few rows.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use dfastllm_backends::ops::{DeviceLinear, DeviceWeight};
use dfastllm_backends::{DType, Tensor};

use super::super::buffers::{buffer, element, int_buffer, plane_size, room, tensor, vector_size};
use super::TOGETHER;
use super::decode::{BLOCK, Format};
use super::epilogue::{Ending, Finish};
use super::few::{Plan, few_kernel};
use super::mma::{self, MmaPlan, mma_kernel};

/// Most rows of a tile: their sums are kept in registers.
const TILE_ROWS: usize = 16;
/// Groups of units that keep a large GPU busy, of one or two rows and of more; with fewer, each computes
/// fewer outputs.
const BUSY: [usize; 2] = [4096, 1024];
/// Most loads of an output under way together.
const AHEAD: usize = 16;
/// Groups of a cube where planes add up, which a group is then.
const PLANES: u32 = 4;
/// Units of a group and groups of a cube where shared memory does, of which 16 KiB are always there.
const SHARED: (u32, u32) = (32, 2);

/// The buffers of a projection's weight: floats or words, and scales if there are any.
fn weight_buffers(weight: &DeviceWeight) -> (CubeTensor, Option<CubeTensor>) {
    match weight {
        DeviceWeight::Dense(weight) => (buffer((**weight).clone()), None),
        DeviceWeight::Blocks(blocks) => {
            (int_buffer(blocks.words.clone()), Some(buffer(blocks.scales.clone())))
        }
    }
}

/// Projections that go together, of few rows.
pub(super) fn few(x: &CubeTensor, layers: &[DeviceLinear<'_>]) -> Vec<Tensor<2>> {
    let ([rows, _], dtype) = (x.meta.shape.dims(), x.dtype);
    let mut finishes = [Finish::Plain; TOGETHER];
    for (finish, (.., epilogue)) in finishes.iter_mut().zip(layers) {
        *finish = Finish::of(epilogue).0;
    }
    let other = layers.iter().find_map(|(.., epilogue)| Finish::of(epilogue).1);
    let sizes: Vec<usize> = layers.iter().map(|(weight, ..)| weight.dims()[0]).collect();
    let (weights, scales): (Vec<_>, Vec<_>) =
        layers.iter().map(|(weight, ..)| weight_buffers(weight)).unzip();
    let biases = layers.iter().filter_map(|(_, bias, _)| *bias);
    let job = Job {
        x,
        format: format(layers[0].0),
        ending: Ending { finishes, has_bias: layers[0].1.is_some() },
        scales: scales.into_iter().flatten().collect(),
        biases: biases.map(|bias| buffer(bias.clone().cast(dtype))).collect(),
        other: other.map(|other| buffer(other.clone().cast(dtype))),
        results: sizes.iter().map(|&outs| room(x, [rows, outs], dtype)).collect(),
        weights,
        sizes,
    };
    match mma::plan(&job) {
        Some(plan) => job.launch_mma(plan),
        None => job.launch_few(),
    }
    job.results.into_iter().map(tensor).collect()
}

fn format(weight: &DeviceWeight) -> Format {
    match weight {
        DeviceWeight::Dense(_) => Format::Floats,
        DeviceWeight::Blocks(blocks) => Format::Blocks(blocks.format),
    }
}

/// One launch of a kernel for few rows.
pub(super) struct Job<'a> {
    pub(super) x: &'a CubeTensor,
    format: Format,
    pub(super) ending: Ending,
    pub(super) weights: Vec<CubeTensor>,
    scales: Vec<CubeTensor>,
    biases: Vec<CubeTensor>,
    other: Option<CubeTensor>,
    results: Vec<CubeTensor>,
    /// Outputs of each.
    pub(super) sizes: Vec<usize>,
}

/// Buffers as a kernel's arguments.
fn arguments<'a, A: FromIterator<BufferArg>>(
    buffers: impl IntoIterator<Item = &'a CubeTensor>,
) -> A {
    buffers.into_iter().map(|x| x.clone().into_buffer_arg()).collect()
}

impl Job<'_> {
    fn launch_few(&self) {
        let Self { x, format, .. } = *self;
        let ([rows, inputs], client) = (x.meta.shape.dims(), &x.client);
        let of_x = vector_size(client, x.dtype, inputs);
        let of_weight = match format {
            Format::Floats => vector_size(client, self.weights[0].dtype, inputs).min(of_x),
            Format::Blocks(_) => 4,
        };
        let of_x = if format == Format::Floats { of_weight } else { of_x };
        let plan = self.plan_few(of_x);
        let scale = self.scales.first().map_or(DType::F32, |scales| scales.dtype);
        few_kernel::launch(
            client,
            self.cube_count(plan.tile, plan.outs * plan.groups as usize),
            CubeDim::new_2d(plan.lanes, plan.groups),
            of_weight,
            of_x,
            plan.outs,
            x.clone().into_buffer_arg(),
            arguments(&self.weights),
            arguments(&self.scales),
            arguments(&self.biases),
            arguments(&self.other),
            arguments(&self.results),
            self.sizes.iter().map(|&outs| outs as u32).collect(),
            rows as u32,
            inputs as u32,
            plan,
            [self.weights[0].dtype, scale, x.dtype].map(element),
        );
    }

    /// How rows and outputs are cut; `vector`: floats of a load of `x`.
    fn plan_few(&self, vector: usize) -> Plan {
        let Self { x, format, ending, .. } = *self;
        let ([rows, inputs], client) = (x.meta.shape.dims(), &x.client);
        let most_units = client.properties().hardware.max_units_per_cube;
        let plane = plane_size(client).filter(|plane| plane * PLANES <= most_units);
        let (lanes, groups) = plane.map_or(SHARED, |plane| (plane, PLANES));
        let tile = rows.next_power_of_two().min(TILE_ROWS);
        let all: usize = self.sizes.iter().sum();
        // Sums of a whole tile stay in registers: sixteen rows of four outputs would not.
        let most = if (3..=8).contains(&tile) { 4 } else { 2 };
        let groups_of = |each: &usize| all / each * rows.div_ceil(tile);
        let mut each = [4, 2, 1].into_iter().filter(|&each| each <= most);
        let outs = each.find(|each| groups_of(each) >= BUSY[usize::from(tile > 2)]).unwrap_or(1);
        let is_whole = inputs.is_multiple_of(BLOCK);
        let plan = Plan {
            format,
            ending,
            tile,
            outs,
            ahead: 1,
            lanes,
            groups,
            has_planes: plane.is_some(),
            is_whole,
        };
        let loads = inputs.div_ceil(plan.step(vector)).div_ceil(lanes as usize);
        let ahead = match format {
            // One row waits for the memory, several have enough to do meanwhile.
            _ if tile > 2 => 1,
            Format::Floats => ahead(loads, AHEAD),
            Format::Blocks(_) => 2,
        };
        Plan { ahead, ..plan }
    }

    fn launch_mma(&self, plan: MmaPlan) {
        let x = self.x;
        let [rows, inputs] = x.meta.shape.dims();
        mma_kernel::launch(
            &x.client,
            self.cube_count(plan.rows(), plan.outs()),
            CubeDim::new_2d(mma::LANES, plan.planes),
            mma::VECTOR,
            x.clone().into_buffer_arg(),
            arguments(&self.weights),
            arguments(&self.biases),
            arguments(&self.other),
            arguments(&self.results),
            self.sizes.iter().map(|&outs| outs as u32).collect(),
            rows as u32,
            inputs as u32,
            plan,
            element(x.dtype),
        );
    }

    /// Tiles of rows along x, outputs along y and, if there are too many, z.
    fn cube_count(&self, tile: usize, each: usize) -> CubeCount {
        let rows = self.x.meta.shape.dims::<2>()[0];
        let cubes: usize = self.sizes.iter().map(|outs| outs.div_ceil(each)).sum();
        let (_, most, _) = self.x.client.properties().hardware.max_cube_count;
        let z = cubes.div_ceil(most as usize);
        CubeCount::Static(rows.div_ceil(tile) as u32, cubes.div_ceil(z) as u32, z as u32)
    }
}

/// Of `most` loads under way together, how many make `loads` in the fewest rounds; what is left over
/// comes one by one.
fn ahead(loads: usize, most: usize) -> usize {
    (1..=most).min_by_key(|ahead| loads / ahead + loads % ahead).unwrap_or(1)
}
