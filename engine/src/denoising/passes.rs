//! The rows and predictions of a pass.

use std::ops::Range;
use std::sync::Arc;

use dfastllm_models::ops::{Draw, FilterOrder, Filters, Penalties, RowParams};
use dfastllm_models::{Attend, PAGE_SIZE};

use super::Denoising;
use super::computed::Scene;
use crate::decoding::{HeadRows, Pass, Revise, TokenNoise};
use crate::plan::{Purpose, SpanPlan, StepPlan, Want, Which};

/// A canvas as a pass reads it: as it is, or as drafts would have it.
struct State {
    tokens: Vec<u32>,
    /// Positions that stay open, of the region.
    open: Vec<usize>,
    /// Committed tokens.
    committed: Vec<u32>,
    step: usize,
}

impl Denoising {
    pub(super) fn next_plan(&self) -> StepPlan {
        if self.is_sizing() {
            return self.size_plan();
        }
        let pass = self.next_pass();
        let mut plan = StepPlan {
            model: Which::Main,
            spans: Vec::new(),
            wants: Vec::new(),
            every_head_row: self.config.heads == HeadRows::Every,
        };
        for (branch, state) in self.states(&pass).into_iter().enumerate() {
            self.add_state(&mut plan, &pass, &state, branch);
        }
        self.add_rechecks(&mut plan);
        self.add_tail(&mut plan);
        self.add_audit(&mut plan, &pass);
        plan
    }

    /// The rows of the next pass.
    pub(super) fn next_pass(&self) -> Pass {
        let prompt = self.canvas.prompt_len();
        let region = self.region();
        let absolute = |position: Option<&usize>| position.map_or(prompt, |p| prompt + p);
        let open: Vec<usize> = self.open().map(|p| prompt + p).collect();
        let scene = Scene {
            len: self.canvas.tokens().len(),
            region: absolute(region.first())..absolute(region.last()) + 1,
            open: &open,
            lead: self.lead,
        };
        let mut pass = self.computed.next_pass(&self.config, &*self.cache, scene);
        // Shadows read the canvas from the pages.
        if let (Revise::Wino(_), Pass::Whole { keep } | Pass::Part { keep, .. }) =
            (self.config.revise, &mut pass)
        {
            *keep = true;
        }
        pass
    }

    /// The canvas, and the same after each drafted step; only as it is where everything is
    /// computed for later passes.
    fn states(&self, pass: &Pass) -> Vec<State> {
        let mut states = vec![State {
            tokens: self.canvas.tokens().to_vec(),
            open: self.open().collect(),
            committed: self.canvas.committed().collect(),
            step: self.step,
        }];
        if *pass == (Pass::Whole { keep: true }) {
            return states;
        }
        for draft in &self.drafts {
            let Some(State { tokens, open, committed, .. }) = states.last() else { break };
            let (mut tokens, mut open, mut committed) =
                (tokens.clone(), open.clone(), committed.clone());
            for &(position, id) in &draft.commits {
                tokens[self.canvas.prompt_len() + position] = id;
                committed.push(id);
            }
            open.retain(|p| draft.commits.iter().all(|(position, _)| position != p));
            states.push(State { tokens, open, committed, step: draft.next_step });
        }
        states
    }

    /// Spans a state takes.
    pub(super) fn spans_each(&self) -> usize {
        if self.config.cfg_scale > 0.0 { 2 } else { 1 }
    }

    /// The state a prediction belongs to; what is not chosen from belongs to the first.
    pub(super) fn branch_of(&self, want: &Want) -> usize {
        if want.purpose == Purpose::Choose { want.span / self.spans_each() } else { 0 }
    }

    fn add_state(&self, plan: &mut StepPlan, pass: &Pass, state: &State, branch: usize) {
        let span = plan.spans.len();
        self.add_spans(&mut plan.spans, pass, &state.tokens, branch == 0);
        let penalties = self.penalties(&state.committed);
        for &position in &state.open {
            let mut want = self.want(position, Purpose::Choose);
            want.span += span;
            want.guidance = want.guidance.map(|(guide, scale)| (guide + span, scale));
            want.params.penalties.clone_from(&penalties);
            want.params.draw = self.draw(position, state.step);
            plan.wants.push(want);
        }
    }

    /// A state's span, and where guidance is asked for the same without the prompt.
    fn add_spans(&self, spans: &mut Vec<SpanPlan>, pass: &Pass, tokens: &[u32], writes: bool) {
        let second = self.request.total_len().div_ceil(PAGE_SIZE);
        spans.push(span(pass, tokens.to_vec(), writes, 0));
        if self.config.cfg_scale > 0.0 {
            let unconditional = self.canvas.without_prompt(tokens.to_vec());
            spans.push(span(pass, unconditional, writes, second));
        }
    }

    /// A prediction by the first span.
    pub(super) fn want(&self, position: usize, purpose: Purpose) -> Want {
        let order = match self.config.noise {
            TokenNoise::Gumbel => FilterOrder::TopKFirst,
            TokenNoise::Categorical => FilterOrder::TopPFirst,
        };
        let takes_end = self.canvas.takes_end(position);
        let (previous, credit) = (self.memory.row(position), self.memory.credit(position));
        let keeps_rows = self.quota.needs_divergence();
        let params = RowParams {
            bias: self.request.bias_at(self.canvas.rank(position), takes_end),
            allowed: self.allowed_at(position),
            filters: Filters { order, ..self.request.filters },
            draw: self.draw(position, self.step),
            confidence_of: self.config.confidence_of,
            top_logprobs: self.request.top_logprobs,
            credit: self.config.credit.then_some(credit),
            previous: previous.filter(|_| keeps_rows),
            keep_row: keeps_rows,
            ..RowParams::greedy(0)
        };
        let scale = self.config.cfg_scale as f32;
        let guidance = (scale > 0.0).then_some((1, scale));
        let position = self.canvas.prompt_len() + position;
        Want { span: 0, position, params, guidance, purpose }
    }

    fn draw(&self, position: usize, step: usize) -> Draw {
        let (seed, step) = (self.request.seed, step as u32);
        let position = (self.canvas.prompt_len() + position) as u32;
        match self.config.noise {
            _ if self.request.filters.temperature == 0.0 => Draw::Greedy,
            TokenNoise::Gumbel => Draw::Gumbel { seed, position, step },
            TokenNoise::Categorical => Draw::Categorical { seed, position, step },
        }
    }

    fn penalties(&self, committed: &[u32]) -> Option<Arc<Penalties>> {
        let prompt = &self.canvas.tokens()[..self.canvas.prompt_len()];
        self.request.penalties.map(|scales| Arc::new(scales.over(prompt, committed)))
    }

    /// What the pass says about tokens committed in the region: seen by themselves, or, for WINO,
    /// hidden from themselves.
    fn add_rechecks(&self, plan: &mut StepPlan) {
        let span = match self.config.revise {
            Revise::None => return,
            Revise::Below(_) => 0,
            Revise::Wino(_) => {
                plan.spans.push(self.shadow());
                plan.spans.len() - 1
            }
        };
        for &position in self.region() {
            let Some(token) = self.canvas.filled(position) else { continue };
            let mut want = self.want(position, Purpose::Recheck);
            want.span = span;
            want.params.draw = Draw::Given(token.id);
            plan.wants.push(want);
        }
    }

    /// Masks at the region's positions, beside the canvas.
    fn shadow(&self) -> SpanPlan {
        let prompt = self.canvas.prompt_len();
        let positions: Vec<usize> = self.region().iter().map(|p| prompt + p).collect();
        SpanPlan {
            tokens: vec![self.canvas.mask_id(); positions.len()],
            positions,
            attend: Attend::Shadow,
            write: false,
            visible: 0..self.canvas.tokens().len(),
            first_page: 0,
        }
    }

    /// The exact pass beside one that reuses keys and values.
    fn add_audit(&self, plan: &mut StepPlan, pass: &Pass) {
        if !self.request.audit || !matches!(pass, Pass::Part { .. }) {
            return;
        }
        let span = plan.spans.len();
        let exact = Pass::Whole { keep: false };
        self.add_spans(&mut plan.spans, &exact, self.canvas.tokens(), false);
        let chosen = plan.wants.iter().filter(|want| self.branch_of(want) == 0);
        let chosen = chosen.filter(|want| want.purpose == Purpose::Choose);
        let exact: Vec<Want> = chosen
            .map(|want| Want {
                span,
                guidance: want.guidance.map(|(_, scale)| (span + 1, scale)),
                purpose: Purpose::Audit,
                ..want.clone()
            })
            .collect();
        plan.wants.extend(exact);
    }
}

/// The rows of a pass over a sequence.
pub(super) fn span(pass: &Pass, tokens: Vec<u32>, writes: bool, first_page: usize) -> SpanPlan {
    let attend = Attend::Bidirectional;
    match pass {
        Pass::Whole { keep } => {
            SpanPlan { write: *keep && writes, first_page, ..SpanPlan::whole(tokens, attend) }
        }
        Pass::Part { rows, keep, visible } => SpanPlan {
            tokens: rows.iter().map(|&row| tokens[row]).collect(),
            positions: rows.clone(),
            attend,
            write: *keep && writes,
            visible: Range::clone(visible),
            first_page,
        },
    }
}
