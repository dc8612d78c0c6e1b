//! Answers of `/v1/responses`.

use std::collections::BTreeMap;

use utoipa::ToSchema;

use super::chats::{AssistantRole, TokenLogprob};
use super::common::{Audit, Measured, TraceStep};

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum ResponseKind {
    Response,
}

/// Where a response stands: `incomplete` has ended at its length.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum ResponseStatus {
    InProgress,
    Completed,
    Incomplete,
    Failed,
}

/// Answer of `/v1/responses`.
#[derive(ToSchema)]
pub(crate) struct ResponseObject {
    /// Name of the answer, by which it can be cancelled.
    id: String,
    #[schema(inline)]
    object: ResponseKind,
    /// Unix time.
    created_at: u64,
    /// Unix time, once completed.
    #[schema(required)]
    completed_at: Option<u64>,
    status: ResponseStatus,
    /// Always false.
    background: bool,
    /// Why it failed.
    #[schema(required)]
    error: Option<ResponseError>,
    /// Why it is incomplete.
    #[schema(required)]
    incomplete_details: Option<IncompleteDetails>,
    /// What the request said.
    #[schema(required)]
    instructions: Option<String>,
    /// What the request said.
    #[schema(required)]
    max_output_tokens: Option<u64>,
    /// What the request said.
    metadata: BTreeMap<String, String>,
    /// The first name of the model.
    model: String,
    /// One message, once there is one.
    output: Vec<OutputMessage>,
    /// Always false.
    parallel_tool_calls: bool,
    /// Always null: nothing is stored.
    #[schema(required)]
    previous_response_id: Option<String>,
    reasoning: ResponseReasoning,
    /// Always `default`.
    service_tier: String,
    /// Always false.
    store: bool,
    /// What the request said.
    #[schema(required)]
    temperature: Option<f64>,
    text: ResponseTextOptions,
    /// Always `none`.
    tool_choice: String,
    /// Always empty.
    #[schema(max_items = 0)]
    tools: Vec<serde_json::Value>,
    /// What the request said.
    top_logprobs: u64,
    /// What the request said.
    #[schema(required)]
    top_p: Option<f64>,
    /// Always `disabled`.
    truncation: String,
    /// Null until the end.
    #[schema(required)]
    usage: Option<ResponseUsage>,
}

/// Why a response failed.
#[derive(ToSchema)]
struct ResponseError {
    /// Always `server_error`.
    code: String,
    /// What happened.
    message: String,
}

/// Why a response is incomplete.
#[derive(ToSchema)]
struct IncompleteDetails {
    /// Always `max_output_tokens`.
    reason: String,
}

/// The model does not think first.
#[derive(ToSchema)]
struct ResponseReasoning {
    /// Always null.
    #[schema(required)]
    effort: Option<String>,
    /// Always null.
    #[schema(required)]
    summary: Option<String>,
}

/// The form of the text.
#[derive(ToSchema)]
struct ResponseTextOptions {
    format: ResponseFormatName,
}

/// Any text.
#[derive(ToSchema)]
struct ResponseFormatName {
    /// Always `text`.
    r#type: String,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum OutputType {
    Message,
}

/// What the model says.
#[derive(ToSchema)]
pub(crate) struct OutputMessage {
    /// Its name, which events repeat.
    id: String,
    #[schema(inline)]
    r#type: OutputType,
    status: ResponseStatus,
    #[schema(inline)]
    role: AssistantRole,
    content: Vec<OutputText>,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum OutputTextType {
    OutputText,
}

/// The text of a message.
#[derive(ToSchema)]
pub(crate) struct OutputText {
    #[schema(inline)]
    r#type: OutputTextType,
    /// The text.
    text: String,
    /// Always empty.
    #[schema(max_items = 0)]
    annotations: Vec<serde_json::Value>,
    /// Empty unless asked for by `include`.
    logprobs: Vec<TokenLogprob>,
    /// With `return_token_ids`.
    #[schema(nullable = false)]
    token_ids: Option<Vec<u64>>,
    /// With `diffusion.infill`: what was filled in.
    #[schema(nullable = false)]
    gaps: Option<Vec<String>>,
    /// With `diffusion.trace`.
    #[schema(nullable = false)]
    trace: Option<Vec<TraceStep>>,
    /// With log-probabilities of diffusion models.
    #[schema(nullable = false)]
    measured: Option<Measured>,
}

/// What a response took.
#[derive(ToSchema)]
struct ResponseUsage {
    /// Tokens of the prompt.
    input_tokens: u64,
    input_tokens_details: InputTokens,
    /// Tokens of the answer, an end token included.
    output_tokens: u64,
    output_tokens_details: OutputTokens,
    /// Both.
    total_tokens: u64,
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

/// Where tokens of the prompt came from.
#[derive(ToSchema)]
struct InputTokens {
    /// Tokens whose keys and values were known.
    cached_tokens: u64,
    /// Always 0.
    cache_write_tokens: u64,
}

/// What tokens of the answer are for.
#[derive(ToSchema)]
struct OutputTokens {
    /// Always 0.
    reasoning_tokens: u64,
}

/// An event of a streamed response.
#[derive(ToSchema)]
#[serde(tag = "type")]
pub(crate) enum ResponseEvent {
    /// There is a response.
    #[serde(rename = "response.created")]
    Created { sequence_number: u64, response: ResponseObject },
    /// It has begun.
    #[serde(rename = "response.in_progress")]
    InProgress { sequence_number: u64, response: ResponseObject },
    /// Its message begins.
    #[serde(rename = "response.output_item.added")]
    ItemAdded { sequence_number: u64, output_index: u64, item: OutputMessage },
    /// The message's text begins.
    #[serde(rename = "response.content_part.added")]
    PartAdded {
        sequence_number: u64,
        item_id: String,
        output_index: u64,
        content_index: u64,
        part: OutputText,
    },
    /// More of the text.
    #[serde(rename = "response.output_text.delta")]
    TextDelta {
        sequence_number: u64,
        item_id: String,
        output_index: u64,
        content_index: u64,
        delta: String,
        logprobs: Vec<TokenLogprob>,
    },
    /// All of the text.
    #[serde(rename = "response.output_text.done")]
    TextDone {
        sequence_number: u64,
        item_id: String,
        output_index: u64,
        content_index: u64,
        text: String,
        logprobs: Vec<TokenLogprob>,
    },
    /// The text has ended.
    #[serde(rename = "response.content_part.done")]
    PartDone {
        sequence_number: u64,
        item_id: String,
        output_index: u64,
        content_index: u64,
        part: OutputText,
    },
    /// The message has ended.
    #[serde(rename = "response.output_item.done")]
    ItemDone { sequence_number: u64, output_index: u64, item: OutputMessage },
    /// The end, by an end token or a stop text.
    #[serde(rename = "response.completed")]
    Completed { sequence_number: u64, response: ResponseObject },
    /// The end, by length.
    #[serde(rename = "response.incomplete")]
    Incomplete { sequence_number: u64, response: ResponseObject },
    /// The end of a stream that broke.
    #[serde(rename = "response.failed")]
    Failed { sequence_number: u64, response: ResponseObject },
}
