//! Tokens a second by the number of concurrent requests, and where the time goes.

use std::time::Instant;

use dfastllm_engine::Totals;
use serde_json::{Value, json};

use super::BenchArgs;
use super::drive::{Sample, drive};
use super::report::Report;
use super::workload::Workload;
use crate::ServedModel;
use crate::cli::Failure;

pub(super) fn run(
    args: &BenchArgs,
    served: &ServedModel,
    mut workload: Workload<'_>,
) -> Result<(), Failure> {
    // What the first pass of a process costs more is nobody's throughput.
    drive(&served.engine, workload.take(1)?, 1)?;
    let mut report = Report::new(args.json);
    let mut first = None;
    for &concurrency in &args.concurrency {
        let requests = workload.take(args.requests_at(concurrency))?;
        let before = served.engine.stats().snapshot().totals;
        let begun = Instant::now();
        let samples = drive(&served.engine, requests, concurrency)?;
        let seconds = begun.elapsed().as_secs_f64();
        let totals = served.engine.stats().snapshot().totals - before;
        let level = Level { concurrency, seconds, totals, samples };
        let baseline = *first.get_or_insert(level.tokens() / seconds);
        report.row(&level.columns(baseline))?;
    }
    Ok(())
}

/// What happened at one number of concurrent requests.
struct Level {
    concurrency: usize,
    seconds: f64,
    totals: Totals,
    samples: Vec<Sample>,
}

impl Level {
    fn tokens(&self) -> f64 {
        self.samples.iter().map(|s| s.usage.completion_tokens).sum::<usize>() as f64
    }

    fn columns(&self, baseline: f64) -> Vec<(&'static str, Value)> {
        let Self { concurrency, seconds, totals, samples } = self;
        let tokens = self.tokens();
        let prompt: usize = samples.iter().map(|s| s.usage.prompt_tokens).sum();
        let forwards: usize = samples.iter().map(|s| s.usage.forwards).sum();
        let steps = totals.steps.max(1) as f64;
        let busy = (totals.model_ns + totals.scoring_ns + totals.scheduling_ns).max(1) as f64;
        let percent = |ns: u64| json!(100.0 * ns as f64 / busy);
        vec![
            ("concurrency", json!(concurrency)),
            ("requests", json!(samples.len())),
            ("tokens_per_s", json!(tokens / seconds)),
            ("ratio", json!(tokens / seconds / baseline)),
            ("total_per_s", json!((tokens + prompt as f64) / seconds)),
            ("forwards", json!(forwards)),
            ("tokens_per_forward", json!(tokens / forwards.max(1) as f64)),
            ("drafted", json!(totals.draft_tokens)),
            ("accepted", json!(totals.accepted_tokens)),
            ("steps", json!(totals.steps)),
            ("occupancy", json!(totals.sequences as f64 / steps)),
            ("rows_per_step", json!(totals.rows as f64 / steps)),
            ("step_ms", json!(busy / steps / 1e6)),
            ("model_%", percent(totals.model_ns)),
            ("scoring_%", percent(totals.scoring_ns)),
            ("scheduler_%", percent(totals.scheduling_ns)),
            ("idle_%", json!(100.0 * totals.idle_ns as f64 / (seconds * 1e9))),
        ]
    }
}
