//! Answers of `/v1/chat/completions`.

use utoipa::ToSchema;

use super::common::{FinishReason, Measured, TraceStep, Usage};

#[derive(ToSchema)]
enum ChatObject {
    #[schema(rename = "chat.completion")]
    Chat,
}

/// Answer of `/v1/chat/completions`.
#[derive(ToSchema)]
pub(crate) struct ChatCompletion {
    /// Name of the answer, by which it can be cancelled.
    id: String,
    #[schema(inline)]
    object: ChatObject,
    /// Unix time.
    created: u64,
    /// The first name of the model.
    model: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
}

/// One answer.
#[derive(ToSchema)]
struct ChatChoice {
    /// Its number.
    index: u64,
    message: AssistantMessage,
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
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
}

#[derive(ToSchema)]
pub(crate) enum AssistantRole {
    #[schema(rename = "assistant")]
    Assistant,
}

/// What the model says.
#[derive(ToSchema)]
struct AssistantMessage {
    #[schema(inline)]
    role: AssistantRole,
    /// The text; null beside calls without one.
    #[schema(required)]
    content: Option<String>,
    /// Always null: OpenAI's clients look for it.
    #[schema(required)]
    refusal: Option<String>,
    /// Functions the client is asked to call.
    #[schema(nullable = false)]
    tool_calls: Option<Vec<ToolCall>>,
}

/// A function the client is asked to call.
#[derive(ToSchema)]
struct ToolCall {
    /// What its result names as `tool_call_id`.
    id: String,
    /// Always `function`.
    r#type: String,
    function: CalledFunction,
}

/// Which function, and with what.
#[derive(ToSchema)]
struct CalledFunction {
    name: String,
    /// JSON of its arguments, as text.
    arguments: String,
}

/// A call, or what is added to one.
#[derive(ToSchema)]
struct ToolCallDelta {
    /// Which of the message's calls.
    index: u64,
    /// In its first chunk.
    #[schema(nullable = false)]
    id: Option<String>,
    /// In its first chunk: `function`.
    #[schema(nullable = false)]
    r#type: Option<String>,
    function: CalledFunctionDelta,
}

/// Its name in the first chunk; text that is added to its arguments.
#[derive(ToSchema)]
struct CalledFunctionDelta {
    #[schema(nullable = false)]
    name: Option<String>,
    arguments: String,
}

/// Log-probabilities, token by token.
#[derive(ToSchema)]
struct ChatLogprobs {
    content: Vec<TokenLogprob>,
    /// Always null.
    #[schema(required)]
    refusal: Option<String>,
    /// Of diffusion models.
    #[schema(nullable = false)]
    measured: Option<Measured>,
}

/// A token and the most probable ones in its place.
#[derive(ToSchema)]
pub(crate) struct TokenLogprob {
    token: String,
    logprob: f64,
    /// Its UTF-8 bytes.
    bytes: Vec<u64>,
    top_logprobs: Vec<ProbableToken>,
}

/// A token and how probable it is.
#[derive(ToSchema)]
struct ProbableToken {
    token: String,
    logprob: f64,
    /// Its UTF-8 bytes.
    bytes: Vec<u64>,
}

#[derive(ToSchema)]
enum ChunkObject {
    #[schema(rename = "chat.completion.chunk")]
    Chunk,
}

/// An event of a streamed chat.
#[derive(ToSchema)]
pub(crate) struct ChatChunk {
    /// The same in all chunks.
    id: String,
    #[schema(inline)]
    object: ChunkObject,
    /// Unix time.
    created: u64,
    /// The first name of the model.
    model: String,
    /// Empty in the chunk that has `usage`.
    choices: Vec<ChunkChoice>,
    /// Absent or null unless asked for by `stream_options`.
    usage: Option<Usage>,
}

/// What one answer goes on with.
#[derive(ToSchema)]
struct ChunkChoice {
    /// Its number.
    index: u64,
    delta: Delta,
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    /// Null until the last chunk of the answer.
    #[schema(required)]
    finish_reason: Option<FinishReason>,
    /// With `return_token_ids`.
    #[schema(nullable = false)]
    token_ids: Option<Vec<u64>>,
    /// With `diffusion.infill`: what was filled in, in the last chunk.
    #[schema(nullable = false)]
    gaps: Option<Vec<String>>,
    /// With `diffusion.trace`, in the last chunk.
    #[schema(nullable = false)]
    trace: Option<Vec<TraceStep>>,
    /// With `diffusion.progress`: position, token id, text, confidence, and `tentative`, `committed`
    /// or `remasked`.
    #[schema(nullable = false, value_type = Option<Vec<Vec<serde_json::Value>>>)]
    denoising: Option<()>,
}

/// What is added to a message.
#[derive(ToSchema)]
struct Delta {
    /// In the first chunk.
    #[schema(nullable = false)]
    role: Option<AssistantRole>,
    #[schema(nullable = false)]
    content: Option<String>,
    #[schema(nullable = false)]
    tool_calls: Option<Vec<ToolCallDelta>>,
}
