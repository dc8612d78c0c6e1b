//! A Responses request as a chat request, and what of it the answer repeats.

use serde_json::{Map, Value, json};

use crate::ApiError;
use crate::foreign::{Fields, refuse_told};
use crate::openai::types::{ChatRequest, typed};

/// What OpenAI allows: entries, characters of a key, characters of a value.
const METADATA: (usize, usize, usize) = (16, 64, 512);
/// Bookkeeping that changes nothing in an answer, and limits that always hold.
const IGNORED: [&str; 9] = [
    "service_tier",
    "prompt_cache_retention",
    "prompt_cache_options",
    "max_tool_calls",
    "moderation",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
];
const LOGPROBS: &str = "message.output_text.logprobs";
/// Parts of items that no answer of ours has.
const INCLUDED: [&str; 5] = [
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
];

/// The chat request, and the fields of the response that repeat the request.
pub(super) fn translate(mut given: Fields) -> Result<(ChatRequest, Map<String, Value>), ApiError> {
    let mut chat = Map::new();
    let mut echo = Map::new();
    refuse_state(&mut given)?;
    refuse_tools(&mut given)?;
    echo.insert("text".to_owned(), text_format(&mut given, &mut chat)?);
    let instructions = given.text("instructions")?;
    let system = instructions.iter().map(|text| json!({"role": "system", "content": text}));
    let messages: Vec<Value> = system.chain(messages(given.take("input"))?).collect();
    chat.insert("messages".to_owned(), messages.into());
    echo.insert("instructions".to_owned(), json!(instructions));
    given.rename("max_output_tokens", "max_tokens", &mut chat);
    echo.insert("max_output_tokens".to_owned(), json!(chat.get("max_tokens")));
    echo.insert("metadata".to_owned(), metadata(given.take("metadata"))?);
    echo.insert("top_logprobs".to_owned(), logprobs(&mut given, &mut chat)?);
    given.rename("stop", "stop", &mut chat);
    given.rename("return_token_ids", "return_token_ids", &mut chat);
    given.ignore(&IGNORED);
    given.finish(&mut chat)?;
    refuse_told(&chat, &["progress"])?;
    for name in ["temperature", "top_p"] {
        echo.insert(name.to_owned(), json!(chat.get(name)));
    }
    Ok((typed(&Value::Object(chat))?, echo))
}

/// Nothing is stored, so nothing stored can be asked for.
fn refuse_state(given: &mut Fields) -> Result<(), ApiError> {
    let stored = "this server stores no responses; send the whole conversation as input";
    given.refuse_unless("previous_response_id", |_| false, stored)?;
    given.refuse_unless("conversation", |_| false, stored)?;
    given.refuse_unless("prompt", |_| false, "this server stores no prompts")?;
    let background = "this server stores no responses to be fetched later";
    given.refuse_unless("background", |v| *v == Value::Bool(false), background)?;
    // The answer says that it was not stored.
    given.flag("store")?;
    let cut = "only 'disabled' is supported: what does not fit is refused";
    given.refuse_unless("truncation", |v| v == "disabled", cut)?;
    given.refuse_unless("context_management", is_empty, "nothing is compacted")?;
    if let Some(options) = given.take("stream_options") {
        let Value::Object(options) = options else {
            return Err(ApiError::wrong("stream_options", &options, "an object"));
        };
        let mut options = Fields::of(options);
        if options.flag("include_obfuscation")? == Some(true) {
            let param = "stream_options.include_obfuscation";
            return Err(ApiError::unsupported(param, format!("{param}: nothing is obfuscated")));
        }
        options.refuse_rest()?;
    }
    Ok(())
}

fn refuse_tools(given: &mut Fields) -> Result<(), ApiError> {
    let tools = "tools are not supported by this endpoint";
    given.refuse_unless("tools", is_empty, tools)?;
    given.refuse_unless("tool_choice", |v| v == "none" || v == "auto", tools)?;
    // As on chats: how hard to think is nothing to a model that does not.
    given.refuse_unless("reasoning", Value::is_object, "expected an object")
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

/// Moves the form of the answer to where chats have it; returns what the answer repeats of it.
fn text_format(given: &mut Fields, chat: &mut Map<String, Value>) -> Result<Value, ApiError> {
    let plain = json!({"format": {"type": "text"}});
    let Some(text) = given.take("text") else { return Ok(plain) };
    let Value::Object(text) = text else { return Err(ApiError::wrong("text", &text, "an object")) };
    let mut text = Fields::of(text);
    let format = text.take("format");
    text.ignore(&["verbosity"]);
    text.refuse_rest()?;
    let Some(format) = format else { return Ok(plain) };
    let Value::Object(mut fields) = format.clone() else {
        return Err(ApiError::wrong("text.format", &format, "an object"));
    };
    // Here the schema and its name lie beside the type; on chats they lie in an object.
    let nested = match fields.get("type").and_then(Value::as_str) {
        Some("json_schema") => {
            fields.shift_remove("type");
            json!({"type": "json_schema", "json_schema": fields})
        }
        _ => format.clone(),
    };
    chat.insert("response_format".to_owned(), nested);
    Ok(json!({"format": format}))
}

/// At most a few short texts, to be repeated.
fn metadata(given: Option<Value>) -> Result<Value, ApiError> {
    let Some(given) = given else { return Ok(json!({})) };
    let (entries, key_chars, value_chars) = METADATA;
    let fits = |text: &str, most| text.chars().count() <= most;
    let is_short = |map: &Map<String, Value>| {
        map.len() <= entries
            && map.iter().all(|(key, value)| {
                fits(key, key_chars) && value.as_str().is_some_and(|text| fits(text, value_chars))
            })
    };
    match given.as_object().is_some_and(is_short) {
        true => Ok(given),
        false => {
            let expected = format!("at most {entries} texts of {value_chars} characters, by name");
            Err(ApiError::invalid("metadata", format!("metadata: expected {expected}")))
        }
    }
}

/// Log-probabilities are asked for by `include`, how many by `top_logprobs`; the latter is returned.
fn logprobs(given: &mut Fields, chat: &mut Map<String, Value>) -> Result<Value, ApiError> {
    let mut wants = false;
    for (index, name) in given.list("include")?.unwrap_or_default().iter().enumerate() {
        match name.as_str() {
            Some(LOGPROBS) => wants = true,
            Some(name) if INCLUDED.contains(&name) => {}
            _ => {
                let message = format!("include[{index}] is nothing this server could include");
                return Err(ApiError::unsupported(&format!("include[{index}]"), message));
            }
        }
    }
    let top = given.take("top_logprobs");
    match &top {
        Some(number) if !wants && number != 0 => {
            let message = format!("top_logprobs needs '{LOGPROBS}' in include");
            return Err(ApiError::invalid("top_logprobs", message));
        }
        Some(number) if wants => {
            chat.insert("top_logprobs".to_owned(), number.clone());
        }
        _ => {}
    }
    chat.insert("logprobs".to_owned(), wants.into());
    Ok(top.unwrap_or_else(|| json!(0)))
}

/// A text is a message of the user's; a list has messages.
fn messages(input: Option<Value>) -> Result<Vec<Value>, ApiError> {
    match input {
        None => Err(ApiError::invalid("input", "input is missing")),
        Some(Value::String(text)) => Ok(vec![json!({"role": "user", "content": text})]),
        Some(Value::Array(items)) if !items.is_empty() => {
            items.iter().enumerate().map(|(index, item)| message(index, item)).collect()
        }
        Some(other) => Err(ApiError::wrong("input", &other, "a text or a list of messages")),
    }
}

fn message(index: usize, item: &Value) -> Result<Value, ApiError> {
    let refuse = |field: &str, expected: &str| {
        let param = format!("input[{index}]{field}");
        ApiError::invalid(&param, format!("{param}: expected {expected}"))
    };
    if !item.is_object() {
        return Err(refuse("", "an object"));
    }
    if !item["type"].is_null() && item["type"] != "message" {
        return Err(refuse(".type", "message"));
    }
    let role = match item["role"].as_str() {
        Some(role @ ("user" | "assistant" | "system" | "developer")) => role,
        _ => return Err(refuse(".role", "user, assistant, system or developer")),
    };
    let content = match &item["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let mut content = String::new();
            for (at, part) in parts.iter().enumerate() {
                match (part["type"].as_str(), part["text"].as_str()) {
                    (Some("input_text" | "output_text" | "text"), Some(text)) => {
                        content.push_str(text);
                    }
                    _ => return Err(refuse(&format!(".content[{at}]"), "a part of text")),
                }
            }
            content
        }
        _ => return Err(refuse(".content", "a text or a list of parts")),
    };
    Ok(json!({"role": role, "content": content}))
}
