//! Left to right, one token a pass, over cached keys and values.

use dfastllm_models::Attend;
use dfastllm_models::ops::{ConfidenceOf, Draw, RowParams, RowScore};

use crate::plan::{Generation, SpanPlan, StepPlan, Want};
use crate::{FinishReason, GenerationRequest, SettledToken, TraceStep};

/// An autoregressive request.
pub(crate) struct Autoregressive {
    /// Prompt and answer.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Positions whose keys and values are in the pages.
    cached: usize,
    request: GenerationRequest,
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
            request,
            settled: Vec::new(),
            trace: Vec::new(),
            forwards: 0,
            finish: None,
        }
    }

    fn want(&self) -> Want {
        let position = self.tokens.len();
        let request = &self.request;
        let draw = match request.filters.temperature > 0.0 {
            true => Draw::Categorical { seed: request.seed, position: position as u32, step: 0 },
            false => Draw::Greedy,
        };
        let params = RowParams {
            bias: request.bias_at(position - self.prompt_len),
            filters: request.filters,
            draw,
            confidence_of: ConfidenceOf::Filtered,
            top_logprobs: request.top_logprobs,
            ..RowParams::greedy(0)
        };
        Want { position, params, guidance_scale: None }
    }
}

impl Generation for Autoregressive {
    fn plan(&mut self, budget: usize) -> Option<StepPlan> {
        let end = self.tokens.len().min(self.cached.saturating_add(budget));
        if end == self.cached {
            return None;
        }
        let span = SpanPlan {
            tokens: self.tokens[self.cached..end].to_vec(),
            first_position: self.cached,
            attend: Attend::Causal,
            write: true,
            cached: self.cached,
        };
        let wants = if end == self.tokens.len() { vec![self.want()] } else { Vec::new() };
        Some(StepPlan { spans: vec![span], wants })
    }

    fn is_decoding(&self) -> bool {
        self.cached + 1 == self.tokens.len() && self.forwards > 0
    }

    fn settle(&mut self, plan: &StepPlan, scores: &[RowScore]) {
        self.cached += plan.rows();
        let Some(score) = scores.first() else { return };
        self.forwards += 1;
        let position = self.tokens.len() - self.prompt_len;
        self.tokens.push(score.id);
        let is_end = self.request.end_ids.contains(&score.id);
        self.settled.push(SettledToken {
            id: score.id,
            logprob: score.logprob,
            top: score.top.clone(),
            is_end,
        });
        if self.request.trace {
            let committed = vec![(position, score.id)];
            self.trace.push(TraceStep { step: self.forwards, committed, remasked: Vec::new() });
        }
        if is_end {
            self.finish = Some(FinishReason::Stop);
        } else if position + 1 == self.request.max_tokens {
            self.finish = Some(FinishReason::Length);
        }
    }

    fn take_settled(&mut self) -> Vec<SettledToken> {
        std::mem::take(&mut self.settled)
    }

    fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    fn forwards(&self) -> usize {
        self.forwards
    }

    fn take_trace(&mut self) -> Vec<TraceStep> {
        std::mem::take(&mut self.trace)
    }
}
