//! What requests may hold where the code reads a `Value` field by field.
//!
//! These types describe only; suites compare them with what is accepted.
#![expect(dead_code, reason = "read by the schema generator, not by code")]

mod chats;
mod diffusion;
mod infill;
mod messages;
mod responses;
mod shared;
mod structured;
mod tokens;
mod tools;

pub(crate) use chats::{Logprobs, Message, Prompt, Stop};
pub(crate) use diffusion::Diffusion;
pub(crate) use infill::InfillRequest;
pub(crate) use messages::{CountTokensRequest, MessagesRequest};
pub(crate) use responses::ResponsesRequest;
#[cfg(test)]
pub(crate) use shared::SharedFields;
pub(crate) use structured::{ResponseFormat, StructuredOutputs};
pub(crate) use tokens::{DetokenizeRequest, TokenizeRequest};
pub(crate) use tools::{Tool, ToolChoice};
