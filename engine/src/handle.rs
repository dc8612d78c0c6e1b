//! Starting an engine and talking to it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use dfastllm_models::{DType, Device, KvPool, LanguageModel, PAGE_SIZE};

use crate::runner::Runner;
use crate::stats::{EngineState, EngineStats};
use crate::worker::{Command, Submission, Worker};
use crate::{
    EngineError, FinishReason, GenerationRequest, SettledToken, StartError, SubmitError, TraceStep,
    Usage,
};

/// Sizes of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// Requests decoded at the same time.
    pub max_num_seqs: usize,
    /// Token rows of one pass.
    pub max_num_batched_tokens: usize,
    /// Requests that may wait.
    pub max_queue: usize,
    /// Positions the key/value pool holds.
    pub kv_cache_tokens: usize,
}

/// What happens to a running request, in order; nothing comes after `Finished` or `Failed`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Tokens joined the settled prefix.
    Settled {
        /// The new tokens.
        tokens: Vec<SettledToken>,
        /// Passes used so far.
        forwards: usize,
        /// Commits since the last event, step by step, if asked for.
        trace: Vec<TraceStep>,
    },
    /// The request is done.
    Finished {
        /// Why.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
        /// Commits since the last event, step by step, if asked for.
        trace: Vec<TraceStep>,
    },
    /// The request ended without an answer.
    Failed(EngineError),
}

/// A submitted request. Dropping it cancels the request at the next step.
#[derive(Debug)]
pub struct Running {
    /// What happens to it. Bounded by the request's own length.
    pub events: flume::Receiver<Event>,
}

/// Talks to an engine. Cheap to clone; the engine stops when the last handle is gone.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    commands: flume::Sender<Command>,
    stats: Arc<EngineStats>,
    config: EngineConfig,
    next_id: Arc<AtomicU64>,
}

/// A running engine thread.
#[derive(Debug)]
pub struct Engine {
    handle: EngineHandle,
    thread: JoinHandle<()>,
}

impl Engine {
    /// Allocates the key/value pool, tries a first pass and starts the engine thread.
    ///
    /// # Errors
    /// When the first pass does not work or the operating system refuses the thread.
    pub fn start(
        model: Box<dyn LanguageModel>,
        kv_dtype: DType,
        device: &Device,
        config: EngineConfig,
    ) -> Result<Self, StartError> {
        let pages = config.kv_cache_tokens.div_ceil(PAGE_SIZE);
        // One place for every request that may wait, and one for the order to stop.
        let (commands, inbox) = flume::bounded(config.max_queue + 1);
        let stats = Arc::new(EngineStats::default());
        let try_out = || {
            let pool = KvPool::new(model.shape().kv_shape(pages, PAGE_SIZE), kv_dtype, device);
            let mut runner = Runner::new(model, pool);
            runner.makes_sense().then_some(runner)
        };
        let runner = catch_unwind(AssertUnwindSafe(try_out)).ok().flatten();
        let runner = runner.ok_or(StartError::Device)?;
        let worker = Worker::new(runner, inbox, stats.clone(), config);
        let thread =
            std::thread::Builder::new().name("engine".to_owned()).spawn(|| worker.run())?;
        let next_id = Arc::new(AtomicU64::new(1));
        Ok(Self { handle: EngineHandle { commands, stats, config, next_id }, thread })
    }

    /// A handle to submit with.
    #[must_use]
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }

    /// Refuses new requests, waits until all running ones are done, and stops the thread.
    pub fn shut_down(self) {
        self.handle.stats.set_state(EngineState::Draining);
        // The thread may be gone already; then there is nothing to tell it.
        let _ = self.handle.commands.send(Command::Stop);
        drop(self.handle);
        if self.thread.join().is_err() {
            tracing::error!("the engine thread panicked");
        }
    }
}

impl EngineHandle {
    /// Queues a request.
    ///
    /// # Errors
    /// When the queue is full or the engine takes no more requests.
    pub fn submit(&self, request: GenerationRequest) -> Result<Running, SubmitError> {
        match self.stats.state() {
            EngineState::Ready => {}
            EngineState::Draining => return Err(SubmitError::ShuttingDown),
            EngineState::Failed => return Err(SubmitError::Failed),
        }
        let capacity = self.config.max_queue;
        self.stats
            .queued
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < capacity).then_some(n + 1))
            .map_err(|_| SubmitError::QueueFull { capacity })?;
        // At most one event a token and a final one: the engine never blocks on a slow reader.
        let (sender, events) = flume::bounded(request.max_tokens + 1);
        let submission = Submission {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            arrival: Instant::now(),
            events: sender,
            request,
        };
        if self.commands.try_send(Command::Submit(Box::new(submission))).is_err() {
            self.stats.queued.fetch_sub(1, Ordering::Relaxed);
            return Err(SubmitError::Failed);
        }
        Ok(Running { events })
    }

    /// Refuses new requests from now on; what runs goes on.
    pub fn drain(&self) {
        self.stats.set_state(EngineState::Draining);
    }

    /// Counters and gauges.
    #[must_use]
    pub fn stats(&self) -> &EngineStats {
        &self.stats
    }

    /// Sizes of the engine.
    #[must_use]
    pub fn config(&self) -> EngineConfig {
        self.config
    }
}
