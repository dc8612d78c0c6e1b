//! Attention of long spans as matrix products: CubeK's flash attention over keys and values that were
//! copied together.
//!
//! It is always called with the same tiles, so that results do not depend on measurements, and nothing
//! is measured or compiled while a request waits: a model needs one such kernel, which passes that
//! warm up run. Key heads that several query heads share are not repeated: they are a batch each, whose
//! heads find one head of keys.

use std::sync::Once;

use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::client::Client;
use cubecl::features::MmaConfig;
use cubecl::ir::AddressType;
use cubecl::prelude::*;
use cubecl::zspace::metadata::Metadata;
use cubek::attention::forward::definition::{
    AccumulatorPrecision, AttentionBlueprint, AttentionCheckBounds, AttentionDims,
    AttentionGlobalTypes, AttentionOptions, AttentionPartitionSize, AttentionProblem,
    AttentionStageSize, AttentionTileSize, AttentionTilingScheme, AttentionVectorSizes,
    HypercubeBlueprint,
};
use cubek::attention::forward::launch::{BlueprintStrategy, Strategy, launch_ref};
use cubek::attention::forward::routines::DeviceSettings;
use dfastllm_backends::ops::{AttentionHeads, LongSpan};
use dfastllm_backends::{DType, Switch, kernel_options};

use super::super::buffers::{element, room, units};
use super::Buffers;
use super::gather::{convert_kernel, gather_kernel};
use super::plan::{processors, vector_size};

/// Rows, columns and depth of a product of tensor cores.
const EDGE: u32 = 16;
/// Planes of a cube, whose rows share the loads of keys: with four, a multiprocessor holds several cubes
/// that compute while others wait for each other.
const PLANES: u32 = 4;
/// Cubes that a multiprocessor of an A100 or H100 holds, by registers and shared memory of the largest
/// heads.
const CUBES_EACH: usize = 3;
/// What numbers of rows are padded to: those of a cube.
const ROWS: usize = (EDGE * PLANES) as usize;
/// Largest head whose queries and sums a plane has registers for.
const LARGEST_HEAD: usize = 128;
/// Most units of a cube that copies.
const UNITS: u32 = 256;

/// Whether a refusal was told.
static REFUSED: Once = Once::new();

/// What multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Products {
    TensorCores,
    Units,
}

/// Attention of one span, written to its rows of the output; false where it has to be computed
/// otherwise.
pub(super) fn attend(buffers: &Buffers, span: &LongSpan, heads: AttentionHeads) -> bool {
    let client = &buffers.query.client;
    let Some(products) = products(client, buffers.query.dtype, heads.head_dim) else {
        return false;
    };
    let padded = span.rows.len().next_multiple_of(ROWS);
    let padding = padded - span.rows.len();
    // Rows see as many keys from the end as they stand from it: what is added there is added here.
    let keys = span.keys + if span.is_causal { padding } else { 0 };
    let width = heads.heads * heads.head_dim;
    let queries = room(&buffers.query, [padded, width], DType::F16);
    let first = span.rows.start * width;
    convert([&buffers.query, &queries], [first, 0], [span.rows.len() * width, padded * width]);
    let gathered = gather(buffers, span, [keys, heads.kv_heads * heads.head_dim]);
    let out = room(&queries, [padded, width], DType::F32);
    let step = if span.is_causal { causal_rows(client, heads.heads) } else { padded };
    for row in (0..padded).step_by(step) {
        let rows = step.min(padded - row);
        let seen = if span.is_causal { keys - (padded - row - rows) } else { keys };
        let part = Part { row, rows, seen, is_causal: span.is_causal };
        if !launch(products, [&queries, &gathered[0], &gathered[1], &out], &part, heads) {
            return false;
        }
    }
    convert([&out, &buffers.out], [0, first], [span.rows.len() * width; 2]);
    true
}

/// Rows of a launch where rows do not see all keys. It visits for each of them what its last one sees,
/// so they are as few as keep the device busy.
fn causal_rows(client: &Client, heads: usize) -> usize {
    (processors(client) * CUBES_EACH / heads).max(1) * ROWS
}

/// What multiplies queries of `dtype`, if anything does and is wanted.
fn products(client: &Client, dtype: DType, head_dim: usize) -> Option<Products> {
    let choice = kernel_options().flash;
    let fits = head_dim.is_multiple_of(EDGE as usize) && head_dim <= LARGEST_HEAD;
    if choice == Switch::Off || !matches!(dtype, DType::F16 | DType::BF16) || !fits {
        return None;
    }
    let properties = client.properties();
    let [f16, f32] = [DType::F16, DType::F32].map(element);
    let product = MmaConfig { a_type: f16, b_type: f16, cd_type: f32, m: EDGE, n: EDGE, k: EDGE };
    if properties.hardware.plane_size_min != properties.hardware.plane_size_max {
        return None;
    }
    if properties.features.matmul.cmma.contains(&product) {
        let has_memory = properties.hardware.max_shared_memory_size >= shared_bytes(head_dim);
        return has_memory.then_some(Products::TensorCores);
    }
    (choice == Switch::On && properties.supports_type(f16)).then_some(Products::Units)
}

/// Shared memory of a cube: keys and values of a product, and of each plane a product of queries, of
/// scores as they come and as they go on, of results, and the sums of a head.
fn shared_bytes(head_dim: usize) -> usize {
    let edge = EDGE as usize;
    let keys = 2 * edge * head_dim * 2;
    let plane = edge * edge * (2 + 4 + 2 + 4) + edge * head_dim * 4;
    keys + PLANES as usize * plane
}

/// Copies `[present, all]` elements from one place to another, with zeros where they are not present.
fn convert([from, to]: [&CubeTensor; 2], at: [usize; 2], [present, all]: [usize; 2]) {
    let client = &from.client;
    // All numbers are multiples of a row's, whose heads are multiples of loads.
    let vector = vector_size(client, EDGE as usize, [from.dtype, to.dtype]);
    let dim = CubeDim::new_1d(units(client, UNITS));
    let [from_at, to_at, present, all] =
        [at[0], at[1], present, all].map(|elements| elements / vector);
    convert_kernel::launch(
        client,
        calculate_cube_count_elemwise(client, all, dim),
        dim,
        vector,
        from.clone().into_buffer_arg(),
        to.clone().into_buffer_arg(),
        from_at as u32,
        to_at as u32,
        present as u32,
        all as u32,
        to.dtype == DType::F16,
        element(from.dtype),
        element(to.dtype),
    );
}

/// Keys and values of a span beside each other, `[keys, width]` in f16.
fn gather(buffers: &Buffers, span: &LongSpan, [keys, width]: [usize; 2]) -> [CubeTensor; 2] {
    let Buffers { own: [own_keys, own_values], pool: [pool_keys, pool_values], table, .. } =
        buffers;
    let client = &pool_keys.client;
    let to = [(); 2].map(|()| room(pool_keys, [keys, width], DType::F16));
    let vector = vector_size(client, EDGE as usize, [pool_keys.dtype, DType::F16]);
    let dim = CubeDim::new_1d(units(client, UNITS));
    gather_kernel::launch(
        client,
        calculate_cube_count_elemwise(client, keys * width / vector, dim),
        dim,
        vector,
        pool_keys.clone().into_buffer_arg(),
        pool_values.clone().into_buffer_arg(),
        own_keys.clone().into_buffer_arg(),
        own_values.clone().into_buffer_arg(),
        table.clone().into_buffer_arg(),
        to[0].clone().into_buffer_arg(),
        to[1].clone().into_buffer_arg(),
        span.places_at as u32,
        span.keys as u32,
        (width / vector) as u32,
        element(pool_keys.dtype),
        element(DType::F16),
    );
    to
}

/// Rows of a span that are computed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    row: usize,
    rows: usize,
    /// Keys that the last of them sees.
    seen: usize,
    is_causal: bool,
}

/// Queries, keys and values to outputs; false where the setup is refused. What fails later, as a kernel is
/// compiled or launched, is not seen here.
fn launch(
    products: Products,
    [queries, keys, values, out]: [&CubeTensor; 4],
    part: &Part,
    heads: AttentionHeads,
) -> bool {
    let client = &queries.client;
    let AttentionHeads { heads, kv_heads, head_dim } = heads;
    let group = heads / kv_heads;
    let [f16, f32] = [DType::F16, DType::F32].map(element);
    // There is no mask: any type will do.
    let types = AttentionGlobalTypes { query: f16, key: f16, value: f16, mask: f16, out: f32 };
    let accumulator_precision = AccumulatorPrecision::Strict(f32);
    let problem = AttentionProblem {
        dims: AttentionDims {
            batch: kv_heads,
            num_heads: group,
            seq_q: part.rows,
            seq_kv: part.seen,
            head_dim,
            val_dim: head_dim,
        },
        masked: false,
        global_dtypes: types.clone(),
        options: AttentionOptions { causal: part.is_causal, accumulator_precision },
        address_type: AddressType::default(),
    };
    let vectors = DeviceSettings::new(client, &problem).vector_sizes;
    let plane = client.properties().hardware.plane_size_max;
    let strategy = match products {
        Products::TensorCores => {
            let tile =
                AttentionTileSize { seq_q: EDGE, head_dim: EDGE, seq_kv: EDGE, val_dim: EDGE };
            let blueprint = blueprint(&problem, tile, [plane, PLANES], vectors);
            Strategy::BlackboxAccelerated(BlueprintStrategy::Forced(blueprint))
        }
        Products::Units => {
            let tile = AttentionTileSize::from_max_vector_sizes(&vectors);
            let blueprint = blueprint(&problem, tile, [plane; 2], vectors);
            Strategy::Unit(BlueprintStrategy::Forced(blueprint))
        }
    };
    let launched = launch_ref(
        strategy,
        client,
        view(queries, [part.row, part.rows], [kv_heads, group, head_dim]),
        view(keys, [0, part.seen], [kv_heads, 1, head_dim]),
        view(values, [0, part.seen], [kv_heads, 1, head_dim]),
        None,
        view(out, [part.row, part.rows], [kv_heads, group, head_dim]),
        &types,
        problem.options,
    );
    if let Err(reason) = &launched {
        // Every layer of every pass would say the same.
        REFUSED.call_once(|| {
            tracing::warn!("attention of long spans goes on without products: {reason:?}")
        });
    }
    launched.is_ok()
}

/// How the work is cut: of all tiles of a head and one of keys at a time.
fn blueprint(
    problem: &AttentionProblem,
    tile: AttentionTileSize,
    [plane, tiles]: [u32; 2],
    vector_sizes: AttentionVectorSizes,
) -> AttentionBlueprint {
    let head_dim = problem.dims.head_dim as u32;
    let partition_size = AttentionPartitionSize {
        seq_q: 1,
        head_dim: head_dim / tile.head_dim,
        seq_kv: 1,
        val_dim: head_dim / tile.val_dim,
    };
    AttentionBlueprint {
        hypercube_blueprint: HypercubeBlueprint::builder().build(),
        tiling_scheme: AttentionTilingScheme {
            tile_size: tile,
            partition_size,
            stage_size: AttentionStageSize { seq_q: tiles },
        },
        plane_dim: plane,
        two_rows_in_array_tile: false,
        vector_sizes,
        masked: false,
        causal: problem.options.causal,
        // Whether needed or not, so that there is one kernel for all sizes.
        check_bounds: AttentionCheckBounds {
            seq_q: true,
            seq_kv: true,
            head_dim: false,
            val_dim: false,
        },
    }
}

/// Some rows of `x [rows, batches * heads * head_dim]` as `[batches, heads, rows, head_dim]`.
fn view(
    x: &CubeTensor,
    [first, rows]: [usize; 2],
    [batches, heads, head_dim]: [usize; 3],
) -> TensorBinding {
    let group = heads * head_dim;
    let width = batches * group;
    let handle = x.handle.clone().offset_start((first * width * x.dtype.size()) as u64);
    let shape = [batches, heads, rows, head_dim];
    let metadata = Metadata::new(shape, [group, head_dim, width, 1]);
    CubeTensor::new(x.client.clone(), handle, metadata, x.device.clone(), x.dtype).binding()
}
