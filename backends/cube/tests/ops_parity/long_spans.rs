//! Attention of spans of so many rows that their keys are copied together.

use dfastllm_backends::ops::AttentionHeads;
use dfastllm_backends::{Attend, DType, RaggedRows};

use crate::attention::{Pass, Pools, attend, paged, scrambled, span};
use crate::lane::{Lane, Pair, lanes};

/// The smallest head that matrix products take, and head counts of Dream, Phi and LLaDA in small.
const HEADS: [AttentionHeads; 4] = [
    AttentionHeads { heads: 6, kv_heads: 2, head_dim: 16 },
    AttentionHeads { heads: 7, kv_heads: 1, head_dim: 32 },
    AttentionHeads { heads: 2, kv_heads: 2, head_dim: 80 },
    AttentionHeads { heads: 2, kv_heads: 2, head_dim: 128 },
];

/// Pages of two sequences, each in an order that is not theirs.
fn tables() -> [Vec<u32>; 2] {
    let [first, second] = [scrambled(24), scrambled(22)];
    [first, second.iter().map(|page| 24 + page).collect()]
}

/// Prompts, chunks behind them beside rows of other sequences, and canvases, on pages of 16.
fn passes() -> Vec<Pass> {
    use Attend::{Bidirectional, Causal, Shadow};
    let [first, second] = tables();
    vec![
        paged(
            "two prompts",
            (0..150).chain(0..131).collect(),
            vec![
                span(0..150, Causal, true, 0..0, &first),
                span(150..281, Causal, true, 0..0, &second),
            ],
            16,
        ),
        paged(
            "a chunk of 203 behind 150 keys, decode rows and shadows",
            [131, 40, 7].into_iter().chain(150..353).chain(20..25).chain([90]).collect(),
            vec![
                span(0..1, Causal, true, 0..131, &second),
                span(1..2, Causal, false, 0..40, &second),
                span(2..3, Bidirectional, false, 0..131, &second),
                span(3..206, Causal, true, 0..150, &first),
                span(206..211, Shadow, false, 0..130, &second),
                span(211..212, Causal, false, 0..90, &first),
            ],
            16,
        ),
        paged(
            "a canvas over pages and its own rows, and a prompt that is not kept",
            (100..301).chain(141..270).collect(),
            vec![
                span(0..201, Bidirectional, false, 0..353, &first),
                span(201..330, Causal, false, 0..132, &second),
            ],
            16,
        ),
        paged(
            "a canvas that is written, and shadows of many rows",
            (0..137).chain(30..160).collect(),
            vec![
                span(0..137, Bidirectional, true, 0..0, &second),
                span(137..267, Shadow, false, 0..353, &first),
            ],
            16,
        ),
    ]
}

#[test]
fn long_spans() {
    for lane in lanes("attention of long spans") {
        for heads in HEADS {
            // Without tensor cores a kernel is all of a head's products one after the other, which software
            // devices take up to half a minute to compile.
            let most = match heads.head_dim {
                80 if !lane.has_tensor_cores => 2,
                128 if !lane.has_tensor_cores => 0,
                _ => usize::MAX,
            };
            let mut pools = Pools::of(&lane, heads, (16, 46), lane.dtype);
            for pass in passes().into_iter().take(most) {
                pools.pass(&lane, heads, 0, &pass);
            }
        }
    }
}

#[test]
fn prompts_of_several_launches() {
    for lane in lanes("attention of prompts of several launches") {
        // One launch has 24 times 64 rows on an H100, and 3 times on a software device.
        let heads = AttentionHeads { heads: 16, kv_heads: 8, head_dim: 16 };
        let mut pools = Pools::of(&lane, heads, (16, 0), lane.dtype);
        for length in [513, 1700] {
            let rows = RaggedRows::single(&vec![0; length], Attend::Causal).unwrap();
            pools.pass(&lane, heads, 0, &("a prompt", rows));
        }
        let rows = RaggedRows::single(&[0; 700], Attend::Bidirectional).unwrap();
        pools.pass(&lane, heads, 0, &("a canvas", rows));
    }
}

/// Every key's values are twice and thrice what f16 holds, of either sign: so is what a row gets.
fn beyond_f16(
    lane: &Lane,
    [kept, read]: [DType; 2],
    pool: DType,
    (sees, head_dim): (Attend, usize),
) {
    let heads = AttentionHeads { heads: 4, kv_heads: 2, head_dim };
    let width = heads.kv_heads * heads.head_dim;
    let [pages, _] = tables();
    let wide = |lane: &Lane, rows: usize| -> Pair<2> {
        let signs = [1.3e5f32, -1.9e5].into_iter().cycle();
        lane.pair(&signs.take(rows * width).collect::<Vec<f32>>(), [rows, width])
    };
    let (_, prompt) =
        paged("kept", (0..40).collect(), vec![span(0..40, Attend::Causal, true, 0..0, &pages)], 16);
    let spans = vec![span(0..130, sees, false, 0..40, &pages)];
    let (_, long) = paged("read", (40..170).collect(), spans, 16);
    let mut pools = Pools::of(lane, heads, (16, 24), pool);
    let mut found = None;
    for (rows, dtype) in [(prompt, kept), (long, read)] {
        let mut lane = lane.clone();
        lane.dtype = dtype;
        let query: Pair<2> = lane.noise(1, [rows.len(), heads.heads * heads.head_dim]);
        let keys: Pair<2> = lane.noise(2, [rows.len(), width]);
        let own = [keys.tested, wide(&lane, rows.len()).tested];
        let on = (heads, dtype, &lane.device);
        found = Some(attend((query.tested, own), &rows, (&mut pools.tested, 0), on));
    }
    let found = found.unwrap();
    let signs = [65504.0f32, -65504.0].into_iter().cycle();
    let held: Vec<f32> = signs.take(found.dims().iter().product()).collect();
    let expected: Pair<2> = lane.pair(&held, found.dims());
    lane.check_product("values beyond f16", &found, &expected.reference);
}

#[test]
fn what_f16_cannot_hold_is_held_at_its_end() {
    let lanes = lanes("values beyond f16");
    let of = |dtype| lanes.iter().find(|lane| lane.dtype == dtype);
    // The largest head takes long to compile without tensor cores.
    let largest = lanes.first().is_some_and(|lane| lane.has_tensor_cores).then_some(128);
    for head_dim in [16, 80].into_iter().chain(largest) {
        for sees in [Attend::Bidirectional, Attend::Causal] {
            let on = (sees, head_dim);
            if let (Some(_), Some(lane)) = (of(DType::F32), of(DType::F16)) {
                // Pages hold the numbers, own rows infinities.
                beyond_f16(lane, [DType::F32, DType::F16], DType::F32, on);
            }
            if let Some(lane) = of(DType::BF16) {
                beyond_f16(lane, [DType::BF16; 2], DType::BF16, on);
            }
        }
    }
}
