//! Telling the model about tools, and about calls that were made.

use serde_json::{Map, Value, json};

use super::{CLOSE, OPEN, Tools};

/// What stands before the tools in a system message, in the words of Qwen2.5's template, which
/// Dream has too.
const BEFORE: &str = "# Tools\n\nYou may call one or more functions to assist with the user \
                      query.\n\nYou are provided with function signatures within <tools></tools> \
                      XML tags:\n<tools>";
/// What stands behind them.
const BEHIND: &str = "\n</tools>\n\nFor each function call, return a json object with function \
                      name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n\
                      {\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>";

/// The messages as a template gets them, and the tools beside them. A template that knows tools
/// gets both as they are, arguments of earlier calls as objects, as transformers has them. For one
/// that does not, tools become part of the system message, earlier calls text of the assistant, and
/// results a message of the user.
pub(crate) fn render(
    messages: &Value,
    tools: Option<&Tools>,
    template_takes_tools: bool,
) -> (Value, Option<Value>) {
    let messages = messages.as_array().map_or(&[][..], Vec::as_slice);
    if template_takes_tools {
        let messages = messages.iter().map(with_read_arguments).collect();
        return (messages, tools.map(|tools| tools.given.clone()));
    }
    let mut plain: Vec<Value> = Vec::new();
    for message in messages {
        let of_tool = message["role"] == "tool";
        let message = as_text(message);
        // Results of calls made together are told together.
        match plain.last_mut() {
            Some(last) if of_tool && is_result(last) => {
                let text = format!("{}\n{}", text(last), text(&message));
                last["content"] = text.into();
            }
            _ => plain.push(message),
        }
    }
    if let Some(tools) = tools {
        let about = about(&tools.given);
        match plain.first_mut() {
            Some(first) if first["role"] == "system" => {
                first["content"] = format!("{}\n\n{about}", text(first)).into();
            }
            _ => plain.insert(0, json!({"role": "system", "content": about})),
        }
    }
    (Value::Array(plain), None)
}

fn about(tools: &Value) -> String {
    let mut out = BEFORE.to_owned();
    for tool in tools.as_array().into_iter().flatten() {
        out.push_str(&format!("\n{tool}"));
    }
    out + BEHIND
}

fn text(message: &Value) -> &str {
    message["content"].as_str().unwrap_or_default()
}

fn is_result(message: &Value) -> bool {
    message["role"] == "user" && text(message).starts_with("<tool_response>")
}

/// A message without calls or results.
fn as_text(message: &Value) -> Value {
    if message["role"] == "tool" {
        let content = format!("<tool_response>\n{}\n</tool_response>", text(message));
        return json!({"role": "user", "content": content});
    }
    let Some(calls) = message["tool_calls"].as_array() else { return message.clone() };
    let written = calls.iter().map(|call| {
        let function = &call["function"];
        let call = json!({"name": function["name"], "arguments": read(&function["arguments"])});
        format!("{OPEN}\n{call}\n{CLOSE}")
    });
    let before = Some(text(message).to_owned()).filter(|text| !text.is_empty());
    let parts: Vec<String> = before.into_iter().chain(written).collect();
    let mut plain = message.as_object().cloned().unwrap_or_default();
    plain.remove("tool_calls");
    plain.insert("content".to_owned(), parts.join("\n").into());
    Value::Object(plain)
}

fn with_read_arguments(message: &Value) -> Value {
    let mut message = message.clone();
    for call in message["tool_calls"].as_array_mut().into_iter().flatten() {
        if let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) {
            let arguments = read(function.get("arguments").unwrap_or(&Value::Null));
            function.insert("arguments".to_owned(), arguments);
        }
    }
    if message["tool_calls"].is_null()
        && let Some(fields) = message.as_object_mut()
    {
        fields.remove("tool_calls");
    }
    message
}

/// Arguments as JSON, where they are its text.
fn read(arguments: &Value) -> Value {
    match arguments {
        Value::String(text) => {
            serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()))
        }
        Value::Null => Value::Object(Map::new()),
        other => other.clone(),
    }
}
