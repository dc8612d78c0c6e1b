//! Conversations, and what may stand in either request of OpenAI's.

use utoipa::ToSchema;

/// A text, several, token ids, or several lists of them: at most 1024.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum Prompt {
    /// One text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// One list of token ids.
    Ids(Vec<u32>),
    /// Several lists of token ids.
    Batch(Vec<Vec<u32>>),
}

/// A text or up to four, each of 1 to 1024 bytes.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum Stop {
    /// One text.
    One(String),
    /// Several texts.
    Several(Vec<String>),
}

/// A switch on chats, a number on completions.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum Logprobs {
    /// Chats.
    Switch(bool),
    /// Completions.
    Number(u64),
}

/// One message of a conversation.
#[derive(ToSchema)]
pub(crate) struct Message {
    /// Who speaks. `developer` is what templates call system.
    role: Role,
    /// The text, or text parts that are joined with nothing between; null only beside `tool_calls`.
    content: Option<Content>,
}

/// Who speaks.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

/// A text or text parts.
#[derive(ToSchema)]
#[serde(untagged)]
enum Content {
    /// The text.
    Text(String),
    /// Its parts.
    Parts(Vec<ContentPart>),
}

/// Part of a message.
#[derive(ToSchema)]
struct ContentPart {
    r#type: PartType,
    /// The text.
    text: String,
}

/// Texts are the only parts.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum PartType {
    Text,
}
