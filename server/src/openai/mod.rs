//! OpenAI's wire types and endpoints.

pub(crate) mod chat;
pub(crate) mod completions;
mod echo;
mod frames;
pub(crate) mod models;
pub(crate) mod respond;
mod streaming;
pub(crate) mod types;
mod unique;
