//! `POST /v1/messages` and `POST /v1/messages/count_tokens`

use utoipa::ToSchema;

use super::shared::SharedFields;

/// `POST /v1/messages`
#[derive(ToSchema)]
pub(crate) struct MessagesRequest {
    /// Longest answer in tokens.
    #[schema(minimum = 1)]
    max_tokens: u64,
    /// At most four texts, each of 1 to 1024 bytes, that end the answer and are not part of it.
    #[schema(max_items = 4)]
    stop_sequences: Option<Vec<String>>,
    #[serde(flatten)]
    conversation: MessagesConversation,
    #[serde(flatten)]
    shared: SharedFields,
}

/// `POST /v1/messages/count_tokens`
#[derive(ToSchema)]
pub(crate) struct CountTokensRequest {
    #[serde(flatten)]
    conversation: MessagesConversation,
}

/// What is said, and to which model.
#[derive(ToSchema)]
pub(crate) struct MessagesConversation {
    /// Name of a served model.
    #[schema(example = "builtin:tiny-llada")]
    model: String,
    /// The conversation so far; the last message is the user's.
    #[schema(min_items = 1, max_items = 10_000)]
    messages: Vec<MessageParam>,
    /// What the system says first.
    system: Option<MessageContent>,
    /// None are called.
    #[schema(max_items = 0)]
    tools: Option<Vec<serde_json::Value>>,
    /// None are called.
    #[schema(max_items = 0)]
    mcp_servers: Option<Vec<serde_json::Value>>,
    /// None are called either way.
    tool_choice: Option<MessageToolChoice>,
    /// The model does not think first.
    thinking: Option<Thinking>,
    /// Empty, or with nulls only.
    #[schema(value_type = Option<Object>)]
    output_config: Option<()>,
}

/// One message of a conversation with Anthropic's clients.
#[derive(ToSchema)]
struct MessageParam {
    /// Who speaks.
    role: MessageRole,
    /// The text, or blocks that are joined with nothing between.
    content: MessageContent,
}

/// Who speaks.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum MessageRole {
    User,
    Assistant,
}

/// A text or blocks of text.
#[derive(ToSchema)]
#[serde(untagged)]
enum MessageContent {
    /// The text.
    Text(String),
    /// Its blocks.
    Blocks(Vec<TextBlockParam>),
}

/// Part of a message. Where it is cached changes nothing.
#[derive(ToSchema)]
struct TextBlockParam {
    #[schema(inline)]
    r#type: TextBlockType,
    /// The text.
    text: String,
}

/// Texts are the only blocks.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum TextBlockType {
    Text,
}

/// Nothing is called.
#[derive(ToSchema)]
struct MessageToolChoice {
    #[schema(inline)]
    r#type: MessageToolMode,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum MessageToolMode {
    None,
    Auto,
}

/// No thinking.
#[derive(ToSchema)]
struct Thinking {
    #[schema(inline)]
    r#type: ThinkingMode,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum ThinkingMode {
    Disabled,
}
