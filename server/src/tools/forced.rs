//! Answers that have to be calls.

use dfastllm_models::{Structure, StructureError};
use serde_json::{Map, Value, json};

use super::{CLOSE, Function, OPEN, ToolChoice, Tools};
use crate::ApiError;

impl Tools {
    /// The form of an answer that has to be a call: one of the tools' names with arguments that its
    /// schema accepts, between the convention's marks. None when the model decides.
    pub(crate) fn structure(&self) -> Option<Structure> {
        let functions = self.callable();
        let many = match &self.choice {
            ToolChoice::Auto => return None,
            ToolChoice::Required => self.parallel,
            ToolChoice::Named(_) => false,
        };
        let calls = match functions.as_slice() {
            [one] => call(one, "#"),
            several => {
                let options = several.iter().enumerate();
                let options = options.map(|(at, one)| call(one, &format!("#/anyOf/{at}")));
                json!({"anyOf": options.collect::<Vec<_>>()})
            }
        };
        let more = if many { " (\"\\n\" call)*" } else { "" };
        Some(Structure::Lark(format!(
            "start: call{more}\ncall: \"{OPEN}\\n\" body \"\\n{CLOSE}\"\nbody: %json {calls}\n"
        )))
    }

    /// Which tool a structure that does not compile is to blame on.
    pub(crate) fn refusal(&self, error: &StructureError) -> ApiError {
        let StructureError::Invalid { path, reason } = error else {
            return match error {
                StructureError::Busy => ApiError::Unavailable { message: error.to_string() },
                _ => ApiError::invalid("tools", format!("tools: {error}")),
            };
        };
        let functions = self.callable();
        let (at, rest) = match path.strip_prefix("/anyOf/").and_then(|rest| rest.split_once('/')) {
            Some((at, rest)) if functions.len() > 1 => (at.parse().unwrap_or(0), rest),
            _ => (0, path.trim_start_matches('/')),
        };
        let Some(inside) = rest.strip_prefix("properties/arguments") else {
            return ApiError::invalid("tools", format!("tools: {error}"));
        };
        let index = functions.get(at).map_or(0, |function| function.index);
        let param = format!("tools[{index}].function.parameters");
        ApiError::invalid(&param, format!("{param}{inside}: {reason}"))
    }

    /// The tools that may be called.
    fn callable(&self) -> Vec<&Function> {
        let named = |function: &&Function| match &self.choice {
            ToolChoice::Named(name) => function.name == *name,
            _ => true,
        };
        self.functions.iter().filter(named).collect()
    }
}

/// The schema of a call, which stands at `at` in a larger one.
fn call(function: &Function, at: &str) -> Value {
    let at = format!("{at}/properties/arguments");
    let arguments = match &function.parameters {
        Some(parameters) => {
            let mut schema = parameters.clone();
            move_references(&mut schema, &at);
            if let Some(fields) = schema.as_object_mut() {
                fields.entry("type").or_insert_with(|| "object".into());
            }
            schema
        }
        None => json!({"type": "object"}),
    };
    json!({
        "type": "object",
        "properties": {"name": {"const": function.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": false
    })
}

/// References within a schema, for a schema that has moved.
fn move_references(schema: &mut Value, at: &str) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::String(to)) = fields.get_mut("$ref")
                && let Some(inside) = to.strip_prefix('#')
            {
                *to = format!("{at}{inside}");
            }
            for (key, value) in fields {
                match key.as_str() {
                    // Data, and no schemas.
                    "const" | "enum" | "default" | "example" | "examples" => {}
                    "properties" | "patternProperties" | "$defs" | "definitions" => {
                        let named = value.as_object_mut().into_iter().flat_map(Map::values_mut);
                        named.for_each(|value| move_references(value, at));
                    }
                    _ => move_references(value, at),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| move_references(value, at)),
        _ => {}
    }
}
