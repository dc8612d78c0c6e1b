//! The API: HTTP in, requests to the engine, text out. No tensors, no decoding.
//!
//! [`app`] is the whole server as a router over an [`AppState`]; `cli` holds the commands. Wire
//! types live in `openai` and nowhere else; `convert.rs` turns them into valid engine requests and
//! answers every unknown or unsupported field.

mod app;
mod auth;
pub mod cli;
mod convert;
mod diffusion;
mod error;
mod generation;
mod health;
mod infill;
mod logprobs;
mod metrics;
mod openai;
mod requests;
mod served;
mod shutdown;
#[allow(dead_code, reason = "requests are not asked for it yet")]
mod structured;
#[allow(dead_code, unused_imports, reason = "requests are not asked for them yet")]
mod tools;

pub use app::{AppState, app};
pub use error::ApiError;
pub use served::{ServeOptions, ServedModel};
