//! OpenAI's wire types and endpoints.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod conversation;
mod echo;
mod frames;
pub(crate) mod models;
pub(crate) mod respond;
pub(crate) mod streaming;
pub(crate) mod types;
pub(crate) mod unique;
