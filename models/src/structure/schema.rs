//! JSON schemas, before the library sees them: what it would pass over in silence is refused here,
//! and what is only said about a schema is left out.
//!
//! Properties that an object does not name are left out (`closed.rs`).
//!
//! The dialect is 2020-12, with `definitions`, lists as `items` and boolean `exclusiveMinimum` of
//! older drafts. References stay within the schema. Keys come in the order of `properties`; after
//! `,` and `:` there is one space or none, and no other blank. `format` is a shape, so that
//! February may have 29 days in any year.

use serde_json::{Map, Value, json};

use super::limits::{
    ALTERNATIVES, ONE_OF, PROPERTIES, REFERENCES, REPETITIONS, SCHEMA_DEPTH, TEXT_BYTES, at_most,
};
use super::{StructureError, closed, disjoint, finite, regex};

/// Where the library looks for its options.
const OPTIONS: &str = "x-guidance";
/// Integers that JSON readers and the library's `f64` keep.
const EXACT: f64 = 9_007_199_254_740_992.0;
const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];
/// What is said about a schema and constrains nothing.
const NOTES: [&str; 16] = [
    "$schema",
    "$id",
    "id",
    "$comment",
    "$anchor",
    "title",
    "description",
    "default",
    "example",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "contentMediaType",
    "contentEncoding",
    "discriminator",
];

/// Any JSON object.
pub(super) fn object() -> Value {
    with_options(json!({"type": "object"}))
}

/// The schema as the library gets it.
pub(super) fn prepare(schema: &Value) -> Result<Value, StructureError> {
    check_size(schema)?;
    match schema {
        Value::Bool(true) => return Ok(with_options(json!({}))),
        Value::Bool(false) => return Err(StructureError::invalid("nothing matches 'false'")),
        Value::Object(_) => {}
        _ => return Err(StructureError::invalid("a schema is an object or a boolean")),
    }
    let mut walk = Walk { root: schema, path: String::new(), references: Vec::new() };
    let mut prepared = walk.schema(schema)?;
    if !finite::has_instance(schema) {
        return Err(StructureError::invalid("no finite JSON matches: it requires itself"));
    }
    closed::close(&mut prepared);
    // A reference may lead through an option by its number.
    if !walk.references.iter().any(|to| to.contains("/oneOf/")) {
        disjoint::settle(&mut prepared, schema);
    }
    Ok(with_options(prepared))
}

fn with_options(mut schema: Value) -> Value {
    if let Value::Object(map) = &mut schema {
        let options = json!({
            "item_separator": ", ?",
            "key_separator": ": ?",
            "whitespace_flexible": false,
            // One spelling a string, so that no key has two.
            "json_allowed_escapes": "nrbtf\\\"",
        });
        map.insert(OPTIONS.to_owned(), options);
    }
    schema
}

/// Depth without recursion, then length.
fn check_size(schema: &Value) -> Result<(), StructureError> {
    let mut open = vec![(schema, 1)];
    while let Some((value, depth)) = open.pop() {
        at_most("the schema's depth", depth, SCHEMA_DEPTH)?;
        match value {
            Value::Array(values) => open.extend(values.iter().map(|value| (value, depth + 1))),
            Value::Object(map) => open.extend(map.values().map(|value| (value, depth + 1))),
            _ => {}
        }
    }
    at_most("the schema's length in bytes", schema.to_string().len(), TEXT_BYTES)
}

struct Walk<'a> {
    root: &'a Value,
    path: String,
    references: Vec<String>,
}

impl<'a> Walk<'a> {
    fn schema(&mut self, schema: &'a Value) -> Result<Value, StructureError> {
        let map = match schema {
            Value::Object(map) => map,
            Value::Bool(_) => return Ok(schema.clone()),
            _ => return Err(self.refuse("a schema is an object or a boolean")),
        };
        self.properties_are_counted(map)?;
        let mut out = Map::new();
        for (key, value) in map {
            if NOTES.contains(&key.as_str()) {
                continue;
            }
            let length = self.enter(key);
            if let Some(value) = self.keyword(key, value, map)? {
                out.insert(key.clone(), value);
            }
            self.path.truncate(length);
        }
        Ok(Value::Object(out))
    }

    fn keyword(
        &mut self,
        key: &str,
        value: &'a Value,
        beside: &Map<String, Value>,
    ) -> Result<Option<Value>, StructureError> {
        match key {
            "additionalProperties" | "additionalItems" => return self.schema(value).map(Some),
            "items" if value.is_array() => {
                if beside.contains_key("prefixItems") {
                    return Err(self.refuse("a list cannot stand beside prefixItems"));
                }
                return self.list(value).map(Some);
            }
            "items" => return self.schema(value).map(Some),
            "oneOf" => {
                at_most("the number of options of a oneOf", size(value), ONE_OF)?;
                return self.list(value).map(Some);
            }
            "anyOf" | "allOf" | "prefixItems" => return self.list(value).map(Some),
            "properties" | "patternProperties" | "$defs" | "definitions" => {
                return self.map(key, value).map(Some);
            }
            "type" => self.types(value)?,
            "enum" => self.values(value)?,
            "const" => self.value(value)?,
            "$ref" => return self.reference(value).map(Some),
            "pattern" => {
                let text = value.as_str().ok_or_else(|| self.refuse("has to be a string"))?;
                self.pattern(text)?;
            }
            "format" => {
                // Formats of numbers say how they are stored.
                if beside.get("type").is_some_and(|types| !names(types).contains(&"string")) {
                    return Ok(None);
                }
                let text = value.as_str().unwrap_or_default();
                if !FORMATS.contains(&text) {
                    return Err(self.refuse(&format!("format {value} is not supported")));
                }
            }
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties"
            | "maxProperties" => self.count(value)?,
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf" => {
                self.bound(key, value)?;
            }
            "required" => {
                let texts = value.as_array().is_some_and(|list| list.iter().all(Value::is_string));
                if !texts {
                    return Err(self.refuse("has to be a list of strings"));
                }
                at_most("the number of required properties", size(value), PROPERTIES)?;
            }
            _ => return Err(self.refuse("this keyword is not supported")),
        }
        Ok(Some(value.clone()))
    }

    fn list(&mut self, value: &'a Value) -> Result<Value, StructureError> {
        let Value::Array(values) = value else { return Err(self.refuse("has to be a list")) };
        at_most("the number of options", values.len(), ALTERNATIVES)?;
        let mut out = Vec::new();
        for (index, value) in values.iter().enumerate() {
            let length = self.enter(&index.to_string());
            out.push(self.schema(value)?);
            self.path.truncate(length);
        }
        Ok(Value::Array(out))
    }

    fn map(&mut self, keyword: &str, value: &'a Value) -> Result<Value, StructureError> {
        let Value::Object(map) = value else { return Err(self.refuse("has to be an object")) };
        at_most("the number of properties", map.len(), PROPERTIES)?;
        let mut out = Map::new();
        for (key, value) in map {
            let length = self.enter(key);
            if keyword == "patternProperties" {
                self.pattern(key)?;
            }
            out.insert(key.clone(), self.schema(value)?);
            self.path.truncate(length);
        }
        Ok(Value::Object(out))
    }

    fn types(&self, value: &Value) -> Result<(), StructureError> {
        let names = names(value);
        let known = names.iter().all(|name| TYPES.contains(name));
        if names.is_empty() || names.len() != size(value) || !known {
            return Err(self.refuse(&format!("{value} is no type of JSON")));
        }
        Ok(())
    }

    fn values(&self, value: &Value) -> Result<(), StructureError> {
        let Value::Array(values) = value else { return Err(self.refuse("has to be a list")) };
        at_most("the number of values of an enum", values.len(), ALTERNATIVES)?;
        values.iter().try_for_each(|value| self.value(value))
    }

    /// Values that have to be written as they are.
    fn value(&self, value: &Value) -> Result<(), StructureError> {
        match value {
            Value::Number(number) if number.as_f64().is_none_or(|n| n.abs() > EXACT) => {
                Err(self.refuse(&format!("{number} is too large to be exact")))
            }
            Value::String(text) if text.chars().any(is_unwritable) => {
                Err(self.refuse("control characters are not supported"))
            }
            Value::Array(values) => values.iter().try_for_each(|value| self.value(value)),
            Value::Object(map) => map.values().try_for_each(|value| self.value(value)),
            _ => Ok(()),
        }
    }

    fn reference(&mut self, value: &Value) -> Result<Value, StructureError> {
        let to = value.as_str().ok_or_else(|| self.refuse("has to be a string"))?;
        if target(self.root, to).is_none() {
            let inside = to == "#" || to.starts_with("#/");
            return Err(self.refuse(&if inside {
                format!("{value} leads nowhere")
            } else {
                format!("{value} is outside this schema, which is not supported")
            }));
        }
        if !self.references.iter().any(|known| known == to) {
            self.references.push(to.to_owned());
            at_most("the number of references", self.references.len(), REFERENCES)?;
        }
        Ok(encoded(to))
    }

    fn pattern(&self, text: &str) -> Result<(), StructureError> {
        regex::check(text).map_err(|e| match e {
            StructureError::Invalid { reason, .. } => self.refuse(&reason),
            other => other,
        })
    }

    fn count(&self, value: &Value) -> Result<(), StructureError> {
        let count = value.as_u64().ok_or_else(|| self.refuse("has to be a whole number"))?;
        at_most("a length in the schema", usize::try_from(count).unwrap_or(usize::MAX), REPETITIONS)
    }

    fn bound(&self, key: &str, value: &Value) -> Result<(), StructureError> {
        match value {
            Value::Bool(_) if key.starts_with("exclusive") => Ok(()),
            Value::Number(number) if number.as_f64().is_some_and(|n| n.abs() <= EXACT) => match key
            {
                "multipleOf" if number.as_f64().is_none_or(|n| n <= 0.0) => {
                    Err(self.refuse("has to be more than 0"))
                }
                _ => Ok(()),
            },
            _ => Err(self.refuse("has to be a number up to 2^53")),
        }
    }

    /// Keys of free names may come twice, and then there are fewer than were written.
    fn properties_are_counted(&self, map: &Map<String, Value>) -> Result<(), StructureError> {
        let least = map.get("minProperties").and_then(Value::as_u64).unwrap_or(0);
        let required = map.get("required").map_or(0, size) as u64;
        let closed = map.get("additionalProperties") == Some(&Value::Bool(false))
            && !map.contains_key("patternProperties");
        if !closed && least > required.max(1) {
            return Err(self.refuse(
                "minProperties above 1 needs additionalProperties: false or as many required",
            ));
        }
        Ok(())
    }

    /// Adds a step to the path; gives the length to go back to.
    fn enter(&mut self, key: &str) -> usize {
        let length = self.path.len();
        self.path.push('/');
        self.path.push_str(&key.replace('~', "~0").replace('/', "~1"));
        length
    }

    fn refuse(&self, reason: &str) -> StructureError {
        StructureError::Invalid { path: self.path.clone(), reason: reason.to_owned() }
    }
}

/// What a local reference means, percent-encoded or not.
pub(super) fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    let pointer = reference.strip_prefix('#')?;
    root.pointer(pointer).or_else(|| root.pointer(&decoded(pointer)?))
}

fn decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (hex, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(hex, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// A reference as URIs have it: names such as `Page[int]` are written by their bytes.
fn encoded(reference: &str) -> Value {
    let mut out = String::new();
    for byte in reference.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"#/%$-._~!&'()*+,;=:@?".contains(&byte);
        match plain {
            true => out.push(char::from(byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    Value::String(out)
}

/// The names under `type`.
pub(super) fn names(types: &Value) -> Vec<&str> {
    match types {
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        name => name.as_str().into_iter().collect(),
    }
}

fn size(value: &Value) -> usize {
    value.as_array().map_or(1, Vec::len)
}

/// Characters that JSON writes by number only.
fn is_unwritable(c: char) -> bool {
    (c < ' ' && !matches!(c, '\n' | '\r' | '\t' | '\u{8}' | '\u{c}')) || c == '\u{7f}'
}
