//! A recorded decode step against the step itself, on the device named by `DFASTLLM_TEST_DEVICE`. In a
//! program of its own: while a pass is recorded, nothing else may be launched.

#![cfg(feature = "cube")]
#![expect(clippy::unwrap_used, reason = "what fails in a test's preparation fails the test")]

use std::ops::Range;

use dfastllm_backends::ops::{
    AttentionHeads, DecodeInputs, DecodeShape, Epilogue, InputForm, Linear, PassInputs, Rope,
    RopePrecision, attention, embed, linear, linears, record, records, rms_norm, rotate_and_store,
};
use dfastllm_backends::{
    Attend, CpuProvider, DType, Device, DeviceProvider, GraphChoice, KernelOptions, KvPool,
    KvShape, PAGE_SIZE, Quantize, RaggedRows, SpanRequest, Tensor, TensorData, configure_kernels,
    open_device,
};
use dfastllm_cube::CubeProvider;

const HEADS: AttentionHeads = AttentionHeads { heads: 4, kv_heads: 2, head_dim: 16 };
const WIDTH: usize = 64;
const VOCAB: usize = 50;
const SHAPE: DecodeShape = DecodeShape { rows: 4, pages: 20 };

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

fn span(rows: Range<usize>, position: usize, first_page: u32) -> SpanRequest {
    SpanRequest {
        rows,
        attend: Attend::Causal,
        write: true,
        visible: vec![0..position],
        // Backwards, so that no two pages follow each other.
        pages: (0..20).map(|page| (first_page + 60 - page) % 64).collect(),
    }
}

/// One row for each position; sequences have pages of their own if they are short.
fn step(positions: &[usize], salt: u32) -> RaggedRows {
    let spans = positions.iter().enumerate();
    let spans = spans.map(|(row, &p)| span(row..row + 1, p, 3 * row as u32)).collect();
    let tokens = (0..positions.len() as u32).map(|row| (salt + 7 * row) % VOCAB as u32).collect();
    RaggedRows::new(tokens, positions.to_vec(), spans, PAGE_SIZE).unwrap()
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
    configure_kernels(KernelOptions { graphs: GraphChoice::On, ..KernelOptions::default() });
    let providers: [Box<dyn DeviceProvider>; 2] = [Box::new(CubeProvider), Box::new(CpuProvider)];
    Some(open_device(name.parse().unwrap(), &providers).unwrap().device)
}

#[test]
fn a_recorded_step_replays_with_other_inputs() {
    let Some(device) = device() else { return };
    assert!(records(&device));
    let network = Network::new(&device);
    let [mut ours, mut reference] = [pool(&device), pool(&device)];
    // Something to see: 300 positions of one sequence, whose pages the others share in part.
    let prompt = span(0..300, 0, 0);
    let tokens = (0..300).map(|i| i % VOCAB as u32).collect();
    let prompt = RaggedRows::new(tokens, (0..300).collect(), vec![prompt], PAGE_SIZE).unwrap();
    for pool in [&mut ours, &mut reference] {
        network.run(PassInputs::new(&prompt, network.form(), &device), pool);
    }

    let inputs = DecodeInputs::new(SHAPE, network.form(), &device).unwrap();
    let mut recorded = record(&device, &mut || network.run(inputs.pass(), &mut ours)).unwrap();
    let mut before = Vec::new();
    for (name, rows) in [
        ("full and long", step(&[300, 17, 290, 64], 3)),
        ("two short", step(&[0, 5], 11)),
        ("other lengths", step(&[301, 18, 2], 5)),
        ("a shorter one again", step(&[6], 40)),
    ] {
        assert!(SHAPE.holds(&rows));
        inputs.fill(&rows, network.form());
        let replayed = values(recorded.replay().unwrap().slice([0..rows.len()]));
        let itself = PassInputs::new(&rows, network.form(), &device);
        let expected = values(network.run(itself, &mut reference));
        let found = far(&replayed, &expected);
        assert!(found < 1e-5, "{name}: {found}");
        assert!(before.is_empty() || far(&before, &replayed[..WIDTH]) > 1e-3, "{name}");
        assert!(far(&all_pages(&ours), &all_pages(&reference)) < 1e-5, "{name}: pages");
        before = replayed[..WIDTH].to_vec();
    }
    refused(&network, &device, &mut ours, &mut *recorded, &inputs);
}

/// A pass that uploads cannot be recorded; what is there goes on working.
fn refused(
    network: &Network,
    device: &Device,
    pool: &mut KvPool,
    recorded: &mut dyn dfastllm_backends::ops::RecordedPass,
    inputs: &DecodeInputs,
) {
    let rows = step(&[20, 40], 9);
    let mut uploads = || network.run(PassInputs::new(&rows, network.form(), device), pool);
    let error = record(device, &mut uploads).err();
    assert!(error.is_some_and(|e| e.contains("capture")));
    let expected = values(uploads());
    inputs.fill(&rows, network.form());
    let replayed = values(recorded.replay().unwrap().slice([0..2]));
    assert!(far(&expected, &replayed) < 1e-5);
}
