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
struct Pools {
    tested: KvPool,
    reference: KvPool,
}

impl Pools {
    fn new(lane: &Lane, heads: AttentionHeads, pages: usize) -> Self {
        let width = heads.kv_heads * heads.head_dim;
        let shape = KvShape { layers: 2, width, page_size: PAGE_SIZE, pages };
        Self {
            tested: KvPool::new(shape, lane.dtype, &lane.device),
            reference: KvPool::new(shape, DType::F32, &Device::flex()),
        }
    }

    /// One layer of one pass on both, compared.
    fn pass(&mut self, lane: &Lane, heads: AttentionHeads, layer: usize, (name, rows): &Pass) {
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
fn attend(
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

type Pass = (&'static str, RaggedRows);

fn span(
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
    let tokens = vec![0; positions.len()];
    (name, RaggedRows::new(tokens, positions, spans, PAGE_SIZE).unwrap())
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
