//! Options of which no JSON matches two. For those `oneOf` means `anyOf`, which the library can
//! follow.

use serde_json::Value;

use super::closed::parts_mut;
use super::schema::{names, target};

/// How far references and properties are followed.
const DEPTH: usize = 8;

/// Comparisons of values that one schema may take.
const BUDGET: usize = 2_000_000;

/// Makes `anyOf` of every `oneOf` whose options are found to be disjoint.
pub(super) fn settle(schema: &mut Value, root: &Value) {
    Search { root, left: BUDGET }.settle(schema);
}

struct Search<'a> {
    root: &'a Value,
    /// Comparisons left; without any, options count as overlapping.
    left: usize,
}

impl Search<'_> {
    fn settle(&mut self, schema: &mut Value) {
        let Some(map) = schema.as_object_mut() else { return };
        parts_mut(map).for_each(|part| self.settle(part));
        let apart = map.get("oneOf").and_then(Value::as_array).is_some_and(|options| {
            let pairs = options.iter().enumerate();
            pairs.clone().all(|(at, one)| {
                options[at + 1..].iter().all(|other| self.are_disjoint(one, other, DEPTH))
            })
        });
        if apart && !map.contains_key("anyOf") {
            // In its place: what comes first is what the model is asked first.
            let renamed = std::mem::take(map)
                .into_iter()
                .map(|(key, value)| (if key == "oneOf" { "anyOf".to_owned() } else { key }, value));
            *map = renamed.collect();
        }
    }

    fn spend(&mut self, comparisons: usize) -> bool {
        let left = self.left.checked_sub(comparisons);
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    fn are_disjoint(&mut self, one: &Value, other: &Value, depth: usize) -> bool {
        let (one, other) = (follow(one, self.root), follow(other, self.root));
        if depth == 0 || !self.spend(1) {
            return false;
        }
        if let (Some(ones), Some(others)) = (values(one), values(other)) {
            let pairs = ones.len().saturating_mul(others.len());
            return self.spend(pairs)
                && !ones.iter().any(|value| others.iter().any(|other| same(value, other)));
        }
        let (ones, others) = (types(one), types(other));
        if ones.is_empty() || others.is_empty() || !self.spend(ones.len() * others.len()) {
            return false;
        }
        if !ones.iter().any(|name| others.contains(name)) {
            return true;
        }
        // A property that both objects have to have, in forms of which none is the other's.
        ones == ["object"] && others == ["object"] && self.differ_in_one(one, other, depth)
    }

    fn differ_in_one(&mut self, one: &Value, other: &Value, depth: usize) -> bool {
        let required = |schema: &Value| schema["required"].as_array().map_or(0, Vec::len);
        let is_required = |schema: &Value, name: &str| {
            schema["required"].as_array().is_some_and(|all| all.iter().any(|n| n == name))
        };
        let names = required(one) + required(other);
        one["properties"].as_object().is_some_and(|properties| {
            properties.iter().any(|(name, property)| {
                self.spend(names)
                    && is_required(one, name)
                    && is_required(other, name)
                    && other["properties"]
                        .get(name)
                        .is_some_and(|p| self.are_disjoint(property, p, depth - 1))
            })
        })
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settled(schema: &Value) -> Value {
        let mut prepared = schema.clone();
        settle(&mut prepared, schema);
        prepared
    }

    #[test]
    fn values_are_no_schemas_and_many_comparisons_are_not_made() {
        let data = json!({"properties": {"rule": {"const": {"oneOf": ["a"]}}}});
        assert_eq!(settled(&data), data);
        let few = json!({"oneOf": [{"const": 1}, {"const": 2}]});
        assert_eq!(settled(&few), json!({"anyOf": [{"const": 1}, {"const": 2}]}));
        let names: Vec<String> = (0..1000).map(|i| format!("p{i}")).collect();
        let object = |to: &str| {
            let named = names.iter().map(|name| (name.clone(), json!({"$ref": to})));
            let named: serde_json::Map<String, Value> = named.collect();
            json!({"type": "object", "properties": named, "required": names})
        };
        let numbers = |from: u32| json!({"enum": (from..from + 10_000).collect::<Vec<_>>()});
        // They share one value, so each of the thousand properties would be compared.
        let many = json!({
            "oneOf": [object("#/$defs/a"), object("#/$defs/b")],
            "$defs": {"a": numbers(0), "b": numbers(9_999)},
        });
        let start = std::time::Instant::now();
        assert_eq!(settled(&many), many);
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    }
}
