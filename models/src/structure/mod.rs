//! Answers with a form: JSON, a JSON schema, a regular expression, a choice or a grammar.
//!
//! A [`StructureCompiler`] is made once per model from its tokenizer; it turns a [`Structure`] into
//! a [`Guide`], which says at every token which ones may come next. The automata are those of
//! `llguidance` (Earley over derivatives of regular expressions); here is what goes in, what comes
//! out and what is refused. Absent on purpose: logits, sampling, wire formats.

mod bounded;
mod bytes;
mod closed;
mod compiler;
mod disjoint;
mod error;
mod finite;
mod guide;
mod lark;
mod limits;
mod regex;
mod schema;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use compiler::StructureCompiler;
pub use dfastllm_backends::ops::TokenSet;
pub use error::StructureError;
pub use guide::Guide;

/// A form that answers have to have.
#[derive(Debug, Clone, PartialEq)]
pub enum Structure {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema (2020-12) accepts.
    JsonSchema(serde_json::Value),
    /// Text that a regular expression matches from start to end.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text of a context-free grammar in Lark's notation, from its rule `start`.
    Lark(String),
}
