//! Flags that commands share.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use dfastllm_backends::{
    DTypeChoice, DeviceSpec, KernelChoice, KernelOptions, Quantize, Switch, WeightChoice,
    configure_kernels, configure_threads, physical_cores,
};
use dfastllm_engine::MAX_DRAFT;
use dfastllm_engine::decoding::Preset;
use dfastllm_models::{BUILTIN_MODELS, ChatTemplate, ModelFiles, builtin_files};

use super::Failure;
use crate::ServeOptions;
use crate::hub::{self, ModelId, WithoutTerminal};

/// Which model, where, and how large.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// Folder, ORG/NAME[@REVISION] on the hub, or builtin:tiny-phi, builtin:tiny-llada,
    /// builtin:tiny-dream
    #[arg(long, short, env = "DFASTLLM_MODEL", default_value = "builtin:tiny-llada")]
    pub(crate) model: String,

    /// auto, cpu, ndarray, cuda[:n], vulkan[:n], metal, wgpu[:n]
    #[arg(long, env = "DFASTLLM_DEVICE", default_value = "auto")]
    pub(crate) device: DeviceSpec,

    /// auto (the checkpoint's), f32, bf16, f16
    #[arg(long, env = "DFASTLLM_DTYPE", default_value = "auto")]
    pub(crate) dtype: DTypeChoice,

    /// Projections as none (the dtype), int8 or int4, with a scale for every 32 weights
    #[arg(long, env = "DFASTLLM_QUANTIZE", default_value_t = Quantize::None)]
    pub(crate) quantize: Quantize,

    /// Longest sequence in tokens [default: the checkpoint's]
    #[arg(long, env = "DFASTLLM_MAX_MODEL_LEN")]
    pub(crate) max_model_len: Option<usize>,

    /// Token rows of one forward pass
    #[arg(long, env = "DFASTLLM_MAX_NUM_BATCHED_TOKENS", default_value_t = 2048)]
    pub(crate) max_num_batched_tokens: usize,

    /// Positions the key/value cache holds [default: from memory]
    #[arg(long, env = "DFASTLLM_KV_CACHE_TOKENS")]
    pub(crate) kv_cache_tokens: Option<usize>,

    /// Longest draft an autoregressive request verifies in one pass; 0 turns drafts off
    #[arg(long, env = "DFASTLLM_SPECULATIVE_TOKENS", default_value_t = 8)]
    pub(crate) speculative_tokens: usize,

    /// CPU threads [default: physical cores]
    #[arg(long, env = "DFASTLLM_THREADS")]
    pub(crate) threads: Option<usize>,

    /// Kernels of a GPU where several fit: tuned (the fastest measured, in a build with autotune) or
    /// pinned (always the same)
    #[arg(long, env = "DFASTLLM_KERNELS", default_value_t = KernelChoice::Tuned)]
    pub(crate) kernels: KernelChoice,

    /// File that keeps a GPU's compiled kernels and measurements for the next start; needs a build
    /// with autotune
    #[arg(long, env = "DFASTLLM_KERNEL_CACHE")]
    pub(crate) kernel_cache: Option<PathBuf>,

    /// Whether steps of few rows are recorded once and replayed as one launch: auto (on CUDA,
    /// where a server or benchmark warms up), on (on every GPU), off
    #[arg(long, env = "DFASTLLM_GRAPHS", default_value_t = Switch::Auto)]
    pub(crate) graphs: Switch,

    /// Whether attention of prompts and whole canvases in 16 bits is computed as products of f16 matrices:
    /// auto (where a GPU has tensor cores), on (on every GPU that can), off
    #[arg(long, env = "DFASTLLM_FLASH", default_value_t = Switch::Auto)]
    pub(crate) flash: Switch,

    /// A small autoregressive model with the same tokenizer, to verify what a diffusion model
    /// drafts (quota adaptive)
    #[arg(long, env = "DFASTLLM_DRAFT_MODEL")]
    pub(crate) draft_model: Option<String>,

    /// Run the exact pass beside every pass that reuses keys and values, and report how they differ
    #[arg(long, env = "DFASTLLM_AUDIT")]
    pub(crate) audit: bool,

    /// Decoding of diffusion models: reference, exact, fast, turbo
    #[arg(long, env = "DFASTLLM_PRESET", default_value_t = Preset::Fast)]
    pub(crate) preset: Preset,

    /// Seed of requests that bring none [default: from entropy]
    #[arg(long, env = "DFASTLLM_SEED")]
    pub(crate) seed: Option<u64>,

    /// A Jinja file instead of the checkpoint's chat template
    #[arg(long, env = "DFASTLLM_CHAT_TEMPLATE")]
    pub(crate) chat_template: Option<PathBuf>,

    /// TOML file whose keys are flags
    #[arg(long, env = "DFASTLLM_CONFIG")]
    // Read before the flags are parsed (`config_file.rs`); it stands here for `--help`.
    pub(crate) config: Option<PathBuf>,
}

/// Nobody but the user ends a command.
pub(crate) const LONG: Duration = Duration::from_secs(86_400);

/// Sizes that only the server chooses.
#[derive(Debug, Clone)]
pub(crate) struct Seats {
    pub(crate) names: Vec<String>,
    pub(crate) max_num_seqs: usize,
    pub(crate) max_queue: usize,
    pub(crate) request_timeout: Duration,
    pub(crate) stall_timeout: Duration,
    /// Whether kernels are to be warm before the first request.
    pub(crate) warm_up: bool,
}

impl Seats {
    /// For one who asks one thing at a time.
    pub(crate) fn single(model: &str) -> Self {
        Self {
            names: vec![model.to_owned()],
            max_num_seqs: 1,
            max_queue: 1,
            request_timeout: LONG,
            stall_timeout: LONG,
            warm_up: false,
        }
    }
}

impl ModelArgs {
    /// Hands on what is chosen about a GPU's kernels.
    fn configure_kernels(&self) {
        configure_kernels(KernelOptions {
            choice: self.kernels,
            cache: self.kernel_cache.clone(),
            graphs: self.graphs,
            flash: self.flash,
        });
    }

    /// Checks the flags and starts the CPU threads.
    pub(crate) fn options(&self, seats: Seats) -> Result<ServeOptions, Failure> {
        for (flag, value) in [
            ("--max-num-seqs", seats.max_num_seqs),
            ("--max-queue", seats.max_queue),
            ("--max-num-batched-tokens", self.max_num_batched_tokens),
        ] {
            if !(1..=1_000_000).contains(&value) {
                return Err(Failure::usage(format!("{flag} is {value}, expected 1 to 1000000")));
            }
        }
        if self.speculative_tokens > MAX_DRAFT {
            let found = self.speculative_tokens;
            let message = format!("--speculative-tokens is {found}, expected 0 to {MAX_DRAFT}");
            return Err(Failure::usage(message));
        }
        let threads = self.threads.unwrap_or_else(physical_cores);
        if !(1..=1024).contains(&threads) {
            return Err(Failure::usage(format!("--threads is {threads}, expected 1 to 1024")));
        }
        configure_threads(threads).map_err(|e| Failure::failed(e.to_string()))?;
        self.configure_kernels();
        Ok(ServeOptions {
            files: model_files(&self.model)?,
            names: seats.names,
            device: self.device,
            weights: WeightChoice { dtype: self.dtype, quantize: self.quantize },
            max_model_len: self.max_model_len,
            max_num_seqs: seats.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            kv_cache_tokens: self.kv_cache_tokens,
            max_queue: seats.max_queue,
            request_timeout: seats.request_timeout,
            stall_timeout: seats.stall_timeout,
            // Recording is part of it.
            warm_up: seats.warm_up || self.graphs == Switch::On,
            speculative_tokens: self.speculative_tokens,
            draft_model: self.draft_model.as_deref().map(model_files).transpose()?,
            audit: self.audit,
            preset: self.preset,
            seed: self.seed,
        })
    }

    /// The template of `--chat-template`.
    pub(crate) fn template(&self, files: &ModelFiles) -> Result<Option<ChatTemplate>, Failure> {
        let Some(path) = &self.chat_template else { return Ok(None) };
        let text = std::fs::read_to_string(path)
            .map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
        ChatTemplate::for_checkpoint(files, &text)
            .map(Some)
            .map_err(|e| Failure::failed(format!("{}: {e}", path.display())))
    }
}

pub(super) fn model_files(model: &str) -> Result<ModelFiles, Failure> {
    if let Some(name) = model.strip_prefix("builtin:") {
        return builtin_files(name).ok_or_else(|| {
            let known: Vec<String> =
                BUILTIN_MODELS.iter().map(|n| format!("builtin:{n}")).collect();
            Failure::usage(format!("--model {model}: expected one of {}", known.join(", ")))
        });
    }
    let path = PathBuf::from(model);
    if path.is_dir() {
        return Ok(ModelFiles::Folder(path));
    }
    let Some(id) = ModelId::parse(model) else {
        return Err(Failure::failed(format!(
            "--model {model}: no such folder; give a folder with config.json, ORG/NAME of a model \
             on the hub, or a builtin: model"
        )));
    };
    let settings = hub::Settings::from_env().map_err(Failure::failed)?;
    let snapshot = hub::fetch(&id, &settings, WithoutTerminal::Log)
        .map_err(|e| Failure::failed(e.to_string()))?;
    Ok(ModelFiles::Folder(snapshot.folder))
}
