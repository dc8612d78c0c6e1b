//! Whether a schema has any finite instance: one that requires itself has none.

use std::collections::HashSet;

use serde_json::Value;

use super::schema::target;

/// Whether some finite JSON could match, as far as references go: definitions are found to have
/// instances round by round, until a round finds none.
pub(super) fn has_instance(root: &Value) -> bool {
    let mut found = HashSet::new();
    let mut references = HashSet::new();
    collect(root, &mut references);
    loop {
        let known = found.len();
        for reference in &references {
            let finite = |to| is_finite(to, &found);
            if !found.contains(reference) && target(root, reference).is_some_and(finite) {
                found.insert(*reference);
            }
        }
        if is_finite(root, &found) {
            return true;
        }
        if found.len() == known {
            return false;
        }
    }
}

fn collect<'a>(value: &'a Value, references: &mut HashSet<&'a str>) {
    match value {
        Value::Object(map) => {
            references.extend(map.get("$ref").and_then(Value::as_str));
            map.values().for_each(|value| collect(value, references));
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, references)),
        _ => {}
    }
}

/// Whether a schema has an instance, given the definitions that have.
fn is_finite(schema: &Value, found: &HashSet<&str>) -> bool {
    let list = |key: &str| schema[key].as_array();
    let all = |key: &str| list(key).is_none_or(|all| all.iter().all(|one| is_finite(one, found)));
    let any = |key: &str| list(key).is_none_or(|any| any.iter().any(|one| is_finite(one, found)));
    let referred = schema["$ref"].as_str().is_none_or(|to| found.contains(to));
    if !(referred && all("allOf") && any("anyOf") && any("oneOf")) {
        return false;
    }
    // Only what has to be an object or an array needs what it requires.
    let only = |name: &str| schema["type"] == name;
    let property = |name: &Value| {
        let name = name.as_str().unwrap_or_default();
        schema["properties"].get(name).is_none_or(|property| is_finite(property, found))
    };
    if only("object") && !list("required").is_none_or(|names| names.iter().all(property)) {
        return false;
    }
    let items = schema["minItems"].as_u64().unwrap_or(0);
    let prefix = list("prefixItems").map_or(&[][..], Vec::as_slice);
    let needed = prefix.iter().take(items as usize).all(|item| is_finite(item, found));
    let rest = items as usize <= prefix.len()
        || schema.get("items").is_none_or(|item| is_finite(item, found));
    !only("array") || (needed && rest)
}
