//! Tools: functions that a model may ask its client to call.
//!
//! A call is written as the models' own templates teach it, Hermes' convention:
//!
//! ```text
//! <tool_call>
//! {"name": "get_weather", "arguments": {"city": "Paris"}}
//! </tool_call>
//! ```
//!
//! Here requests are checked ([`tools_of`]); `render.rs` tells the model about tools, `forced.rs`
//! makes the structure of an answer that has to be a call, and `calls.rs` finds calls in text.

mod calls;
mod forced;
mod render;

use serde_json::{Map, Value};

use crate::ApiError;
use crate::structured::{is_name, object, refuse_others};

pub(crate) use calls::{CallParser, message};
pub(crate) use render::render;

const MAX_TOOLS: usize = 128;
/// Around a call.
const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Whether and which calls a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    /// The model decides.
    Auto,
    /// At least one call, of any tool.
    Required,
    /// One call, of this tool.
    Named(String),
}

/// The tools of a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tools {
    functions: Vec<Function>,
    /// As the client wrote them, which templates render.
    given: Value,
    choice: ToolChoice,
    /// Whether an answer may hold several calls.
    parallel: bool,
}

/// One tool.
#[derive(Debug, Clone, PartialEq)]
struct Function {
    /// Where it stands in the client's list.
    index: usize,
    name: String,
    parameters: Option<Value>,
}

/// The tools that the model gets to see: none when there are none, or when `tool_choice` is `none`.
///
/// # Errors
/// Names the field that is damaged or not known.
pub(crate) fn tools_of(
    tools: Option<&Value>,
    tool_choice: Option<&Value>,
    parallel_tool_calls: Option<&Value>,
) -> Result<Option<Tools>, ApiError> {
    let given = tools.filter(|tools| !tools.is_null());
    let functions = given.map_or(Ok(Vec::new()), functions)?;
    let choice = choice_of(tool_choice.filter(|choice| !choice.is_null()), &functions)?;
    let parallel = match parallel_tool_calls.filter(|parallel| !parallel.is_null()) {
        None => true,
        Some(Value::Bool(parallel)) => *parallel,
        Some(other) => return Err(ApiError::wrong("parallel_tool_calls", other, "true or false")),
    };
    Ok(match (given, choice) {
        (Some(given), Some(choice)) if !functions.is_empty() => {
            Some(Tools { functions, given: given.clone(), choice, parallel })
        }
        _ => None,
    })
}

impl Tools {
    /// Whether an answer has to be a call.
    pub(crate) fn is_forced(&self) -> bool {
        self.choice != ToolChoice::Auto
    }

    /// Reads the calls of one answer.
    pub(crate) fn parser(&self) -> CallParser {
        let names = self.functions.iter().map(|function| function.name.clone()).collect();
        let many = self.parallel && !matches!(self.choice, ToolChoice::Named(_));
        CallParser::new(names, many, self.is_forced())
    }
}

fn functions(tools: &Value) -> Result<Vec<Function>, ApiError> {
    let tools = tools.as_array().ok_or_else(|| ApiError::wrong("tools", tools, "a list"))?;
    if tools.len() > MAX_TOOLS {
        let message = format!("{} tools, at most {MAX_TOOLS}", tools.len());
        return Err(ApiError::invalid("tools", message));
    }
    let mut functions: Vec<Function> = Vec::new();
    for (index, tool) in tools.iter().enumerate() {
        let function = function(index, tool)?;
        if functions.iter().any(|other| other.name == function.name) {
            let param = format!("tools[{index}].function.name");
            let message = format!("{param}: '{}' is there twice", function.name);
            return Err(ApiError::invalid(&param, message));
        }
        functions.push(function);
    }
    Ok(functions)
}

fn function(index: usize, tool: &Value) -> Result<Function, ApiError> {
    let at = format!("tools[{index}]");
    let tool = object(&at, tool)?;
    let kind = tool.get("type").unwrap_or(&Value::Null);
    if kind != "function" {
        return Err(ApiError::wrong(&format!("{at}.type"), kind, "function"));
    }
    refuse_others(&at, tool, &["type", "function"])?;
    let at = format!("{at}.function");
    let fields = object(&at, tool.get("function").unwrap_or(&Value::Null))?;
    refuse_others(&at, fields, &["name", "description", "parameters", "strict"])?;
    let optional = |field: &str, fits: fn(&Value) -> bool, expected: &str| {
        let value = fields.get(field).filter(|value| !value.is_null());
        match value {
            Some(value) if !fits(value) => {
                Err(ApiError::wrong(&format!("{at}.{field}"), value, expected))
            }
            value => Ok(value),
        }
    };
    optional("description", Value::is_string, "a string")?;
    optional("strict", Value::is_boolean, "true or false")?;
    let schema = "the JSON schema of an object";
    let parameters = optional("parameters", is_object_schema, schema)?.cloned();
    let name = fields.get("name").unwrap_or(&Value::Null);
    let fits = name.as_str().filter(|name| is_name(name));
    let expected = "1 to 64 letters, digits, '_' or '-'";
    let text = fits.ok_or_else(|| ApiError::wrong(&format!("{at}.name"), name, expected))?;
    Ok(Function { index, name: text.to_owned(), parameters })
}

fn is_object_schema(value: &Value) -> bool {
    value.as_object().is_some_and(|schema| schema.get("type").is_none_or(|kind| kind == "object"))
}

/// What `tool_choice` says; nothing for `none`.
fn choice_of(
    choice: Option<&Value>,
    functions: &[Function],
) -> Result<Option<ToolChoice>, ApiError> {
    let needs_tools = |choice: ToolChoice| match functions {
        [] => Err(ApiError::invalid("tool_choice", "tool_choice asks for a call without tools")),
        _ => Ok(Some(choice)),
    };
    match choice {
        None => Ok(Some(ToolChoice::Auto)),
        Some(Value::String(word)) if word == "auto" => Ok(Some(ToolChoice::Auto)),
        Some(Value::String(word)) if word == "none" => Ok(None),
        Some(Value::String(word)) if word == "required" => needs_tools(ToolChoice::Required),
        Some(Value::Object(fields))
            if fields.get("type").is_some_and(|kind| kind == "function") =>
        {
            let name = named(fields)?;
            if !functions.iter().any(|function| function.name == name) {
                let param = "tool_choice.function.name";
                return Err(ApiError::invalid(param, format!("there is no tool '{name}'")));
            }
            needs_tools(ToolChoice::Named(name))
        }
        Some(other) => {
            let expected =
                "none, auto, required or {\"type\": \"function\", \"function\": {\"name\": …}}";
            Err(ApiError::wrong("tool_choice", other, expected))
        }
    }
}

fn named(choice: &Map<String, Value>) -> Result<String, ApiError> {
    refuse_others("tool_choice", choice, &["type", "function"])?;
    let at = "tool_choice.function";
    let function = object(at, choice.get("function").unwrap_or(&Value::Null))?;
    refuse_others(at, function, &["name"])?;
    let name = function.get("name").unwrap_or(&Value::Null);
    let text = name.as_str().map(str::to_owned);
    text.ok_or_else(|| ApiError::wrong("tool_choice.function.name", name, "the name of a tool"))
}

#[cfg(test)]
mod tests;
