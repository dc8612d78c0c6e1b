//! `dfastllm synth`

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use dfastllm_backends::DTypeChoice;
use dfastllm_models::{shape_config, shape_names, synth_tensors, write_synth};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::Failure;

/// Flags of a random checkpoint.
#[derive(Debug, Args)]
pub(crate) struct SynthArgs {
    /// Folder to write; must not hold a checkpoint yet
    folder: PathBuf,

    /// phi-350m, phi-2, llada-350m, llada-1b, llada-8b, dream-7b, or a config.json
    #[arg(long, env = "DFASTLLM_SHAPE", default_value = "phi-350m")]
    shape: String,

    /// f32, bf16, f16
    #[arg(long, env = "DFASTLLM_DTYPE", default_value_t = DTypeChoice::Bf16)]
    dtype: DTypeChoice,

    /// Seed of the weights
    #[arg(long, env = "DFASTLLM_SEED", default_value_t = 0)]
    seed: u64,
}

pub(crate) fn run(args: &SynthArgs) -> Result<(), Failure> {
    let Some(dtype) = args.dtype.dtype() else {
        return Err(Failure::usage("--dtype is auto, expected f32, bf16 or f16"));
    };
    let config = config(&args.shape)?;
    if args.folder.join("config.json").exists() {
        let folder = args.folder.display();
        return Err(Failure::failed(format!("{folder} holds a checkpoint already")));
    }
    let failed = |e: dfastllm_models::LoadError| Failure::failed(e.to_string());
    let tensors = synth_tensors(&config, dtype, args.seed).map_err(failed)?;
    let total: usize = tensors.iter().map(|t| t.bytes()).sum();
    let bar = bar(total as u64);
    write_synth(&args.folder, &config, tensors, &|bytes| bar.inc(bytes as u64)).map_err(failed)?;
    bar.finish_and_clear();
    let (folder, gb) = (args.folder.display(), total as f64 / 1e9);
    tracing::info!("{folder}: {gb:.2} GB of random weights");
    Ok(())
}

/// A shape's config: named, or a file of the user's.
fn config(shape: &str) -> Result<Value, Failure> {
    if let Some(config) = shape_config(shape) {
        return Ok(config);
    }
    let known = shape_names().join(", ");
    let text = std::fs::read_to_string(shape).map_err(|e| {
        Failure::usage(format!("--shape {shape}: {e}; expected {known} or a config.json"))
    })?;
    serde_json::from_str(&text).map_err(|e| Failure::usage(format!("--shape {shape}: {e}")))
}

/// A bar on a terminal, nothing elsewhere.
pub(super) fn bar(total: u64) -> ProgressBar {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    match ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
