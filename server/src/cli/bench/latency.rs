//! Times a reader notices.

use std::time::Instant;

use dfastllm_engine::GenerationRequest;
use serde_json::{Value, json};

use super::BenchArgs;
use super::drive::{Sample, Watched, drive, watch};
use super::report::{Report, quantile};
use super::workload::Workload;
use crate::ServedModel;
use crate::cli::Failure;

/// Tokens every stream has before the long prompt arrives.
const SETTLED_IN: usize = 24;
/// How often a comparison is repeated; the middle one counts.
const ROUNDS: usize = 5;
/// Tokens that differ after a shared prefix.
const SUFFIX: usize = 16;

/// Time to first token, between tokens, and in all, at every number of concurrent requests.
pub(super) fn run(
    args: &BenchArgs,
    served: &ServedModel,
    mut workload: Workload<'_>,
) -> Result<(), Failure> {
    drive(&served.engine, workload.take(1)?, 1)?;
    let mut report = Report::new(args.json);
    for &concurrency in &args.concurrency {
        let requests = workload.take(args.requests_at(concurrency))?;
        let samples = drive(&served.engine, requests, concurrency)?;
        let mut first: Vec<f64> = samples.iter().filter_map(Sample::first_token).collect();
        let mut gaps: Vec<f64> = samples.iter().flat_map(Sample::gaps).map(|g| g.1).collect();
        let mut columns = vec![("concurrency", json!(concurrency))];
        columns.push(("requests", json!(samples.len())));
        columns
            .extend(["ttft_p50_ms", "ttft_p90_ms", "ttft_p99_ms"].into_iter().zip(ms(&mut first)));
        columns.extend(["itl_p50_ms", "itl_p90_ms", "itl_p99_ms"].into_iter().zip(ms(&mut gaps)));
        report.row(&columns)?;
    }
    Ok(())
}

fn ms(seconds: &mut [f64]) -> [Value; 3] {
    [0.5, 0.9, 0.99].map(|share| json!(quantile(seconds, share) * 1e3))
}

/// Streams run, then a long prompt arrives: how long their readers wait between tokens while it is
/// being read, and otherwise.
pub(super) fn long_prompt(
    args: &BenchArgs,
    served: &ServedModel,
    mut workload: Workload<'_>,
    long: usize,
) -> Result<(), Failure> {
    let mut report = Report::new(args.json);
    for &streams in &args.concurrency {
        report.row(&disturbed(args, served, &mut workload, (streams, long))?)?;
    }
    Ok(())
}

/// The figures of a number of streams that a long prompt disturbs.
fn disturbed(
    args: &BenchArgs,
    served: &ServedModel,
    workload: &mut Workload<'_>,
    (streams, long): (usize, usize),
) -> Result<Vec<(&'static str, Value)>, Failure> {
    // The longest answers the context has room for, so that streams outlast the prompt.
    let room = served.limits.max_model_len;
    let input = (room / 8).clamp(1, 32);
    let (mut quiet, mut reading, mut first) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.requests.unwrap_or(1) {
        let mut running = Vec::new();
        for _ in 0..streams {
            let prompt = workload.tokens(input);
            let request = workload.request(prompt, room - input)?;
            running.push(Watched::submit(&served.engine, request)?);
        }
        let prompt = workload.tokens(long);
        let intruder = workload.request(prompt, 1)?;
        let (submitted, ended) = intrude(&mut running, served, intruder)?;
        first.push((ended - submitted).as_secs_f64());
        // The first waits are still those for the other streams' prompts.
        for (at, gap) in running.iter().flat_map(|w| w.sample.gaps().skip(2)) {
            let while_reading = submitted < at && at <= ended;
            if while_reading { &mut reading } else { &mut quiet }.push(gap);
        }
    }
    let (plain, p99) = (quantile(&mut quiet, 0.5), quantile(&mut reading, 0.99));
    Ok(vec![
        ("streams", json!(streams)),
        ("prompt_tokens", json!(long)),
        ("ttft_ms", json!(quantile(&mut first, 0.5) * 1e3)),
        ("quiet_gaps", json!(quiet.len())),
        ("quiet_p50_ms", json!(plain * 1e3)),
        ("quiet_p99_ms", json!(quantile(&mut quiet, 0.99) * 1e3)),
        ("reading_gaps", json!(reading.len())),
        ("reading_p50_ms", json!(quantile(&mut reading, 0.5) * 1e3)),
        ("reading_p99_ms", json!(p99 * 1e3)),
        ("p99_to_quiet_p50", json!(p99 / plain)),
    ])
}

/// Waits for the streams to run, submits the intruder, and watches until well after its first
/// token; returns when it was submitted and when that token came.
fn intrude(
    running: &mut [Watched],
    served: &ServedModel,
    intruder: GenerationRequest,
) -> Result<(Instant, Instant), Failure> {
    let settled = |running: &[Watched], tokens: usize| {
        running.iter().all(|w| w.is_done || w.sample.tokens_at.len() >= tokens)
    };
    while !settled(running, SETTLED_IN) {
        watch(running)?;
    }
    let mut intruder = Watched::submit(&served.engine, intruder)?;
    while !intruder.is_done {
        watch(running)?;
        intruder.look()?;
    }
    let seen = running.iter().map(|w| w.sample.tokens_at.len()).max().unwrap_or(0);
    while !settled(running, seen + SETTLED_IN) {
        watch(running)?;
    }
    if running.iter().any(|w| w.is_done) {
        let message = "a stream ended before the long prompt was read: the context is too short";
        return Err(Failure::failed(message));
    }
    let ended = intruder.sample.tokens_at.first().copied();
    Ok((intruder.sample.submitted, ended.unwrap_or(intruder.sample.submitted)))
}

/// Two prompts with the same beginning, one after the other: time to first token of both.
pub(super) fn shared_prefix(
    args: &BenchArgs,
    served: &ServedModel,
    mut workload: Workload<'_>,
    prefix: usize,
) -> Result<(), Failure> {
    drive(&served.engine, workload.take(1)?, 1)?;
    let (mut cold, mut warm, mut ratios, mut cached) = (vec![], vec![], vec![], 0);
    for _ in 0..args.requests.unwrap_or(ROUNDS) {
        let shared = workload.tokens(prefix);
        let mut times = [0.0; 2];
        for time in &mut times {
            let prompt = [shared.clone(), workload.tokens(SUFFIX)].concat();
            let sample = drive(&served.engine, vec![workload.request(prompt, 1)?], 1)?;
            *time = sample.first().and_then(Sample::first_token).unwrap_or(0.0);
            cached = sample.first().map_or(0, |s| s.usage.cached_tokens);
        }
        cold.push(times[0]);
        warm.push(times[1]);
        ratios.push(times[1] / times[0]);
    }
    Report::new(args.json).row(&[
        ("prefix_tokens", json!(prefix)),
        ("rounds", json!(cold.len())),
        ("first_ttft_ms", json!(quantile(&mut cold, 0.5) * 1e3)),
        ("second_ttft_ms", json!(quantile(&mut warm, 0.5) * 1e3)),
        ("ratio", json!(quantile(&mut ratios, 0.5))),
        ("cached_tokens", json!(cached)),
    ])
}
