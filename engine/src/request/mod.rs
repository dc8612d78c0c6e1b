//! Requests: can only be built valid. Every number is bounded here, before anything is allocated.

mod checks;
mod vocabulary;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dfastllm_models::PAGE_SIZE;
use dfastllm_models::ops::{Filters, Penalties, TokenSet};
use dfastllm_models::{Alignment, Guide, LoadedModel, ReferenceLoop};

use self::checks::{
    check_ids, check_lengths, check_model, check_parts, check_sampling, check_structure, check_task,
};
use self::vocabulary::Vocabulary;
use crate::RequestError;
use crate::autoregressive::Autoregressive;
use crate::decoding::{DecodingConfig, Quota, Rules, Seeded, Uniforms};
use crate::denoising::{AdaptiveParallel, Denoising};
use crate::plan::Generation;
use crate::scoring::Scoring;

const MAX_STOP_IDS: usize = 128;
/// Longest draft that can be asked for.
pub const MAX_DRAFT: usize = 64;
/// Below it a temperature means greedy: dividing by it would overflow.
const MIN_TEMPERATURE: f64 = 1e-5;
/// Most samples of a likelihood.
pub const MAX_SAMPLES: usize = 4096;

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
    /// Which row predicts a position.
    pub alignment: Alignment,
    /// Whether a causal model that verifies drafts is there.
    pub has_verifier: bool,
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
            alignment: loaded.model.alignment(),
            has_verifier: false,
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
    /// The only tokens that may be chosen, if not all.
    pub allowed_token_ids: Option<Arc<[u32]>>,
    /// Runs of tokens that the answer must not hold; single ones of a model that denoises.
    pub bad_words: Vec<Vec<u32>>,
    /// Lowers tokens that are there already.
    pub penalties: PenaltyScales,
    /// How many most probable tokens to report with each token.
    pub top_logprobs: usize,
}

/// How much tokens that are there already are lowered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PenaltyScales {
    /// Subtracted from the logits of generated tokens.
    pub presence: f64,
    /// Subtracted for each time a token was generated.
    pub frequency: f64,
    /// Divides the positive logits of tokens of prompt and answer; 1 is none.
    pub repetition: f64,
}

impl Default for PenaltyScales {
    fn default() -> Self {
        Self { presence: 0.0, frequency: 0.0, repetition: 1.0 }
    }
}

impl PenaltyScales {
    /// The penalties after a prompt and what was generated, in whatever order.
    pub(crate) fn over(&self, prompt: &[u32], generated: &[u32]) -> Penalties {
        let mut counts = BTreeMap::new();
        generated.iter().for_each(|&id| *counts.entry(id).or_insert(0) += 1);
        let seen: BTreeSet<u32> = prompt.iter().chain(generated).copied().collect();
        Penalties {
            generated: counts.into_iter().collect(),
            seen: if self.repetition == 1.0 { Vec::new() } else { seen.into_iter().collect() },
            presence: self.presence as f32,
            frequency: self.frequency as f32,
            repetition: self.repetition as f32,
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Task {
    /// An answer.
    #[default]
    Generate,
    /// How likely each token of the prompt is after those before it.
    ScorePrompt,
    /// How likely the end of the prompt is, for a model that denoises.
    Likelihood {
        /// Where it begins.
        answer_start: usize,
        /// What is masked.
        patterns: Patterns,
    },
}

/// Masked positions of the samples of a likelihood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Patterns {
    /// This many subsets, drawn with the request's seed.
    Drawn(usize),
    /// These subsets, counted from the answer's first position.
    Given(Vec<Vec<usize>>),
}

/// A part of a text with gaps, after the prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InfillPart {
    /// Text that stays.
    Given(Vec<u32>),
    /// Positions to fill.
    Gap {
        /// How many.
        len: usize,
        /// Whether an end token may end it earlier.
        is_free: bool,
    },
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
    /// Whether to report every change of the canvas as it happens.
    pub progress: bool,
    /// Whether the exact pass runs beside every pass that reuses keys and values.
    pub audit: bool,
    /// What is asked for.
    pub task: Task,
    /// Gaps and the text between and behind them; none for one gap of `max_tokens`.
    pub infill: Vec<InfillPart>,
    /// What the answer has to be.
    pub structure: Option<Guide>,
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
            progress: false,
            audit: false,
            task: Task::Generate,
            infill: Vec::new(),
            structure: None,
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
    /// The only tokens that may be chosen, if not all.
    pub(crate) allowed: Option<TokenSet>,
    words: Arc<[Vec<u32>]>,
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
    pub(crate) progress: bool,
    pub(crate) audit: bool,
    pub(crate) task: Task,
    /// Text and gaps after the prompt.
    pub(crate) parts: Vec<InfillPart>,
    pub(crate) penalties: Option<PenaltyScales>,
    pub(crate) rules: Option<Rules>,
    /// What the answer has to be, until its loop takes it.
    pub(crate) structure: Option<Guide>,
    lead: usize,
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
        check_task(&params, limits)?;
        check_structure(&params)?;
        if let Some(config) = &params.decoding {
            check_model(config, &params, limits)?;
        }
        let parts = check_parts(&params, limits)?;
        let Vocabulary { bias, allowed, words } = Vocabulary::new(&params, limits)?;
        let decoding = decoding(params.decoding, limits.mask_id)?;
        let mut end_ids = if params.ignore_eos { Vec::new() } else { limits.end_ids.clone() };
        end_ids.extend(&params.stop_token_ids);
        Ok(Self {
            prompt: params.prompt,
            max_tokens: params.max_tokens,
            min_tokens: params.min_tokens,
            end_ids: end_ids.into(),
            bias,
            allowed,
            words,
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
            progress: params.progress,
            audit: params.audit,
            task: params.task,
            parts,
            penalties: Some(params.sampling.penalties)
                .filter(|penalties| *penalties != PenaltyScales::default()),
            rules: None,
            structure: params.structure,
            lead: match limits.alignment {
                Alignment::Same => 0,
                Alignment::Next => 1,
            },
        })
    }

    /// Replaces rules of the configuration, to replay what another program did.
    #[must_use]
    pub fn with_rules(mut self, rules: Rules) -> Self {
        self.rules = Some(rules);
        self
    }

    /// Replaces the seeded uniform numbers of decoding rules, to replay recorded draws.
    #[must_use]
    pub fn with_uniforms(mut self, uniforms: Box<dyn Uniforms>) -> Self {
        self.uniforms = uniforms;
        self
    }

    /// The bias of the generated position of this rank: end tokens are banned before `min_tokens`
    /// and where there is no place for them.
    pub(crate) fn bias_at(&self, rank: usize, takes_end: bool) -> Arc<[(u32, f32)]> {
        if rank >= self.min_tokens && takes_end {
            return self.bias.clone();
        }
        let banned = self.end_ids.iter().map(|&id| (id, f32::NEG_INFINITY));
        self.bias.iter().copied().chain(banned).collect()
    }

    /// The bias of the token after `said`, the answer so far: it completes no banned word.
    pub(crate) fn bias_after(&self, said: impl Iterator<Item = u32>) -> Arc<[(u32, f32)]> {
        let said: Vec<u32> = said.collect();
        let bias = self.bias_at(said.len(), true);
        let banned: Vec<u32> = vocabulary::endings(&self.words, &said).collect();
        if banned.is_empty() {
            return bias;
        }
        let banned = banned.into_iter().map(|id| (id, f32::NEG_INFINITY));
        bias.iter().copied().chain(banned).collect()
    }

    /// Whether words of several tokens are banned.
    pub(crate) fn bans_words(&self) -> bool {
        !self.words.is_empty()
    }

    /// Longest the sequence can become.
    pub(crate) fn total_len(&self) -> usize {
        self.prompt.len() + parts_len(&self.parts)
    }

    /// Positions of the pool the request may need at once.
    pub(crate) fn kept_positions(&self) -> usize {
        match (&self.task, &self.decoding) {
            (Task::Generate, None) => self.total_len(),
            (Task::Generate, Some((config, _))) => Denoising::pages(self, config) * PAGE_SIZE,
            _ => 0,
        }
    }

    /// Whether the answer is a canvas.
    pub(crate) fn denoises(&self) -> bool {
        self.decoding.is_some() && self.task == Task::Generate
    }

    /// The loop that answers it.
    pub(crate) fn into_generation(self) -> Box<dyn Generation> {
        if self.task != Task::Generate {
            return Box::new(Scoring::new(self));
        }
        let lead = self.lead;
        match self.decoding.clone() {
            None => Box::new(Autoregressive::new(self)),
            Some((config, mask_id)) => match config.quota {
                Quota::Adaptive { weight } => {
                    Box::new(AdaptiveParallel::new(self, config, weight, (mask_id, lead)))
                }
                _ => Box::new(Denoising::new(self, config, (mask_id, lead))),
            },
        }
    }
}

/// The knobs of a model that denoises, with its mask.
fn decoding(
    config: Option<DecodingConfig>,
    mask_id: Option<u32>,
) -> Result<Option<(DecodingConfig, u32)>, RequestError> {
    let message = match (config, mask_id) {
        (Some(config), Some(mask_id)) => {
            config.validate()?;
            return Ok(Some((config, mask_id)));
        }
        (None, None) => return Ok(None),
        (Some(_), None) => "diffusion is for masked-diffusion models; this one is autoregressive",
        (None, Some(_)) => "this model needs diffusion settings",
    };
    Err(RequestError::new("diffusion", message))
}

fn parts_len(parts: &[InfillPart]) -> usize {
    let len = |part: &InfillPart| match part {
        InfillPart::Given(ids) => ids.len(),
        InfillPart::Gap { len, .. } => *len,
    };
    parts.iter().map(len).fold(0, usize::saturating_add)
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
