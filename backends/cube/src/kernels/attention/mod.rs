//! Paged attention of ragged rows, with a softmax that never holds more than some keys' scores.
//!
//! A cube has one tile of rows, the query heads of (part of) one group, and a part of their keys:
//! few rows would leave most of a card idle if each cube had all keys of its rows. Parts are joined
//! by a second kernel. Long spans have enough rows for matrix products: tensor cores compute them where
//! there are any.

mod flash;
mod gather;
mod join;
mod kernel;
mod load;
mod plan;
mod work;

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use dfastllm_backends::ops::{AttentionHeads, KeyTables, TileClass};
use dfastllm_backends::{DType, Tensor};

use self::join::join_kernel;
use self::kernel::attention_kernel;
use self::plan::{Plan, vector_size};
use self::work::SizesLaunch;
use super::buffers::{buffer, element, int_buffer, room, tensor};

/// The buffers that all launches of one call read, and its result.
struct Buffers {
    query: CubeTensor,
    own: [CubeTensor; 2],
    pool: [CubeTensor; 2],
    table: CubeTensor,
    out: CubeTensor,
}

/// Attention of turned queries, `[rows, heads * head_dim]`.
pub(super) fn attention(
    query: Tensor<2>,
    own: [Tensor<2>; 2],
    pool: [&Tensor<2>; 2],
    tables: &KeyTables,
    heads: AttentionHeads,
) -> Tensor<2> {
    let shape = query.dims();
    let query = buffer(query);
    let pool = pool.map(|pages| buffer(pages.clone()));
    let own = if tables.layout.has_own_keys {
        own.map(|x| buffer(x.cast(pool[0].dtype)))
    } else {
        // Not read.
        pool.clone()
    };
    let table = int_buffer(tables.table.clone());
    let out = room(&query, shape, query.dtype);
    let buffers = Buffers { query, own, pool, table, out };
    for span in &tables.layout.long {
        if !flash::attend(&buffers, span, heads) {
            attend(&buffers, tables, &span.tiles, heads);
        }
    }
    for class in &tables.layout.classes {
        attend(&buffers, tables, class, heads);
    }
    tensor(buffers.out)
}

fn attend(buffers: &Buffers, tables: &KeyTables, class: &TileClass, heads: AttentionHeads) {
    let Buffers { query, pool, out, .. } = buffers;
    let plan = &Plan::new(&query.client, class, heads, [query.dtype, pool[0].dtype]);
    let rows = query.meta.shape()[0];
    let values = plan.splits * rows * heads.heads;
    if plan.splits == 1 {
        let stats = room(query, [1], DType::F32);
        return launch(buffers, tables, class, heads, plan, [out.clone(), stats]);
    }
    let parts = [values * heads.head_dim, values * 2];
    let [parts, stats] = parts.map(|len| room(query, [len], DType::F32));
    launch(buffers, tables, class, heads, plan, [parts.clone(), stats.clone()]);
    let vector = vector_size(&query.client, heads.head_dim, [query.dtype, DType::F32]);
    join_kernel::launch(
        &query.client,
        CubeCount::Static((class.tiles * class.rows) as u32, heads.heads as u32, 1),
        CubeDim::new_1d(plan.join_units(heads.head_dim / vector)),
        vector,
        parts.into_buffer_arg(),
        stats.into_buffer_arg(),
        buffers.table.clone().into_buffer_arg(),
        out.clone().into_buffer_arg(),
        rows as u32,
        class.at as u32,
        plan.splits as u32,
        class.rows as u32,
        (heads.head_dim / vector) as u32,
        element(out.dtype),
    );
}

fn launch(
    buffers: &Buffers,
    tables: &KeyTables,
    class: &TileClass,
    heads: AttentionHeads,
    plan: &Plan,
    [out, stats]: [CubeTensor; 2],
) {
    let Buffers { query, own: [own_keys, own_values], pool: [keys, values], table, .. } = buffers;
    let dtypes = [query.dtype, keys.dtype, out.dtype].map(element);
    let sizes = SizesLaunch::new(
        query.meta.shape()[0] as u32,
        heads.heads as u32,
        heads.kv_heads as u32,
        tables.layout.pieces_at as u32,
        class.at as u32,
        plan.splits as u32,
        (heads.head_dim as f32).sqrt().recip(),
    );
    attention_kernel::launch(
        &query.client,
        CubeCount::Static(class.tiles as u32, plan.blocks as u32, plan.splits as u32),
        CubeDim::new_1d(plan.tile.units as u32),
        plan.vector,
        query.clone().into_buffer_arg(),
        keys.clone().into_buffer_arg(),
        values.clone().into_buffer_arg(),
        own_keys.clone().into_buffer_arg(),
        own_values.clone().into_buffer_arg(),
        table.clone().into_buffer_arg(),
        out.into_buffer_arg(),
        stats.into_buffer_arg(),
        sizes,
        plan.tile,
        plan.splits > 1,
        tables.layout.has_own_keys,
        dtypes[0],
        dtypes[1],
        dtypes[2],
    );
}
