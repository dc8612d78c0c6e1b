//! Left to right over cached keys and values: the prompt in chunks, then a token a pass, or more
//! where drafts turn out right.

use std::ops::Range;
use std::sync::Arc;

use dfastllm_models::Attend;
use dfastllm_models::ops::{ConfidenceOf, Draw, RowParams, RowScore, TokenSet};

use crate::guided::Guided;
use crate::plan::{Fault, Generation, Purpose, SpanPlan, StepPlan, Want, Which};
use crate::speculation::PromptLookup;
use crate::{FinishReason, GenerationRequest, SettledToken, TraceStep, Usage};

/// An autoregressive request.
pub(crate) struct Autoregressive {
    /// Prompt and answer.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Positions whose keys and values are in the pages.
    cached: usize,
    request: GenerationRequest,
    lookup: PromptLookup,
    /// What the next pass verifies beside its own token.
    draft: Option<Vec<u32>>,
    /// Whether it is what has to come, not a guess.
    is_forced: bool,
    /// What the answer has to be.
    guided: Option<Guided>,
    /// What the positions that the next pass predicts may hold.
    allowed: Vec<TokenSet>,
    /// Tokens drafted, and how many of them were right.
    drafted: (usize, usize),
    settled: Vec<SettledToken>,
    trace: Vec<TraceStep>,
    forwards: usize,
    finish: Option<FinishReason>,
}

impl Autoregressive {
    pub(crate) fn new(mut request: GenerationRequest) -> Self {
        let tokens = std::mem::take(&mut request.prompt);
        Self {
            prompt_len: tokens.len(),
            tokens,
            cached: 0,
            // What is penalised behind a draft depends on whether it is right.
            lookup: PromptLookup::new(if request.penalties.is_some() {
                0
            } else {
                request.max_draft
            }),
            draft: None,
            is_forced: false,
            guided: request.structure.take().map(Guided::new),
            allowed: Vec::new(),
            drafted: (0, 0),
            request,
            settled: Vec::new(),
            trace: Vec::new(),
            forwards: 0,
            finish: None,
        }
    }

    /// How a position is scored: its draw depends on seed and position alone, so a draft is right
    /// exactly if the pass without it would have drawn it.
    fn want(&self, position: usize) -> Want {
        let request = &self.request;
        let draw = match request.filters.temperature > 0.0 {
            true => Draw::Categorical { seed: request.seed, position: position as u32, step: 0 },
            false => Draw::Greedy,
        };
        let params = RowParams {
            bias: self.bias(position),
            penalties: request.penalties.map(|scales| {
                let (prompt, generated) = self.tokens.split_at(self.prompt_len);
                Arc::new(scales.over(prompt, generated))
            }),
            allowed: self
                .allowed
                .get(position - self.tokens.len())
                .or(request.allowed.as_ref())
                .cloned(),
            filters: request.filters,
            draw,
            confidence_of: ConfidenceOf::Filtered,
            top_logprobs: request.top_logprobs,
            ..RowParams::greedy(0)
        };
        Want { span: 0, position, params, guidance: None, purpose: Purpose::Choose }
    }

    /// The bias at a position, if the draft before it is right.
    fn bias(&self, position: usize) -> Arc<[(u32, f32)]> {
        if !self.request.bans_words() {
            return self.request.bias_at(position - self.prompt_len, true);
        }
        let drafted = &self.draft()[..position - self.tokens.len()];
        self.request.bias_after(self.tokens[self.prompt_len..].iter().chain(drafted).copied())
    }

    /// End of what is read before decoding: the prompt, whose last row gives the first token, or,
    /// for a request that lost its pages, everything but the last token, whose pass is still due.
    fn reading_end(&self) -> usize {
        if self.forwards == 0 { self.tokens.len() } else { self.tokens.len() - 1 }
    }

    fn draft(&self) -> &[u32] {
        self.draft.as_deref().unwrap_or_default()
    }

    /// A draft for the next pass: what has to come, or else what was said before.
    fn make_draft(&mut self) -> Vec<u32> {
        // The pass itself gives one token more than the draft.
        let room = self.prompt_len + self.request.max_tokens - self.tokens.len() - 1;
        let Some(guided) = &self.guided else { return self.lookup.draft(&self.tokens, room) };
        // What is penalised behind a draft depends on the draft.
        let mut draft = match self.request.penalties {
            None => guided.forced(),
            Some(_) => Vec::new(),
        };
        draft.truncate(room);
        self.is_forced = !draft.is_empty();
        if !self.is_forced {
            draft = self.lookup.draft(&self.tokens, room);
        }
        self.allowed = guided.along(&mut draft);
        draft
    }

    fn push(&mut self, score: &RowScore) {
        let generated = self.tokens.len() - self.prompt_len + 1;
        self.tokens.push(score.id);
        let is_end = self.request.end_ids.contains(&score.id);
        let (id, logprob, top) = (score.id, score.logprob, score.top.clone());
        self.settled.push(SettledToken { id, logprob, top, is_end, gap: 0 });
        let is_complete = match &mut self.guided {
            Some(guided) => guided.follow(score.id) && guided.has_ended(),
            None => false,
        };
        if is_end || is_complete {
            self.finish = Some(FinishReason::Stop);
        } else if generated == self.request.max_tokens {
            self.finish = Some(FinishReason::Length);
        }
    }
}

impl Generation for Autoregressive {
    fn causal_tokens(&self) -> Option<&[u32]> {
        Some(&self.tokens)
    }

    fn start(&mut self, cached: usize) {
        self.cached = cached;
    }

    fn cached(&self) -> usize {
        self.cached
    }

    fn writes(&mut self) -> Range<usize> {
        if !self.is_decoding() {
            return self.cached..self.reading_end();
        }
        if self.draft.is_none() {
            self.draft = Some(self.make_draft());
        }
        self.cached..self.tokens.len() + self.draft().len()
    }

    fn plan(&mut self, budget: usize) -> Option<StepPlan> {
        let (tokens, wants) = if self.is_decoding() {
            let mut tokens = self.tokens[self.cached..].to_vec();
            tokens.extend(self.draft());
            if tokens.len() > budget {
                return None;
            }
            let first = self.tokens.len();
            let wants = (first..=first + self.draft().len()).map(|p| self.want(p)).collect();
            (tokens, wants)
        } else {
            let end = self.reading_end().min(self.cached.saturating_add(budget));
            if end == self.cached {
                return None;
            }
            let is_whole = end == self.tokens.len();
            if let (Some(guided), true) = (&self.guided, is_whole) {
                self.allowed = guided.along(&mut Vec::new());
            }
            let wants = if is_whole { vec![self.want(end)] } else { Vec::new() };
            (self.tokens[self.cached..end].to_vec(), wants)
        };
        let span = SpanPlan {
            positions: (self.cached..self.cached + tokens.len()).collect(),
            tokens,
            attend: Attend::Causal,
            write: true,
            visible: 0..self.cached,
            first_page: 0,
        };
        Some(StepPlan { model: Which::Main, spans: vec![span], wants, every_head_row: false })
    }

    fn is_decoding(&self) -> bool {
        self.forwards > 0 && self.cached + 1 == self.tokens.len()
    }

    fn settle(&mut self, plan: &StepPlan, scores: &[RowScore]) -> Result<(), Fault> {
        let draft = self.draft.take().unwrap_or_default();
        let first = self.tokens.len();
        for (i, score) in scores.iter().enumerate() {
            if !score.finite {
                return Err(Fault::NotFinite);
            }
            self.push(score);
            if self.finish.is_some() || draft.get(i) != Some(&score.id) {
                break;
            }
        }
        if scores.is_empty() {
            self.cached += plan.rows();
            return Ok(());
        }
        if let Some(guided) = &mut self.guided {
            guided.check()?;
            if self.finish.is_none() {
                guided.look_ahead();
            }
        }
        // Rows after the first wrong draft left keys and values that the next passes overwrite.
        self.cached = self.tokens.len() - 1;
        self.forwards += 1;
        let right = self.tokens.len() - first - 1;
        if !std::mem::take(&mut self.is_forced) {
            self.lookup.verified(draft.len(), right);
            self.drafted = (self.drafted.0 + draft.len(), self.drafted.1 + right);
        }
        if self.request.trace {
            let position = first - self.prompt_len;
            let ids = self.tokens[first..].iter().enumerate();
            let committed = ids.map(|(i, &id)| (position + i, id)).collect();
            self.trace.push(TraceStep { step: self.forwards, committed, ..TraceStep::default() });
        }
        Ok(())
    }

    fn take_settled(&mut self) -> Vec<SettledToken> {
        std::mem::take(&mut self.settled)
    }

    fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    fn count(&self, usage: &mut Usage) {
        usage.forwards = self.forwards;
    }

    fn take_trace(&mut self) -> Vec<TraceStep> {
        std::mem::take(&mut self.trace)
    }

    fn drafts(&self) -> (usize, usize) {
        self.drafted
    }
}
