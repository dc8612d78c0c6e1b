//! Which tokens, when.
//!
//! One thread owns model, cache and scheduler and runs steps back to back: plan what every running
//! request wants next, one forward pass over all of it, score the rows asked for, let each request
//! settle its tokens. [`Engine::start`] returns an [`EngineHandle`]; [`EngineHandle::submit`]
//! gives a [`Running`] request whose events arrive on a bounded channel, and dropping it cancels.
//!
//! Decisions are plain data: only `runner.rs` touches tensors. Absent on purpose: HTTP, JSON,
//! model families, devices.

mod autoregressive;
mod batch;
pub mod decoding;
mod denoising;
mod error;
mod guided;
mod handle;
mod output;
mod pacing;
mod pages;
mod plan;
mod request;
mod runner;
mod scheduler;
mod scoring;
#[cfg(test)]
mod simulation;
mod speculation;
mod stats;
mod worker;

pub use error::{EngineError, RequestError, StartError, SubmitError};
pub use handle::{Cancel, Engine, EngineConfig, EngineHandle, Event, Running, Verifier};
pub use output::{
    Audit, Change, ChangeKind, FinishReason, Likelihood, LikelihoodSample, PromptScores,
    SettledToken, TextAssembler, TraceStep, Usage,
};
pub use request::{
    GenerationRequest, InfillPart, MAX_DRAFT, MAX_SAMPLES, ModelLimits, Patterns, PenaltyScales,
    RequestParams, Sampling, Task,
};
pub use stats::{EngineState, EngineStats, StatsSnapshot, Totals};
