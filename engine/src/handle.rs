//! Starting an engine and talking to it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use dfastllm_models::{DType, Device, KvPool, LanguageModel, PAGE_SIZE};

use crate::runner::{Runner, Seat};
use crate::stats::{EngineState, EngineStats};
use crate::worker::Worker;
use crate::{
    Change, EngineError, FinishReason, GenerationRequest, PromptScores, SettledToken, StartError,
    SubmitError, TraceStep, Usage,
};

/// Sizes of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// Run passes of all sizes before the first request, where kernels are compiled when they first
    /// run, and record decode steps where the device does.
    pub warm_up: bool,
    /// Requests decoded at the same time.
    pub max_num_seqs: usize,
    /// Token rows of one pass.
    pub max_num_batched_tokens: usize,
    /// Requests that may wait.
    pub max_queue: usize,
    /// Positions the key/value pool holds.
    pub kv_cache_tokens: usize,
}

/// Changes of the canvas that may wait for a reader who is slow, in events.
const WAITING_CHANGES: usize = 64;

/// A causal model that verifies drafts. Its tokens have to be those of the model that answers.
pub struct Verifier {
    /// The model.
    pub model: Box<dyn LanguageModel>,
    /// Float type of its keys and values.
    pub kv_dtype: DType,
}

/// What happens to a running request, in order; nothing comes after `Finished` or `Failed`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Tokens joined the settled prefix, or positions changed for someone who watches.
    Settled {
        /// The new tokens.
        tokens: Vec<SettledToken>,
        /// Positions that changed, if asked for.
        changes: Vec<Change>,
        /// What it took so far.
        usage: Usage,
        /// Commits since the last event, step by step, if asked for.
        trace: Vec<TraceStep>,
    },
    /// How likely the given text is; comes right before the end.
    Scored(PromptScores),
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

/// A submitted request. Dropping the receiver cancels the request at the next step.
#[derive(Debug)]
pub struct Running {
    /// What happens to it. Bounded by the request's own length.
    pub events: flume::Receiver<Event>,
    /// Ends it from elsewhere.
    pub cancel: Cancel,
}

/// Ends a request at the next step; its reader is told.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks for the end.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A request on its way to the thread.
#[derive(Debug)]
pub(crate) struct Submission {
    /// Grows with arrival.
    pub(crate) id: u64,
    /// An earlier request with the same prompt, which reads it for both.
    pub(crate) leader: Option<u64>,
    pub(crate) events: flume::Sender<Event>,
    pub(crate) cancel: Cancel,
    pub(crate) request: GenerationRequest,
}

impl Submission {
    /// Whether an event of changes alone leaves room for all that is certain to come.
    pub(crate) fn has_room(events: &flume::Sender<Event>) -> bool {
        events.len() < WAITING_CHANGES
    }
}

#[derive(Debug)]
pub(crate) enum Command {
    Submit(Vec<Submission>),
    Stop,
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
        Self::start_with(model, kv_dtype, None, device, config)
    }

    /// The same with a causal model that verifies drafts. It has as many pages.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start_with(
        model: Box<dyn LanguageModel>,
        kv_dtype: DType,
        verifier: Option<Verifier>,
        device: &Device,
        config: EngineConfig,
    ) -> Result<Self, StartError> {
        let pages = config.kv_cache_tokens.div_ceil(PAGE_SIZE);
        // One place for every request that may wait, and one for the order to stop.
        let (commands, inbox) = flume::bounded(config.max_queue + 1);
        let stats = Arc::new(EngineStats::default());
        let seat = |model: Box<dyn LanguageModel>, dtype| {
            let pool = KvPool::new(model.shape().kv_shape(pages, PAGE_SIZE), dtype, device);
            Seat::new(model, pool)
        };
        let try_out = || {
            let verifier = verifier.map(|v| seat(v.model, v.kv_dtype));
            let mut runner = Runner::new(seat(model, kv_dtype), verifier);
            let makes_sense = runner.makes_sense();
            if makes_sense && config.warm_up {
                runner.warm_up(config.max_num_batched_tokens, config.max_num_seqs);
            }
            makes_sense.then_some(runner)
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
    /// As [`EngineHandle::submit_choices`].
    pub fn submit(&self, request: GenerationRequest) -> Result<Running, SubmitError> {
        self.submit_choices(vec![request])?.pop().ok_or(SubmitError::Failed)
    }

    /// Queues all requests or none. They should have the same prompt: a causal model reads it once
    /// for all of them.
    ///
    /// # Errors
    /// When the queue has no room, a request no chance of enough pages, or the engine takes no more
    /// requests.
    pub fn submit_choices(
        &self,
        requests: Vec<GenerationRequest>,
    ) -> Result<Vec<Running>, SubmitError> {
        match self.stats.state() {
            EngineState::Ready => {}
            EngineState::Draining => return Err(SubmitError::ShuttingDown),
            EngineState::Failed => return Err(SubmitError::Failed),
        }
        let (count, capacity) = (requests.len(), self.config.max_queue);
        let positions = self.config.kv_cache_tokens.next_multiple_of(PAGE_SIZE);
        let mut needs = requests.iter().map(GenerationRequest::kept_positions);
        if let Some(needed) = needs.find(|&needed| needed > positions) {
            return Err(SubmitError::TooLong { needed, positions });
        }
        self.stats
            .queued
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n + count <= capacity).then_some(n + count)
            })
            .map_err(|_| SubmitError::QueueFull { capacity })?;
        let first_id = self.next_id.fetch_add(count as u64, Ordering::Relaxed);
        let first_prompt = requests.first().map(|r| r.prompt.clone()).unwrap_or_default();
        let (submissions, running) = (first_id..)
            .zip(requests)
            .map(|(id, request)| {
                // At most one event a token and two at the end: the engine never blocks on a slow
                // reader. Changes of the canvas wait where there is no room.
                let watched = if request.progress { WAITING_CHANGES } else { 0 };
                let (sender, events) = flume::bounded(request.max_tokens + 2 + watched);
                let follows = id > first_id && request.prompt == first_prompt;
                let (cancel, leader) = (Cancel::default(), follows.then_some(first_id));
                let submitted = cancel.clone();
                (
                    Submission { id, leader, events: sender, cancel: submitted, request },
                    Running { events, cancel },
                )
            })
            .unzip();
        if self.commands.try_send(Command::Submit(submissions)).is_err() {
            self.stats.queued.fetch_sub(count, Ordering::Relaxed);
            return Err(SubmitError::Failed);
        }
        Ok(running)
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
