//! What an engine says about itself, readable at any time without stopping it.

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What an engine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineState {
    /// Taking requests.
    Ready,
    /// Finishing what runs, taking nothing.
    Draining,
    /// It cannot go on.
    Failed,
}

/// Numbers that only grow: declared once, for the engine's thread and for readers.
macro_rules! totals {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
        }

        /// Totals since the start.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Totals {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            fn totals(&self) -> Totals {
                Totals { $($name: self.$name.load(Relaxed),)* }
            }
        }

        impl std::ops::Sub for Totals {
            type Output = Self;

            fn sub(self, earlier: Self) -> Self {
                Self { $($name: self.$name.saturating_sub(earlier.$name),)* }
            }
        }
    };
}

totals! {
    /// Forward passes.
    steps,
    /// Requests served, summed over passes.
    sequences,
    /// Token rows fed.
    rows,
    /// Rows the head was computed for.
    head_rows,
    /// Predictions compared with exact ones.
    audited_positions,
    /// Those with the same most probable token.
    audited_agreeing,
    /// Passes of denoising requests, counted per request.
    denoising_passes,
    /// Canvas positions those passes read.
    canvas_positions,
    /// Tokens those passes settled.
    committed_tokens,
    /// Steps that failed.
    failed_steps,
    /// Requests that met NaN or infinity.
    numerical_errors,
    /// Requests that gave their pages back to others and started again.
    preemptions,
    /// Prompt tokens looked up among known pages.
    prefix_queries,
    /// Prompt tokens found there.
    prefix_hits,
    /// Drafted tokens verified.
    draft_tokens,
    /// Drafted tokens that were right.
    accepted_tokens,
    /// Passes that verified a draft, counted per request.
    drafts,
    /// Nanoseconds in the model.
    model_ns,
    /// Nanoseconds scoring rows.
    scoring_ns,
    /// Nanoseconds planning, settling and sending.
    scheduling_ns,
    /// Nanoseconds without a request.
    idle_ns,
}

/// Counters and gauges of a running engine.
#[derive(Debug)]
pub struct EngineStats {
    state: AtomicU8,
    /// Requests submitted and never admitted yet.
    pub(crate) queued: AtomicUsize,
    /// Requests that lost their seat and wait for another.
    pub(crate) preempted: AtomicUsize,
    pub(crate) running: AtomicUsize,
    /// Parts per million.
    pub(crate) kv_usage_ppm: AtomicU64,
    pub(crate) counters: Counters,
    started: Instant,
    /// Milliseconds from the start to the thread's last sign of life while it has work.
    alive_at: AtomicU64,
}

/// No sign of life is due: there is no work.
const AT_REST: u64 = u64::MAX;

/// The numbers of one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StatsSnapshot {
    /// What the engine is doing.
    pub state: EngineState,
    /// Requests waiting for a seat.
    pub queued: usize,
    /// Requests being decoded.
    pub running: usize,
    /// Share of the key/value pages in use.
    pub kv_usage: f64,
    /// Totals since the start.
    pub totals: Totals,
    /// How long the thread has had work and shown no sign of life.
    pub silent_for: Duration,
}

impl Default for EngineStats {
    fn default() -> Self {
        Self {
            state: AtomicU8::new(0),
            queued: AtomicUsize::new(0),
            preempted: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            kv_usage_ppm: AtomicU64::new(0),
            counters: Counters::default(),
            started: Instant::now(),
            alive_at: AtomicU64::new(AT_REST),
        }
    }
}

impl EngineStats {
    pub(crate) fn set_state(&self, state: EngineState) {
        // A failed engine stays failed.
        if self.state() != EngineState::Failed {
            self.state.store(state as u8, Relaxed);
        }
    }

    /// What the engine is doing.
    #[must_use]
    pub fn state(&self) -> EngineState {
        match self.state.load(Relaxed) {
            0 => EngineState::Ready,
            1 => EngineState::Draining,
            _ => EngineState::Failed,
        }
    }

    /// A sign of life: steps begin, layers pass.
    pub(crate) fn beat(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(AT_REST);
        self.alive_at.store(now, Relaxed);
    }

    /// There is no work: silence means nothing.
    pub(crate) fn rest(&self) {
        self.alive_at.store(AT_REST, Relaxed);
    }

    /// All numbers.
    #[must_use]
    pub fn snapshot(&self) -> StatsSnapshot {
        let silent_for = match self.alive_at.load(Relaxed) {
            AT_REST => Duration::ZERO,
            alive_at => self.started.elapsed().saturating_sub(Duration::from_millis(alive_at)),
        };
        StatsSnapshot {
            state: self.state(),
            queued: self.queued.load(Relaxed) + self.preempted.load(Relaxed),
            running: self.running.load(Relaxed),
            kv_usage: self.kv_usage_ppm.load(Relaxed) as f64 / 1e6,
            totals: self.counters.totals(),
            silent_for,
        }
    }
}
