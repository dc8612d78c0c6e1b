//! The document as a judge of real answers.

use std::collections::BTreeSet;

use boon::{Compiler, Draft, Schemas};
use dfastllm_tests::http::Server;
use serde_json::{Map, Value, json};

const PLACE: &str = "http://127.0.0.1/openapi.json";

/// `/openapi.json` of a server, and what its answers were seen to hold.
pub(crate) struct Document {
    pub(crate) value: Value,
    /// With no room for fields that it does not know.
    strict: Value,
    seen: BTreeSet<String>,
}

impl Document {
    pub(crate) async fn of(server: &Server) -> Self {
        let (status, text) = server.get("/openapi.json").await;
        assert_eq!(status, 200, "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        let mut strict = value.clone();
        close(&mut strict["components"]["schemas"]);
        Self { value, strict, seen: BTreeSet::new() }
    }

    /// Paths with their operations by method.
    pub(crate) fn operations(&self) -> Vec<(&str, &str, &Value)> {
        let paths = self.value["paths"].as_object().unwrap().iter();
        paths
            .flat_map(|(path, item)| {
                let methods = item.as_object().unwrap().iter();
                methods.map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
            })
            .collect()
    }

    pub(crate) fn schema(&self, name: &str) -> &Value {
        &self.value["components"]["schemas"][name]
    }

    /// Holds an answer against what the document says of it.
    pub(crate) fn judge(
        &mut self,
        (method, path): (&str, &str),
        (status, kind): (u16, &str),
        body: &Value,
    ) {
        let answer = &self.strict["paths"][path][method]["responses"][status.to_string()];
        let what = format!("{method} {path} {status} {kind}");
        assert!(answer.is_object(), "{what} is not in the document: {body}");
        assert!(answer["content"][kind]["schema"].is_object(), "{what}: {}", answer["content"]);
        let status = status.to_string();
        let place = ["paths", path, method, "responses", &status, "content", kind, "schema"];
        validate(&self.strict, &place, body);
        // The document names everything.
        if path != "/openapi.json" {
            names(body, &mut self.seen);
        }
    }

    /// Holds a value against a type, with no room for fields that it does not know.
    pub(crate) fn is(&self, name: &str, value: &Value) {
        validate(&self.strict, &["components", "schemas", name], value);
    }

    /// Holds a request that the server took against what the document says of it.
    pub(crate) fn allows(&self, path: &str, body: &Value) {
        let kind = "application/json";
        let place = ["paths", path, "post", "requestBody", "content", kind, "schema"];
        validate(&self.value, &place, body);
    }

    /// Fields of an answer's type, and of those below it, that no answer had.
    pub(crate) fn unseen(&self, answer: &str) -> Vec<String> {
        let mut fields = BTreeSet::new();
        self.collect(self.schema(answer), &mut fields);
        fields.difference(&self.seen).cloned().collect()
    }

    fn collect(&self, schema: &Value, fields: &mut BTreeSet<String>) {
        match schema {
            Value::Object(object) => {
                if let Some(name) = object.get("$ref").and_then(Value::as_str) {
                    self.collect(self.schema(name.rsplit('/').next().unwrap()), fields);
                }
                if let Some(properties) = object.get("properties").and_then(Value::as_object) {
                    fields.extend(properties.keys().cloned());
                }
                object.values().for_each(|value| self.collect(value, fields));
            }
            Value::Array(items) => items.iter().for_each(|item| self.collect(item, fields)),
            _ => {}
        }
    }
}

/// Holds a value against the schema at a place of a document.
fn validate(document: &Value, place: &[&str], value: &Value) {
    let token = |text: &&str| {
        text.replace('~', "~0").replace('/', "~1").replace('{', "%7B").replace('}', "%7D")
    };
    let place = place.iter().map(token).collect::<Vec<_>>().join("/");
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.set_default_draft(Draft::V2020_12);
    compiler.add_resource(PLACE, document.clone()).unwrap();
    let schema = compiler
        .compile(&format!("{PLACE}#/{place}"), &mut schemas)
        .unwrap_or_else(|e| panic!("{e:#}"));
    if let Err(error) = schemas.validate(value, schema) {
        panic!("{place}: {error:#}\n{value}");
    }
}

/// Closes every object with named fields.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.values_mut().for_each(close);
            let is_open = |o: &Map<String, Value>| {
                o.contains_key("properties") && !o.contains_key("additionalProperties")
            };
            if is_open(object) {
                object.insert("additionalProperties".to_owned(), json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

fn names(value: &Value, seen: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            // Fields of streams that are null say nothing.
            seen.extend(object.iter().filter(|(_, v)| !v.is_null()).map(|(name, _)| name.clone()));
            object.values().for_each(|value| names(value, seen));
        }
        Value::Array(items) => items.iter().for_each(|item| names(item, seen)),
        _ => {}
    }
}
