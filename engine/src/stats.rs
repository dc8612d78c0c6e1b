//! What an engine says about itself, readable at any time without stopping it.

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};

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

/// Counters and gauges of a running engine.
#[derive(Debug, Default)]
pub struct EngineStats {
    state: AtomicU8,
    /// Requests submitted and not yet admitted.
    pub(crate) queued: AtomicUsize,
    pub(crate) running: AtomicUsize,
    /// Parts per million.
    pub(crate) kv_usage_ppm: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) rows: AtomicU64,
    pub(crate) denoising_passes: AtomicU64,
    pub(crate) canvas_positions: AtomicU64,
    pub(crate) committed_tokens: AtomicU64,
    pub(crate) failed_steps: AtomicU64,
    pub(crate) numerical_errors: AtomicU64,
}

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
    /// Forward passes.
    pub steps: u64,
    /// Token rows fed.
    pub rows: u64,
    /// Passes of denoising requests, counted per request.
    pub denoising_passes: u64,
    /// Canvas positions those passes read.
    pub canvas_positions: u64,
    /// Tokens those passes settled.
    pub committed_tokens: u64,
    /// Steps that failed.
    pub failed_steps: u64,
    /// Requests that met NaN or infinity.
    pub numerical_errors: u64,
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

    /// All numbers.
    #[must_use]
    pub fn snapshot(&self) -> StatsSnapshot {
        StatsSnapshot {
            state: self.state(),
            queued: self.queued.load(Relaxed),
            running: self.running.load(Relaxed),
            kv_usage: self.kv_usage_ppm.load(Relaxed) as f64 / 1e6,
            steps: self.steps.load(Relaxed),
            rows: self.rows.load(Relaxed),
            denoising_passes: self.denoising_passes.load(Relaxed),
            canvas_positions: self.canvas_positions.load(Relaxed),
            committed_tokens: self.committed_tokens.load(Relaxed),
            failed_steps: self.failed_steps.load(Relaxed),
            numerical_errors: self.numerical_errors.load(Relaxed),
        }
    }
}
