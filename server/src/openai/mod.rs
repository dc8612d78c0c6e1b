//! OpenAI's wire types and endpoints.

pub(crate) mod chat;
pub(crate) mod completions;
mod echo;
pub(crate) mod models;
pub(crate) mod respond;
pub(crate) mod types;
mod unique;
