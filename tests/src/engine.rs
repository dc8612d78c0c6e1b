//! Running requests on an engine and collecting what they answer.

use std::time::Duration;

use dfastllm_backends::Device;
use dfastllm_engine::decoding::DecodingConfig;
use dfastllm_engine::{
    Engine, EngineConfig, EngineError, EngineHandle, Event, FinishReason, GenerationRequest,
    ModelLimits, RequestParams, Running, SettledToken, TraceStep, Usage,
};
use dfastllm_models::{LanguageModel, LoadedModel};

use crate::fixtures::{cpu, device};

/// Sizes that let every record of a suite run at once.
pub const CONFIG: EngineConfig = EngineConfig {
    warm_up: false,
    max_num_seqs: 16,
    max_num_batched_tokens: 2048,
    max_queue: 256,
    kv_cache_tokens: 16 * 512,
};

/// A loaded model on a running engine.
pub struct Served {
    /// The engine.
    pub engine: Engine,
    /// Its handle.
    pub handle: EngineHandle,
    /// What requests are checked against.
    pub limits: ModelLimits,
}

/// Starts an engine for a loaded model.
#[must_use]
pub fn serve(loaded: LoadedModel, config: EngineConfig) -> Served {
    let limits = ModelLimits::new(&loaded, loaded.model.shape().max_positions);
    start(loaded.model, limits, (config, &device().device))
}

/// Starts an engine for a model whose tensors are the CPU's.
#[must_use]
pub fn serve_model(
    model: Box<dyn LanguageModel>,
    limits: ModelLimits,
    config: EngineConfig,
) -> Served {
    start(model, limits, (config, &cpu().device))
}

fn start(
    model: Box<dyn LanguageModel>,
    limits: ModelLimits,
    (config, device): (EngineConfig, &Device),
) -> Served {
    let dtype = dfastllm_models::DType::F32;
    let engine = Engine::start(model, dtype, device, config).unwrap();
    let handle = engine.handle();
    Served { engine, handle, limits }
}

/// A greedy request with a trace.
#[must_use]
pub fn greedy(
    prompt: &[u32],
    max_tokens: usize,
    decoding: Option<DecodingConfig>,
) -> RequestParams {
    RequestParams {
        decoding,
        timeout: Duration::from_secs(600),
        trace: true,
        ..RequestParams::new(prompt.to_vec(), max_tokens)
    }
}

/// What a request answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Tokens in order.
    pub tokens: Vec<SettledToken>,
    /// Why it ended.
    pub reason: FinishReason,
    /// What it took.
    pub usage: Usage,
    /// Commits.
    pub trace: Vec<TraceStep>,
}

impl Answer {
    /// Token ids.
    #[must_use]
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|t| t.id).collect()
    }
}

/// Waits for a running request.
///
/// # Errors
/// The engine's, if the request failed or the engine is gone.
pub fn answer(running: &Running) -> Result<Answer, EngineError> {
    let (mut all, mut steps) = (Vec::new(), Vec::new());
    loop {
        match running.events.recv().map_err(|_| EngineError::Stopped)? {
            Event::Settled { tokens, trace, .. } => {
                all.extend(tokens);
                steps.extend(trace);
            }
            Event::Finished { reason, usage, trace } => {
                steps.extend(trace);
                return Ok(Answer { tokens: all, reason, usage, trace: steps });
            }
            Event::Scored(_) => {}
            Event::Failed(error) => return Err(error),
        }
    }
}

impl Served {
    /// Submits a valid request.
    #[must_use]
    pub fn submit(&self, params: RequestParams) -> Running {
        let request = GenerationRequest::new(params, &self.limits).unwrap();
        self.handle.submit(request).unwrap()
    }

    /// Submits all requests at once and waits for their answers.
    #[must_use]
    pub fn answers(&self, params: impl IntoIterator<Item = RequestParams>) -> Vec<Answer> {
        let running: Vec<Running> = params.into_iter().map(|p| self.submit(p)).collect();
        running.iter().map(|r| answer(r).unwrap()).collect()
    }
}
