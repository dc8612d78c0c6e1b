//! What the suites share: fixtures, golden records, tolerances.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a missing fixture is a failed test")]

pub mod engine;
pub mod fixtures;
pub mod golden;
pub mod http;
pub mod raw;
pub mod scores;
pub mod tape;
