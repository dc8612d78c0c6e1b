//! Attention over pages and a pass's own rows, and the pages it writes.

use dfastllm_backends::ops::{self, AttentionHeads, AttentionRows, Rope, RopePrecision};
use dfastllm_backends::{Attend, DType, Device, KvPool, KvShape, RaggedRows, SpanRequest, Tensor};

use crate::lane::{Lane, Pair, lanes};

const PAGE_SIZE: usize = 4;

/// Head counts: as many key heads as query heads, groups of two and three, odd sizes.
const HEADS: [AttentionHeads; 4] = [
    AttentionHeads { heads: 4, kv_heads: 4, head_dim: 8 },
    AttentionHeads { heads: 6, kv_heads: 2, head_dim: 5 },
    AttentionHeads { heads: 4, kv_heads: 2, head_dim: 16 },
    AttentionHeads { heads: 1, kv_heads: 1, head_dim: 80 },
];

/// The same pool on the tested device and on flex.
pub(crate) struct Pools {
    pub(crate) tested: KvPool,
    reference: KvPool,
}

impl Pools {
    fn new(lane: &Lane, heads: AttentionHeads, pages: usize) -> Self {
        Self::of(lane, heads, (PAGE_SIZE, pages), lane.dtype)
    }

    /// With pages of some size, holding `dtype`; the reference holds f32 beside f32.
    pub(crate) fn of(
        lane: &Lane,
        heads: AttentionHeads,
        (page_size, pages): (usize, usize),
        dtype: DType,
    ) -> Self {
        let width = heads.kv_heads * heads.head_dim;
        let shape = KvShape { layers: 2, width, page_size, pages };
        let on_flex = if dtype == lane.dtype { DType::F32 } else { dtype };
        Self {
            tested: KvPool::new(shape, dtype, &lane.device),
            reference: KvPool::new(shape, on_flex, &Device::flex()),
        }
    }

    /// The tested pages of the first layer: keys and values by slot.
    fn stored(&self) -> [Vec<Vec<f32>>; 2] {
        let (keys, values) = self.tested.layer(0);
        [keys, values].map(|pages| {
            let width = pages.dims()[1];
            let all: Vec<f32> = pages.to_data().iter::<f32>().collect();
            all.chunks(width).map(<[f32]>::to_vec).collect()
        })
    }

    /// One layer of one pass on both, compared.
    pub(crate) fn pass(
        &mut self,
        lane: &Lane,
        heads: AttentionHeads,
        layer: usize,
        (name, rows): &Pass,
    ) {
        let (n, width) = (rows.len(), heads.kv_heads * heads.head_dim);
        let salt = name.len() + 10 * layer;
        let query: Pair<2> = lane.noise(salt, [n, heads.heads * heads.head_dim]);
        let keys: Pair<2> = lane.noise(salt + 1, [n, width]);
        let values: Pair<2> = lane.noise(salt + 2, [n, width]);
        let own = [keys.tested, values.tested];
        let pool = (&mut self.tested, layer);
        let tested = attend((query.tested, own), rows, pool, (heads, lane.dtype, &lane.device));
        let own = [keys.reference, values.reference];
        let (pool, device) = ((&mut self.reference, layer), &Device::flex());
        let reference = attend((query.reference, own), rows, pool, (heads, DType::F32, device));
        lane.check_product(&format!("{name}, layer {layer}, {heads:?}"), &tested, &reference);
    }
}

/// Turns, stores and attends.
pub(crate) fn attend(
    (query, own): (Tensor<2>, [Tensor<2>; 2]),
    rows: &RaggedRows,
    (pool, layer): ops::LayerPages<'_>,
    (heads, dtype, device): (AttentionHeads, DType, &Device),
) -> Tensor<2> {
    // Half of a head turns, as in Phi.
    let dim = heads.head_dim;
    let rope = Rope::new(dim, dim / 4 * 2, 10_000.0, RopePrecision::Float32);
    let angles = rope.angles(rows.positions(), dtype, device);
    let rows = AttentionRows::new(rows, device);
    let turn = (&rope, &angles);
    let (query, own) = ops::rotate_and_store(query, own, turn, &rows, (&mut *pool, layer));
    ops::attention(query, own, &rows, (pool, layer), heads)
}

pub(crate) type Pass = (&'static str, RaggedRows);

pub(crate) fn span(
    rows: std::ops::Range<usize>,
    attend: Attend,
    write: bool,
    visible: std::ops::Range<usize>,
    pages: &[u32],
) -> SpanRequest {
    let visible = if visible.is_empty() { Vec::new() } else { vec![visible] };
    SpanRequest { rows, attend, write, visible, pages: pages.to_vec() }
}

fn pass(name: &'static str, positions: Vec<usize>, spans: Vec<SpanRequest>) -> Pass {
    paged(name, positions, spans, PAGE_SIZE)
}

pub(crate) fn paged(
    name: &'static str,
    positions: Vec<usize>,
    spans: Vec<SpanRequest>,
    page_size: usize,
) -> Pass {
    let tokens = vec![0; positions.len()];
    (name, RaggedRows::new(tokens, positions, spans, page_size).unwrap())
}

/// A causal sequence on pages 3, 1 and a bidirectional one on page 5, over four passes.
fn passes() -> Vec<Pass> {
    use Attend::{Bidirectional, Causal, Shadow};
    vec![
        pass(
            "first chunk and a block",
            vec![0, 1, 2, 3, 4, 0, 1, 2],
            vec![
                span(0..5, Causal, true, 0..0, &[3, 1]),
                span(5..8, Bidirectional, true, 0..0, &[5]),
            ],
        ),
        pass(
            "decode, dual cache and no cache",
            vec![5, 1, 2, 0, 1, 2],
            vec![
                span(0..1, Causal, true, 0..5, &[3, 1]),
                span(1..3, Bidirectional, false, 0..3, &[5]),
                span(3..6, Causal, false, 0..0, &[]),
            ],
        ),
        pass(
            "second chunk and an overwritten block",
            vec![6, 7, 0, 2],
            vec![
                span(0..2, Causal, true, 0..6, &[3, 1]),
                span(2..4, Bidirectional, true, 0..3, &[5]),
            ],
        ),
        pass(
            "everything read back, and shadows beside it",
            vec![8, 3, 0, 2],
            vec![
                span(0..1, Causal, false, 0..8, &[3, 1]),
                span(1..2, Bidirectional, false, 0..3, &[5]),
                span(2..4, Shadow, false, 0..3, &[5]),
            ],
        ),
    ]
}

#[test]
fn paged_attention() {
    for lane in lanes("attention and page writes") {
        for heads in HEADS {
            let mut pools = Pools::new(&lane, heads, 6);
            for pass in passes() {
                // Both layers, the later one first: they must not share pages.
                for layer in [1, 0] {
                    pools.pass(&lane, heads, layer, &pass);
                }
            }
        }
    }
}

#[test]
fn attention_without_pages() {
    for lane in lanes("attention without pages") {
        for heads in HEADS {
            let mut pools = Pools::new(&lane, heads, 0);
            for (length, attend) in
                [(1, Attend::Causal), (13, Attend::Causal), (9, Attend::Bidirectional)]
            {
                let rows = RaggedRows::single(&vec![0; length], attend).unwrap();
                pools.pass(&lane, heads, 0, &("a plain pass", rows));
            }
        }
    }
}

/// Pages `0..count` in an order that is not theirs.
pub(crate) fn scrambled(count: u32) -> Vec<u32> {
    // 7 shares no factor with the counts used here.
    (0..count).map(|i| (7 * i + 3) % count).collect()
}

/// Head counts of Phi, LLaDA and Dream in small, and sizes no load divides.
const LONG_HEADS: [AttentionHeads; 4] = [
    AttentionHeads { heads: 2, kv_heads: 2, head_dim: 80 },
    AttentionHeads { heads: 2, kv_heads: 2, head_dim: 128 },
    AttentionHeads { heads: 7, kv_heads: 1, head_dim: 32 },
    AttentionHeads { heads: 20, kv_heads: 2, head_dim: 5 },
];

/// A causal prefill of 70 rows after a cached prefix, one row far after it, its neighbours, and a
/// block of 33 rows over the cache, on pages of 16.
fn long_passes() -> Vec<Pass> {
    use Attend::{Bidirectional, Causal, Shadow};
    let pages = scrambled(24);
    let causal = |rows, cached| span(rows, Causal, true, 0..cached, &pages);
    let chunk = |name, positions: std::ops::Range<usize>| {
        let spans = vec![causal(0..positions.len(), positions.start)];
        paged(name, positions.collect(), spans, 16)
    };
    vec![
        chunk("a first chunk", 0..37),
        chunk("70 rows after a prefix", 37..107),
        chunk("as many rows as are not many", 107..234),
        chunk("106 rows after them", 234..340),
        chunk("a row after 340", 340..341),
        paged(
            "33 rows amid a cache, and shadows of 21 positions",
            (100..133).chain(300..321).collect(),
            vec![
                span(0..33, Bidirectional, false, 0..340, &pages),
                span(33..54, Shadow, false, 0..341, &pages),
            ],
            16,
        ),
        paged(
            "20 rows that saw more and more",
            (0..20).map(|i| 17 * i).collect(),
            (0..20).map(|i| span(i..i + 1, Causal, false, 0..17 * i, &pages)).collect(),
            16,
        ),
    ]
}

#[test]
fn long_attention() {
    for lane in lanes("long attention") {
        for heads in LONG_HEADS {
            let mut pools = Pools::of(&lane, heads, (16, 24), lane.dtype);
            for pass in long_passes() {
                pools.pass(&lane, heads, 0, &pass);
            }
        }
    }
}

#[test]
fn pages_of_another_type() {
    for lane in lanes("pages of another type") {
        let other = if lane.dtype == DType::F32 { DType::F16 } else { DType::F32 };
        if !lanes("").iter().any(|lane| lane.dtype == other) {
            continue;
        }
        let heads = AttentionHeads { heads: 4, kv_heads: 2, head_dim: 16 };
        let mut pools = Pools::of(&lane, heads, (PAGE_SIZE, 6), other);
        for pass in passes() {
            pools.pass(&lane, heads, 0, &pass);
        }
    }
}

#[test]
fn writes_touch_their_own_slots_only() {
    for lane in lanes("page writes and copies") {
        let heads = AttentionHeads { heads: 3, kv_heads: 1, head_dim: 6 };
        let mut pools = Pools::new(&lane, heads, 6);
        for pass in passes() {
            pools.pass(&lane, heads, 0, &pass);
        }
        // Pages 3 and 1 are full, three slots of page 5; the others were nobody's.
        let written: Vec<usize> = (12..16).chain(4..8).chain(20..23).collect();
        for stored in pools.stored() {
            for (slot, row) in stored.iter().enumerate() {
                let is_empty = row.iter().all(|&x| x == 0.0);
                let what = || format!("slot {slot}: {row:?}");
                lane.assert_eq(&is_empty, &!written.contains(&slot), what);
            }
        }
        let before = pools.stored();
        pools.tested.copy_page(3, 0);
        pools.tested.copy_page(2, 5);
        for (mut expected, stored) in before.into_iter().zip(pools.stored()) {
            for i in 0..PAGE_SIZE {
                expected[i] = expected[12 + i].clone();
                expected[20 + i] = expected[8 + i].clone();
            }
            lane.assert_eq(&stored, &expected, String::new);
        }
    }
}
