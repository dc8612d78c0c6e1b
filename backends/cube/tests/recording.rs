//! Recorded steps against the steps themselves, on the device named by `DFASTLLM_TEST_DEVICE`. In a
//! program of its own: while a pass is recorded, nothing else may be launched.

#![cfg(feature = "cube")]
#![expect(clippy::unwrap_used, reason = "what fails in a test's preparation fails the test")]

use std::ops::Range;

use dfastllm_backends::ops::{
    AttentionHeads, Epilogue, InputForm, Linear, PassInputs, RecordedPass, Rope, RopePrecision,
    StepInputs, StepShape, attention, embed, linear, linears, record, records, rms_norm,
    rotate_and_store,
};
use dfastllm_backends::{
    Attend, CpuProvider, DType, Device, DeviceProvider, KernelChoice, KernelOptions, KvPool,
    KvShape, PAGE_SIZE, Quantize, RaggedRows, SpanRequest, Switch, Tensor, TensorData,
    configure_kernels, open_device,
};
use dfastllm_cube::CubeProvider;

const HEADS: AttentionHeads = AttentionHeads { heads: 4, kv_heads: 2, head_dim: 16 };
const WIDTH: usize = 64;
const VOCAB: usize = 50;
const PAGES: usize = 20;

fn noise<const D: usize>(salt: usize, shape: [usize; D], device: &Device) -> Tensor<D> {
    let value = |i: usize| {
        let hash = (i + salt * 1009).wrapping_mul(2_654_435_761) & 0xffff_ffff;
        ((hash ^ (hash >> 15)) as u16 as f32 / 32768.0 - 1.0) / 4.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// Two layers of attention over real operations.
struct Network {
    embedding: Tensor<2>,
    norm: Tensor<1>,
    projections: Vec<[Linear; 4]>,
    rope: Rope,
}

impl Network {
    fn new(device: &Device) -> Self {
        let kv = HEADS.kv_heads * HEADS.head_dim;
        let layer = |salt: usize| {
            [WIDTH, kv, kv, WIDTH].map(|outs| {
                Linear::new(noise(salt + outs, [outs, WIDTH], device), None, Quantize::None)
            })
        };
        Self {
            embedding: noise(1, [VOCAB, WIDTH], device),
            norm: noise(2, [WIDTH], device) + 1.0,
            projections: [10, 20].map(layer).into(),
            rope: Rope::new(HEADS.head_dim, HEADS.head_dim / 2, 1e4, RopePrecision::Activations),
        }
    }

    fn form(&self) -> InputForm<'_> {
        InputForm { rope: &self.rope, activations: DType::F32 }
    }

    fn run(&self, inputs: PassInputs<'_>, pool: &mut KvPool) -> Tensor<2> {
        let PassInputs { tokens, angles, rows } = inputs;
        let mut x = embed(&self.embedding, tokens, DType::F32);
        for (layer, [q, k, v, out]) in self.projections.iter().enumerate() {
            let normal = rms_norm(x.clone(), &self.norm, 1e-6);
            let [query, keys, values] = linears(normal, [q, k, v].map(|l| (l, Epilogue::None)));
            let turn = (&self.rope, &angles);
            let (query, own) = rotate_and_store(query, [keys, values], turn, &rows, (pool, layer));
            let mixed = attention(query, own, &rows, (pool, layer), HEADS);
            x = linear(mixed, out, Epilogue::Plus(Box::new(x)));
        }
        x
    }
}

fn pool(device: &Device) -> KvPool {
    let width = HEADS.kv_heads * HEADS.head_dim;
    KvPool::new(KvShape { layers: 2, width, page_size: PAGE_SIZE, pages: 64 }, DType::F32, device)
}

/// The pages of a sequence: backwards, so that no two follow each other.
fn pages(first: u32) -> Vec<u32> {
    (0..PAGES as u32).map(|page| (first + 60 - page) % 64).collect()
}

fn span(rows: Range<usize>, position: usize, first_page: u32) -> SpanRequest {
    SpanRequest {
        rows,
        attend: Attend::Causal,
        write: true,
        visible: vec![0..position],
        pages: pages(first_page),
    }
}

fn rows(positions: Vec<usize>, spans: Vec<SpanRequest>, salt: u32) -> RaggedRows {
    let tokens = (0..positions.len() as u32).map(|row| (salt + 7 * row) % VOCAB as u32).collect();
    RaggedRows::new(tokens, positions, spans, PAGE_SIZE).unwrap()
}

/// One row for each position; sequences have pages of their own if they are short.
fn decode(positions: &[usize], salt: u32) -> RaggedRows {
    let spans = positions.iter().enumerate();
    let spans = spans.map(|(row, &p)| span(row..row + 1, p, 3 * row as u32)).collect();
    rows(positions.to_vec(), spans, salt)
}

/// Rows of a sequence: how they see, whether they are written, their positions, and what they see of the
/// cache.
type Block = (Attend, bool, Vec<usize>, Vec<Range<usize>>);

/// A block for each sequence.
fn blocks(blocks: Vec<Block>, salt: u32) -> RaggedRows {
    let (mut positions, mut spans) = (Vec::new(), Vec::new());
    for (index, (attend, write, own, visible)) in blocks.into_iter().enumerate() {
        let rows = positions.len()..positions.len() + own.len();
        positions.extend(own);
        spans.push(SpanRequest { rows, attend, write, visible, pages: pages(3 * index as u32) });
    }
    rows(positions, spans, salt)
}

fn values(x: Tensor<2>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

/// Largest difference.
fn far(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |most, x| if x > most || x.is_nan() { x } else { most })
}

fn all_pages(pool: &KvPool) -> Vec<f32> {
    let layers = (0..2).map(|layer| pool.layer(layer));
    layers
        .flat_map(|(keys, values_)| [values(keys.clone()), values(values_.clone())])
        .flatten()
        .collect()
}

/// The device, unless none is named.
fn device() -> Option<Device> {
    let name = std::env::var("DFASTLLM_TEST_DEVICE").ok()?;
    if std::env::var_os("DFASTLLM_TEST_ONLY_COMPILES").is_some() {
        return None;
    }
    let choice = std::env::var("DFASTLLM_TEST_KERNELS").ok();
    let choice = choice.map_or(KernelChoice::Tuned, |text| text.parse().unwrap());
    configure_kernels(KernelOptions { choice, graphs: Switch::On, ..KernelOptions::default() });
    let providers: [Box<dyn DeviceProvider>; 2] = [Box::new(CubeProvider), Box::new(CpuProvider)];
    Some(open_device(name.parse().unwrap(), &providers).unwrap().device)
}

/// A network with two pools, one for replays and one for the steps themselves.
struct Pair {
    network: Network,
    device: Device,
    ours: KvPool,
    reference: KvPool,
}

impl Pair {
    /// Something to see: 300 positions of one sequence, whose pages the others share in part.
    fn new(device: Device) -> Self {
        let network = Network::new(&device);
        let [mut ours, mut reference] = [pool(&device), pool(&device)];
        let prompt = rows((0..300).collect(), vec![span(0..300, 0, 0)], 0);
        for pool in [&mut ours, &mut reference] {
            network.run(PassInputs::new(&prompt, network.form(), &device), pool);
        }
        Self { network, device, ours, reference }
    }

    /// Replays steps of one shape, each beside the step itself.
    fn replay(
        &mut self,
        shape: StepShape,
        steps: Vec<(&str, RaggedRows)>,
    ) -> (Box<dyn RecordedPass>, StepInputs) {
        let Self { network, device, ours, reference } = self;
        let inputs = StepInputs::new(shape, network.form(), device).unwrap();
        let mut recorded = record(device, &mut || network.run(inputs.pass(), ours)).unwrap();
        let mut before = Vec::new();
        for (name, rows) in steps {
            assert!(shape.holds(&rows), "{name}");
            inputs.fill(&rows, network.form());
            let replayed = values(recorded.replay().unwrap().slice([0..rows.len()]));
            let itself = PassInputs::new(&rows, network.form(), device);
            let expected = values(network.run(itself, reference));
            let found = far(&replayed, &expected);
            assert!(found < 1e-5, "{name}: {found}");
            assert!(before.is_empty() || far(&before, &replayed[..WIDTH]) > 1e-3, "{name}");
            assert!(far(&all_pages(ours), &all_pages(reference)) < 1e-5, "{name}: pages");
            before = replayed[..WIDTH].to_vec();
        }
        (recorded, inputs)
    }
}

/// One test, so that nothing is launched while another records.
#[test]
fn recorded_steps_replay_with_other_inputs() {
    let Some(device) = device() else { return };
    assert!(records(&device));
    let mut pair = Pair::new(device);
    let steps = vec![
        ("full and long", decode(&[300, 17, 290, 64], 3)),
        ("two short", decode(&[0, 5], 11)),
        ("other lengths", decode(&[301, 18, 2], 5)),
        ("a shorter one again", decode(&[6], 40)),
    ];
    let (mut recorded, inputs) = pair.replay(StepShape::decode(4, PAGES), steps);
    pair.replay(StepShape::blocks(32, PAGES), block_steps());
    uploads(&mut pair, &mut *recorded, &inputs);
    no_kernel(&pair.device);
}

fn block_steps() -> Vec<(&'static str, RaggedRows)> {
    use Attend::{Bidirectional, Shadow};
    let all = |end: usize| vec![0..end];
    vec![
        (
            "full: amid a cache, written, from beside, without a cache",
            blocks(
                vec![
                    (Bidirectional, false, (120..132).collect(), all(300)),
                    (Bidirectional, true, (20..28).collect(), all(60)),
                    (Shadow, false, vec![250, 252, 253, 260], all(290)),
                    (Bidirectional, false, (0..8).collect(), vec![]),
                ],
                3,
            ),
        ),
        (
            "a block of two tiles that begins within a page",
            blocks(vec![(Bidirectional, false, (109..138).collect(), all(301))], 11),
        ),
        (
            "scattered keys and rows, one of them written",
            blocks(
                vec![
                    (Bidirectional, false, vec![3, 40, 44, 47], vec![0..2, 5..6, 9..12, 41..43]),
                    (Bidirectional, true, vec![30, 34, 77], vec![3..20, 60..61, 70..75]),
                ],
                23,
            ),
        ),
        ("one row that sees itself", blocks(vec![(Bidirectional, false, vec![7], vec![])], 40)),
        (
            "written across pages",
            blocks(vec![(Bidirectional, true, (90..122).collect(), all(200))], 5),
        ),
        (
            "two short ones",
            blocks(
                vec![
                    (Bidirectional, false, (33..38).collect(), all(50)),
                    (Shadow, false, vec![100], all(200)),
                ],
                31,
            ),
        ),
    ]
}

/// A pass that uploads is refused, or recorded with what it uploaded; what is there goes on working.
fn uploads(pair: &mut Pair, recorded: &mut dyn RecordedPass, inputs: &StepInputs) {
    let Pair { network, device, ours, .. } = pair;
    let rows = decode(&[20, 40], 9);
    let mut pass = || network.run(PassInputs::new(&rows, network.form(), device), ours);
    match record(device, &mut pass) {
        Err(error) => assert!(error.contains("capture"), "{error}"),
        Ok(mut again) => {
            let replayed = values(again.replay().unwrap().slice([0..2]));
            assert!(far(&values(pass()), &replayed) < 1e-5);
        }
    }
    // Other rows than those that the attempt wrote, and the replay before the pass that writes the same.
    let rows = decode(&[21, 41], 17);
    inputs.fill(&rows, network.form());
    let replayed = values(recorded.replay().unwrap().slice([0..2]));
    let itself = PassInputs::new(&rows, network.form(), device);
    assert!(far(&values(network.run(itself, ours)), &replayed) < 1e-5);
}

/// Heads that attention has no kernel for are not recorded.
fn no_kernel(device: &Device) {
    let inputs = |head_dim| {
        let rope = Rope::new(head_dim, head_dim, 1e4, RopePrecision::Activations);
        let form = InputForm { rope: &rope, activations: DType::F32 };
        StepInputs::new(StepShape::blocks(8, PAGES), form, device)
    };
    assert!(inputs(256).is_some() && inputs(258).is_none());
}
