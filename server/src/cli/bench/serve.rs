//! What HTTP costs: the same load on the engine alone and, as streams, on the server at a port of
//! this machine, in turns. Clients take their part of the processor, too.

use std::net::SocketAddr;
use std::time::Instant;

use axum::serve::ListenerExt;
use dfastllm_engine::{Engine, RequestParams};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::BenchArgs;
use super::clients::{Prober, Streamed, client_runtime, stream_all};
use super::drive::drive;
use super::report::{Report, quantile};
use super::workload::Workload;
use crate::cli::Failure;
use crate::{AppState, ServedModel, app};

/// How often each side has its turn.
const ROUNDS: usize = 3;
/// As `dfastllm serve` has them.
const SERVER_THREADS: usize = 2;

pub(super) fn run(args: &BenchArgs, served: ServedModel, engine: Engine) -> Result<(), Failure> {
    let state = AppState::new(served.name(), Vec::new());
    state.set_model(served);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(SERVER_THREADS)
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start the async runtime: {e}")))?;
    let address = runtime.block_on(listen(state.clone()))?;
    let outcome = match state.model() {
        Some(served) => compare(args, served, address),
        None => Ok(()),
    };
    runtime.shutdown_background();
    drop(state);
    engine.shut_down();
    outcome
}

/// A server that runs as long as its runtime.
async fn listen(state: AppState) -> Result<SocketAddr, Failure> {
    let failed = |e: std::io::Error| Failure::failed(format!("cannot listen on 127.0.0.1: {e}"));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    tokio::spawn(async move { drop(axum::serve(listener, app(state)).await) });
    Ok(address)
}

fn compare(args: &BenchArgs, served: &ServedModel, address: SocketAddr) -> Result<(), Failure> {
    let mut workload = Workload::new(args, served)?;
    let clients = client_runtime()?;
    drive(&served.engine, workload.take(1)?, 1)?;
    let warm = workload.next_params()?;
    clients.block_on(stream_all(address, vec![body(args, served, &warm)?], 1))?;
    let mut report = Report::new(args.json);
    for &concurrency in &args.concurrency {
        let mut level = Level::default();
        for _ in 0..ROUNDS {
            let asked = (0..args.requests_at(concurrency)).map(|_| workload.next_params());
            let asked = asked.collect::<Result<Vec<_>, _>>()?;
            let bodies = asked
                .iter()
                // Other tokens: a prompt that was read before costs less.
                .map(|p| {
                    let prompt = workload.tokens(p.prompt.len());
                    body(args, served, &RequestParams { prompt, ..p.clone() })
                })
                .collect::<Result<Vec<_>, _>>()?;
            let requests =
                asked.into_iter().map(|p| workload.checked(p)).collect::<Result<Vec<_>, _>>()?;
            let begun = Instant::now();
            let samples = drive(&served.engine, requests, concurrency)?;
            level.engine.0 += samples.iter().map(|s| s.usage.completion_tokens as u64).sum::<u64>();
            level.engine.1 += begun.elapsed().as_secs_f64();
            let prober = Prober::start(address)?;
            let begun = Instant::now();
            let streams = clients.block_on(stream_all(address, bodies, concurrency))?;
            let seconds = begun.elapsed().as_secs_f64();
            level.health.extend(prober.finish()?);
            level.served(&streams, seconds);
        }
        report.row(&level.columns(concurrency))?;
    }
    Ok(())
}

/// A completion as a client asks for it.
fn body(args: &BenchArgs, served: &ServedModel, params: &RequestParams) -> Result<String, Failure> {
    let diffusion: Value = serde_json::from_str(&args.diffusion)
        .map_err(|e| Failure::usage(format!("--diffusion: {e}")))?;
    let mut body = json!({
        "model": served.name(),
        "prompt": params.prompt,
        "max_tokens": params.max_tokens,
        "temperature": params.sampling.temperature,
        "seed": params.seed.cast_signed(),
        "ignore_eos": params.ignore_eos,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    if served.limits.reference.is_some() {
        body["diffusion"] = diffusion;
    }
    Ok(body.to_string())
}

/// What happened at one number of concurrent requests.
#[derive(Debug, Default)]
struct Level {
    requests: usize,
    /// Tokens and seconds.
    engine: (u64, f64),
    http: (u64, f64),
    first: Vec<f64>,
    health: Vec<f64>,
}

impl Level {
    fn served(&mut self, streams: &[Streamed], seconds: f64) {
        self.requests += streams.len();
        self.http.0 += streams.iter().map(|s| s.tokens).sum::<u64>();
        self.http.1 += seconds;
        self.first.extend(streams.iter().map(|s| s.first));
    }

    fn columns(&mut self, concurrency: usize) -> Vec<(&'static str, Value)> {
        let rate = |(tokens, seconds): (u64, f64)| tokens as f64 / seconds.max(f64::MIN_POSITIVE);
        let (engine, http) = (rate(self.engine), rate(self.http));
        let probes = self.health.len();
        let mut ms = |share| json!(quantile(&mut self.health, share) * 1e3);
        vec![
            ("concurrency", json!(concurrency)),
            ("requests", json!(self.requests)),
            ("engine_tokens_per_s", json!(engine)),
            ("http_tokens_per_s", json!(http)),
            ("ratio", json!(http / engine)),
            ("ttft_p50_ms", json!(quantile(&mut self.first, 0.5) * 1e3)),
            ("health_probes", json!(probes)),
            ("health_p50_ms", ms(0.5)),
            ("health_p99_ms", ms(0.99)),
        ]
    }
}
