//! Masked diffusion: a canvas of open positions, filled in an order that the rules decide.

mod adaptive;
mod canvas;
mod computed;
mod growth;
mod guide;
mod memory;
mod passes;
mod progress;

use std::ops::Range;

use dfastllm_models::PAGE_SIZE;
use dfastllm_models::ops::RowScore;

pub(crate) use adaptive::AdaptiveParallel;
use canvas::Canvas;
use computed::Computed;
use growth::Growth;
use memory::Memory;
use progress::Progress;

use crate::decoding::{
    BlockState, Cache, CacheRule, Candidate, DecodingConfig, Doubt, IdleSteps, Pass, QuotaRule,
    Region, Revise, Reviser, Rules, Stop, cache_rule, quota_rule, rank,
};
use crate::guided::Guided;
use crate::plan::{Fault, Generation, Purpose, StepPlan, Want, check_finite};
use crate::{Audit, Change, FinishReason, GenerationRequest, SettledToken, TraceStep, Usage};

/// A token and where it goes.
type Commit = (usize, u32);
/// Predictions of a plan with what they came to.
type Scored<'a> = Vec<(&'a Want, &'a RowScore)>;

/// A request to a model that denoises. Positions count from the first generated one.
pub(crate) struct Denoising {
    config: DecodingConfig,
    request: GenerationRequest,
    /// How far to the left of a position lies the row that predicts it.
    lead: usize,
    /// Positions to fill, at most.
    length: usize,
    canvas: Canvas,
    growth: Option<Growth>,
    block: Block,
    quota: Box<dyn QuotaRule>,
    cache: Box<dyn CacheRule>,
    reviser: Reviser,
    computed: Computed,
    memory: Memory,
    /// Later steps, to be verified in the next pass.
    drafts: Vec<Draft>,
    /// Step of the published loop, idle ones included.
    step: usize,
    forwards: usize,
    refreshes: usize,
    /// Positions committed by earlier steps of a pass that verified drafts, and those drafted.
    drafted: (usize, usize),
    audit: Option<Audit>,
    trace: Vec<TraceStep>,
    progress: Option<Progress>,
    /// What the answer has to be.
    guided: Option<Guided>,
    finish: Option<FinishReason>,
}

/// The positions that compete.
#[derive(Debug, Clone)]
struct Block {
    slots: Range<usize>,
    state: BlockState,
}

/// A step that is expected to follow.
#[derive(Debug, Clone)]
struct Draft {
    /// What it commits.
    commits: Vec<Commit>,
    /// The published loop's step after it.
    next_step: usize,
}

impl Denoising {
    pub(crate) fn new(
        mut request: GenerationRequest,
        config: DecodingConfig,
        (mask_id, lead): (u32, usize),
    ) -> Self {
        // The request keeps its own: the pages it needs depend on its length.
        let prompt = request.prompt.clone();
        let length = request.max_tokens;
        let parts = growth::first_parts(&config, &request.parts);
        let canvas = Canvas::new(prompt, &parts, mask_id);
        let Rules { quota, cache } = request.rules.take().unwrap_or_else(|| Rules {
            quota: quota_rule(&config),
            cache: cache_rule(config.cache),
        });
        let slots = first_slots(&config, &canvas);
        let mut this = Self {
            growth: Growth::new(&config, length.saturating_sub(canvas.slots())),
            block: Block::new(slots, &config, length),
            quota,
            cache,
            reviser: Reviser::new(config.revise),
            computed: Computed::nothing(),
            memory: Memory::default(),
            drafts: Vec::new(),
            progress: request.progress.then(Progress::default),
            guided: request.structure.take().map(Guided::new),
            audit: None,
            config,
            request,
            lead,
            length,
            canvas,
            step: 0,
            forwards: 0,
            refreshes: 0,
            drafted: (0, 0),
            trace: Vec::new(),
            finish: None,
        };
        this.advance();
        this
    }

    /// Pages the request holds from start to end.
    pub(crate) fn pages(request: &GenerationRequest, config: &DecodingConfig) -> usize {
        if !config.needs_pages() {
            return 0;
        }
        let sequences = if config.cfg_scale > 0.0 { 2 } else { 1 };
        sequences * request.total_len().div_ceil(PAGE_SIZE)
    }

    /// Positions of the region, in order.
    fn region(&self) -> &[usize] {
        self.canvas.positions(self.block.slots.clone())
    }

    fn open(&self) -> impl Iterator<Item = usize> + '_ {
        self.region().iter().copied().filter(|&p| self.canvas.is_open(p))
    }

    fn stops_early(&self) -> bool {
        self.config.stop == Stop::EndInSettledPrefix || self.guided.is_some()
    }

    /// Moves on to the next step that needs a pass, the next block, or the end.
    fn advance(&mut self) {
        loop {
            if self.is_complete() {
                self.finish = Some(FinishReason::Stop);
                return;
            }
            if self.stops_early() && self.config.revise == Revise::None {
                self.canvas.close_gaps();
                self.look_again();
            }
            if self.is_closed() || self.is_block_over() {
                // Draws are keyed by the steps of the published loop, which takes all of them.
                let state = self.block.state;
                self.step += state.steps.saturating_sub(state.step);
                if self.stops_early() {
                    self.canvas.close_gaps();
                }
                let goes_on = !self.stops_early() || self.canvas.has_open();
                if (goes_on && self.next_block()) || self.grow() {
                    continue;
                }
                self.finish = Some(self.reason());
                return;
            }
            let idle = self.quota.planned(&self.block.state) == Some(0);
            if !(idle && self.config.idle == IdleSteps::Skip) {
                return;
            }
            // Nothing changes in idle steps but their number.
            while self.quota.planned(&self.block.state) == Some(0) && !self.is_block_over() {
                self.step += 1;
                self.block.state.step += 1;
            }
        }
    }

    /// Whether an end token left the block, or the whole canvas, without anything to decide.
    fn is_closed(&self) -> bool {
        let skips = self.config.idle == IdleSteps::Skip || !self.canvas.has_open();
        self.stops_early() && skips && self.block.state.open == 0
    }

    fn next_block(&mut self) -> bool {
        let (start, size) = (self.block.slots.end, self.block.slots.len());
        if matches!(self.config.region, Region::Window(_)) || start == self.canvas.slots() {
            return false;
        }
        let size = if let Region::Blocks(size) = self.config.region { size } else { size };
        let slots = start..start.saturating_add(size).min(self.canvas.slots());
        self.block = Block::new(slots, &self.config, self.length);
        self.computed.enter_region();
        self.memory.clear();
        self.drafts.clear();
        true
    }

    fn count_step(&mut self) {
        self.step += 1;
        self.block.state.step += 1;
        self.look_again();
    }

    /// Finds the window and what is open of the block after the canvas has changed.
    fn look_again(&mut self) {
        if let Region::Window(size) = self.config.region {
            let start = self.canvas.first_open_slot();
            self.block.slots = start..start.saturating_add(size).min(self.canvas.slots());
        }
        self.block.state.open = self.open().count();
    }

    fn reason(&self) -> FinishReason {
        if self.canvas.has_ended() { FinishReason::Stop } else { FinishReason::Length }
    }

    /// Notes which rows a pass computed.
    fn note_pass(&mut self, pass: &Pass) {
        let start = self.canvas.prompt_len() + self.region().first().copied().unwrap_or(0);
        let is_refresh = self.computed.note(pass, start) && self.config.cache != Cache::None;
        self.refreshes += usize::from(is_refresh);
    }

    /// One step of the published loop: ranks, commits, revises. Returns what it committed, by
    /// position, and the candidates left, best first.
    fn settle_step(&mut self, scored: &Scored<'_>) -> (Vec<Commit>, Vec<Candidate>) {
        let of = |purpose| scored.iter().filter(move |(want, _)| want.purpose == purpose);
        let mut ranked: Vec<Candidate> =
            of(Purpose::Choose).map(|(want, score)| self.candidate(want, score)).collect();
        let by_position: Vec<&RowScore> = of(Purpose::Choose).map(|(_, score)| *score).collect();
        let positions: Vec<usize> = ranked.iter().map(|c| c.position).collect();
        self.memory.note(&positions, &by_position);
        let uniforms = &mut *self.request.uniforms;
        let (step, temperature) = (self.step as u32, self.config.order_temperature);
        rank(&mut ranked, self.config.score, temperature, step, uniforms);
        let mut is_chosen = vec![false; ranked.len()];
        for index in self.quota.choose(&ranked, &self.block.state) {
            is_chosen[index] = true;
        }
        self.follow_structure(&ranked, &mut is_chosen);
        let mut chosen: Vec<Candidate> =
            ranked.iter().zip(&is_chosen).filter(|(_, chosen)| **chosen).map(|(c, _)| *c).collect();
        chosen.sort_by_key(|c| c.position);
        for candidate in &chosen {
            if let Ok(index) = positions.binary_search(&candidate.position) {
                self.commit(candidate, by_position[index]);
            }
        }
        let prompt = self.canvas.prompt_len();
        let doubts = of(Purpose::Recheck)
            .map(|(w, s)| Doubt { position: w.position - prompt, probability: s.confidence });
        let reopened = self.reviser.reopen(doubts.collect(), chosen.len());
        self.reopen(&reopened);
        let mut is_chosen = is_chosen.iter();
        ranked.retain(|_| is_chosen.next() == Some(&false));
        if let Some(progress) = &mut self.progress {
            progress.note(&chosen, &reopened, &ranked);
        }
        self.expand(scored, &ranked);
        self.count_step();
        self.advance();
        (chosen.iter().map(|c| (c.position, c.id)).collect(), ranked)
    }

    fn candidate(&self, want: &Want, score: &RowScore) -> Candidate {
        Candidate {
            position: want.position - self.canvas.prompt_len(),
            id: score.id,
            confidence: score.confidence,
            entropy: score.entropy,
            margin: score.margin,
            divergence: score.divergence,
            score: 0.0,
        }
    }

    fn commit(&mut self, candidate: &Candidate, score: &RowScore) {
        let token = SettledToken {
            id: candidate.id,
            logprob: score.logprob,
            top: score.top.clone(),
            is_end: self.request.end_ids.contains(&candidate.id),
            gap: 0,
        };
        self.canvas.fill(candidate.position, token);
        self.computed.change(self.canvas.prompt_len() + candidate.position);
        self.memory.forget(candidate.position);
    }

    fn reopen(&mut self, positions: &[usize]) {
        for &position in positions {
            self.canvas.reopen(position);
            self.computed.change(self.canvas.prompt_len() + position);
        }
        self.note_remasked(positions);
    }

    fn note_committed(&mut self, commits: &[Commit]) {
        if self.request.trace && !commits.is_empty() {
            self.trace_step().committed.extend(commits);
        }
    }

    fn note_remasked(&mut self, positions: &[usize]) {
        if self.request.trace && !positions.is_empty() {
            self.trace_step().remasked.extend(positions);
        }
    }

    /// The trace of the pass that is being settled.
    fn trace_step(&mut self) -> &mut TraceStep {
        let step = self.forwards;
        if self.trace.last().is_none_or(|last| last.step != step) {
            self.trace.push(TraceStep { step, ..TraceStep::default() });
        }
        let last = self.trace.len() - 1;
        &mut self.trace[last]
    }

    /// Compares what decided with what the exact pass says.
    fn note_audit(&mut self, scored: &Scored<'_>) {
        let chosen = scored.iter().filter(|(want, _)| want.purpose == Purpose::Choose);
        let exact = scored.iter().filter(|(want, _)| want.purpose == Purpose::Audit);
        let mut audit = Audit::default();
        for ((_, score), (_, exact)) in chosen.zip(exact) {
            audit.add(score.id == exact.id, (score.confidence - exact.confidence).abs());
        }
        if audit.positions > 0 {
            self.audit.get_or_insert_default().merge(&audit);
            if self.request.trace {
                self.trace_step().audit = Some(audit);
            }
        }
    }

    /// What the next steps are expected to commit, from the candidates the last one left.
    fn draft(&mut self, rest: &[Candidate]) {
        self.drafts.clear();
        let (mut state, mut step) = (self.block.state, self.step);
        let mut rest = rest.iter();
        while self.drafts.len() < self.config.speculate && self.finish.is_none() {
            let Some(count) = self.quota.planned(&state) else { return };
            let mut commits: Vec<Commit> =
                rest.by_ref().take(count).map(|c| (c.position, c.id)).collect();
            if commits.len() < count {
                return;
            }
            commits.sort_unstable();
            state.open = state.open.saturating_sub(count);
            loop {
                (state.step, step) = (state.step + 1, step + 1);
                if self.quota.is_finished(&state) || state.open == 0 {
                    return;
                }
                let idle = self.quota.planned(&state) == Some(0);
                if !(idle && self.config.idle == IdleSteps::Skip) {
                    break;
                }
            }
            self.drafts.push(Draft { commits, next_step: step });
        }
    }

    /// Settles the pass's own step, and drafted ones while they turn out as expected.
    fn settle_steps(&mut self, plan: &StepPlan, scores: &[RowScore]) {
        let drafts = std::mem::take(&mut self.drafts);
        let block = self.block.slots.start;
        let mut branch = 0;
        loop {
            let of_branch = |want: &Want| self.branch_of(want) == branch;
            let scored: Scored<'_> =
                plan.wants.iter().zip(scores).filter(|(want, _)| of_branch(want)).collect();
            if branch == 0 {
                self.note_audit(&scored);
            }
            let (commits, rest) = self.settle_step(&scored);
            self.note_committed(&commits);
            let expected = drafts.get(branch).filter(|d| d.commits == commits);
            let goes_on = self.finish.is_none()
                && self.block.slots.start == block
                && expected.is_some_and(|d| d.next_step == self.step)
                && plan.spans.len() > (branch + 1) * self.spans_each();
            if !goes_on {
                self.draft(&rest);
                break;
            }
            self.drafted.1 += drafts[branch].commits.len();
            branch += 1;
        }
        let planned = plan.spans.len() / self.spans_each();
        let verified = drafts.iter().take(planned.saturating_sub(1));
        self.drafted.0 += verified.map(|d| d.commits.len()).sum::<usize>();
    }
}

/// The slots of the first region.
fn first_slots(config: &DecodingConfig, canvas: &Canvas) -> Range<usize> {
    match config.region {
        Region::Canvas => 0..canvas.slots(),
        Region::Blocks(size) | Region::Window(size) => 0..size.min(canvas.slots()),
    }
}

impl Block {
    fn new(slots: Range<usize>, config: &DecodingConfig, length: usize) -> Self {
        let steps = config.quota.steps().map_or(0, |steps| steps.div_ceil(config.blocks(length)));
        let open = slots.len();
        Self { slots, state: BlockState { step: 0, steps, open, open_at_start: open } }
    }
}

impl Generation for Denoising {
    fn own_pages(&self) -> usize {
        Self::pages(&self.request, &self.config)
    }

    fn plan(&mut self, budget: usize) -> Option<StepPlan> {
        if budget == usize::MAX {
            // It does not fit and goes alone: without what could be left for later.
            self.drafts.clear();
        }
        let plan = self.next_plan();
        (plan.rows() <= budget).then_some(plan)
    }

    fn settle(&mut self, plan: &StepPlan, scores: &[RowScore]) -> Result<(), Fault> {
        check_finite(scores)?;
        self.forwards += 1;
        if self.is_sizing() {
            self.settle_size(scores);
            return Ok(());
        }
        self.note_pass(&self.next_pass());
        self.settle_steps(plan, scores);
        // A canvas that is full asks nothing more of its structure.
        let guided = self.guided.as_ref().filter(|_| self.finish.is_none());
        guided.map_or(Ok(()), Guided::check)
    }

    /// The settled prefix up to its first end token; with revisions only what they cannot reach.
    fn take_settled(&mut self) -> Vec<SettledToken> {
        let limit = match (self.config.revise, self.finish) {
            (Revise::None, _) | (_, Some(_)) => usize::MAX,
            _ => self.region().first().copied().unwrap_or(usize::MAX),
        };
        self.canvas.take_settled(limit)
    }

    fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    fn count(&self, usage: &mut Usage) {
        usage.forwards = self.forwards;
        usage.refreshes = self.refreshes;
        usage.audit = self.audit;
    }

    fn take_trace(&mut self) -> Vec<TraceStep> {
        std::mem::take(&mut self.trace)
    }

    fn has_changes(&self) -> bool {
        self.progress.as_ref().is_some_and(Progress::has_changes)
    }

    fn take_changes(&mut self) -> Vec<Change> {
        self.progress.as_mut().map(Progress::take).unwrap_or_default()
    }

    fn drafts(&self) -> (usize, usize) {
        self.drafted
    }
}
