//! What answers hold. They are written field by field (`openai/respond.rs`, and `answer.rs` of each
//! other API); a suite holds every real answer against these types and meets no field they lack.
#![expect(dead_code, reason = "read by the schema generator, not by code")]

mod chats;
mod common;
mod completions;
mod errors;
mod infill;
mod messages;
mod responses;
mod tokens;

pub(crate) use chats::{ChatChunk, ChatCompletion};
pub(crate) use completions::Completion;
pub(crate) use errors::ErrorBody;
pub(crate) use infill::{InfillAnswer, InfillEvent};
pub(crate) use messages::{CountedTokens, MessageEvent, MessageObject, MessagesError};
pub(crate) use responses::{ResponseEvent, ResponseObject};
pub(crate) use tokens::{Detokenized, Tokenized, TokenizerInfo};
