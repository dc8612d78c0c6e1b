//! The API: HTTP in, requests to the engine, text out. No tensors, no decoding.
//!
//! [`app`] is the whole server as a router over an [`AppState`]; `cli` holds the commands. Wire
//! types live in `openai` and nowhere else; `convert.rs` turns them into valid engine requests and
//! answers every unknown or unsupported field. Other APIs (`responses`, `anthropic`, `infill_api`)
//! translate their requests to these and write answers in their own shapes (`translated.rs`).

mod access;
mod anthropic;
mod app;
mod auth;
mod body;
mod choices;
pub mod cli;
mod convert;
mod diffusion;
mod error;
mod fields;
mod foreign;
mod generation;
mod gpu;
mod health;
mod hub;
mod infill;
mod infill_api;
mod logprobs;
mod metrics;
mod net;
mod openai;
mod openapi;
mod prompting;
mod rate;
mod requests;
mod responses;
mod served;
mod shutdown;
mod structured;
mod tokenize;
mod tools;
mod translated;
mod words;

pub use access::Access;
pub use app::{AppState, app};
pub use body::BodyError;
pub use error::ApiError;
pub use net::{Connections, Tls, TlsError, bind, serve_connections};
pub use served::{ServeOptions, ServedModel};
