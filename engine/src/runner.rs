//! The only caller of the model: plans of one step in, scores out.

use std::time::{Duration, Instant};

use dfastllm_models::ops::{
    Guidance, KeyLayout, RowParams, RowScore, score_rows, select_rows, warm_up_rows,
};
use dfastllm_models::{
    Alignment, Attend, KvPool, LanguageModel, PAGE_SIZE, RaggedRows, RecordedSteps, RowsError,
    SpanRequest, Tensor, difference, run_on, unobserved,
};

use crate::plan::{SpanPlan, StepPlan, Want, Which};
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

/// Rows the head computes at once: a row of logits is as long as the vocabulary.
const HEAD_ROWS: usize = 512;

/// Largest difference between the rows of a long span and what they should be, relative to them:
/// rounding is far below, and rows of a failed kernel are as far apart as any two.
const MOST_APART: f32 = 0.5;
/// Positions before a row that has its keys cut into parts.
const MANY_KEYS: usize = 16 * PAGE_SIZE;

/// A model with its key/value pool.
pub(crate) struct Seat {
    /// Before what they read and write.
    recorded: RecordedSteps,
    model: Box<dyn LanguageModel>,
    pool: KvPool,
}

/// The models, by what plans call them.
pub(crate) struct Runner {
    main: Seat,
    verifier: Option<Seat>,
}

impl Runner {
    pub(crate) fn new(main: Seat, verifier: Option<Seat>) -> Self {
        Self { main, verifier }
    }

    /// Whether a short pass gives logits that say something, and a long one what kernels of short ones do.
    pub(crate) fn makes_sense(&mut self) -> bool {
        std::iter::once(&mut self.main).chain(&mut self.verifier).all(Seat::makes_sense)
    }

    /// Runs passes of all sizes that have kernels of their own, whose rows are kept (as far as the pool has
    /// pages) and are not, and one row behind many keys. A request waits for a kernel only where its pass
    /// is none of these. Then records steps of few rows, where the device is to: of a causal model those
    /// of up to `most_sequences`.
    pub(crate) fn warm_up(&mut self, most_rows: usize, most_sequences: usize) {
        for seat in std::iter::once(&mut self.main).chain(&mut self.verifier) {
            seat.warm_up(most_rows);
            let is_causal = seat.model.attend() == Attend::Causal;
            seat.record(if is_causal { most_sequences } else { most_rows });
        }
    }

    /// Makes the copies, then runs one pass of each model over the plans for it. `alive` is called
    /// as layers pass.
    ///
    /// # Errors
    /// When a plan contradicts itself, which is a bug of its maker.
    pub(crate) fn step(
        &mut self,
        copies: &[PageCopy],
        planned: &[Planned<'_>],
        alive: &(dyn Fn() + Sync),
    ) -> Result<Computed, RowsError> {
        let device = self.main.pool.device().clone();
        run_on(&device, || {
            for &PageCopy { from, to } in copies {
                self.main.pool.copy_page(from, to);
            }
            self.compute(planned, alive)
        })
    }

    fn compute(
        &mut self,
        planned: &[Planned<'_>],
        alive: &dyn Fn(),
    ) -> Result<Computed, RowsError> {
        let mut computed = Computed {
            scores: vec![Vec::new(); planned.len()],
            model: Duration::ZERO,
            scoring: Duration::ZERO,
        };
        let seats =
            [(Which::Main, Some(&mut self.main)), (Which::Verifier, self.verifier.as_mut())];
        for (which, seat) in seats {
            let chosen: Vec<usize> =
                (0..planned.len()).filter(|&i| planned[i].plan.model == which).collect();
            if chosen.is_empty() {
                continue;
            }
            let Some(seat) = seat else {
                return Err(RowsError::Length { tokens: 0, positions: 0 });
            };
            let plans: Vec<&Planned<'_>> = chosen.iter().map(|&i| &planned[i]).collect();
            let of_seat = seat.compute(&plans, alive)?;
            computed.model += of_seat.model;
            computed.scoring += of_seat.scoring;
            for (index, scores) in chosen.into_iter().zip(of_seat.scores) {
                computed.scores[index] = scores;
            }
        }
        Ok(computed)
    }
}

/// A row whose logits are wanted, with the row that guides it.
struct Scored {
    rows: Vec<usize>,
    params: RowParams,
}

impl Seat {
    pub(crate) fn new(model: Box<dyn LanguageModel>, pool: KvPool) -> Self {
        Self { recorded: RecordedSteps::default(), model, pool }
    }

    /// Finite and not all alike: a device whose kernels fail to compile may go on with zeros
    /// instead of an error.
    fn makes_sense(&mut self) -> bool {
        self.short_pass_makes_sense() && self.long_pass_makes_sense()
    }

    /// Whether a long span's rows are what they are in passes that have no long span. With attention that
    /// gives zeros the rest of a network still gives logits that differ.
    fn long_pass_makes_sense(&mut self) -> bool {
        let (shape, attend) = (self.model.shape(), self.model.attend());
        let len = KeyLayout::LONG_ROWS;
        if shape.max_positions < len || warm_up_rows(self.pool.device(), len).is_empty() {
            return true;
        }
        let tokens: Vec<u32> = (0..len).map(|i| (i * 37 % shape.vocab) as u32).collect();
        let (short, beside) = match attend {
            // Rows do not see the one that is missing.
            Attend::Causal => (len - 1, attend),
            // No span of shadows is long, and without a cache they see what all others do.
            Attend::Bidirectional | Attend::Shadow => (len, Attend::Shadow),
        };
        let long = RaggedRows::single(&tokens, attend);
        let (Ok(long), Ok(rows)) = (long, RaggedRows::single(&tokens[..short], beside)) else {
            return false;
        };
        let mut hidden = |rows| {
            let hidden = self.model.forward(rows, &mut self.pool, &mut unobserved);
            hidden.slice([0..short])
        };
        difference(hidden(&long), hidden(&rows)) < MOST_APART
    }

    fn short_pass_makes_sense(&mut self) -> bool {
        let last = (self.model.shape().vocab as u32).saturating_sub(1);
        let tokens = [0, 1, 2].map(|token| last.min(token));
        let Ok(rows) = RaggedRows::single(&tokens, self.model.attend()) else { return false };
        let hidden = self.model.forward(&rows, &mut self.pool, &mut unobserved);
        let params: Vec<RowParams> = (0..rows.len()).map(RowParams::greedy).collect();
        let flat = (self.model.shape().vocab as f64).ln() - 1e-9;
        score_rows(self.model.logits(hidden), &params).iter().all(|s| s.finite && s.entropy < flat)
    }

    fn warm_up(&mut self, most_rows: usize) {
        let sizes = warm_up_rows(self.pool.device(), most_rows);
        if sizes.is_empty() {
            return;
        }
        let begun = Instant::now();
        let is_causal = self.model.attend() == Attend::Causal;
        let seen = usize::from(self.pool.pages() > 0);
        let longest = self.model.shape().max_positions.min(self.pool.pages() * PAGE_SIZE);
        let of_sizes = sizes.iter().flat_map(|&n| [(n, false), (n, true)]);
        let of_sizes = of_sizes.filter_map(|(n, write)| self.trial(n, seen, write));
        let one = self.trial(1, MANY_KEYS.min(longest.saturating_sub(1)), is_causal);
        let passes: Vec<RaggedRows> = of_sizes.chain(one).collect();
        for rows in &passes {
            let hidden = self.model.forward(rows, &mut self.pool, &mut unobserved);
            let scored = rows.len().min(HEAD_ROWS / 2);
            let params: Vec<RowParams> = (0..scored).map(RowParams::greedy).collect();
            let wanted: Vec<usize> = (0..scored).collect();
            drop(score_rows(self.logits(&hidden, &wanted), &params));
        }
        let seconds = begun.elapsed().as_secs_f64();
        tracing::info!(passes = passes.len(), seconds, "kernels are warm");
    }

    fn record(&mut self, most_rows: usize) {
        let begun = Instant::now();
        let (recorded, failed) = RecordedSteps::new(&*self.model, &mut self.pool, most_rows);
        for (rows, reason) in failed {
            tracing::warn!(rows, "steps of as many rows are not recorded: {reason}");
        }
        let (rows, seconds) = (recorded.rows(), begun.elapsed().as_secs_f64());
        if !rows.is_empty() {
            tracing::info!(?rows, seconds, "steps are recorded and will be replayed");
        }
        self.recorded = recorded;
    }

    /// Hidden rows of a pass, and maybe more after them.
    fn hidden(&mut self, rows: &RaggedRows, alive: &dyn Fn()) -> Tensor<2> {
        match self.recorded.replay(&*self.model, rows) {
            Ok(Some(hidden)) => {
                alive();
                return hidden;
            }
            Ok(None) => {}
            Err(reason) => tracing::warn!("steps are no longer replayed: {reason}"),
        }
        self.model.forward(rows, &mut self.pool, &mut |_, _| alive())
    }

    /// A pass of that many rows behind `seen` cached positions, if the pool has pages for all that it sees
    /// and writes.
    fn trial(&self, rows: usize, seen: usize, write: bool) -> Option<RaggedRows> {
        let kept = if write { seen + rows } else { seen };
        let pages = kept.div_ceil(PAGE_SIZE);
        if pages > self.pool.pages() {
            return None;
        }
        let span = SpanRequest {
            rows: 0..rows,
            attend: self.model.attend(),
            write,
            visible: if seen > 0 { vec![0..seen] } else { vec![] },
            pages: (0..pages as u32).collect(),
        };
        RaggedRows::new(vec![0; rows], (seen..seen + rows).collect(), vec![span], PAGE_SIZE).ok()
    }

    fn compute(
        &mut self,
        planned: &[&Planned<'_>],
        alive: &dyn Fn(),
    ) -> Result<Computed, RowsError> {
        let begun = Instant::now();
        let (mut tokens, mut positions, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        let (mut scored, mut unused) = (Vec::new(), Vec::new());
        for Planned { plan, pages } in planned {
            let first_rows: Vec<usize> = plan
                .spans
                .iter()
                .map(|span| {
                    let first = tokens.len();
                    spans.push(span_request(span, first, pages));
                    tokens.extend(&span.tokens);
                    positions.extend(&span.positions);
                    first
                })
                .collect();
            let rows_of_plan = first_rows.first().copied().unwrap_or(0)..tokens.len();
            let first = scored.len();
            scored.extend(plan.wants.iter().map(|want| self.scored(plan, want, &first_rows)));
            if plan.every_head_row {
                let mut is_used = vec![false; tokens.len()];
                scored[first..].iter().flat_map(|s| &s.rows).for_each(|&row| is_used[row] = true);
                unused.extend(rows_of_plan.filter(|&row| !is_used[row]));
            }
        }
        let rows = RaggedRows::new(tokens, positions, spans, PAGE_SIZE)?;
        let hidden = self.hidden(&rows, alive);
        let (mut scores, mut model) = (Vec::new(), begun.elapsed());
        let mut scoring = Duration::ZERO;
        for chunk in scored.chunks(HEAD_ROWS / 2) {
            let (from, rows) = (Instant::now(), chunk.iter().flat_map(|s| s.rows.iter().copied()));
            let logits = self.logits(&hidden, &rows.collect::<Vec<usize>>());
            model += from.elapsed();
            let from = Instant::now();
            scores.extend(score_rows(logits, &params(chunk)));
            scoring += from.elapsed();
        }
        let from = Instant::now();
        for chunk in unused.chunks(HEAD_ROWS) {
            self.logits(&hidden, chunk);
        }
        model += from.elapsed();
        let mut rest = scores.into_iter();
        let scores =
            planned.iter().map(|p| rest.by_ref().take(p.plan.wants.len()).collect()).collect();
        Ok(Computed { scores, model, scoring })
    }

    fn logits(&self, hidden: &Tensor<2>, rows: &[usize]) -> Tensor<2> {
        self.model.logits(select_rows(hidden.clone(), rows))
    }

    /// The rows a want needs.
    fn scored(&self, plan: &StepPlan, want: &Want, first_rows: &[usize]) -> Scored {
        let row = |span: usize| first_rows[span] + self.row_of(&plan.spans[span], want.position);
        let rows = std::iter::once(want.span).chain(want.guidance.map(|(span, _)| span)).map(row);
        let guidance = want.guidance.map(|(_, scale)| Guidance { row: 1, scale });
        Scored { rows: rows.collect(), params: RowParams { guidance, ..want.params.clone() } }
    }

    /// The row of a span whose logits predict a position. Where the row before a position is not
    /// computed, the position keeps its own: position 0 has none before it.
    fn row_of(&self, span: &SpanPlan, position: usize) -> usize {
        let source = match self.model.alignment() {
            Alignment::Same => position,
            Alignment::Next => position.saturating_sub(1),
        };
        let last = span.positions.len().saturating_sub(1);
        span.positions.partition_point(|&p| p < source).min(last)
    }
}

/// The parameters of wants whose rows come one after the other.
fn params(scored: &[Scored]) -> Vec<RowParams> {
    let mut first = 0;
    let params = |s: &Scored| {
        let row = first;
        first += s.rows.len();
        let guidance = s.params.guidance.map(|g| Guidance { row: row + g.row, ..g });
        RowParams { row, guidance, ..s.params.clone() }
    };
    scored.iter().map(params).collect()
}

fn span_request(span: &SpanPlan, first_row: usize, pages: &[u32]) -> SpanRequest {
    SpanRequest {
        rows: first_row..first_row + span.tokens.len(),
        attend: span.attend,
        write: span.write,
        visible: vec![span.visible.clone()],
        pages: pages.get(span.first_page..).unwrap_or_default().to_vec(),
    }
}
