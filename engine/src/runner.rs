//! The only caller of the model: plans of one step in, scores out.

use std::time::{Duration, Instant};

use dfastllm_models::ops::{Guidance, RowParams, RowScore, score_rows, select_rows};
use dfastllm_models::{
    Alignment, KvPool, LanguageModel, PAGE_SIZE, RaggedRows, RowsError, SpanRequest, run_on,
    unobserved,
};

use crate::plan::{SpanPlan, StepPlan, Want};
use crate::scheduler::PageCopy;

/// One request's share of a step and its block table.
pub(crate) struct Planned<'a> {
    pub(crate) plan: &'a StepPlan,
    pub(crate) pages: &'a [u32],
}

/// What a step computed, and how long that took.
pub(crate) struct Computed {
    /// For each plan the scores of its wants, in order.
    pub(crate) scores: Vec<Vec<RowScore>>,
    /// In the model. A device that works on its own may still be at it when scoring begins.
    pub(crate) model: Duration,
    /// Choosing tokens from logits.
    pub(crate) scoring: Duration,
}

/// The model with its key/value pool.
pub(crate) struct Runner {
    model: Box<dyn LanguageModel>,
    pool: KvPool,
}

impl Runner {
    pub(crate) fn new(model: Box<dyn LanguageModel>, pool: KvPool) -> Self {
        Self { model, pool }
    }

    /// Whether a short pass gives logits that say something: finite and not all alike. A device
    /// whose kernels fail to compile may go on with zeros instead of an error.
    pub(crate) fn makes_sense(&mut self) -> bool {
        let last = (self.model.shape().vocab as u32).saturating_sub(1);
        let tokens = [0, 1, 2].map(|token| last.min(token));
        let Ok(rows) = RaggedRows::single(&tokens, self.model.attend()) else { return false };
        let hidden = self.model.forward(&rows, &mut self.pool, &mut unobserved);
        let params: Vec<RowParams> = (0..rows.len()).map(RowParams::greedy).collect();
        let flat = (self.model.shape().vocab as f64).ln() - 1e-9;
        score_rows(self.model.logits(hidden), &params).iter().all(|s| s.finite && s.entropy < flat)
    }

    /// Makes the copies, then runs one pass over all plans. `alive` is called as layers pass.
    ///
    /// # Errors
    /// When a plan contradicts itself, which is a bug of its maker.
    pub(crate) fn step(
        &mut self,
        copies: &[PageCopy],
        planned: &[Planned<'_>],
        alive: &(dyn Fn() + Sync),
    ) -> Result<Computed, RowsError> {
        run_on(&self.pool.device().clone(), || self.compute(copies, planned, alive))
    }

    fn compute(
        &mut self,
        copies: &[PageCopy],
        planned: &[Planned<'_>],
        alive: &dyn Fn(),
    ) -> Result<Computed, RowsError> {
        let begun = Instant::now();
        for &PageCopy { from, to } in copies {
            self.pool.copy_page(from, to);
        }
        let (mut tokens, mut positions, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        let (mut scored_rows, mut params) = (Vec::new(), Vec::new());
        for Planned { plan, pages } in planned {
            let first_rows: Vec<usize> = plan
                .spans
                .iter()
                .map(|span| {
                    let first = tokens.len();
                    spans.push(span_request(span, first, pages));
                    tokens.extend(&span.tokens);
                    let start = span.first_position;
                    positions.extend(start..start + span.tokens.len());
                    first
                })
                .collect();
            for want in &plan.wants {
                params.push(self.row_params(plan, want, &first_rows, &mut scored_rows));
            }
        }
        let rows = RaggedRows::new(tokens, positions, spans, PAGE_SIZE)?;
        let hidden = self.model.forward(&rows, &mut self.pool, &mut |_, _| alive());
        let (mut scores, mut model) = (Vec::new(), begun.elapsed());
        if !scored_rows.is_empty() {
            let logits = self.model.logits(select_rows(hidden, &scored_rows));
            model = begun.elapsed();
            scores = score_rows(logits, &params);
        }
        let scoring = begun.elapsed() - model;
        let mut rest = scores.into_iter();
        let scores =
            planned.iter().map(|p| rest.by_ref().take(p.plan.wants.len()).collect()).collect();
        Ok(Computed { scores, model, scoring })
    }

    /// Notes the rows whose logits a want needs, and where they will be among the scored ones.
    fn row_params(
        &self,
        plan: &StepPlan,
        want: &Want,
        first_rows: &[usize],
        scored_rows: &mut Vec<usize>,
    ) -> RowParams {
        let mut note = |span: usize| {
            scored_rows.push(first_rows[span] + self.row_of(&plan.spans[span], want.position));
            scored_rows.len() - 1
        };
        let row = note(0);
        let guidance = want.guidance_scale.map(|scale| Guidance { row: note(1), scale });
        RowParams { row, guidance, ..want.params.clone() }
    }

    /// The row of a span whose logits predict a position. Position 0 has no row before it and
    /// keeps its own.
    fn row_of(&self, span: &SpanPlan, position: usize) -> usize {
        let source = match self.model.alignment() {
            Alignment::Same => position,
            Alignment::Next => position.saturating_sub(1),
        };
        source.saturating_sub(span.first_position).min(span.tokens.len().saturating_sub(1))
    }
}

fn span_request(span: &SpanPlan, first_row: usize, pages: &[u32]) -> SpanRequest {
    SpanRequest {
        rows: first_row..first_row + span.tokens.len(),
        attend: span.attend,
        write: span.write,
        visible: vec![0..span.cached],
        pages: pages.to_vec(),
    }
}
