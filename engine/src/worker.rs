//! The engine thread: takes requests, runs steps back to back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::batch::{Batch, Step};
use crate::handle::Command;
use crate::runner::{Planned, Runner};
use crate::stats::{EngineState, EngineStats};
use crate::{EngineConfig, EngineError};

/// Failed steps in a row after which the device is given up.
const MAX_FAILED_STEPS: u32 = 3;

pub(crate) struct Worker {
    runner: Runner,
    inbox: flume::Receiver<Command>,
    stats: Arc<EngineStats>,
    batch: Batch,
    stopping: bool,
    failed_in_a_row: u32,
}

/// However the thread ends, nothing waits any more; unless it was told to stop, it has failed.
impl Drop for Worker {
    fn drop(&mut self) {
        if !self.stopping {
            self.stats.set_state(EngineState::Failed);
        }
        self.stats.rest();
        self.stats.queued.store(0, Relaxed);
        self.stats.preempted.store(0, Relaxed);
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
        let batch = Batch::new(config, stats.clone());
        Self { runner, inbox, stats, batch, stopping: false, failed_in_a_row: 0 }
    }

    /// Until told to stop and idle, or until every handle is gone, or the device is given up.
    pub(crate) fn run(mut self) {
        while self.receive() && self.stats.state() != EngineState::Failed {
            let begun = Instant::now();
            self.stats.beat();
            self.batch.sweep(begun);
            let step = self.batch.plan();
            let in_device = if step.plans.is_empty() { Duration::ZERO } else { self.step(&step) };
            self.batch.publish();
            let elapsed = begun.elapsed();
            add(&self.stats.counters.scheduling_ns, elapsed.saturating_sub(in_device));
        }
        self.batch.fail_all(&EngineError::Stopped);
    }

    /// Takes what has been sent; waits for something if there is nothing to do. False at the end.
    fn receive(&mut self) -> bool {
        loop {
            let idle = self.batch.is_idle();
            if idle && self.stopping {
                return false;
            }
            let command = match idle {
                true => match self.wait() {
                    Some(command) => command,
                    None => return false,
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
                Command::Submit(submissions) => {
                    submissions.into_iter().for_each(|s| self.batch.accept(s));
                }
            }
        }
    }

    /// The next command, however long it takes; `None` if there will be none.
    fn wait(&self) -> Option<Command> {
        self.stats.rest();
        let begun = Instant::now();
        let command = self.inbox.recv().ok();
        add(&self.stats.counters.idle_ns, begun.elapsed());
        command
    }

    /// One forward pass; returns how long model and scoring took.
    fn step(&mut self, step: &Step) -> Duration {
        let planned: Vec<Planned<'_>> = step
            .plans
            .iter()
            .map(|(id, plan)| Planned { plan, pages: self.batch.pages_of(*id) })
            .collect();
        // The pool may hold half-written pages of this step's requests after a panic; they fail,
        // and whoever gets those pages next writes them before reading.
        let alive = || self.stats.beat();
        let runner = &mut self.runner;
        let outcome =
            catch_unwind(AssertUnwindSafe(|| runner.step(&step.copies, &planned, &alive)));
        drop(planned);
        match outcome {
            Ok(Ok(computed)) => {
                self.failed_in_a_row = 0;
                add(&self.stats.counters.model_ns, computed.model);
                add(&self.stats.counters.scoring_ns, computed.scoring);
                let took = computed.model + computed.scoring;
                self.batch.settle(step, computed.scores, took);
                return took;
            }
            Ok(Err(error)) => self.fail_step(step, &error.to_string()),
            Err(_) => self.fail_step(step, "panic"),
        }
        Duration::ZERO
    }

    fn fail_step(&mut self, step: &Step, reason: &str) {
        tracing::error!(requests = step.plans.len(), reason, "a step failed");
        self.stats.counters.failed_steps.fetch_add(1, Relaxed);
        self.failed_in_a_row += 1;
        self.batch.fail_step(step);
        if self.failed_in_a_row >= MAX_FAILED_STEPS {
            tracing::error!("giving up after {MAX_FAILED_STEPS} failed steps in a row");
            self.stats.set_state(EngineState::Failed);
        }
    }
}

fn add(counter: &AtomicU64, time: Duration) {
    counter.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Relaxed);
}
