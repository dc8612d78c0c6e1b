//! The API: HTTP in, requests to the engine, text out. No tensors, no decoding.
//!
//! [`app`] is the whole server as a router over an [`AppState`]; `cli` holds the commands. Wire
//! types live in `openai` and nowhere else; `convert.rs` turns them into valid engine requests and
//! answers every unknown or unsupported field.

mod access;
mod app;
mod auth;
mod body;
pub mod cli;
mod convert;
mod diffusion;
mod error;
mod generation;
mod health;
mod infill;
mod logprobs;
mod metrics;
mod net;
mod openai;
mod rate;
mod requests;
mod served;
mod shutdown;

pub use access::Access;
pub use app::{AppState, app};
pub use body::BodyError;
pub use error::ApiError;
pub use net::{Connections, Tls, TlsError, bind, serve_connections};
pub use served::{ServeOptions, ServedModel};
