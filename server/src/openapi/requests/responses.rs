//! `POST /v1/responses`

use std::collections::BTreeMap;

use utoipa::ToSchema;

use super::Stop;
use super::shared::SharedFields;

/// `POST /v1/responses`. Nothing is stored, so nothing stored can be asked for.
#[derive(ToSchema)]
pub(crate) struct ResponsesRequest {
    /// Name of a served model.
    #[schema(example = "builtin:tiny-llada")]
    model: String,
    /// What the user says, or the conversation so far.
    input: ResponseInput,
    /// What the system says first.
    instructions: Option<String>,
    /// Longest answer in tokens. Absent: the rest of the context, for diffusion models at most 256
    /// of it.
    #[schema(minimum = 1)]
    max_output_tokens: Option<u64>,
    /// At most 16 texts of 512 characters by names of 64, which the answer repeats.
    metadata: Option<BTreeMap<String, String>>,
    /// What answers hold beside their text. Parts that no answer here has change nothing.
    include: Option<Vec<Included>>,
    /// Most probable tokens told with each token; needs `message.output_text.logprobs` in `include`.
    #[schema(maximum = 20)]
    top_logprobs: Option<u64>,
    /// Texts that end the answer and are not part of it.
    stop: Option<Stop>,
    /// Adds `token_ids` to the text's part.
    return_token_ids: Option<bool>,
    /// What form the text has.
    text: Option<ResponseText>,
    /// What streams contain beside text.
    stream_options: Option<ResponseStreamOptions>,
    /// False: the answer is waited for.
    background: Option<bool>,
    /// The answer says that it was not stored, whatever is asked.
    store: Option<bool>,
    /// What does not fit is refused.
    #[schema(inline)]
    truncation: Option<Truncation>,
    /// Nothing is compacted.
    #[schema(max_items = 0)]
    context_management: Option<Vec<serde_json::Value>>,
    /// None are called.
    #[schema(max_items = 0)]
    tools: Option<Vec<serde_json::Value>>,
    /// None are called either way.
    #[schema(inline)]
    tool_choice: Option<ResponseToolChoice>,
    /// Changes nothing: the model does not think first.
    #[schema(value_type = Option<Object>)]
    reasoning: Option<()>,
    #[serde(flatten)]
    shared: SharedFields,
}

/// A text of the user's, or messages.
#[derive(ToSchema)]
#[serde(untagged)]
enum ResponseInput {
    /// A text.
    Text(String),
    /// Messages, 1 to 10000.
    Messages(Vec<InputMessage>),
}

/// One message, as it is given or as an answer had it.
#[derive(ToSchema)]
struct InputMessage {
    #[schema(inline)]
    r#type: Option<InputType>,
    /// Who speaks. `developer` is what templates call system.
    role: InputRole,
    /// The text, or parts that are joined with nothing between.
    content: InputContent,
}

/// Messages are the only items.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum InputType {
    Message,
}

/// Who speaks.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum InputRole {
    User,
    Assistant,
    System,
    Developer,
}

/// A text or its parts.
#[derive(ToSchema)]
#[serde(untagged)]
enum InputContent {
    /// The text.
    Text(String),
    /// Its parts.
    Parts(Vec<InputPart>),
}

/// Part of a message.
#[derive(ToSchema)]
struct InputPart {
    #[schema(inline)]
    r#type: InputPartType,
    /// The text.
    text: String,
}

/// Texts are the only parts.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum InputPartType {
    InputText,
    OutputText,
    Text,
}

/// A part of answers.
#[derive(ToSchema)]
enum Included {
    #[schema(rename = "message.output_text.logprobs")]
    Logprobs,
    #[schema(rename = "reasoning.encrypted_content")]
    Reasoning,
    #[schema(rename = "file_search_call.results")]
    Files,
    #[schema(rename = "web_search_call.action.sources")]
    Sources,
    #[schema(rename = "code_interpreter_call.outputs")]
    Code,
    #[schema(rename = "computer_call_output.output.image_url")]
    Images,
}

/// The form of a response's text.
#[derive(ToSchema)]
struct ResponseText {
    /// Any text.
    format: Option<ResponseTextFormat>,
    /// Changes nothing.
    verbosity: Option<String>,
}

/// Any text.
#[derive(ToSchema)]
struct ResponseTextFormat {
    #[schema(inline)]
    r#type: ResponseTextType,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum ResponseTextType {
    Text,
}

/// What streams of responses contain beside text.
#[derive(ToSchema)]
struct ResponseStreamOptions {
    /// False: nothing is padded.
    include_obfuscation: Option<bool>,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum Truncation {
    Disabled,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum ResponseToolChoice {
    None,
    Auto,
}
