//! Adaptive parallel decoding (Israel et al., arXiv 2506.00413): the diffusion model drafts a window
//! in parallel, a small causal model of the same vocabulary reads the draft in one pass, and the
//! tokens on which a mixture of both agrees are kept, from left to right.

use std::sync::Arc;

use dfastllm_models::ops::{ConfidenceOf, Draw, Mix, RowParams, RowScore};
use dfastllm_models::{Attend, PAGE_SIZE};

use super::Canvas;
use super::computed::{Computed, Scene};
use crate::decoding::{DecodingConfig, Pass, Region, Stop};
use crate::plan::{Fault, Generation, Purpose, SpanPlan, StepPlan, Want, Which, check_finite};
use crate::{FinishReason, GenerationRequest, SettledToken, TraceStep, Usage};

/// A request that drafts and verifies in turn. Positions count from the first generated one.
pub(crate) struct AdaptiveParallel {
    config: DecodingConfig,
    request: GenerationRequest,
    lead: usize,
    /// Share of the diffusion model in the mixture.
    weight: f32,
    canvas: Canvas,
    computed: Computed,
    /// What the last pass of the diffusion model said about the window; empty when one is due.
    draft: Vec<RowScore>,
    /// Positions of the sequence whose keys and values the verifier has.
    verified: usize,
    step: u32,
    forwards: usize,
    verifications: usize,
    refreshes: usize,
    /// Tokens drafted, and how many were kept.
    drafted: (usize, usize),
    trace: Vec<TraceStep>,
    finish: Option<FinishReason>,
}

impl AdaptiveParallel {
    pub(crate) fn new(
        request: GenerationRequest,
        config: DecodingConfig,
        weight: f64,
        (mask_id, lead): (u32, usize),
    ) -> Self {
        // The request keeps its own: the pages it needs depend on its length.
        let prompt = request.prompt.clone();
        let canvas = Canvas::new(prompt, &request.parts, mask_id);
        Self {
            config,
            request,
            lead,
            weight: weight as f32,
            canvas,
            computed: Computed::nothing(),
            draft: Vec::new(),
            verified: 0,
            step: 0,
            forwards: 0,
            verifications: 0,
            refreshes: 0,
            drafted: (0, 0),
            trace: Vec::new(),
            finish: None,
        }
    }

    /// Everything left of the first open position is committed, everything right of it open.
    fn window(&self) -> Vec<usize> {
        let size = if let Region::Window(size) = self.config.region { size } else { 1 };
        let first = self.canvas.first_open_slot();
        let end = first.saturating_add(size).min(self.canvas.slots());
        self.canvas.positions(first..end).to_vec()
    }

    fn next_pass(&self) -> Pass {
        let prompt = self.canvas.prompt_len();
        let open: Vec<usize> = self.window().iter().map(|p| prompt + p).collect();
        let region = open.first().copied().unwrap_or(prompt)..open.last().map_or(prompt, |p| p + 1);
        let (len, lead) = (self.canvas.tokens().len(), self.lead);
        let scene = Scene { len, region, open: &open, lead };
        self.computed.next_pass(&self.config, &self.config.cache, scene)
    }

    fn params(&self, position: usize) -> RowParams {
        let (seed, step) = (self.request.seed, self.step);
        let draw = match self.request.filters.temperature > 0.0 {
            // Both models are drawn from with the same noise.
            true => {
                let position = (self.canvas.prompt_len() + position) as u32;
                Draw::Gumbel { seed, position, step }
            }
            false => Draw::Greedy,
        };
        RowParams {
            bias: self.request.bias_at(self.canvas.rank(position), true),
            allowed: self.request.allowed.clone(),
            filters: self.request.filters,
            draw,
            // The kept row goes into the mixture, which the filters apply to.
            confidence_of: ConfidenceOf::Raw,
            top_logprobs: self.request.top_logprobs,
            ..RowParams::greedy(0)
        }
    }

    /// Predictions of the window. The draft's row of log-probabilities, where there is one, is mixed
    /// in; otherwise the rows are kept.
    fn wants(&self, draft: &[RowScore]) -> Vec<Want> {
        let prompt = self.canvas.prompt_len();
        let committed: Vec<u32> = self.canvas.committed().collect();
        let over = &self.canvas.tokens()[..prompt];
        let penalties = self.request.penalties.map(|s| Arc::new(s.over(over, &committed)));
        let want = |(index, &position): (usize, &usize)| {
            let drafted = draft.get(index).and_then(|score| score.row.clone());
            let params = RowParams {
                mix: drafted.map(|other| Mix { other, weight: self.weight }),
                penalties: penalties.clone(),
                keep_row: draft.is_empty() && self.weight > 0.0,
                ..self.params(position)
            };
            let position = prompt + position;
            Want { span: 0, position, params, guidance: None, purpose: Purpose::Choose }
        };
        self.window().iter().enumerate().map(want).collect()
    }

    /// The diffusion model's pass.
    fn drafting(&self) -> StepPlan {
        let span = super::passes::span(&self.next_pass(), self.canvas.tokens().to_vec(), true, 0);
        let wants = self.wants(&[]);
        StepPlan { model: Which::Main, spans: vec![span], wants, every_head_row: false }
    }

    /// The verifier's pass over what is committed and not read yet, and the draft but for its last
    /// token.
    fn verifying(&self) -> StepPlan {
        let first = self.canvas.prompt_len() + self.window().first().copied().unwrap_or(0);
        let mut tokens = self.canvas.tokens()[self.verified..first].to_vec();
        tokens.extend(self.draft.iter().take(self.draft.len() - 1).map(|score| score.id));
        let positions = (self.verified..self.verified + tokens.len()).collect();
        let span = SpanPlan {
            tokens,
            positions,
            attend: Attend::Causal,
            write: true,
            visible: 0..self.verified,
            first_page: 0,
        };
        let wants = self.wants(&self.draft);
        StepPlan { model: Which::Verifier, spans: vec![span], wants, every_head_row: false }
    }

    fn note_drafting(&mut self, scores: &[RowScore]) {
        let pass = self.next_pass();
        self.forwards += 1;
        let first = self.canvas.prompt_len() + self.window().first().copied().unwrap_or(0);
        self.refreshes += usize::from(self.computed.note(&pass, first));
        self.draft = scores.to_vec();
    }

    /// Notes what the verifier has read: the draft but for its last token, as far as it is kept.
    fn note_verifying(&mut self, mixture: &[RowScore]) {
        let first = self.canvas.prompt_len() + self.window().first().copied().unwrap_or(0);
        let read = self.draft.len().saturating_sub(1);
        self.verifications += 1;
        self.verified = first + self.accept(mixture).min(read);
    }

    /// Keeps the draft as far as the mixture agrees, its first token always; returns how much.
    fn accept(&mut self, mixture: &[RowScore]) -> usize {
        let (draft, window) = (std::mem::take(&mut self.draft), self.window());
        let agreeing = draft.iter().zip(mixture).skip(1).take_while(|(d, m)| d.id == m.id).count();
        let kept = (1 + agreeing).min(draft.len());
        let mut committed = Vec::new();
        for (&position, score) in window.iter().zip(&draft).take(kept) {
            let token = SettledToken {
                id: score.id,
                logprob: score.logprob,
                top: score.top.clone(),
                is_end: self.request.end_ids.contains(&score.id),
                gap: 0,
            };
            self.canvas.fill(position, token);
            self.computed.change(self.canvas.prompt_len() + position);
            committed.push((position, score.id));
        }
        self.drafted = (self.drafted.0 + draft.len(), self.drafted.1 + kept);
        self.step += 1;
        if self.request.trace {
            let step = self.forwards;
            self.trace.push(TraceStep { step, committed, ..TraceStep::default() });
        }
        if self.config.stop == Stop::EndInSettledPrefix {
            self.canvas.close_gaps();
        }
        if !self.canvas.has_open() {
            let ended = self.canvas.has_ended();
            self.finish = Some(if ended { FinishReason::Stop } else { FinishReason::Length });
        }
        kept
    }
}

impl Generation for AdaptiveParallel {
    fn own_pages(&self) -> usize {
        self.request.total_len().div_ceil(PAGE_SIZE)
    }

    fn plan(&mut self, budget: usize) -> Option<StepPlan> {
        let plan = if self.draft.is_empty() { self.drafting() } else { self.verifying() };
        (plan.rows() <= budget).then_some(plan)
    }

    fn settle(&mut self, plan: &StepPlan, scores: &[RowScore]) -> Result<(), Fault> {
        check_finite(scores)?;
        match plan.model {
            Which::Main => {
                self.note_drafting(scores);
                // A single token is kept whatever the verifier would say.
                if self.draft.len() == 1 {
                    self.accept(&[]);
                }
            }
            Which::Verifier => self.note_verifying(scores),
        }
        Ok(())
    }

    fn take_settled(&mut self) -> Vec<SettledToken> {
        self.canvas.take_settled(usize::MAX)
    }

    fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    fn count(&self, usage: &mut Usage) {
        usage.forwards = self.forwards;
        usage.verifier_forwards = self.verifications;
        usage.refreshes = self.refreshes;
    }

    fn take_trace(&mut self) -> Vec<TraceStep> {
        std::mem::take(&mut self.trace)
    }

    fn drafts(&self) -> (usize, usize) {
        self.drafted
    }
}
