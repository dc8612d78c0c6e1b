//! A loaded model behind an engine, with what requests need around it.

use std::time::Duration;

use dfastllm_backends::{
    DType, DeviceProvider, DeviceSpec, KernelChoice, KernelOptions, OpenDevice, Precision,
    Quantize, Switch, WeightChoice, kernel_options, open_device,
};
use dfastllm_engine::decoding::Preset;
use dfastllm_engine::{Engine, EngineConfig, EngineHandle, ModelLimits, Verifier};
use dfastllm_models::{
    ChatTemplate, GenerationDefaults, LoadedModel, ModelFiles, StructureCompiler, StructureError,
    Tokenizer, load,
};

/// Taken for the memory of devices that do not tell theirs.
const UNKNOWN_MEMORY_BYTES: u64 = 8 << 30;

/// How a model is loaded and served.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The checkpoint.
    pub files: ModelFiles,
    /// Names clients may use; the first is the name in answers.
    pub names: Vec<String>,
    /// Where it runs.
    pub device: DeviceSpec,
    /// Float type and quantisation of the weights.
    pub weights: WeightChoice,
    /// Longest sequence; the checkpoint's own if not given.
    pub max_model_len: Option<usize>,
    /// Requests decoded at the same time.
    pub max_num_seqs: usize,
    /// Token rows of one pass.
    pub max_num_batched_tokens: usize,
    /// Positions of the key/value pool; from memory if not given.
    pub kv_cache_tokens: Option<usize>,
    /// Requests that may wait.
    pub max_queue: usize,
    /// Time from arrival after which a request fails.
    pub request_timeout: Duration,
    /// Silence of the engine's thread after which it counts as stalled.
    pub stall_timeout: Duration,
    /// Compile and tune the kernels of a GPU, and record its decode steps, before the first request.
    pub warm_up: bool,
    /// Longest draft of a causal request.
    pub speculative_tokens: usize,
    /// A causal checkpoint with the same tokenizer that verifies drafts of a model that denoises.
    pub draft_model: Option<ModelFiles>,
    /// Whether the exact pass runs beside every pass that reuses keys and values.
    pub audit: bool,
    /// Decoding of requests to a model that denoises, unless they say otherwise.
    pub preset: Preset,
    /// Seed of requests that bring none; from entropy if not given.
    pub seed: Option<u64>,
}

/// What requests need to know about the model in service.
#[derive(Debug)]
pub struct ServedModel {
    /// Names clients may use; the first is the name in answers.
    pub names: Vec<String>,
    /// `model_type` of the checkpoint.
    pub family: &'static str,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template.
    pub chat: Option<ChatTemplate>,
    /// What compiles structures of answers, or why nothing does.
    pub structures: Result<StructureCompiler, StructureError>,
    /// What requests are checked against.
    pub limits: ModelLimits,
    /// Sampling defaults of the checkpoint.
    pub generation: GenerationDefaults,
    /// The device it runs on.
    pub device: OpenDevice,
    /// Float type of the weights, for people.
    pub dtype: String,
    /// Where requests go.
    pub engine: EngineHandle,
    /// Decoding unless a request says otherwise.
    pub preset: Preset,
    /// Time a request has.
    pub request_timeout: Duration,
    /// Silence of the engine's thread after which it counts as stalled.
    pub stall_timeout: Duration,
    /// Longest draft of a causal request.
    pub speculative_tokens: usize,
    /// Whether the exact pass runs beside every pass that reuses keys and values.
    pub audit: bool,
    /// Seed of requests that bring none.
    pub seed: Option<u64>,
}

impl ServedModel {
    /// Opens the device, loads the checkpoint and starts an engine. Takes as long as that takes.
    ///
    /// # Errors
    /// One line naming what could not be opened or read.
    pub fn start(
        options: &ServeOptions,
        providers: &[Box<dyn DeviceProvider>],
    ) -> Result<(Self, Engine), String> {
        let device = open_device(options.device, providers).map_err(|e| e.to_string())?;
        let loaded = load(&options.files, &device, options.weights).map_err(|e| e.to_string())?;
        refuse_kernel_options(kernel_options(), &device.spec, loaded.precision.activations)?;
        let own = loaded.model.shape().max_positions;
        let max_model_len = options.max_model_len.unwrap_or(own);
        if max_model_len == 0 || max_model_len > own {
            return Err(format!(
                "--max-model-len is {max_model_len}, the checkpoint supports 1 to {own}"
            ));
        }
        let config = EngineConfig {
            warm_up: options.warm_up,
            max_num_seqs: options.max_num_seqs,
            max_num_batched_tokens: options.max_num_batched_tokens,
            max_queue: options.max_queue,
            kv_cache_tokens: kv_cache_tokens(options, &loaded, &device, max_model_len)?,
        };
        let verifier = verifier(options, &loaded, &device, max_model_len)?;
        let limits = ModelLimits::new(&loaded, max_model_len);
        let limits = ModelLimits { has_verifier: verifier.is_some(), ..limits };
        let structures = StructureCompiler::new(&loaded.tokenizer, limits.vocab, &limits.end_ids);
        let kv_dtype = loaded.precision.kv;
        let engine = Engine::start_with(loaded.model, kv_dtype, verifier, &device.device, config)
            .map_err(|e| format!("{}: {e}", device.spec))?;
        let served = Self {
            names: options.names.clone(),
            family: loaded.family,
            tokenizer: loaded.tokenizer,
            chat: loaded.chat,
            structures,
            limits,
            generation: loaded.generation,
            dtype: weight_types(&loaded.precision),
            engine: engine.handle(),
            device,
            preset: options.preset,
            request_timeout: options.request_timeout,
            stall_timeout: options.stall_timeout,
            speculative_tokens: options.speculative_tokens,
            audit: options.audit,
            seed: options.seed,
        };
        Ok((served, engine))
    }

    /// The name in answers.
    #[must_use]
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// A template given by the user instead of the checkpoint's.
    #[must_use]
    pub fn with_chat_template(self, chat: Option<ChatTemplate>) -> Self {
        let chat = chat.or(self.chat);
        Self { chat, ..self }
    }
}

/// The model of `--draft-model`: causal, and of the same tokens.
fn verifier(
    options: &ServeOptions,
    main: &LoadedModel,
    device: &OpenDevice,
    max_model_len: usize,
) -> Result<Option<Verifier>, String> {
    let Some(files) = &options.draft_model else { return Ok(None) };
    if main.special.mask_id.is_none() {
        return Err(
            "--draft-model verifies drafts of a diffusion model; this one is not".to_owned()
        );
    }
    let draft = load(files, device, options.weights).map_err(|e| format!("--draft-model: {e}"))?;
    if draft.special.mask_id.is_some() {
        return Err("--draft-model: expected an autoregressive model".to_owned());
    }
    let (vocab, positions) = (draft.model.shape().vocab, draft.model.shape().max_positions);
    if !draft.tokenizer.is_same(&main.tokenizer) || vocab != main.model.shape().vocab {
        return Err("--draft-model: its tokenizer is not that of --model".to_owned());
    }
    if positions < max_model_len {
        return Err(format!(
            "--draft-model supports {positions} positions, fewer than {max_model_len}: \
             set --max-model-len"
        ));
    }
    Ok(Some(Verifier { model: draft.model, kv_dtype: draft.precision.kv }))
}

/// `bf16`, or `int8+bf16` where projections are quantised and the embedding is not.
fn weight_types(precision: &Precision) -> String {
    let dtype = format!("{:?}", precision.weights).to_lowercase();
    match precision.quantize {
        Quantize::None => dtype,
        quantize => format!("{quantize}+{dtype}"),
    }
}

/// Positions of the pool: what was asked for, else every seat at full length, within a quarter of
/// the free memory.
fn kv_cache_tokens(
    options: &ServeOptions,
    loaded: &LoadedModel,
    device: &OpenDevice,
    max_model_len: usize,
) -> Result<usize, String> {
    let bytes_each = loaded.model.shape().kv_shape(1, 1).bytes(loaded.precision.kv).max(1);
    let info = &device.info;
    let memory = info.free_memory_bytes.or(info.total_memory_bytes).unwrap_or(UNKNOWN_MEMORY_BYTES);
    // Kernels of a GPU count the numbers of a layer in 32 bits.
    let countable = match device.spec.compiles_kernels() {
        true => u32::MAX as usize / loaded.model.shape().kv_width.max(1),
        false => usize::MAX,
    };
    let room =
        |bytes: u64| usize::try_from(bytes / bytes_each).unwrap_or(usize::MAX).min(countable);
    let wanted = options.max_num_seqs.saturating_mul(max_model_len);
    let tokens = options.kv_cache_tokens.unwrap_or_else(|| wanted.min(room(memory / 4)));
    if tokens < max_model_len || tokens > room(memory) {
        return Err(format!(
            "the key/value cache would hold {tokens} tokens, expected {max_model_len} (one whole \
             sequence) to {} (the memory): set --max-model-len or --kv-cache-tokens",
            room(memory)
        ));
    }
    Ok(tokens)
}

/// Refuses what was asked of a GPU's kernels where it would do nothing.
fn refuse_kernel_options(
    options: &KernelOptions,
    spec: &DeviceSpec,
    activations: DType,
) -> Result<(), String> {
    let KernelOptions { choice, cache, graphs, flash } = options;
    if !spec.compiles_kernels() {
        let flags = [
            ("--kernel-cache", cache.is_some()),
            ("--graphs", *graphs == Switch::On),
            ("--flash", *flash == Switch::On),
            ("--kernels", *choice == KernelChoice::Pinned),
        ];
        if let Some((flag, _)) = flags.into_iter().find(|(_, is_given)| *is_given) {
            return Err(format!("{flag} is for GPUs: {} compiles no kernels", spec));
        }
    }
    if *flash == Switch::On && !matches!(activations, DType::F16 | DType::BF16) {
        let found = format!("{activations:?}").to_lowercase();
        return Err(format!("--flash on needs --dtype f16 or bf16; found {found}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flash_attention_is_refused_where_it_would_do_nothing() {
        let options = KernelOptions { flash: Switch::On, ..KernelOptions::default() };
        let refused = |options, spec: &str, activations| {
            refuse_kernel_options(options, &spec.parse().unwrap(), activations).err()
        };
        let of_dtype = "--flash on needs --dtype f16 or bf16; found f32";
        assert_eq!(refused(&options, "vulkan:0", DType::F32).as_deref(), Some(of_dtype));
        let of_device = "--flash is for GPUs: cpu compiles no kernels";
        assert_eq!(refused(&options, "cpu", DType::BF16).as_deref(), Some(of_device));
        for dtype in [DType::F16, DType::BF16] {
            assert_eq!(refused(&options, "cuda:0", dtype), None);
        }
        assert_eq!(refused(&KernelOptions::default(), "vulkan:0", DType::F32), None);
    }
}
