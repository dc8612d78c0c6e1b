//! Answers below `/v1/messages`.

use utoipa::ToSchema;

use super::chats::AssistantRole;

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum MessageKind {
    Message,
}

/// Answer of `/v1/messages`.
#[derive(ToSchema)]
pub(crate) struct MessageObject {
    /// Name of the answer, by which it can be cancelled.
    id: String,
    #[schema(inline)]
    r#type: MessageKind,
    #[schema(inline)]
    role: AssistantRole,
    /// The first name of the model.
    model: String,
    /// One block of text; none yet where a stream begins.
    content: Vec<TextBlock>,
    /// Null where a stream begins.
    #[schema(required)]
    stop_reason: Option<StopReason>,
    /// Which of `stop_sequences` ended it.
    #[schema(required)]
    stop_sequence: Option<String>,
    usage: MessageUsage,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum TextBlockKind {
    Text,
}

/// What the model says.
#[derive(ToSchema)]
pub(crate) struct TextBlock {
    #[schema(inline)]
    r#type: TextBlockKind,
    /// The text.
    text: String,
}

/// Why a message ended.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum StopReason {
    EndTurn,
    StopSequence,
    MaxTokens,
}

/// What a message took.
#[derive(ToSchema)]
pub(crate) struct MessageUsage {
    /// Tokens of the prompt whose keys and values were not known.
    input_tokens: u64,
    /// Always 0.
    cache_creation_input_tokens: u64,
    /// Tokens of the prompt whose keys and values were known.
    cache_read_input_tokens: u64,
    /// Tokens of the answer, an end token included.
    output_tokens: u64,
    /// Forward passes of the model.
    forwards: u64,
    /// Tokens of the answer for each of them.
    tokens_per_forward: f64,
    /// Passes that computed every key and value again.
    cache_refreshes: u64,
}

/// An event of a streamed message.
#[derive(ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum MessageEvent {
    /// A message without content.
    MessageStart { message: MessageObject },
    /// Its text begins.
    ContentBlockStart { index: u64, content_block: TextBlock },
    /// More of the text.
    ContentBlockDelta { index: u64, delta: TextDelta },
    /// The text has ended.
    ContentBlockStop { index: u64 },
    /// Why the message ended, and what it took.
    MessageDelta { delta: StopDelta, usage: MessageUsage },
    /// The end.
    MessageStop {},
    /// The end of a stream that broke.
    Error { error: MessagesErrorObject },
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum TextDeltaKind {
    TextDelta,
}

/// More of the text.
#[derive(ToSchema)]
pub(crate) struct TextDelta {
    #[schema(inline)]
    r#type: TextDeltaKind,
    /// What is added.
    text: String,
}

/// Why a message ended.
#[derive(ToSchema)]
pub(crate) struct StopDelta {
    stop_reason: StopReason,
    /// Which of `stop_sequences` ended it.
    #[schema(required)]
    stop_sequence: Option<String>,
}

/// Answer of `/v1/messages/count_tokens`.
#[derive(ToSchema)]
pub(crate) struct CountedTokens {
    /// Tokens of the prompt.
    input_tokens: u64,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum MessagesErrorType {
    Error,
}

/// Why a request below `/v1/messages` was refused or broken.
#[derive(ToSchema)]
pub(crate) struct MessagesError {
    #[schema(inline)]
    r#type: MessagesErrorType,
    error: MessagesErrorObject,
    /// The request's name, as in the header `request-id`.
    #[schema(required)]
    request_id: Option<String>,
}

/// Anthropic's error object.
#[derive(ToSchema)]
pub(crate) struct MessagesErrorObject {
    r#type: MessagesErrorKind,
    /// What was found and what is expected.
    message: String,
}

/// The kind of an error.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum MessagesErrorKind {
    InvalidRequestError,
    AuthenticationError,
    PermissionError,
    NotFoundError,
    RequestTooLarge,
    RateLimitError,
    OverloadedError,
    TimeoutError,
    ApiError,
}
