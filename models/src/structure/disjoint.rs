//! Options of which no JSON matches two. For those `oneOf` means `anyOf`, which the library can
//! follow.

use serde_json::Value;

use super::schema::{names, target};

/// How far references and properties are followed.
const DEPTH: usize = 8;

/// Makes `anyOf` of every `oneOf` whose options are disjoint.
pub(super) fn settle(schema: &mut Value, root: &Value) {
    match schema {
        Value::Object(map) => {
            map.values_mut().for_each(|value| settle(value, root));
            let apart = map.get("oneOf").and_then(Value::as_array).is_some_and(|options| {
                let pairs = options.iter().enumerate();
                pairs.clone().all(|(at, one)| {
                    options[at + 1..].iter().all(|other| are_disjoint(one, other, root, DEPTH))
                })
            });
            if apart && !map.contains_key("anyOf") {
                // In its place: what comes first is what the model is asked first.
                let renamed = std::mem::take(map).into_iter().map(|(key, value)| {
                    (if key == "oneOf" { "anyOf".to_owned() } else { key }, value)
                });
                *map = renamed.collect();
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| settle(value, root)),
        _ => {}
    }
}

fn are_disjoint(one: &Value, other: &Value, root: &Value, depth: usize) -> bool {
    let (one, other) = (follow(one, root), follow(other, root));
    if depth == 0 {
        return false;
    }
    if let (Some(ones), Some(others)) = (values(one), values(other)) {
        return !ones.iter().any(|value| others.iter().any(|other| same(value, other)));
    }
    let (ones, others) = (types(one), types(other));
    if !ones.is_empty() && !others.is_empty() {
        if !ones.iter().any(|name| others.contains(name)) {
            return true;
        }
        // A property that both objects have to have, in forms of which none is the other's.
        if ones == ["object"] && others == ["object"] {
            let required = |schema: &Value, name: &str| {
                schema["required"].as_array().is_some_and(|all| all.iter().any(|n| n == name))
            };
            return one["properties"].as_object().is_some_and(|properties| {
                properties.iter().any(|(name, property)| {
                    required(one, name)
                        && required(other, name)
                        && other["properties"]
                            .get(name)
                            .is_some_and(|p| are_disjoint(property, p, root, depth - 1))
                })
            });
        }
    }
    false
}

/// What a bare reference means.
fn follow<'a>(mut schema: &'a Value, root: &'a Value) -> &'a Value {
    for _ in 0..DEPTH {
        let Some(to) = schema["$ref"].as_str().and_then(|to| target(root, to)) else { break };
        schema = to;
    }
    schema
}

/// The values of `const` or `enum`.
fn values(schema: &Value) -> Option<&[Value]> {
    match schema.get("const") {
        Some(value) => Some(std::slice::from_ref(value)),
        None => schema["enum"].as_array().map(Vec::as_slice),
    }
}

/// 1 and 1.0 are one number.
fn same(one: &Value, other: &Value) -> bool {
    one == other || (one.is_number() && one.as_f64() == other.as_f64())
}

/// Types that match, integers among the numbers; none when any may.
fn types(schema: &Value) -> Vec<&str> {
    let of_value = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    match values(schema) {
        Some(values) => values.iter().map(of_value).collect(),
        None => {
            let number = |name| if name == "integer" { "number" } else { name };
            names(&schema["type"]).into_iter().map(number).collect()
        }
    }
}
