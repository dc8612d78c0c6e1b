//! `response_format` and `structured_outputs`: the form a client wants its answer to have.

use dfastllm_models::{Guide, Structure, StructureError};
use serde_json::{Map, Value};

use crate::{ApiError, AppState};

const FORMAT: &str = "response_format";
const OUTPUTS: &str = "structured_outputs";
/// What `structured_outputs` takes one of.
const KINDS: [&str; 5] = ["json", "regex", "choice", "grammar", "json_object"];

/// The structure that a request asks for, if it asks for one. Schemas, expressions and grammars
/// themselves are checked when they are compiled; see [`refusal`].
///
/// # Errors
/// Names the field that is damaged or not known.
pub(crate) fn structure_of(
    response_format: Option<&Value>,
    structured_outputs: Option<&Value>,
) -> Result<Option<Structure>, ApiError> {
    let given = |value: Option<&Value>| value.is_some_and(|value| !value.is_null());
    match (response_format, structured_outputs) {
        (format, outputs) if given(format) && given(outputs) => {
            let message = "response_format and structured_outputs say the same; give one";
            Err(ApiError::invalid(OUTPUTS, message))
        }
        (Some(format), _) if !format.is_null() => of_format(format),
        (_, Some(outputs)) if !outputs.is_null() => of_outputs(outputs).map(Some),
        _ => Ok(None),
    }
}

/// Where a structure that does not compile came from, and why it does not.
pub(crate) fn refusal(
    error: &StructureError,
    response_format: Option<&Value>,
    structured_outputs: Option<&Value>,
) -> ApiError {
    let param = match (response_format, structured_outputs) {
        (Some(format), _) if format["type"] == "json_schema" => {
            "response_format.json_schema.schema".to_owned()
        }
        (Some(format), _) if !format.is_null() => FORMAT.to_owned(),
        (_, Some(Value::Object(outputs))) => match outputs.iter().find(|(_, v)| !v.is_null()) {
            Some((kind, _)) => format!("{OUTPUTS}.{kind}"),
            None => OUTPUTS.to_owned(),
        },
        _ => OUTPUTS.to_owned(),
    };
    match error {
        StructureError::Busy => ApiError::Unavailable { message: error.to_string() },
        _ => ApiError::invalid(&param, format!("{param}: {error}")),
    }
}

/// Compiles a structure, off the threads that answer health checks; the inner error says what is
/// wrong with it.
///
/// # Errors
/// When no model is in service.
pub(crate) async fn guide(
    structure: Structure,
    state: &AppState,
) -> Result<Result<Guide, StructureError>, ApiError> {
    let compiler = match &state.require_model()?.structures {
        Ok(compiler) => compiler.clone(),
        Err(error) => return Ok(Err(error.clone())),
    };
    let compiled = tokio::task::spawn_blocking(move || compiler.compile(&structure)).await;
    compiled.map_err(|_| {
        let message = "the structure could not be compiled".to_owned();
        ApiError::Internal { code: "internal_error", message }
    })
}

fn of_format(format: &Value) -> Result<Option<Structure>, ApiError> {
    let fields = object(FORMAT, format)?;
    let kind = fields.get("type").and_then(Value::as_str);
    let allowed: &[&str] = match kind {
        Some("text" | "json_object") => &["type"],
        Some("json_schema") => &["type", "json_schema"],
        _ => {
            let found = fields.get("type").unwrap_or(&Value::Null);
            return Err(ApiError::wrong(
                &format!("{FORMAT}.type"),
                found,
                "text, json_object or json_schema",
            ));
        }
    };
    refuse_others(FORMAT, fields, allowed)?;
    match kind {
        Some("json_object") => Ok(Some(Structure::JsonObject)),
        Some("json_schema") => named_schema(fields.get("json_schema")).map(Some),
        _ => Ok(None),
    }
}

/// OpenAI's object around a schema. `strict` or not, the schema is kept to the letter.
fn named_schema(value: Option<&Value>) -> Result<Structure, ApiError> {
    let at = "response_format.json_schema";
    let fields = object(at, value.unwrap_or(&Value::Null))?;
    refuse_others(at, fields, &["name", "description", "schema", "strict"])?;
    let absent = |field: &str| fields.get(field).is_none_or(Value::is_null);
    let refuse = |field: &str, expected: &str| {
        let found = fields.get(field).unwrap_or(&Value::Null);
        Err(ApiError::wrong(&format!("{at}.{field}"), found, expected))
    };
    if !absent("name") && !fields["name"].as_str().is_some_and(is_name) {
        return refuse("name", "1 to 64 letters, digits, '_' or '-'");
    }
    if !absent("description") && !fields["description"].is_string() {
        return refuse("description", "a string");
    }
    if !absent("strict") && !fields["strict"].is_boolean() {
        return refuse("strict", "true or false");
    }
    match fields.get("schema") {
        Some(schema @ (Value::Object(_) | Value::Bool(_))) => {
            Ok(Structure::JsonSchema(schema.clone()))
        }
        _ => refuse("schema", "a JSON schema"),
    }
}

fn of_outputs(outputs: &Value) -> Result<Structure, ApiError> {
    let fields = object(OUTPUTS, outputs)?;
    refuse_others(OUTPUTS, fields, &KINDS)?;
    let mut given = fields.iter().filter(|(_, value)| !value.is_null());
    let (Some((kind, value)), None) = (given.next(), given.next()) else {
        let message = format!("{OUTPUTS} takes exactly one of {}", KINDS.join(", "));
        return Err(ApiError::invalid(OUTPUTS, message));
    };
    let param = format!("{OUTPUTS}.{kind}");
    let text = || match value {
        Value::String(text) => Ok(text.clone()),
        _ => Err(ApiError::wrong(&param, value, "a string")),
    };
    Ok(match kind.as_str() {
        "json" => Structure::JsonSchema(schema_or_text(&param, value)?),
        "regex" => Structure::Regex(text()?),
        "choice" => {
            let texts = value.as_array().filter(|choices| !choices.is_empty());
            let texts = texts.and_then(|all| {
                all.iter().map(|choice| choice.as_str().map(str::to_owned)).collect()
            });
            Structure::Choice(
                texts.ok_or_else(|| ApiError::wrong(&param, value, "a list of strings"))?,
            )
        }
        "grammar" => Structure::Lark(text()?),
        // "json_object", the last of the kinds.
        _ if value == &Value::Bool(true) => Structure::JsonObject,
        _ => return Err(ApiError::wrong(&param, value, "true")),
    })
}

/// A schema, or the text of one.
fn schema_or_text(param: &str, value: &Value) -> Result<Value, ApiError> {
    match value {
        Value::Object(_) | Value::Bool(_) => Ok(value.clone()),
        Value::String(text) => serde_json::from_str(text)
            .map_err(|e| ApiError::invalid(param, format!("{param}: the string is no JSON: {e}"))),
        _ => Err(ApiError::wrong(param, value, "a JSON schema or the text of one")),
    }
}

/// Names of schemas and functions.
pub(crate) fn is_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=64).contains(&name.len()) && name.bytes().all(letter)
}

/// The fields of an object.
pub(crate) fn object<'a>(
    param: &str,
    value: &'a Value,
) -> Result<&'a Map<String, Value>, ApiError> {
    value.as_object().ok_or_else(|| ApiError::wrong(param, value, "an object"))
}

/// Refuses the first field that is not among these.
pub(crate) fn refuse_others(
    param: &str,
    fields: &Map<String, Value>,
    known: &[&str],
) -> Result<(), ApiError> {
    match fields.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => {
            let param = format!("{param}.{key}");
            let message = format!("{param} is not supported; known are {}", known.join(", "));
            Err(ApiError::unsupported(&param, message))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn format(value: Value) -> Result<Option<Structure>, ApiError> {
        structure_of(Some(&value), None)
    }

    fn outputs(value: Value) -> Result<Option<Structure>, ApiError> {
        structure_of(Some(&Value::Null), Some(&value))
    }

    fn param(result: Result<Option<Structure>, ApiError>) -> String {
        match result {
            Err(ApiError::Invalid { param: Some(param), message, .. }) => {
                assert!(message.contains(param.split('.').next_back().unwrap()), "{message}");
                param
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_format_of_openai_is_read() {
        assert_eq!(structure_of(None, None), Ok(None));
        assert_eq!(format(json!({"type": "text"})), Ok(None));
        assert_eq!(format(json!({"type": "json_object"})), Ok(Some(Structure::JsonObject)));
        let schema = json!({"type": "object"});
        let named = json!({"type": "json_schema", "json_schema":
            {"name": "a-b_1", "schema": schema, "strict": true, "description": "d"}});
        assert_eq!(format(named), Ok(Some(Structure::JsonSchema(schema.clone()))));
        let bare =
            json!({"type": "json_schema", "json_schema": {"schema": schema, "strict": null}});
        assert_eq!(format(bare), Ok(Some(Structure::JsonSchema(schema))));
    }

    #[test]
    fn every_kind_of_output_is_read() {
        let schema = Structure::JsonSchema(json!({"type": "null"}));
        assert_eq!(outputs(json!({"json": {"type": "null"}})), Ok(Some(schema.clone())));
        assert_eq!(outputs(json!({"json": "{\"type\": \"null\"}"})), Ok(Some(schema)));
        let regex = Structure::Regex("a+".to_owned());
        assert_eq!(outputs(json!({"regex": "a+", "json": null})), Ok(Some(regex)));
        let choice = Structure::Choice(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(outputs(json!({"choice": ["a", "b"]})), Ok(Some(choice)));
        let grammar = Structure::Lark("start: \"a\"".to_owned());
        assert_eq!(outputs(json!({"grammar": "start: \"a\""})), Ok(Some(grammar)));
        assert_eq!(outputs(json!({"json_object": true})), Ok(Some(Structure::JsonObject)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let schema =
            |value: Value| param(format(json!({"type": "json_schema", "json_schema": value})));
        let at = "response_format.json_schema";
        assert_eq!(schema(json!({"name": "a"})), format!("{at}.schema"));
        assert_eq!(schema(json!({"name": "a b", "schema": {}})), format!("{at}.name"));
        assert_eq!(schema(json!({"schema": []})), format!("{at}.schema"));
        assert_eq!(schema(json!({"schema": {}, "strict": 1})), format!("{at}.strict"));
        assert_eq!(schema(json!({"schema": {}, "description": 1})), format!("{at}.description"));
        assert_eq!(schema(json!({"schema": {}, "x": 1})), format!("{at}.x"));
        assert_eq!(schema(json!("{}")), at);
        assert_eq!(param(format(json!({"type": "xml"}))), "response_format.type");
        assert_eq!(param(format(json!({"type": "text", "x": 1}))), "response_format.x");
        assert_eq!(param(format(json!("json_object"))), "response_format");
        for (value, field) in [
            (json!({"json": "{"}), "structured_outputs.json"),
            (json!({"json": 1}), "structured_outputs.json"),
            (json!({"regex": 1}), "structured_outputs.regex"),
            (json!({"choice": []}), "structured_outputs.choice"),
            (json!({"choice": ["a", 1]}), "structured_outputs.choice"),
            (json!({"json_object": false}), "structured_outputs.json_object"),
            (json!({"structural_tag": "x"}), "structured_outputs.structural_tag"),
            (json!({"regex": "a", "choice": ["a"]}), "structured_outputs"),
            (json!({}), "structured_outputs"),
            (json!([]), "structured_outputs"),
        ] {
            assert_eq!(param(outputs(value)), field);
        }
        let both = structure_of(Some(&json!({"type": "text"})), Some(&json!({"regex": "a"})));
        assert_eq!(param(both), "structured_outputs");
    }

    #[test]
    fn a_structure_that_does_not_compile_is_refused_where_it_came_from() {
        let error = StructureError::NotAllowed(3);
        let outputs = json!({"json": null, "regex": "a("});
        let refused = refusal(&error, None, Some(&outputs));
        assert_eq!(refused.message(), "structured_outputs.regex: token 3 may not come next");
        let refused = refusal(&error, Some(&json!({"type": "json_schema"})), None);
        assert!(refused.message().starts_with("response_format.json_schema.schema: "));
        let busy = refusal(&StructureError::Busy, None, Some(&outputs));
        assert!(matches!(busy, ApiError::Unavailable { .. }));
    }
}
