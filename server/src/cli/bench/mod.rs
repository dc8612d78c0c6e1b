//! `dfastllm bench`: what the engine does on this machine, without HTTP in between, and what HTTP
//! costs.

mod clients;
mod denoising;
mod drive;
mod latency;
mod report;
mod roofline;
mod serve;
mod throughput;
mod workload;

use std::time::Duration;

use clap::{Args, ValueEnum};
use dfastllm_backends::DeviceProvider;

use super::Failure;
use super::flags::{ModelArgs, Seats};
use crate::ServedModel;
use workload::{Lengths, Text, Workload};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// Tokens a second at several numbers of concurrent requests, and where the time goes
    Throughput,
    /// Times a reader notices: to the first token, between tokens
    Latency,
    /// Streams over HTTP beside the same requests without it, and how long /health takes meanwhile
    Serve,
    /// Rows and time of the first passes over a canvas of --output-len, under each preset
    Denoising,
    /// What passes over --input-len cached positions reach of the CPU's read and multiply rates
    Roofline,
}

/// Flags of a benchmark.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure
    #[arg(value_enum, default_value = "throughput")]
    measure: Measure,

    #[command(flatten)]
    model: ModelArgs,

    /// Requests decoded at the same time, at most
    #[arg(long, env = "DFASTLLM_MAX_NUM_SEQS", default_value_t = 64)]
    max_num_seqs: usize,

    /// Numbers of concurrent requests, a row each; denoising runs one
    #[arg(long, env = "DFASTLLM_CONCURRENCY", value_delimiter = ',', default_values_t = [1, 4, 16, 64])]
    concurrency: Vec<usize>,

    /// Requests a number of concurrent ones [default: twice that number, at least 4]
    #[arg(long, env = "DFASTLLM_REQUESTS")]
    requests: Option<usize>,

    /// Prompt tokens: a number, or FROM:TO for any in between, equally likely
    #[arg(long, env = "DFASTLLM_INPUT_LEN", default_value = "32:96")]
    input_len: Lengths,

    /// Generated tokens, in the same form
    #[arg(long, env = "DFASTLLM_OUTPUT_LEN", default_value = "64:192")]
    output_len: Lengths,

    /// Tokens of prompts: random, or a phrase over and over
    #[arg(long, env = "DFASTLLM_TEXT", value_enum, default_value_t = Text::Random)]
    text: Text,

    /// 0 is greedy
    #[arg(long, env = "DFASTLLM_TEMPERATURE", default_value_t = 0.0)]
    temperature: f64,

    /// Diffusion settings as the API takes them
    #[arg(long, env = "DFASTLLM_DIFFUSION", default_value = "{}")]
    diffusion: String,

    /// Denoising: passes timed under each preset [default: 8]; roofline: at each number of rows
    /// [default: 5]
    #[arg(long, env = "DFASTLLM_PASSES")]
    passes: Option<usize>,

    /// Latency: a prompt of this length arrives while streams run to the end of the context
    #[arg(
        long,
        env = "DFASTLLM_LONG_PROMPT",
        conflicts_with_all = ["shared_prefix", "input_len", "output_len"]
    )]
    long_prompt: Option<usize>,

    /// Latency: two prompts, one after the other, begin with this many same tokens
    #[arg(
        long,
        env = "DFASTLLM_SHARED_PREFIX",
        conflicts_with_all = ["concurrency", "input_len", "output_len"]
    )]
    shared_prefix: Option<usize>,

    /// One JSON object a line
    #[arg(long, env = "DFASTLLM_JSON")]
    json: bool,
}

pub(crate) fn run(args: &BenchArgs, providers: &[Box<dyn DeviceProvider>]) -> Result<(), Failure> {
    check(args)?;
    let options = args.model.options(Seats {
        names: vec![args.model.model.clone()],
        max_num_seqs: args.max_num_seqs,
        max_queue: args.concurrency.iter().copied().max().unwrap_or(1).max(args.max_num_seqs),
        request_timeout: Duration::from_secs(86_400),
        stall_timeout: Duration::from_secs(86_400),
        warm_up: true,
    })?;
    if args.measure == Measure::Roofline {
        return roofline::run(args, &options, providers);
    }
    let (served, engine) = ServedModel::start(&options, providers).map_err(Failure::failed)?;
    if args.measure == Measure::Serve {
        return serve::run(args, served, engine);
    }
    let workload = Workload::new(args, &served)?;
    let outcome = match (args.measure, args.long_prompt, args.shared_prefix) {
        (Measure::Throughput, ..) => throughput::run(args, &served, workload),
        (Measure::Denoising, ..) => denoising::run(args, &served, workload),
        (Measure::Latency, Some(long), _) => latency::long_prompt(args, &served, workload, long),
        (Measure::Latency, _, Some(n)) => latency::shared_prefix(args, &served, workload, n),
        (Measure::Latency | Measure::Roofline | Measure::Serve, ..) => {
            latency::run(args, &served, workload)
        }
    };
    drop(served);
    engine.shut_down();
    outcome
}

fn check(args: &BenchArgs) -> Result<(), Failure> {
    for &n in args.concurrency.iter().chain(&args.requests).chain(&args.passes) {
        if !(1..=1_000_000).contains(&n) {
            let message =
                format!("--concurrency, --requests and --passes: {n}, expected 1 to 1000000");
            return Err(Failure::usage(message));
        }
    }
    let is_denoising = args.measure == Measure::Denoising;
    if is_denoising && (args.requests.is_some() || args.diffusion != "{}") {
        let message = "bench denoising compares presets of its own, one request at a time: \
                       --requests and --diffusion do not go with it";
        return Err(Failure::usage(message));
    }
    if !is_denoising && args.measure != Measure::Roofline && args.passes.is_some() {
        return Err(Failure::usage("--passes is for bench denoising and bench roofline"));
    }
    if args.measure != Measure::Latency
        && (args.long_prompt.is_some() || args.shared_prefix.is_some())
    {
        let message = "--long-prompt and --shared-prefix are for latency";
        return Err(Failure::usage(message));
    }
    Ok(())
}

impl BenchArgs {
    fn requests_at(&self, concurrency: usize) -> usize {
        self.requests.unwrap_or((2 * concurrency).max(4))
    }
}
