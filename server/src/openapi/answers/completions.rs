//! Answers of `/v1/completions`.

use std::collections::BTreeMap;

use utoipa::ToSchema;

use super::common::{FinishReason, Measured, TraceStep, Usage};

/// An estimate of how likely a text is.
#[derive(ToSchema)]
struct LikelihoodEstimate {
    /// Its log-probability.
    total: f64,
    /// The estimate's standard error; null for a single sample.
    #[schema(required)]
    standard_error: Option<f64>,
    /// Samples taken.
    samples: u64,
}

#[derive(ToSchema)]
enum CompletionObject {
    #[schema(rename = "text_completion")]
    Completion,
}

/// Answer of `/v1/completions`; with `stream` each event has one.
#[derive(ToSchema)]
pub(crate) struct Completion {
    /// Name of the answer, by which it can be cancelled.
    id: String,
    #[schema(inline)]
    object: CompletionObject,
    /// Unix time.
    created: u64,
    /// The first name of the model.
    model: String,
    choices: Vec<CompletionChoice>,
    /// Absent or null in chunks, unless asked for by `stream_options`.
    usage: Option<Usage>,
}

/// One text.
#[derive(ToSchema)]
struct CompletionChoice {
    /// Its number: those of the first prompt come first.
    index: u64,
    /// The text, or its continuation in a stream.
    text: String,
    #[schema(required)]
    logprobs: Option<CompletionLogprobs>,
    #[schema(required)]
    finish_reason: Option<FinishReason>,
    /// With `return_token_ids`.
    #[schema(nullable = false)]
    token_ids: Option<Vec<u64>>,
    /// With `diffusion.infill`: what was filled in.
    #[schema(nullable = false)]
    gaps: Option<Vec<String>>,
    /// With `diffusion.trace`.
    #[schema(nullable = false)]
    trace: Option<Vec<TraceStep>>,
    /// With `diffusion.progress`: position, token id, text, confidence, and `tentative`, `committed`
    /// or `remasked`.
    #[schema(nullable = false, value_type = Option<Vec<Vec<serde_json::Value>>>)]
    denoising: Option<()>,
    /// With `diffusion.likelihood`.
    #[schema(nullable = false)]
    likelihood: Option<LikelihoodEstimate>,
}

/// Log-probabilities, token by token; the first token of a prompt has none.
#[derive(ToSchema)]
struct CompletionLogprobs {
    /// Texts of the tokens.
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    /// Most probable tokens by their text, the token itself among them.
    top_logprobs: Vec<Option<BTreeMap<String, f64>>>,
    /// Characters of the text before each token.
    text_offset: Vec<u64>,
    /// Of diffusion models.
    #[schema(nullable = false)]
    measured: Option<Measured>,
}
