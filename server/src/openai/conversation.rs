//! Conversations: checked, rendered by the chat template, tokenised.

use dfastllm_models::{ChatTemplate, Rendering, SpecialTokens, Tokenizer};
use serde_json::{Map, Value};

use crate::tools::{self, Tools};
use crate::{ApiError, ServedModel};

const MAX_MESSAGES: usize = 10_000;

/// What a chat template is given.
#[derive(Debug, Clone)]
pub(crate) struct Conversation {
    /// Checked, and as the template takes them.
    pub(crate) messages: Value,
    /// Tools that the template tells the model about.
    pub(crate) tools: Option<Value>,
    pub(crate) rendering: Rendering,
    /// Whether the tokenizer adds special tokens of its own.
    pub(crate) special: SpecialTokens,
}

impl Conversation {
    /// Checked messages, and what the model is told of its tools.
    pub(crate) fn new(
        messages: &Value,
        tools: Option<&Tools>,
        template: &ChatTemplate,
        (rendering, special): (Rendering, SpecialTokens),
    ) -> Self {
        let (messages, tools) = tools::render(messages, tools, template.takes_tools());
        Self { messages, tools, rendering, special }
    }

    /// Messages that an answer follows.
    pub(crate) fn of(messages: Value) -> Self {
        let rendering = Rendering { add_generation_prompt: true, ..Rendering::default() };
        // The template writes all special tokens itself.
        Self { messages, tools: None, rendering, special: SpecialTokens::Skip }
    }

    /// Its token ids. Blocking.
    ///
    /// # Errors
    /// What the template or the tokenizer has to say.
    pub(crate) fn encode(
        &self,
        template: &ChatTemplate,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<u32>, String> {
        let text = template
            .render_with(&self.messages, self.tools.as_ref(), &self.rendering)
            .map_err(|e| e.to_string())?;
        tokenizer.encode(&text, self.special)
    }

    /// Its token ids, off the threads that answer health checks.
    pub(crate) async fn prompt(
        self,
        template: ChatTemplate,
        tokenizer: Tokenizer,
    ) -> Result<Vec<u32>, ApiError> {
        tokio::task::spawn_blocking(move || self.encode(&template, &tokenizer))
            .await
            .unwrap_or_else(|_| Err("rendering failed".to_owned()))
            .map_err(|message| ApiError::invalid("messages", message))
    }
}

/// The model's chat template.
pub(crate) fn template(served: &ServedModel) -> Result<ChatTemplate, ApiError> {
    served.chat.clone().ok_or_else(|| {
        let message = "the model has no chat template; start the server with --chat-template FILE";
        ApiError::invalid("messages", message)
    })
}

/// Checks roles and contents and joins content parts, with nothing between.
pub(crate) fn messages(given: Option<Vec<Value>>) -> Result<Value, ApiError> {
    let given = given.ok_or_else(|| ApiError::invalid("messages", "messages is missing"))?;
    if given.is_empty() || given.len() > MAX_MESSAGES {
        let message = format!("{} messages, expected 1 to {MAX_MESSAGES}", given.len());
        return Err(ApiError::invalid("messages", message));
    }
    given.into_iter().enumerate().map(|(i, m)| message(i, m)).collect::<Result<_, _>>()
}

fn message(index: usize, message: Value) -> Result<Value, ApiError> {
    let refuse = |field: &str, expected: &str| {
        let param = format!("messages[{index}]{field}");
        ApiError::invalid(&param, format!("{param}: expected {expected}"))
    };
    let Value::Object(mut message) = message else { return Err(refuse("", "an object")) };
    let role = match message.get("role").and_then(Value::as_str) {
        // What OpenAI calls developer since 2024 is what templates call system.
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
        _ => return Err(refuse(".role", "system, developer, user, assistant or tool")),
    }
    .to_owned();
    let text = content(&message).ok_or_else(|| {
        refuse(".content", "a string, a list of text parts, or null beside tool_calls")
    })?;
    let calls = message.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
    if calls.clone().any(|call| !call["function"]["name"].is_string()) {
        return Err(refuse(".tool_calls", "calls of functions with a name and arguments"));
    }
    message.insert("role".to_owned(), role.into());
    message.insert("content".to_owned(), text.into());
    Ok(Value::Object(message))
}

fn content(message: &Map<String, Value>) -> Option<String> {
    match message.get("content") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(parts)) => {
            let text = |part: &Value| match part["type"].as_str() {
                Some("text") => part["text"].as_str().map(str::to_owned),
                _ => None,
            };
            parts.iter().map(text).collect()
        }
        None | Some(Value::Null) if message.get("tool_calls").is_some_and(Value::is_array) => {
            Some(String::new())
        }
        _ => None,
    }
}
