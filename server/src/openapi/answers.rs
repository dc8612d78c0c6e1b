//! What answers hold. They are written field by field (`openai/respond.rs`); a suite holds every
//! real answer against these types and meets no field they lack.
#![expect(dead_code, reason = "read by the schema generator, not by code")]

use std::collections::BTreeMap;

use utoipa::ToSchema;

/// Why a request was refused or broken.
#[derive(ToSchema)]
pub(crate) struct ErrorBody {
    error: ErrorObject,
}

/// OpenAI's error object.
#[derive(ToSchema)]
struct ErrorObject {
    /// What was found and what is expected.
    message: String,
    /// `invalid_request_error`, `authentication_error`, `rate_limit_error`, `server_error`, …
    r#type: String,
    /// The field to blame, if one is.
    #[schema(required)]
    param: Option<String>,
    /// A machine-readable reason. Of unknown models and empty prompts it is the status.
    #[schema(required)]
    code: Option<ErrorCode>,
}

/// A reason, or a status.
#[derive(ToSchema)]
#[serde(untagged)]
enum ErrorCode {
    /// OpenAI's words.
    Reason(String),
    /// As the replaced server has it.
    Status(u16),
}

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
struct Audit {
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
enum FinishReason {
    Stop,
    Length,
}

/// The pass a diffusion model's log-probabilities are of.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum Measured {
    AtCommit,
}

/// One forward pass that changed something; positions count from the first generated one.
#[derive(ToSchema)]
struct TraceStep {
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
enum AssistantRole {
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
struct TokenLogprob {
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
