//! Requests: can only be built valid. Every number is bounded here, before anything is allocated.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dfastllm_models::ops::Filters;
use dfastllm_models::{LoadedModel, ReferenceLoop};

use crate::RequestError;
use crate::decoding::{DecodingConfig, Seeded, Uniforms};

const MAX_LOGIT_BIAS: usize = 1024;
const MAX_STOP_IDS: usize = 128;
const MAX_TOP_LOGPROBS: usize = 20;
/// Longest draft that can be asked for.
pub const MAX_DRAFT: usize = 64;
/// Below it a temperature means greedy: dividing by it would overflow.
const MIN_TEMPERATURE: f64 = 1e-5;

/// What requests are checked against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelLimits {
    /// Rows of the embedding.
    pub vocab: usize,
    /// Longest sequence, prompt and answer together.
    pub max_model_len: usize,
    /// Ids that end a sequence.
    pub end_ids: Vec<u32>,
    /// Id of an open position; `None` for autoregressive models.
    pub mask_id: Option<u32>,
    /// The published loop of a model that denoises.
    pub reference: Option<ReferenceLoop>,
}

impl ModelLimits {
    /// Limits of a loaded model, whose sequences are at most `max_model_len` long.
    #[must_use]
    pub fn new(loaded: &LoadedModel, max_model_len: usize) -> Self {
        Self {
            vocab: loaded.model.shape().vocab,
            max_model_len,
            end_ids: loaded.special.end_ids.clone(),
            mask_id: loaded.special.mask_id,
            reference: loaded.reference,
        }
    }
}

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f64,
    /// Keep this many tokens.
    pub top_k: Option<usize>,
    /// Keep tokens up to this probability.
    pub top_p: Option<f64>,
    /// Keep tokens at least this probable relative to the best.
    pub min_p: Option<f64>,
    /// Added to single logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// How many most probable tokens to report with each token.
    pub top_logprobs: usize,
}

/// A request as asked for, unchecked.
#[derive(Debug, Clone)]
pub struct RequestParams {
    /// Token ids.
    pub prompt: Vec<u32>,
    /// Most tokens to generate; the length of the canvas of a model that denoises.
    pub max_tokens: usize,
    /// No end before this many tokens.
    pub min_tokens: usize,
    /// Treat end tokens as any other.
    pub ignore_eos: bool,
    /// More ids that end the sequence.
    pub stop_token_ids: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Knobs of a model that denoises; `None` for autoregressive models.
    pub decoding: Option<DecodingConfig>,
    /// Key of all random numbers.
    pub seed: u64,
    /// Lower is sooner.
    pub priority: i64,
    /// When the request arrived.
    pub arrival: Instant,
    /// Time from arrival after which the request fails.
    pub timeout: Duration,
    /// Longest draft a causal request verifies in one pass; 0 for none. Changes no token.
    pub max_draft: usize,
    /// Whether to report commits step by step.
    pub trace: bool,
}

impl RequestParams {
    /// A greedy request that ends at the model's end tokens and has five minutes from now.
    #[must_use]
    pub fn new(prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt,
            max_tokens,
            min_tokens: 0,
            ignore_eos: false,
            stop_token_ids: Vec::new(),
            sampling: Sampling::default(),
            decoding: None,
            seed: 0,
            priority: 0,
            arrival: Instant::now(),
            timeout: Duration::from_secs(300),
            max_draft: 0,
            trace: false,
        }
    }
}

/// A valid request.
#[derive(Debug)]
pub struct GenerationRequest {
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_tokens: usize,
    pub(crate) min_tokens: usize,
    pub(crate) end_ids: Arc<[u32]>,
    pub(crate) bias: Arc<[(u32, f32)]>,
    pub(crate) filters: Filters,
    pub(crate) top_logprobs: usize,
    pub(crate) seed: u64,
    pub(crate) uniforms: Box<dyn Uniforms>,
    pub(crate) decoding: Option<(DecodingConfig, u32)>,
    pub(crate) priority: i64,
    pub(crate) arrival: Instant,
    pub(crate) timeout: Duration,
    pub(crate) max_draft: usize,
    pub(crate) trace: bool,
}

impl GenerationRequest {
    /// Checks a request against a model.
    ///
    /// # Errors
    /// [`RequestError`] naming the parameter, what was found and what is expected.
    pub fn new(params: RequestParams, limits: &ModelLimits) -> Result<Self, RequestError> {
        check_lengths(&params, limits)?;
        check_sampling(&params.sampling, limits)?;
        let ids = params.stop_token_ids.len();
        if ids > MAX_STOP_IDS {
            let message = format!("stop_token_ids has {ids} entries, at most {MAX_STOP_IDS}");
            return Err(RequestError::new("stop_token_ids", message));
        }
        check_ids("prompt", &params.prompt, limits.vocab)?;
        check_ids("stop_token_ids", &params.stop_token_ids, limits.vocab)?;
        let decoding = match (params.decoding, limits.mask_id) {
            (Some(config), Some(mask_id)) => {
                config.validate()?;
                Some((config, mask_id))
            }
            (None, None) => None,
            (Some(_), None) => {
                let message =
                    "diffusion is for masked-diffusion models; this one is autoregressive";
                return Err(RequestError::new("diffusion", message));
            }
            (None, Some(_)) => {
                let message = "this model needs diffusion settings";
                return Err(RequestError::new("diffusion", message));
            }
        };
        let mut end_ids = if params.ignore_eos { Vec::new() } else { limits.end_ids.clone() };
        end_ids.extend(&params.stop_token_ids);
        Ok(Self {
            prompt: params.prompt,
            max_tokens: params.max_tokens,
            min_tokens: params.min_tokens,
            end_ids: end_ids.into(),
            bias: bias(&params.sampling.logit_bias, limits.mask_id),
            filters: filters(&params.sampling),
            top_logprobs: params.sampling.top_logprobs,
            seed: params.seed,
            uniforms: Box::new(Seeded(params.seed)),
            decoding,
            priority: params.priority,
            arrival: params.arrival,
            timeout: params.timeout,
            max_draft: params.max_draft,
            trace: params.trace,
        })
    }

    /// Replaces the seeded uniform numbers of decoding rules, to replay recorded draws.
    #[must_use]
    pub fn with_uniforms(mut self, uniforms: Box<dyn Uniforms>) -> Self {
        self.uniforms = uniforms;
        self
    }

    /// The bias of a generated position: end tokens are banned before `min_tokens`.
    pub(crate) fn bias_at(&self, position: usize) -> Arc<[(u32, f32)]> {
        if position >= self.min_tokens {
            return self.bias.clone();
        }
        let banned = self.end_ids.iter().map(|&id| (id, f32::NEG_INFINITY));
        self.bias.iter().copied().chain(banned).collect()
    }

    /// Longest the sequence can become.
    pub(crate) fn total_len(&self) -> usize {
        self.prompt.len() + self.max_tokens
    }
}

/// The request's bias; a position is never filled with the mask itself.
fn bias(logit_bias: &[(u32, f32)], mask_id: Option<u32>) -> Arc<[(u32, f32)]> {
    let mask = mask_id.map(|id| (id, f32::NEG_INFINITY));
    logit_bias.iter().copied().chain(mask).collect()
}

fn filters(sampling: &Sampling) -> Filters {
    let greedy = sampling.temperature < MIN_TEMPERATURE;
    Filters {
        temperature: if greedy { 0.0 } else { sampling.temperature },
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        ..Filters::default()
    }
}

fn check_lengths(params: &RequestParams, limits: &ModelLimits) -> Result<(), RequestError> {
    let (prompt, max_tokens, context) =
        (params.prompt.len(), params.max_tokens, limits.max_model_len);
    if prompt == 0 {
        return Err(RequestError::new("prompt", "the prompt has no tokens, expected at least one"));
    }
    if max_tokens == 0 {
        return Err(RequestError::new("max_tokens", "max_tokens is 0, expected at least 1"));
    }
    if prompt.saturating_add(max_tokens) > context {
        let message = format!(
            "This model's maximum context length is {context} tokens; \
             the prompt has {prompt} and max_tokens is {max_tokens}"
        );
        let error = RequestError::new("max_tokens", message);
        return Err(RequestError { context_exceeded: true, ..error });
    }
    if params.max_draft > MAX_DRAFT {
        let message = format!("drafts of {} tokens, at most {MAX_DRAFT}", params.max_draft);
        return Err(RequestError::new("max_draft", message));
    }
    if params.min_tokens > max_tokens {
        let message = format!("min_tokens is {}, expected at most max_tokens", params.min_tokens);
        return Err(RequestError::new("min_tokens", message));
    }
    Ok(())
}

fn check_sampling(sampling: &Sampling, limits: &ModelLimits) -> Result<(), RequestError> {
    let range = |param, value: f64, from: f64, to: f64| {
        if (from..=to).contains(&value) {
            return Ok(());
        }
        Err(RequestError::new(param, format!("{param} is {value}, expected {from} to {to}")))
    };
    range("temperature", sampling.temperature, 0.0, 100.0)?;
    range("top_p", sampling.top_p.unwrap_or(1.0), 0.0, 1.0)?;
    range("min_p", sampling.min_p.unwrap_or(0.0), 0.0, 1.0)?;
    if sampling.top_k == Some(0) {
        return Err(RequestError::new("top_k", "top_k is 0, expected at least 1"));
    }
    if sampling.top_logprobs > MAX_TOP_LOGPROBS {
        let found = sampling.top_logprobs;
        let message = format!("{found} log-probabilities asked for, at most {MAX_TOP_LOGPROBS}");
        return Err(RequestError::new("logprobs", message));
    }
    let entries = sampling.logit_bias.len();
    if entries > MAX_LOGIT_BIAS {
        let message = format!("logit_bias has {entries} entries, at most {MAX_LOGIT_BIAS}");
        return Err(RequestError::new("logit_bias", message));
    }
    for &(id, bias) in &sampling.logit_bias {
        check_ids("logit_bias", &[id], limits.vocab)?;
        range("logit_bias", f64::from(bias), -100.0, 100.0)?;
    }
    Ok(())
}

fn check_ids(param: &'static str, ids: &[u32], vocab: usize) -> Result<(), RequestError> {
    match ids.iter().find(|&&id| id as usize >= vocab) {
        None => Ok(()),
        Some(id) => {
            let message = format!("token id {id} is outside the vocabulary of {vocab}");
            Err(RequestError::new(param, message))
        }
    }
}
