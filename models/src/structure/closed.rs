//! Objects without properties that nobody named.
//!
//! A schema that names an object's properties and does not say `additionalProperties` admits any
//! others. Nobody who writes one wants them, and a model that is not sure goes on with them until its
//! length is up; so they are left out: what remains is still accepted by the schema. Where objects are
//! put together from several schemas, each would have to know the others' names, and all stays as the
//! schema says.

use serde_json::{Map, Value};

/// What stands beside a reference or a choice without saying more about the same value.
const ALONE: [&str; 3] = ["type", "$defs", "definitions"];

/// Closes the objects of a schema, unless it puts objects together.
pub(super) fn close(schema: &mut Value) {
    if !is_put_together(schema) {
        close_all(schema);
    }
}

fn is_put_together(schema: &Value) -> bool {
    let Some(map) = schema.as_object() else { return false };
    let links = |key: &&String| ["$ref", "anyOf", "oneOf"].contains(&key.as_str());
    let says_more = |key: &&String| !links(key) && !ALONE.contains(&key.as_str());
    let has_link = map.keys().any(|key| links(&key));
    let is_here = map.contains_key("allOf")
        || map.contains_key("patternProperties")
        || has_link
            && (map.keys().any(|key| says_more(&key)) || map.keys().filter(links).count() > 1);
    is_here || parts(map).any(is_put_together)
}

fn close_all(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    parts_mut(map).for_each(close_all);
    if names_all(map) {
        map.insert("additionalProperties".to_owned(), false.into());
    }
}

/// Whether an object's named properties are enough for what else is said of it.
fn names_all(map: &Map<String, Value>) -> bool {
    let Some(named) = map.get("properties").and_then(Value::as_object) else { return false };
    let required = map.get("required").and_then(Value::as_array).into_iter().flatten();
    let least = map.get("minProperties").and_then(Value::as_u64).unwrap_or(0);
    !map.contains_key("additionalProperties")
        && required.filter_map(Value::as_str).all(|name| named.contains_key(name))
        && least <= named.len() as u64
}

/// What a keyword's value is made of.
enum Place {
    Schema,
    Names,
    List,
    Other,
}

fn place(key: &str) -> Place {
    match key {
        "items" | "additionalProperties" | "additionalItems" => Place::Schema,
        "properties" | "$defs" | "definitions" => Place::Names,
        "allOf" | "anyOf" | "oneOf" | "prefixItems" => Place::List,
        _ => Place::Other,
    }
}

/// The schemas within a schema.
fn parts(map: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    map.iter().flat_map(|(key, value)| -> Vec<&Value> {
        match (place(key), value) {
            (Place::Schema, value) => vec![value],
            (Place::Names, Value::Object(named)) => named.values().collect(),
            (Place::List, Value::Array(list)) => list.iter().collect(),
            _ => Vec::new(),
        }
    })
}

/// The same, to be changed.
pub(super) fn parts_mut(map: &mut Map<String, Value>) -> impl Iterator<Item = &mut Value> {
    map.iter_mut().flat_map(|(key, value)| -> Vec<&mut Value> {
        match (place(key), value) {
            (Place::Schema, value) => vec![value],
            (Place::Names, Value::Object(named)) => named.values_mut().collect(),
            (Place::List, Value::Array(list)) => list.iter_mut().collect(),
            _ => Vec::new(),
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn closed(mut schema: Value) -> Value {
        close(&mut schema);
        schema
    }

    #[test]
    fn objects_that_name_their_properties_are_closed_wherever_they_stand() {
        let inner =
            json!({"type": "object", "properties": {"properties": {"const": {"properties": {}}}}});
        let schema = json!({
            "$defs": {"a": inner},
            "type": "object",
            "properties": {"list": {"type": "array", "items": {"$ref": "#/$defs/a"}}},
            "required": ["list"],
        });
        let found = closed(schema);
        assert_eq!(found["additionalProperties"], false);
        assert_eq!(found["$defs"]["a"]["additionalProperties"], false);
        let data = &found["$defs"]["a"]["properties"]["properties"]["const"];
        assert_eq!(data, &json!({"properties": {}}), "a value is no schema");
    }

    #[test]
    fn what_needs_other_properties_stays_open() {
        let named = json!({"a": {}});
        for schema in [
            json!({"type": "object"}),
            json!({"properties": named, "additionalProperties": {"type": "null"}}),
            json!({"properties": named, "required": ["b"]}),
            json!({"properties": named, "minProperties": 2}),
            json!({"allOf": [{"properties": named}, {"properties": {"b": {}}}]}),
            json!({"properties": named, "anyOf": [{"properties": {"b": {}}}, {}]}),
            json!({"properties": named, "patternProperties": {"^b": {}}}),
            json!({"properties": {"c": {"$ref": "#/$defs/d", "required": ["b"]}}, "$defs": {"d": {}}}),
        ] {
            assert_eq!(closed(schema.clone()), schema);
        }
    }
}
