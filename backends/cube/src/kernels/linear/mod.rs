//! Projections: few rows by a kernel of ours that reads weights of every kind, more by the library's
//! matrix product.

mod decode;
mod epilogue;
mod few;
mod many;

use std::ops::Range;

use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::features::Plane;
use cubecl::prelude::*;
use dfastllm_backends::ops::{DeviceLinear, DeviceWeight, Epilogue};
use dfastllm_backends::{DType, KernelChoice, Tensor, kernel_options};

use self::decode::{BLOCK, Format};
use self::epilogue::Finish;
use self::few::{Plan, few_kernel};
use self::many::Target;
use super::buffers::{buffer, element, int_buffer, room, tensor};

/// Most rows of the kernel for few.
const FEW_ROWS: usize = 64;
/// Most rows of a tile: their sums are kept in registers.
const TILE_ROWS: usize = 16;
/// Most projections of one launch.
const TOGETHER: usize = 3;
/// Groups of units that keep a large GPU busy; with fewer, each computes fewer outputs.
const BUSY: usize = 1024;
/// Units of a group and groups of a cube, where planes add up.
const PLANES: u32 = 4;
/// The same where shared memory does, of which 16 KiB are always there.
const SHARED: (u32, u32) = (32, 2);
/// Most bytes of weights that are dequantised at a time for a product of many rows.
const DEQUANTISED: usize = 64 << 20;

/// Projections of one input.
pub(super) fn linears(x: Tensor<2>, layers: &[DeviceLinear<'_>]) -> Vec<Tensor<2>> {
    let [rows, _] = x.dims();
    if rows > FEW_ROWS {
        return layers.iter().map(|layer| many(x.clone(), layer)).collect();
    }
    let x = buffer(x);
    if layers.len() <= TOGETHER && bindings(layers) <= most_bindings(&x) && go_together(layers) {
        return few(&x, layers);
    }
    layers.iter().flat_map(|layer| few(&x, std::slice::from_ref(layer))).collect()
}

/// Buffers of one launch: weight, scales, bias and result of each, `x`, and sizes.
fn bindings(layers: &[DeviceLinear<'_>]) -> usize {
    4 * layers.len() + 2
}

fn most_bindings(x: &CubeTensor) -> usize {
    x.client.properties().hardware.max_bindings as usize
}

/// Whether one kernel can be compiled for all of them.
fn go_together(layers: &[DeviceLinear<'_>]) -> bool {
    let alike = |(weight, bias, epilogue): &DeviceLinear<'_>| {
        let kind = match weight {
            DeviceWeight::Dense(weight) => (Format::Floats, weight.dtype()),
            DeviceWeight::Blocks(blocks) => (Format::Blocks(blocks.format), blocks.scales.dtype()),
        };
        matches!(epilogue, Epilogue::None).then(|| (kind, bias.is_some(), weight.dims()[1]))
    };
    let first = alike(&layers[0]);
    first.is_some() && layers.iter().all(|layer| alike(layer) == first)
}

/// Floats of a vector of at most 16 bytes that rows of some length are made of.
fn vector_size(client: &Client, dtype: DType, len: usize) -> usize {
    let sizes = client.io_optimized_vector_sizes(dtype.size());
    let fits = |&size: &usize| size * dtype.size() <= 16 && len.is_multiple_of(size);
    sizes.into_iter().find(fits).unwrap_or(1)
}

/// The buffers of a projection's weight: floats or words, and scales if there are any.
fn weight_buffers(weight: &DeviceWeight) -> (CubeTensor, Option<CubeTensor>) {
    match weight {
        DeviceWeight::Dense(weight) => (buffer((**weight).clone()), None),
        DeviceWeight::Blocks(blocks) => {
            (int_buffer(blocks.words.clone()), Some(buffer(blocks.scales.clone())))
        }
    }
}

/// Projections that go together, of any number of rows.
fn few(x: &CubeTensor, layers: &[DeviceLinear<'_>]) -> Vec<Tensor<2>> {
    let ([rows, inputs], dtype) = (x.meta.shape.dims(), x.dtype);
    let client = x.client.clone();
    let (weight, bias, epilogue) = &layers[0];
    let (finish, other) = Finish::of(epilogue);
    let sizes: Vec<usize> = layers.iter().map(|(weight, ..)| weight.dims()[0]).collect();
    let (format, vectors) = match weight {
        DeviceWeight::Dense(weight) => {
            let size = vector_size(&client, weight.dtype(), inputs);
            (Format::Floats, [size.min(vector_size(&client, dtype, inputs)); 2])
        }
        DeviceWeight::Blocks(blocks) => {
            (Format::Blocks(blocks.format), [4, vector_size(&client, dtype, inputs)])
        }
    };
    let plan = Plan { finish, has_bias: bias.is_some(), ..plan(&client, format, rows, &sizes) };
    let plan = Plan { is_whole: inputs.is_multiple_of(BLOCK), ..plan };
    let (weights, scales): (Vec<_>, Vec<_>) =
        layers.iter().map(|(weight, ..)| weight_buffers(weight)).unzip();
    let scales: Vec<_> = scales.into_iter().flatten().collect();
    let scale = scales.first().map_or(DType::F32, |scales| scales.dtype);
    let biases = layers.iter().filter_map(|(_, bias, _)| *bias);
    let results: Vec<_> = sizes.iter().map(|&outs| room(x, [rows, outs], dtype)).collect();
    let dtypes = [element(weights[0].dtype), element(scale), element(dtype)];
    few_kernel::launch(
        &client,
        cube_count(&client, plan, rows, &sizes),
        CubeDim::new_2d(plan.lanes, plan.groups),
        vectors[0],
        vectors[1],
        plan.outs,
        x.clone().into_buffer_arg(),
        weights.into_iter().map(CubeTensor::into_buffer_arg).collect(),
        scales.into_iter().map(CubeTensor::into_buffer_arg).collect(),
        biases.map(|bias| buffer(bias.clone().cast(dtype)).into_buffer_arg()).collect(),
        other.iter().map(|&o| buffer(o.clone().cast(dtype)).into_buffer_arg()).collect(),
        results.iter().map(|y| y.clone().into_buffer_arg()).collect(),
        sizes.iter().map(|&outs| outs as u32).collect(),
        rows as u32,
        inputs as u32,
        plan,
        dtypes,
    );
    results.into_iter().map(tensor).collect()
}

/// How rows and outputs are cut.
fn plan(client: &Client, format: Format, rows: usize, sizes: &[usize]) -> Plan {
    let properties = client.properties();
    let hardware = &properties.hardware;
    let has_planes = properties.features.plane.contains(Plane::Ops)
        && hardware.plane_size_min == hardware.plane_size_max
        && hardware.plane_size_max * PLANES <= hardware.max_units_per_cube;
    let (lanes, groups) = if has_planes { (hardware.plane_size_max, PLANES) } else { SHARED };
    let tile = rows.next_power_of_two().min(TILE_ROWS);
    let outs: usize = sizes.iter().sum();
    // Sums of a whole tile stay in registers: sixteen rows of four outputs would not.
    let most = if (3..=8).contains(&tile) { 4 } else { 2 };
    let groups_of = |each: &usize| outs / each * rows.div_ceil(tile);
    let each = [4, 2, 1].into_iter().filter(|&each| each <= most);
    Plan {
        format,
        finish: Finish::Plain,
        has_bias: false,
        tile,
        outs: each.clone().find(|each| groups_of(each) >= BUSY).unwrap_or(1),
        // One row waits for the memory, several have enough to do meanwhile.
        ahead: if tile <= 2 { 2 } else { 1 },
        lanes,
        groups,
        has_planes,
        is_whole: true,
    }
}

/// Tiles of rows along x, outputs along y and, if there are too many, z.
fn cube_count(client: &Client, plan: Plan, rows: usize, sizes: &[usize]) -> CubeCount {
    let each = plan.outs * plan.groups as usize;
    let cubes: usize = sizes.iter().map(|outs| outs.div_ceil(each)).sum();
    let (_, most, _) = client.properties().hardware.max_cube_count;
    let z = cubes.div_ceil(most as usize);
    CubeCount::Static(rows.div_ceil(plan.tile) as u32, cubes.div_ceil(z) as u32, z as u32)
}

/// A projection of many rows.
fn many(x: Tensor<2>, (weight, bias, epilogue): &DeviceLinear<'_>) -> Tensor<2> {
    let ([rows, _], dtype, [outs, inputs]) = (x.dims(), x.dtype(), weight.dims());
    let (finish, other) = Finish::of(epilogue);
    let most = match weight {
        DeviceWeight::Dense(_) => outs,
        // A multiple of what vectors hold.
        DeviceWeight::Blocks(_) => (DEQUANTISED / dtype.size() / inputs).max(8) & !7,
    };
    if outs <= most && finish == Finish::Plain && bias.is_none() {
        return product(x, weight, 0..outs);
    }
    let own = |x: Tensor<2>| buffer(x.cast(dtype));
    let bias = bias.map(|bias| buffer(bias.clone().cast(dtype)));
    let other = other.map(|other| own(other.clone()));
    let mut results = None;
    for first in (0..outs).step_by(most) {
        let products = own(product(x.clone(), weight, first..outs.min(first + most)));
        let results = results.get_or_insert_with(|| room(&products, [rows, outs], dtype));
        let (bias, other) = (bias.as_ref(), other.as_ref());
        many::finish(products, &Target { results, first, bias, finish, other });
    }
    results.map_or(x, tensor)
}

/// The products with some outputs of a weight, `[rows, outs]`.
fn product(x: Tensor<2>, weight: &DeviceWeight, outs: Range<usize>) -> Tensor<2> {
    let dtype = x.dtype();
    let weight: Tensor<2> = match weight {
        DeviceWeight::Dense(weight) => (**weight).clone(),
        DeviceWeight::Blocks(blocks) => tensor(many::dequantise(blocks, outs, dtype)),
    };
    let x = x.cast(weight.dtype());
    match kernel_options().choice {
        KernelChoice::Tuned => x.matmul(weight.transpose()),
        KernelChoice::Pinned => many::pinned_product(x, weight.transpose()),
    }
    .cast(dtype)
}
