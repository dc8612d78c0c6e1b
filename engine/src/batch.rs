//! The requests an engine knows, and what each step does with them. Plain data: a step is planned
//! here, computed elsewhere, and settled here.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use dfastllm_models::ops::RowScore;

use crate::handle::Submission;
use crate::pacing::Pacer;
use crate::pages::Pages;
use crate::plan::{Fault, Generation, StepPlan, Which};
use crate::scheduler::{Admitted, Demand, PageCopy, Scheduler};
use crate::stats::EngineStats;
use crate::{Cancel, EngineConfig, EngineError, Event, Usage};

/// A request the engine knows.
struct Active {
    generation: Box<dyn Generation>,
    events: flume::Sender<Event>,
    cancel: Cancel,
    /// `None` if it lies beyond what the clock can tell.
    deadline: Option<Instant>,
    timeout_seconds: u64,
    usage: Usage,
    denoises: bool,
    /// The request with the same prompt that reads it for both.
    leader: Option<u64>,
    was_admitted: bool,
}

/// What one step computes.
pub(crate) struct Step {
    /// Copies of pages to make first, in order.
    pub(crate) copies: Vec<PageCopy>,
    pub(crate) plans: Vec<(u64, StepPlan)>,
    decoding_rows: usize,
    reading_rows: usize,
}

/// All requests, with the scheduler that orders them.
pub(crate) struct Batch {
    scheduler: Scheduler,
    active: HashMap<u64, Active>,
    pacer: Pacer,
    stats: Arc<EngineStats>,
    max_rows: usize,
}

impl Batch {
    pub(crate) fn new(config: EngineConfig, stats: Arc<EngineStats>) -> Self {
        let pages = Pages::needed(config.kv_cache_tokens);
        Self {
            scheduler: Scheduler::new(config.max_num_seqs, pages),
            active: HashMap::new(),
            pacer: Pacer::default(),
            stats,
            max_rows: config.max_num_batched_tokens,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    pub(crate) fn pages_of(&self, id: u64) -> &[u32] {
        self.scheduler.pages_of(id)
    }

    /// Takes a request in; it waits for a seat.
    pub(crate) fn accept(&mut self, submission: Submission) {
        let Submission { id, leader, events, cancel, request } = submission;
        self.scheduler.enqueue(id, request.priority);
        let active = Active {
            events,
            cancel,
            deadline: request.arrival.checked_add(request.timeout),
            timeout_seconds: request.timeout.as_secs(),
            usage: Usage { prompt_tokens: request.prompt.len(), ..Usage::default() },
            denoises: request.denoises(),
            leader,
            was_admitted: false,
            generation: request.into_generation(),
        };
        self.active.insert(id, active);
    }

    /// Drops requests whose client is gone, that were cancelled, or whose time is up.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let over = |a: &Active| {
            if a.cancel.is_requested() || a.events.is_disconnected() {
                return Some(EngineError::Cancelled);
            }
            let is_late = a.deadline.is_some_and(|d| d <= now);
            is_late.then_some(EngineError::Timeout { seconds: a.timeout_seconds })
        };
        let ended: Vec<(u64, EngineError)> =
            self.active.iter().filter_map(|(&id, a)| Some((id, over(a)?))).collect();
        for (id, error) in ended {
            self.fail(id, error);
        }
    }

    /// What the next step computes; nothing if there is no request.
    pub(crate) fn plan(&mut self) -> Step {
        self.admit();
        self.reserve();
        let active = &self.active;
        let is_decoding = |id| active.get(&id).is_some_and(|a| a.generation.is_decoding());
        let mut step = Step {
            copies: self.scheduler.take_copies(),
            plans: Vec::new(),
            decoding_rows: 0,
            reading_rows: 0,
        };
        for id in self.scheduler.order(is_decoding) {
            let Some(active) = self.active.get_mut(&id) else { continue };
            let left = self.max_rows.saturating_sub(step.decoding_rows + step.reading_rows);
            let decodes = active.generation.is_decoding();
            let budget = match decodes {
                true => left,
                false => {
                    let allowed = self.pacer.allowed(step.decoding_rows, self.max_rows);
                    allowed.saturating_sub(step.reading_rows).min(left)
                }
            };
            let is_first = decodes && step.plans.is_empty();
            let generation = &mut active.generation;
            // A canvas is never cut: the first of a step may exceed the budget alone.
            let plan = generation
                .plan(budget)
                .or_else(|| is_first.then(|| generation.plan(usize::MAX)).flatten());
            let Some(plan) = plan else { continue };
            let rows = if decodes { &mut step.decoding_rows } else { &mut step.reading_rows };
            *rows += plan.rows();
            step.plans.push((id, plan));
        }
        step
    }

    fn admit(&mut self) {
        let active = &self.active;
        let admitted = self.scheduler.admit(|id| demand(active, id));
        for Admitted { id, cached } in admitted {
            let Some(active) = self.active.get_mut(&id) else { continue };
            active.generation.start(cached);
            if std::mem::replace(&mut active.was_admitted, true) {
                self.stats.preempted.fetch_sub(1, Relaxed);
                continue;
            }
            self.stats.queued.fetch_sub(1, Relaxed);
            if active.generation.causal_tokens().is_some() {
                active.usage.cached_tokens = cached;
                let counters = &self.stats.counters;
                counters.prefix_queries.fetch_add(active.usage.prompt_tokens as u64, Relaxed);
                counters.prefix_hits.fetch_add(cached as u64, Relaxed);
            }
        }
    }

    /// Gives everyone who runs pages for the next pass, the first in line first; the last ones
    /// lose theirs if there are not enough.
    fn reserve(&mut self) {
        for id in self.scheduler.seniority() {
            if !self.scheduler.is_running(id) {
                continue;
            }
            let Some(active) = self.active.get_mut(&id) else { continue };
            let writes = active.generation.writes();
            while self.scheduler.reserve(id, writes.clone()).is_err() {
                let Some(loser) = self.scheduler.preempt_last() else { break };
                if let Some(active) = self.active.get_mut(&loser) {
                    active.generation.start(0);
                }
                self.stats.counters.preemptions.fetch_add(1, Relaxed);
                self.stats.preempted.fetch_add(1, Relaxed);
                if loser == id {
                    break;
                }
            }
        }
    }

    /// Hands the scores of a step to its requests and sends what they settled.
    pub(crate) fn settle(&mut self, step: &Step, scores: Vec<Vec<RowScore>>, took: Duration) {
        self.pacer.observe(step.decoding_rows, step.reading_rows, took.as_secs_f64());
        self.count(step);
        for ((id, plan), scores) in step.plans.iter().zip(scores) {
            self.settle_one(*id, plan, &scores);
        }
    }

    fn settle_one(&mut self, id: u64, plan: &StepPlan, scores: &[RowScore]) {
        let Some(active) = self.active.get_mut(&id) else { return };
        let (drafted, right) = active.generation.drafts();
        match active.generation.settle(plan, scores) {
            Ok(()) => {}
            Err(Fault::NotFinite) => {
                self.stats.counters.numerical_errors.fetch_add(1, Relaxed);
                // Nobody else is to start from what may have led here.
                self.scheduler.withdraw(id);
                return self.fail(id, EngineError::Numerical);
            }
            Err(Fault::Structure(reason)) => {
                return self.fail(id, EngineError::Structure { reason });
            }
        }
        if let Some(tokens) = active.generation.causal_tokens() {
            self.scheduler.publish(id, &tokens[..active.generation.cached()]);
        }
        let now = active.generation.drafts();
        if now.0 > drafted {
            let counters = &self.stats.counters;
            counters.drafts.fetch_add(1, Relaxed);
            counters.draft_tokens.fetch_add((now.0 - drafted) as u64, Relaxed);
            counters.accepted_tokens.fetch_add((now.1 - right) as u64, Relaxed);
        }
        self.send(id);
    }

    fn send(&mut self, id: u64) {
        let Some(active) = self.active.get_mut(&id) else { return };
        let tokens = active.generation.take_settled();
        active.usage.completion_tokens += tokens.len();
        active.generation.count(&mut active.usage);
        if active.denoises {
            self.stats.counters.committed_tokens.fetch_add(tokens.len() as u64, Relaxed);
        }
        let watched = active.generation.has_changes() && Submission::has_room(&active.events);
        let usage = active.usage;
        // The channel has room for every event; an error means nobody listens.
        if !tokens.is_empty() || watched {
            let (trace, changes) =
                (active.generation.take_trace(), active.generation.take_changes());
            let _ = active.events.try_send(Event::Settled { tokens, changes, usage, trace });
        }
        if let Some(reason) = active.generation.finish() {
            if let Some(scores) = active.generation.take_scores() {
                let _ = active.events.try_send(Event::Scored(scores));
            }
            let trace = active.generation.take_trace();
            let _ = active.events.try_send(Event::Finished { reason, usage, trace });
            self.audited(usage);
            self.forget(id);
        }
    }

    /// Adds a request's audit to the totals.
    fn audited(&self, usage: Usage) {
        let Some(audit) = usage.audit else { return };
        let counters = &self.stats.counters;
        counters.audited_positions.fetch_add(audit.positions as u64, Relaxed);
        counters.audited_agreeing.fetch_add(audit.agreeing as u64, Relaxed);
        tracing::info!(
            positions = audit.positions,
            agreement = audit.agreement(),
            mean_drift = audit.mean_drift(),
            max_drift = audit.max_drift,
            "audit"
        );
    }

    /// Fails everyone a step served or copied pages for.
    pub(crate) fn fail_step(&mut self, step: &Step) {
        let copied = |id: &u64| {
            let pages = self.scheduler.pages_of(*id);
            step.copies.iter().any(|copy| pages.contains(&copy.to))
        };
        let mut ids: Vec<u64> = self.active.keys().copied().filter(copied).collect();
        ids.extend(step.plans.iter().map(|(id, _)| *id));
        for id in ids {
            self.fail(id, EngineError::StepFailed);
        }
    }

    /// Fails everyone.
    pub(crate) fn fail_all(&mut self, error: &EngineError) {
        for id in self.active.keys().copied().collect::<Vec<_>>() {
            self.fail(id, error.clone());
        }
    }

    fn fail(&mut self, id: u64, error: EngineError) {
        if let Some(active) = self.active.get(&id) {
            let _ = active.events.try_send(Event::Failed(error));
        }
        self.forget(id);
    }

    fn forget(&mut self, id: u64) {
        let is_running = self.scheduler.is_running(id);
        self.scheduler.remove(id);
        if let Some(active) = self.active.remove(&id).filter(|_| !is_running) {
            let waiting =
                if active.was_admitted { &self.stats.preempted } else { &self.stats.queued };
            waiting.fetch_sub(1, Relaxed);
        }
    }

    fn count(&mut self, step: &Step) {
        self.scheduler.served(step.plans.iter().map(|(id, _)| *id));
        let counters = &self.stats.counters;
        counters.steps.fetch_add(1, Relaxed);
        counters.sequences.fetch_add(step.plans.len() as u64, Relaxed);
        counters.rows.fetch_add((step.decoding_rows + step.reading_rows) as u64, Relaxed);
        for (id, plan) in &step.plans {
            counters.head_rows.fetch_add(plan.head_rows() as u64, Relaxed);
            let denoises = self.active.get(id).is_some_and(|a| a.denoises);
            if denoises && plan.model == Which::Main {
                counters.denoising_passes.fetch_add(1, Relaxed);
                counters.canvas_positions.fetch_add(plan.rows() as u64, Relaxed);
            }
        }
    }

    /// Shows the gauges to readers.
    pub(crate) fn publish(&self) {
        self.stats.running.store(self.scheduler.running(), Relaxed);
        self.stats.kv_usage_ppm.store((self.scheduler.pages().usage() * 1e6) as u64, Relaxed);
    }
}

/// What a waiting request needs. One that shares its prompt with a leader waits until that has
/// read it; if the leader is gone it reads for itself.
fn demand(active: &HashMap<u64, Active>, id: u64) -> Demand<'_> {
    let Some(request) = active.get(&id) else { return Demand::Wait };
    let Some(tokens) = request.generation.causal_tokens() else {
        return Demand::Own(request.generation.own_pages());
    };
    let leader = request.leader.filter(|_| !request.was_admitted);
    match leader.and_then(|of| Some((of, active.get(&of)?))) {
        None => Demand::Causal(tokens),
        Some((of, leader)) if leader.generation.is_decoding() => {
            Demand::Fork { of, positions: tokens.len() - 1 }
        }
        Some(_) => Demand::Wait,
    }
}
