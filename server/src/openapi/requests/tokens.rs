//! `POST /tokenize` and `POST /detokenize`

use utoipa::ToSchema;

use super::{Message, Tool};

/// `POST /tokenize`: a text or a chat.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum TokenizeRequest {
    /// A text.
    Text(TokenizeText),
    /// A chat.
    Chat(TokenizeChat),
}

/// A text to tokenise.
#[derive(ToSchema)]
pub(crate) struct TokenizeText {
    /// Name of the served model; may be left out.
    #[schema(example = "builtin:tiny-llada")]
    model: Option<String>,
    /// The text, at most 1 MiB.
    prompt: String,
    /// Whether the tokenizer adds its own special tokens; true unless told otherwise.
    add_special_tokens: Option<bool>,
    /// Adds how the vocabulary spells each token.
    return_token_strs: Option<bool>,
}

/// A chat to tokenise as its template writes it.
#[derive(ToSchema)]
pub(crate) struct TokenizeChat {
    /// Name of the served model; may be left out.
    #[schema(example = "builtin:tiny-llada")]
    model: Option<String>,
    /// The conversation.
    #[schema(min_items = 1, max_items = 10_000)]
    messages: Vec<Message>,
    /// Whether the template begins the answer; true unless told otherwise.
    add_generation_prompt: Option<bool>,
    /// Whether the tokenizer adds its own special tokens to the template's; false unless told
    /// otherwise.
    add_special_tokens: Option<bool>,
    /// Adds how the vocabulary spells each token.
    return_token_strs: Option<bool>,
    /// Goes on with the last message instead of answering it.
    continue_final_message: Option<bool>,
    /// Functions the prompt tells the model about.
    tools: Option<Vec<Tool>>,
}

/// `POST /detokenize`
#[derive(ToSchema)]
pub(crate) struct DetokenizeRequest {
    /// Name of the served model; may be left out.
    #[schema(example = "builtin:tiny-llada")]
    model: Option<String>,
    /// Ids below the size of the vocabulary.
    #[schema(max_items = 262_144)]
    tokens: Vec<u32>,
}
