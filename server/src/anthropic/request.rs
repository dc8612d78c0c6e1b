//! A Messages request as a chat request.

use serde_json::{Map, Value, json};

use crate::ApiError;
use crate::foreign::{Fields, refuse_told};
use crate::openai::types::{ChatRequest, typed};

/// Bookkeeping that changes nothing in an answer; prompts that begin alike share their keys and
/// values whatever `cache_control` says.
const IGNORED: [&str; 4] = ["metadata", "service_tier", "cache_control", "inference_geo"];

/// The chat request for an answer.
pub(super) fn translate(mut given: Fields) -> Result<ChatRequest, ApiError> {
    let mut chat = Map::new();
    conversation(&mut given, &mut chat)?;
    given.rename("max_tokens", "max_tokens", &mut chat);
    if chat.get("max_tokens").is_none() {
        return Err(ApiError::invalid("max_tokens", "max_tokens is missing"));
    }
    if let Some(stops) = given.list("stop_sequences")?.filter(|stops| !stops.is_empty()) {
        chat.insert("stop".to_owned(), stops.into());
    }
    given.finish(&mut chat)?;
    refuse_told(&chat, &["trace", "progress", "infill"])?;
    typed(&Value::Object(chat))
}

/// The chat request for counting its tokens.
pub(super) fn to_count(mut given: Fields) -> Result<ChatRequest, ApiError> {
    let mut chat = Map::new();
    conversation(&mut given, &mut chat)?;
    given.rename("model", "model", &mut chat);
    given.refuse_rest()?;
    typed(&Value::Object(chat))
}

/// What both requests have.
fn conversation(given: &mut Fields, chat: &mut Map<String, Value>) -> Result<(), ApiError> {
    let tools = "tools are not supported by this endpoint";
    let is_empty = |v: &Value| v.as_array().is_some_and(Vec::is_empty);
    given.refuse_unless("tools", is_empty, tools)?;
    given.refuse_unless("mcp_servers", is_empty, tools)?;
    given.refuse_unless("tool_choice", |v| v["type"] == "none" || v["type"] == "auto", tools)?;
    given.refuse_unless(
        "thinking",
        |v| v["type"] == "disabled",
        "the model does not think first",
    )?;
    let nothing = |v: &Value| v.as_object().is_some_and(|v| v.values().all(Value::is_null));
    given.refuse_unless("output_config", nothing, "is not supported by this endpoint")?;
    given.ignore(&IGNORED);
    let system = match given.take("system") {
        None => String::new(),
        Some(system) => content("system", &system)?,
    };
    let mut messages = Vec::new();
    if !system.is_empty() {
        messages.push(json!({"role": "system", "content": system}));
    }
    let list = given.list("messages")?;
    let list = list.ok_or_else(|| ApiError::invalid("messages", "messages is missing"))?;
    if list.is_empty() {
        return Err(ApiError::invalid("messages", "0 messages, expected at least 1"));
    }
    for (index, message) in list.iter().enumerate() {
        let role = match message["role"].as_str() {
            Some(role @ ("user" | "assistant")) => role,
            _ => {
                let param = format!("messages[{index}].role");
                return Err(ApiError::wrong(&param, &message["role"], "user or assistant"));
            }
        };
        if role == "assistant" && index + 1 == list.len() {
            let param = format!("messages[{index}].role");
            let message = format!("{param}: the last message is the user's; none is continued");
            return Err(ApiError::unsupported(&param, message));
        }
        let text = content(&format!("messages[{index}].content"), &message["content"])?;
        messages.push(json!({"role": role, "content": text}));
    }
    chat.insert("messages".to_owned(), messages.into());
    Ok(())
}

/// A text, or blocks of text with nothing between them.
fn content(param: &str, given: &Value) -> Result<String, ApiError> {
    let blocks = match given {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(blocks) => blocks,
        other => return Err(ApiError::wrong(param, other, "a text or a list of blocks")),
    };
    let mut content = String::new();
    for (index, block) in blocks.iter().enumerate() {
        match (block["type"].as_str(), block["text"].as_str()) {
            (Some("text"), Some(text)) => content.push_str(text),
            _ => {
                let param = format!("{param}[{index}]");
                return Err(ApiError::unsupported(
                    &param,
                    format!("{param}: expected a text block"),
                ));
            }
        }
    }
    Ok(content)
}
