//! `dfastllm quantize`

use std::path::PathBuf;

use clap::Args;
use dfastllm_backends::{DTypeChoice, Quantize, WeightChoice, configure_threads, physical_cores};
use dfastllm_models::write_packed;

use super::Failure;
use super::flags::model_files;
use super::synth::bar;

/// Flags of a packed checkpoint.
#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// Folder to write; must not hold a checkpoint yet
    folder: PathBuf,

    /// Folder, ORG/NAME[@REVISION] on the hub, or builtin:tiny-phi, builtin:tiny-llada,
    /// builtin:tiny-dream
    #[arg(long, short, env = "DFASTLLM_MODEL")]
    model: String,

    /// Projections as int8, int4, or none: the dtype, only packed
    #[arg(long, env = "DFASTLLM_QUANTIZE", default_value_t = Quantize::Int8)]
    quantize: Quantize,

    /// auto (the checkpoint's), f32, bf16, f16
    #[arg(long, env = "DFASTLLM_DTYPE", default_value = "auto")]
    dtype: DTypeChoice,
}

pub(crate) fn run(args: &QuantizeArgs) -> Result<(), Failure> {
    let files = model_files(&args.model)?;
    let folder = args.folder.display();
    if args.folder.join("config.json").exists() {
        return Err(Failure::failed(format!("{folder} holds a checkpoint already")));
    }
    configure_threads(physical_cores()).map_err(|e| Failure::failed(e.to_string()))?;
    let choice = WeightChoice { dtype: args.dtype, quantize: args.quantize };
    let bar = bar(0);
    let written = std::cell::Cell::new(0);
    write_packed(&files, choice, &args.folder, &|done, total| {
        bar.set_length(total);
        bar.set_position(done);
        written.set(total);
    })
    .map_err(|e| Failure::failed(e.to_string()))?;
    bar.finish_and_clear();
    tracing::info!("{folder}: {:.2} GB of packed weights", written.get() as f64 / 1e9);
    Ok(())
}
