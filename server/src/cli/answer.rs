//! One answer of a model in this process: for commands that write answers.

use clap::Args;
use dfastllm_engine::{
    Event, FinishReason, GenerationRequest, RequestParams, Sampling, TextAssembler, TraceStep,
    Usage,
};
use dfastllm_models::SpecialTokens;
use serde_json::{Map, Value, json};

use super::Failure;
use crate::convert::{Endpoint, default_tokens, entropy, refuse_diffusion};
use crate::diffusion::DiffusionFields;
use crate::openai::respond::{trace as trace_json, usage as usage_json};
use crate::{ApiError, ServedModel};

/// How tokens are chosen.
#[derive(Debug, Clone, Args)]
pub(crate) struct SamplingArgs {
    /// 0 is greedy [default: the checkpoint's]
    #[arg(long, env = "DFASTLLM_TEMPERATURE")]
    temperature: Option<f64>,

    /// Keep tokens up to this probability
    #[arg(long, env = "DFASTLLM_TOP_P")]
    top_p: Option<f64>,

    /// Keep this many tokens
    #[arg(long, env = "DFASTLLM_TOP_K")]
    top_k: Option<usize>,

    /// Diffusion settings as the API takes them, for example '{"steps": 64}'
    #[arg(long, env = "DFASTLLM_DIFFUSION", default_value = "{}")]
    diffusion: String,
}

/// What an answer is asked for with, beside its prompt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    pub(crate) max_tokens: Option<usize>,
    pub(crate) temperature: Option<f64>,
    pub(crate) top_p: Option<f64>,
    pub(crate) top_k: Option<usize>,
    pub(crate) seed: Option<u64>,
    pub(crate) diffusion: Map<String, Value>,
}

impl SamplingArgs {
    /// The flags as settings.
    pub(crate) fn settings(
        &self,
        max_tokens: Option<usize>,
        seed: Option<u64>,
    ) -> Result<Settings, Failure> {
        let diffusion = serde_json::from_str(&self.diffusion)
            .map_err(|e| Failure::usage(format!("--diffusion: {e}")))?;
        let (temperature, top_p, top_k) = (self.temperature, self.top_p, self.top_k);
        Ok(Settings { max_tokens, temperature, top_p, top_k, seed, diffusion })
    }
}

impl Settings {
    /// A valid request for an answer to these tokens.
    ///
    /// # Errors
    /// What does not fit, by name.
    pub(crate) fn request(
        &self,
        prompt: Vec<u32>,
        served: &ServedModel,
    ) -> Result<GenerationRequest, String> {
        let message = |e: ApiError| e.message();
        if served.limits.reference.is_none() {
            refuse_diffusion(&self.diffusion).map_err(message)?;
        }
        let fields = DiffusionFields::new(self.diffusion.clone()).map_err(message)?;
        fields.refuse(&["infill", "likelihood", "progress"]).map_err(message)?;
        if let Some(length) = fields.max_tokens() {
            return Err(format!("diffusion.gen_length is {length}; give max_tokens instead"));
        }
        let max_tokens =
            self.max_tokens.unwrap_or_else(|| default_tokens(Endpoint::Chat, prompt.len(), served));
        let decoding = match served.limits.reference {
            Some(published) => {
                Some(fields.config(served.preset, published, max_tokens).map_err(message)?)
            }
            None => None,
        };
        let neutral = if decoding.is_some() { 0.0 } else { 1.0 };
        let defaults = &served.generation;
        let params = RequestParams {
            sampling: Sampling {
                temperature: self.temperature.or(defaults.temperature).unwrap_or(neutral),
                top_k: self.top_k.or(defaults.top_k).filter(|&k| k > 0),
                top_p: self.top_p.or(defaults.top_p),
                ..Sampling::default()
            },
            decoding,
            seed: self.seed.unwrap_or_else(entropy),
            timeout: served.request_timeout,
            max_draft: served.speculative_tokens,
            trace: fields.flag("trace").map_err(message)?.unwrap_or(false),
            audit: served.audit,
            ..RequestParams::new(prompt, max_tokens)
        };
        GenerationRequest::new(params, &served.limits).map_err(|e| e.to_string())
    }
}

/// An answer as it comes together.
pub(crate) struct Answer {
    assembler: TextAssembler,
    pub(crate) text: String,
    token_ids: Vec<u32>,
    trace: Vec<TraceStep>,
    end: Option<(FinishReason, Usage)>,
}

impl Answer {
    pub(crate) fn new(served: &ServedModel) -> Self {
        let stream = served.tokenizer.stream(SpecialTokens::Skip);
        Self {
            assembler: TextAssembler::new(stream, Vec::new()),
            text: String::new(),
            token_ids: Vec::new(),
            trace: Vec::new(),
            end: None,
        }
    }

    /// Takes what happened and returns the text that became certain by it.
    ///
    /// # Errors
    /// The engine's.
    pub(crate) fn take(&mut self, event: Event) -> Result<String, Failure> {
        let mut new = String::new();
        match event {
            Event::Settled { tokens, trace, .. } => {
                self.trace.extend(trace);
                for token in &tokens {
                    self.token_ids.push(token.id);
                    new.push_str(&self.assembler.push(token));
                }
            }
            // Only generation is asked for here.
            Event::Scored(_) => {}
            Event::Finished { reason, usage, trace } => {
                new = self.assembler.finish();
                self.trace.extend(trace);
                self.end = Some((reason, usage));
            }
            Event::Failed(error) => return Err(Failure::failed(error.to_string())),
        }
        self.text.push_str(&new);
        Ok(new)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// What `--json` prints.
    pub(crate) fn json(&self) -> Value {
        let reason = match self.end {
            Some((FinishReason::Stop, _)) => "stop",
            _ => "length",
        };
        let mut object = json!({
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": reason,
            "usage": usage_json(self.end.map(|(_, usage)| usage).unwrap_or_default()),
        });
        if !self.trace.is_empty() {
            object["trace"] = trace_json(&self.trace);
        }
        object
    }
}
