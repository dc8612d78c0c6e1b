//! What a pass reaches of what the machine can do: bytes of weights and cache read, and products, a
//! second, beside the fastest plain read and the fastest products there are.

use std::ops::Range;
use std::time::Instant;

use dfastllm_backends::{
    DType, Device, DeviceProvider, DeviceSpec, PAGE_SIZE, RaggedRows, ReadTest, SpanRequest,
    Tensor, multiply_rate, open_device, run_on,
};
use dfastllm_models::ops::{RowParams, score_rows, select_rows};
use dfastllm_models::{KvPool, LoadedModel, Tap, load};
use serde_json::{Value, json};

use super::BenchArgs;
use super::report::{Report, quantile};
use crate::ServeOptions;
use crate::cli::Failure;

/// Rows of a pass: one sequence, a batch, a diffusion block, a prompt.
const ROWS: [usize; 4] = [1, 8, 32, 512];
/// Passes timed at each, unless said otherwise.
const PASSES: usize = 5;
/// Most rows of a pass that fills the cache.
const FILL_ROWS: usize = 512;

/// Parts of a pass and of what follows it, by the name of the last thing they compute. Phi's MLP begins with
/// the queries, keys and values.
const PARTS: [(&str, &str); 7] = [
    ("embed", "embed_ms"),
    ("norm_in", "norm_ms"),
    ("v", "qkv_ms"),
    ("attended", "attention_ms"),
    ("out", "mlp_ms"),
    ("head", "head_ms"),
    ("scores", "scoring_ms"),
];

pub(super) fn run(
    args: &BenchArgs,
    options: &ServeOptions,
    providers: &[Box<dyn DeviceProvider>],
) -> Result<(), Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::failed(e.to_string());
    let device = open_device(options.device, providers).map_err(|e| failed(&e))?;
    if device.spec != DeviceSpec::Cpu {
        let message = format!("bench roofline measures the CPU, not {}", device.spec);
        return Err(Failure::usage(message));
    }
    let loaded = load(&options.files, &device, options.weights).map_err(|e| failed(&e))?;
    let longest =
        options.max_model_len.unwrap_or(usize::MAX).min(loaded.model.shape().max_positions);
    let context = args.input_len.longest();
    let rows: Vec<usize> = ROWS.into_iter().filter(|rows| context + rows <= longest).collect();
    if rows.is_empty() {
        let message = format!("--input-len {context} leaves no room in {longest} positions");
        return Err(Failure::usage(message));
    }
    let limits = Limits { read: ReadTest::new(), multiply: multiply_rate(loaded.format) };
    let mut report = Report::new(args.json);
    let mut passes = Passes::new(&loaded, &device.device, (context, longest))?;
    for rows in rows {
        let timed = |_| {
            let before = limits.read.rate();
            // As the engine computes: on a thread of the pool.
            let sample = run_on(&device.device, || passes.sample(rows))?;
            Ok((sample, (before + limits.read.rate()) / 2.0))
        };
        let timed =
            (0..args.passes.unwrap_or(PASSES)).map(timed).collect::<Result<_, Failure>>()?;
        let level = Level { rows, context, hidden: passes.hidden, timed };
        report.row(&columns(&loaded, &limits, &level))?;
    }
    Ok(())
}

/// The machine's.
struct Limits {
    read: ReadTest,
    /// Operations a second.
    multiply: f64,
}

/// Seconds of the parts of a pass.
type Sample = [f64; PARTS.len()];

/// Passes of the same number of rows.
struct Level {
    rows: usize,
    context: usize,
    /// Features of a row.
    hidden: usize,
    /// Each with bytes a second of plain reads just before and just after, because the memory of rented
    /// machines is twice as fast in one second as in another.
    timed: Vec<(Sample, f64)>,
}

impl Level {
    /// Median of a figure of the passes and the plain reads beside them.
    fn median(&self, of: impl Fn(&Sample, f64) -> f64) -> f64 {
        let mut values: Vec<f64> =
            self.timed.iter().map(|(sample, read)| of(sample, *read)).collect();
        quantile(&mut values, 0.5)
    }
}

fn columns(loaded: &LoadedModel, limits: &Limits, level: &Level) -> Vec<(&'static str, Value)> {
    let (shape, rows) = (loaded.model.shape(), level.rows as f64);
    let took = |sample: &Sample| sample.iter().sum::<f64>();
    let seconds = level.median(|sample, _| took(sample));
    let cached = level.context + level.rows;
    let cache = 2 * shape.layers * shape.kv_width * cached * loaded.precision.kv.size();
    let bytes = loaded.projections.bytes as f64 + cache as f64;
    // A multiplication and an addition for every weight; the head's only for rows that are scored.
    let head = (shape.vocab * level.hidden) as f64;
    let layers = loaded.projections.parameters as f64 - head;
    let operations = 2.0 * (rows * layers + scored(level.rows).len() as f64 * head);
    let mut columns = vec![
        ("rows", json!(level.rows)),
        ("context", json!(level.context)),
        ("pass_ms", json!(1e3 * seconds)),
    ];
    for (part, (_, name)) in PARTS.iter().enumerate() {
        columns.push((name, json!(1e3 * level.median(|sample, _| sample[part]))));
    }
    columns.extend([
        ("read_GB_s", json!(bytes / seconds / 1e9)),
        ("of_GB_s", json!(level.median(|_, read| read) / 1e9)),
        ("read_%", json!(100.0 * level.median(|sample, read| bytes / took(sample) / read))),
        ("GFLOP_s", json!(operations / seconds / 1e9)),
        ("of_GFLOP_s", json!(limits.multiply / 1e9)),
        ("multiply_%", json!(100.0 * operations / seconds / limits.multiply)),
    ]);
    columns
}

/// The rows whose logits are wanted: all of a batch or a denoised block, the last of a prompt.
fn scored(rows: usize) -> Range<usize> {
    if rows > 64 { rows - 1..rows } else { 0..rows }
}

/// Passes of one sequence over a filled cache.
struct Passes<'a> {
    loaded: &'a LoadedModel,
    pool: KvPool,
    pages: Vec<u32>,
    context: usize,
    /// Features of a row.
    hidden: usize,
}

impl<'a> Passes<'a> {
    /// Fills the cache with `context` positions.
    fn new(
        loaded: &'a LoadedModel,
        device: &Device,
        (context, longest): (usize, usize),
    ) -> Result<Self, Failure> {
        let pages = longest.min(context + FILL_ROWS).div_ceil(PAGE_SIZE);
        let shape = loaded.model.shape().kv_shape(pages, PAGE_SIZE);
        let pool = KvPool::new(shape, loaded.precision.kv, device);
        let mut passes =
            Self { loaded, pool, pages: (0..pages as u32).collect(), context, hidden: 0 };
        for from in (0..context).step_by(FILL_ROWS) {
            passes.forward(from, FILL_ROWS.min(context - from), &mut |_| {})?;
        }
        Ok(passes)
    }

    /// A pass of rows after the first `from` positions; hears what was computed.
    fn forward(
        &mut self,
        from: usize,
        rows: usize,
        heard: &mut dyn FnMut(&str),
    ) -> Result<Tensor<2>, Failure> {
        let model = &self.loaded.model;
        let vocab = model.shape().vocab;
        let tokens = (from..from + rows).map(|i| (i * 7919 % vocab) as u32).collect();
        let span = SpanRequest {
            rows: 0..rows,
            attend: model.attend(),
            write: true,
            visible: vec![0..from],
            pages: self.pages.clone(),
        };
        let positions = (from..from + rows).collect();
        let rows = RaggedRows::new(tokens, positions, vec![span], PAGE_SIZE)
            .map_err(|e| Failure::failed(e.to_string()))?;
        Ok(model.forward(&rows, &mut self.pool, &mut |tap: Tap, _: &Tensor<2>| heard(tap.name)))
    }

    /// Times a pass, its head and its scores.
    fn sample(&mut self, rows: usize) -> Result<Sample, Failure> {
        let (mut sample, mut last) = ([0.0; PARTS.len()], Instant::now());
        let mut heard = |name: &str| {
            let Some(part) = PARTS.iter().position(|(end, _)| *end == name) else { return };
            sample[part] += last.elapsed().as_secs_f64();
            last = Instant::now();
        };
        let hidden = self.forward(self.context, rows, &mut heard)?;
        let wanted: Vec<usize> = scored(rows).collect();
        self.hidden = hidden.dims()[1];
        let logits = self.loaded.model.logits(select_rows(hidden, &wanted)).cast(DType::F32);
        heard("head");
        let params: Vec<RowParams> = (0..wanted.len()).map(RowParams::greedy).collect();
        std::hint::black_box(score_rows(logits, &params));
        heard("scores");
        Ok(sample)
    }
}
