//! What a denoising pass costs under each preset, at equal tokens a pass.

use std::time::Instant;

use dfastllm_engine::{Event, GenerationRequest, RequestParams};
use serde_json::{Map, Value, json};

use super::BenchArgs;
use super::report::{Report, quantile};
use super::workload::Workload;
use crate::ServedModel;
use crate::cli::Failure;

/// What is compared: every row commits one token a pass but the last, which commits four.
const SETTINGS: [(&str, &str); 5] = [
    ("reference", r#"{"preset": "reference", "quota": "one"}"#),
    ("exact", r#"{"preset": "exact", "quota": "one"}"#),
    ("prefix", r#"{"preset": "fast", "quota": "one", "cache": "prefix"}"#),
    ("fast", r#"{"preset": "fast", "quota": "one"}"#),
    ("fast_4", r#"{"preset": "fast", "quota": "schedule", "steps": 0}"#),
];

const PASSES: usize = 8;

/// A row a setting: the first passes of one request, timed one by one.
pub(super) fn run(
    args: &BenchArgs,
    served: &ServedModel,
    mut workload: Workload<'_>,
) -> Result<(), Failure> {
    if served.limits.mask_id.is_none() {
        return Err(Failure::usage("bench denoising: this model is autoregressive"));
    }
    let mut report = Report::new(args.json);
    let mut baseline = None;
    let canvas = args.output_len.longest();
    for (name, setting) in SETTINGS {
        let mut fields: Map<String, Value> =
            serde_json::from_str(setting).map_err(|e| Failure::failed(e.to_string()))?;
        if let Some(steps) = fields.get_mut("steps") {
            *steps = (canvas / 4).max(1).into();
        }
        workload.set_diffusion(fields)?;
        // What the first pass of a process costs more is nobody's step.
        passes(served, workload.sized()?, 1)?;
        let before = served.engine.stats().snapshot().totals;
        let mut ms = passes(served, workload.sized()?, args.passes.unwrap_or(PASSES))?;
        let totals = served.engine.stats().snapshot().totals - before;
        let steps = totals.steps.max(1) as f64;
        let mean = ms.iter().sum::<f64>() / ms.len().max(1) as f64;
        let reference = *baseline.get_or_insert(mean);
        report.row(&[
            ("setting", json!(name)),
            ("passes", json!(ms.len())),
            ("rows_per_step", json!(totals.rows as f64 / steps)),
            ("head_rows_per_step", json!(totals.head_rows as f64 / steps)),
            ("mean_ms", json!(mean)),
            ("median_ms", json!(quantile(&mut ms, 0.5))),
            ("max_ms", json!(ms.last().copied().unwrap_or(0.0))),
            ("speedup", json!(reference / mean)),
        ])?;
    }
    Ok(())
}

/// Milliseconds of each of the first passes of a request, which is then dropped; unsorted.
fn passes(served: &ServedModel, params: RequestParams, count: usize) -> Result<Vec<f64>, Failure> {
    let params = RequestParams { progress: true, ..params };
    let request = GenerationRequest::new(params, &served.limits)
        .map_err(|e| Failure::usage(e.to_string()))?;
    let mut last = Instant::now();
    let running = served.engine.submit(request).map_err(|e| Failure::failed(e.to_string()))?;
    let mut times = Vec::new();
    while times.len() < count {
        match running.events.recv() {
            // Every pass commits something, and so is told of.
            Ok(Event::Settled { .. }) => {
                times.push(last.elapsed().as_secs_f64() * 1e3);
                last = Instant::now();
            }
            Ok(Event::Failed(error)) => return Err(Failure::failed(error.to_string())),
            Ok(Event::Scored(_)) => {}
            Ok(Event::Finished { .. }) | Err(_) => break,
        }
    }
    running.cancel.request();
    // The pass that is under way ends before the next request's.
    while running.events.recv().is_ok() {}
    Ok(times)
}
