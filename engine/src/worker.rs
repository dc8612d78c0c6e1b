//! The engine thread: takes requests, runs steps, sends events.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use dfastllm_models::ops::RowScore;

use crate::autoregressive::Autoregressive;
use crate::denoising::Denoising;
use crate::pages::FreePages;
use crate::plan::{Generation, StepPlan};
use crate::runner::{Planned, Runner};
use crate::scheduler::Scheduler;
use crate::stats::{EngineState, EngineStats};
use crate::{EngineConfig, EngineError, Event, GenerationRequest, Usage};

/// Failed steps in a row after which the device is given up.
const MAX_FAILED_STEPS: u32 = 3;

/// A request on its way to the thread.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) id: u64,
    pub(crate) arrival: Instant,
    pub(crate) events: flume::Sender<Event>,
    pub(crate) request: GenerationRequest,
}

#[derive(Debug)]
pub(crate) enum Command {
    Submit(Box<Submission>),
    Stop,
}

/// A request the thread knows.
struct Active {
    generation: Box<dyn Generation>,
    events: flume::Sender<Event>,
    /// `None` if it lies beyond what the clock can tell.
    deadline: Option<Instant>,
    timeout_seconds: u64,
    usage: Usage,
    denoises: bool,
}

pub(crate) struct Worker {
    runner: Runner,
    inbox: flume::Receiver<Command>,
    stats: Arc<EngineStats>,
    config: EngineConfig,
    scheduler: Scheduler,
    active: HashMap<u64, Active>,
    stopping: bool,
    failed_in_a_row: u32,
}

/// However the thread ends, nothing waits any more; unless it was told to stop, it has failed.
impl Drop for Worker {
    fn drop(&mut self) {
        if !self.stopping {
            self.stats.set_state(EngineState::Failed);
        }
        self.stats.queued.store(0, Relaxed);
        self.stats.running.store(0, Relaxed);
    }
}

impl Worker {
    pub(crate) fn new(
        runner: Runner,
        inbox: flume::Receiver<Command>,
        stats: Arc<EngineStats>,
        config: EngineConfig,
    ) -> Self {
        let pages = FreePages::needed(config.kv_cache_tokens);
        Self {
            runner,
            inbox,
            stats,
            config,
            scheduler: Scheduler::new(config.max_num_seqs, pages),
            active: HashMap::new(),
            stopping: false,
            failed_in_a_row: 0,
        }
    }

    /// Until told to stop and idle, or until every handle is gone, or the device is given up.
    pub(crate) fn run(mut self) {
        loop {
            if !self.receive() || self.stats.state() == EngineState::Failed {
                break;
            }
            self.drop_cancelled_and_late();
            let admitted = self.scheduler.admit().len();
            self.stats.queued.fetch_sub(admitted, Relaxed);
            self.step();
            self.publish();
        }
        for id in self.active.keys().copied().collect::<Vec<_>>() {
            self.fail(id, EngineError::Stopped);
        }
    }

    /// Takes what has been sent; waits for something if there is nothing to do. False at the end.
    fn receive(&mut self) -> bool {
        loop {
            let idle = self.scheduler.is_idle();
            if idle && self.stopping {
                return false;
            }
            let command = match idle {
                true => match self.inbox.recv() {
                    Ok(command) => command,
                    Err(_) => return false,
                },
                false => match self.inbox.try_recv() {
                    Ok(command) => command,
                    Err(flume::TryRecvError::Empty) => return true,
                    Err(flume::TryRecvError::Disconnected) => {
                        self.stopping = true;
                        return true;
                    }
                },
            };
            match command {
                Command::Stop => self.stopping = true,
                Command::Submit(submission) => self.accept(*submission),
            }
        }
    }

    fn accept(&mut self, submission: Submission) {
        let Submission { id, arrival, events, request } = submission;
        let timeout_seconds = request.timeout.as_secs();
        let deadline = arrival.checked_add(request.timeout);
        let usage = Usage { prompt_tokens: request.prompt.len(), ..Usage::default() };
        let priority = request.priority;
        let denoises = request.decoding.is_some();
        // Only causal requests keep keys and values; exact denoising reads its canvas anew.
        let pages = if denoises { 0 } else { FreePages::needed(request.total_len()) };
        let generation: Box<dyn Generation> = match request.decoding.clone() {
            Some((config, mask_id)) => Box::new(Denoising::new(request, config, mask_id)),
            None => Box::new(Autoregressive::new(request)),
        };
        self.scheduler.enqueue(id, priority, pages);
        let active = Active { generation, events, deadline, timeout_seconds, usage, denoises };
        self.active.insert(id, active);
    }

    fn drop_cancelled_and_late(&mut self) {
        let now = Instant::now();
        let waiting_before = self.scheduler.waiting();
        let gone = |a: &Active| a.events.is_disconnected() || a.deadline.is_some_and(|d| d <= now);
        let ids: Vec<u64> =
            self.active.iter().filter(|(_, a)| gone(a)).map(|(id, _)| *id).collect();
        for id in ids {
            let seconds = self.active.get(&id).map_or(0, |a| a.timeout_seconds);
            self.fail(id, EngineError::Timeout { seconds });
        }
        self.stats.queued.fetch_sub(waiting_before - self.scheduler.waiting(), Relaxed);
    }

    /// One forward pass over what the running requests want.
    fn step(&mut self) {
        let plans = self.plan();
        if plans.is_empty() {
            return;
        }
        let planned: Vec<Planned<'_>> = plans
            .iter()
            .map(|(id, plan)| Planned { plan, pages: self.scheduler.pages_of(*id) })
            .collect();
        // The pool may hold half-written pages of this step's requests after a panic; they fail,
        // and whoever gets those pages next writes them before reading.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.runner.step(&planned)));
        drop(planned);
        self.scheduler.served(&plans.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        match outcome {
            Ok(Ok(scores)) => {
                self.failed_in_a_row = 0;
                self.count(&plans);
                for ((id, plan), scores) in plans.iter().zip(scores) {
                    self.settle(*id, plan, &scores);
                }
            }
            Ok(Err(error)) => self.fail_step(&plans, &error.to_string()),
            Err(_) => self.fail_step(&plans, "panic"),
        }
    }

    fn plan(&mut self) -> Vec<(u64, StepPlan)> {
        let active = &mut self.active;
        let order =
            self.scheduler.order(|id| active.get(&id).is_some_and(|a| a.generation.is_decoding()));
        let mut left = self.config.max_num_batched_tokens;
        let mut plans = Vec::new();
        for id in order {
            let Some(request) = active.get_mut(&id) else { continue };
            // A canvas is never cut: the first of a step may exceed the budget alone.
            let alone = plans.is_empty() && request.generation.is_decoding();
            let budget = if alone { usize::MAX } else { left };
            if let Some(plan) = request.generation.plan(budget) {
                left = left.saturating_sub(plan.rows());
                plans.push((id, plan));
            }
        }
        plans
    }

    fn settle(&mut self, id: u64, plan: &StepPlan, scores: &[RowScore]) {
        if scores.iter().any(|s| !s.finite) {
            self.stats.numerical_errors.fetch_add(1, Relaxed);
            return self.fail(id, EngineError::Numerical);
        }
        let Some(active) = self.active.get_mut(&id) else { return };
        active.generation.settle(plan, scores);
        let tokens = active.generation.take_settled();
        active.usage.completion_tokens += tokens.len();
        active.usage.forwards = active.generation.forwards();
        if active.denoises {
            self.stats.committed_tokens.fetch_add(tokens.len() as u64, Relaxed);
        }
        // The channel holds every event a request can have; an error means nobody listens.
        if !tokens.is_empty() {
            let (forwards, trace) = (active.usage.forwards, active.generation.take_trace());
            let _ = active.events.try_send(Event::Settled { tokens, forwards, trace });
        }
        if let Some(reason) = active.generation.finish() {
            let trace = active.generation.take_trace();
            let _ = active.events.try_send(Event::Finished { reason, usage: active.usage, trace });
            self.forget(id);
        }
    }

    fn fail_step(&mut self, plans: &[(u64, StepPlan)], reason: &str) {
        tracing::error!(requests = plans.len(), reason, "a step failed");
        self.stats.failed_steps.fetch_add(1, Relaxed);
        self.failed_in_a_row += 1;
        for (id, _) in plans {
            self.fail(*id, EngineError::StepFailed);
        }
        if self.failed_in_a_row >= MAX_FAILED_STEPS {
            tracing::error!("giving up after {MAX_FAILED_STEPS} failed steps in a row");
            self.stats.set_state(EngineState::Failed);
        }
    }

    fn fail(&mut self, id: u64, error: EngineError) {
        if let Some(active) = self.active.get(&id) {
            let _ = active.events.try_send(Event::Failed(error));
        }
        self.forget(id);
    }

    fn forget(&mut self, id: u64) {
        self.active.remove(&id);
        self.scheduler.remove(id);
    }

    fn count(&self, plans: &[(u64, StepPlan)]) {
        self.stats.steps.fetch_add(1, Relaxed);
        for (id, plan) in plans {
            self.stats.rows.fetch_add(plan.rows() as u64, Relaxed);
            if self.active.get(id).is_some_and(|a| a.denoises) {
                self.stats.denoising_passes.fetch_add(1, Relaxed);
                self.stats.canvas_positions.fetch_add(plan.rows() as u64, Relaxed);
            }
        }
    }

    fn publish(&self) {
        self.stats.running.store(self.scheduler.running(), Relaxed);
        self.stats.kv_usage_ppm.store((self.scheduler.kv_usage() * 1e6) as u64, Relaxed);
    }
}
