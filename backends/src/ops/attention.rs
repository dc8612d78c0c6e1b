use burn::tensor::{DType, Device, Tensor, TensorData, activation};

use super::kernels::kernels;
use super::{AttentionRows, Rope, RopeAngles, select_rows};
use crate::cpu::{self, AttentionPlan};
use crate::rows::{Attend, KeyRun, KeySource, Span};
use crate::{KvPool, RaggedRows};

/// The cache's pages of one layer.
pub type LayerPages<'a> = (&'a mut KvPool, usize);

/// Largest head that devices' kernels have room for.
pub(super) const LARGEST_HEAD: usize = 256;

/// Turns queries and keys to their positions and writes keys and values of writing spans to their
/// pages. Returns queries, and keys and values as [`attention`] takes them.
///
/// # Shapes
/// - `query`: `[rows, heads * head_dim]`; `keys`, `values`: `[rows, kv_heads * head_dim]`; returns
///   the same, but keys and values of no meaning where all rows are in their pages
#[must_use]
pub fn rotate_and_store(
    query: Tensor<2>,
    [keys, values]: [Tensor<2>; 2],
    (rope, angles): (&Rope, &RopeAngles),
    rows: &AttentionRows<'_>,
    (pool, layer): LayerPages<'_>,
) -> (Tensor<2>, [Tensor<2>; 2]) {
    if let (Some(kernels), Some(tables)) = (kernels(&query.device()), rows.tables()) {
        let turn = (rope.shape(), angles);
        return kernels.rotate_and_store(
            query,
            [keys, values],
            turn,
            tables,
            pool.layer_mut(layer),
        );
    }
    let (query, keys) = (rope.apply(query, angles), rope.apply(keys, angles));
    pool.write(layer, rows.rows(), &keys, &values);
    (query, [keys, values])
}

/// Head counts of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionHeads {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
}

/// Lets every row attend to the keys its span can see, scaled by `1/√head_dim`, softmax in f32.
/// Rows of writing spans are in their pages already ([`rotate_and_store`]).
///
/// # Shapes
/// - `query`: `[rows, heads * head_dim]`; `keys`, `values`: `[rows, kv_heads * head_dim]`
/// - returns `[rows, heads * head_dim]` in the dtype of `query`
#[must_use]
pub fn attention(
    query: Tensor<2>,
    [keys, values]: [Tensor<2>; 2],
    rows: &AttentionRows<'_>,
    (pool, layer): LayerPages<'_>,
    heads: AttentionHeads,
) -> Tensor<2> {
    let (pool_keys, pool_values) = pool.layer(layer);
    let device_kernels = kernels(&query.device()).filter(|_| heads.head_dim <= LARGEST_HEAD);
    if let (Some(kernels), Some(tables)) = (device_kernels, rows.tables()) {
        let pool = [pool_keys, pool_values];
        return kernels.attention(query, [keys, values], pool, tables, heads);
    }
    let rows = rows.rows();
    let pool = [pool_keys.clone(), pool_values.clone()];
    let has_kernel = matches!(pool[0].dtype(), DType::F32 | DType::BF16 | DType::F16);
    if has_kernel && cpu::is_flex_f32(&query) && cpu::is_flex_f32(&keys) {
        let plan = AttentionPlan {
            spans: rows.spans().clone(),
            positions: rows.positions().clone(),
            heads: heads.heads,
            kv_heads: heads.kv_heads,
            head_dim: heads.head_dim,
        };
        return cpu::paged_attention(query, [keys, values], pool, &plan);
    }
    let own = [keys, values].map(|own| own.cast(pool[0].dtype()));
    portable_attention(query, own, pool, rows, heads)
}

/// The portable default of [`attention`], after the pages were written: span by span, gathering
/// its keys. `own` and `pool` are keys and values of this pass's rows and of all slots.
#[must_use]
pub fn portable_attention(
    query: Tensor<2>,
    own: [Tensor<2>; 2],
    pool: [Tensor<2>; 2],
    rows: &RaggedRows,
    heads: AttentionHeads,
) -> Tensor<2> {
    let spans = rows.spans().iter().map(|span| {
        let query = query.clone().slice([span.rows.clone()]);
        let [keys, values] = [0, 1].map(|i| gather(span, &own[i], &pool[i]));
        span_attention(query, keys, values, mask(span, rows.positions(), &own[0].device()), heads)
    });
    Tensor::cat(spans.collect(), 0)
}

/// Keys or values of a span in run order: `[keys, kv_width]`, f32.
fn gather(span: &Span, own: &Tensor<2>, pool: &Tensor<2>) -> Tensor<2> {
    let (mut slots, mut own_rows) = (Vec::new(), Vec::new());
    for run in &span.keys {
        match run.source {
            KeySource::Pool { slot } => slots.extend(slot..slot + run.len),
            KeySource::Rows { row } => own_rows.extend(row..row + run.len),
        }
    }
    // Runs of the pool come first, then those of the rows.
    let mut parts = Vec::new();
    if !slots.is_empty() {
        parts.push(select_rows(pool.clone(), &slots));
    }
    if !own_rows.is_empty() {
        parts.push(select_rows(own.clone(), &own_rows));
    }
    Tensor::cat(parts, 0).cast(DType::F32)
}

/// 0 where a row may see a key and -inf where not: `[1, rows, keys]`; nothing for bidirectional spans.
fn mask(span: &Span, positions: &[usize], device: &Device) -> Option<Tensor<3>> {
    let hidden = |query: usize, key: usize, is_cached: bool| match span.attend {
        Attend::Bidirectional => false,
        Attend::Causal => key > query,
        Attend::Shadow => is_cached && key == query,
    };
    if span.attend == Attend::Bidirectional {
        return None;
    }
    let run_keys = |run: &KeyRun| {
        let is_cached = matches!(run.source, KeySource::Pool { .. });
        (run.position..run.position + run.len).map(move |key| (key, is_cached))
    };
    let keys: Vec<(usize, bool)> = span.keys.iter().flat_map(run_keys).collect();
    let values: Vec<f32> = positions[span.rows.clone()]
        .iter()
        .flat_map(|&query| keys.iter().map(move |&(key, cached)| (query, key, cached)))
        .map(
            |(query, key, cached)| if hidden(query, key, cached) { f32::NEG_INFINITY } else { 0.0 },
        )
        .collect();
    let shape = [1, span.rows.len(), keys.len()];
    Some(Tensor::from_data(TensorData::new(values, shape), (device, DType::F32)))
}

fn span_attention(
    query: Tensor<2>,
    keys: Tensor<2>,
    values: Tensor<2>,
    mask: Option<Tensor<3>>,
    heads: AttentionHeads,
) -> Tensor<2> {
    let AttentionHeads { heads, kv_heads, head_dim } = heads;
    let (rows, dtype, n) = (query.dims()[0], query.dtype(), keys.dims()[0]);
    let group = heads / kv_heads;
    // Query heads of one group share a key head: they become its rows.
    let query = query
        .cast(DType::F32)
        .reshape([rows, kv_heads, group, head_dim])
        .swap_dims(0, 1)
        .swap_dims(1, 2)
        .reshape([kv_heads, group * rows, head_dim]);
    let per_head = |x: Tensor<2>| x.reshape([n, kv_heads, head_dim]).swap_dims(0, 1);
    let scale = (head_dim as f64).sqrt().recip();
    let mut scores = query.matmul(per_head(keys).transpose()) * scale; // [kv_heads, group * rows, n]
    if let Some(mask) = mask {
        let by_row = scores.reshape([heads, rows, n]) + mask;
        scores = by_row.reshape([kv_heads, group * rows, n]);
    }
    let out: Tensor<3> = activation::softmax(scores, 2).matmul(per_head(values));
    out.reshape([kv_heads, group, rows, head_dim])
        .swap_dims(1, 2)
        .swap_dims(0, 1)
        .reshape([rows, heads * head_dim])
        .cast(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KvShape, PAGE_SIZE, SpanRequest};

    fn values(rows: usize, width: usize, seed: u32) -> Tensor<2> {
        let mut state = seed;
        let values: Vec<f32> = (0..rows * width)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 22) as f32 - 2.0
            })
            .collect();
        Tensor::from_data(TensorData::new(values, [rows, width]), (&Device::flex(), DType::F32))
    }

    fn span(
        rows: std::ops::Range<usize>,
        attend: Attend,
        write: bool,
        cached: usize,
    ) -> SpanRequest {
        let pages = if write || cached > 0 { vec![3, 1, 4] } else { vec![] };
        SpanRequest { rows, attend, write, visible: vec![0..cached], pages }
    }

    /// A chunk after 19 cached positions, a decode row, a canvas of its own, one over a cache, shadows of
    /// cached positions, the first keys among them, and a short chunk.
    fn rows() -> RaggedRows {
        let spans = vec![
            span(0..13, Attend::Causal, true, 19),
            span(13..14, Attend::Causal, true, 40),
            span(14..35, Attend::Bidirectional, false, 0),
            span(35..38, Attend::Bidirectional, false, 37),
            span(38..41, Attend::Shadow, false, 33),
            span(41..42, Attend::Shadow, false, 1),
            span(42..45, Attend::Causal, true, 41),
        ];
        let positions = (19..32).chain([40]).chain(0..21).chain(20..23).chain(31..34).chain([0]);
        RaggedRows::new(vec![0; 45], positions.chain(41..44).collect(), spans, PAGE_SIZE).unwrap()
    }

    #[test]
    fn the_kernel_agrees_with_the_portable_default() {
        // Scores of a head of 64 are up to 32, where f32 counts in 4e-6.
        for (head_dim, tolerance) in [(12, 2e-6), (64, 2e-5)] {
            let heads = AttentionHeads { heads: 4, kv_heads: 2, head_dim };
            for dtype in [DType::F32, DType::BF16] {
                let worst = worst_difference(dtype, heads);
                assert!(worst < tolerance, "{dtype:?}, {head_dim}: {worst}");
            }
        }
    }

    fn worst_difference(dtype: DType, heads: AttentionHeads) -> f32 {
        let (width, wide) = (heads.kv_heads * heads.head_dim, heads.heads * heads.head_dim);
        let shape = KvShape { layers: 1, width, page_size: PAGE_SIZE, pages: 5 };
        let mut pool = KvPool::new(shape, dtype, &Device::flex());
        let rows = rows();
        let fill = RaggedRows::new(
            vec![0; 41],
            (0..41).collect(),
            vec![span(0..41, Attend::Causal, true, 0)],
            PAGE_SIZE,
        )
        .unwrap();
        pool.write(0, &fill, &values(41, width, 1).cast(dtype), &values(41, width, 2).cast(dtype));
        let (query, own) = (values(45, wide, 3), [values(45, width, 4), values(45, width, 5)]);
        let rounded = own.each_ref().map(|own| own.clone().cast(dtype));
        pool.write(0, &rows, &own[0], &own[1]);
        let of_pass = AttentionRows::new(&rows, &Device::flex());
        let fast = attention(query.clone(), own, &of_pass, (&mut pool, 0), heads);
        let stored = [pool.layer(0).0.clone(), pool.layer(0).1.clone()];
        let portable = portable_attention(query, rounded, stored, &rows, heads);
        (fast - portable).abs().max().into_scalar::<f32>()
    }
}
