//! What answers of several APIs hold.

use utoipa::ToSchema;

/// What an answer took.
#[derive(ToSchema)]
pub(crate) struct Usage {
    /// Tokens of all prompts.
    prompt_tokens: u64,
    /// Tokens of all choices, end tokens included.
    completion_tokens: u64,
    /// Both.
    total_tokens: u64,
    prompt_tokens_details: PromptTokens,
    /// Forward passes of the model.
    forwards: u64,
    /// Tokens of the answer for each of them.
    tokens_per_forward: f64,
    /// Passes that computed every key and value again.
    cache_refreshes: u64,
    /// Forward passes of the verifier, where there is one.
    #[schema(nullable = false)]
    draft_model_forwards: Option<u64>,
    /// With `--audit`.
    #[schema(nullable = false)]
    audit: Option<Audit>,
}

/// Where prompt tokens came from.
#[derive(ToSchema)]
struct PromptTokens {
    /// Tokens whose keys and values were known.
    cached_tokens: u64,
}

/// How predictions from reused keys and values compare with exact ones.
#[derive(ToSchema)]
pub(crate) struct Audit {
    /// Positions compared.
    positions: u64,
    /// Share of them where the same token is most probable.
    agreement: f64,
    /// Mean difference of probabilities.
    mean_drift: f64,
    /// Largest difference.
    max_drift: f64,
}

/// Why a choice ended: an end token or stop text, or its length.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum FinishReason {
    Stop,
    Length,
}

/// The pass a diffusion model's log-probabilities are of.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum Measured {
    AtCommit,
}

/// One forward pass that changed something; positions count from the first generated one.
#[derive(ToSchema)]
pub(crate) struct TraceStep {
    /// Number of the pass, from 1.
    step: u64,
    /// Positions and their token ids.
    committed: Vec<(u64, u64)>,
    /// Positions opened again.
    remasked: Vec<u64>,
    /// With `--audit`.
    #[schema(nullable = false)]
    audit: Option<Audit>,
}
