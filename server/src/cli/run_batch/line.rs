//! One line of a batch: what it asks for, and the line that answers it.

use crate::openai::unique::Unique;
use axum::http::StatusCode;
use serde_json::{Map, Value, json};

/// Endpoints that a batch may ask.
const URLS: [&str; 2] = ["/v1/chat/completions", "/v1/completions"];
const MAX_CUSTOM_ID: usize = 512;

/// A request that may be sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Request {
    pub(super) custom_id: String,
    pub(super) url: &'static str,
    pub(super) body: Map<String, Value>,
}

/// A line that cannot be sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct BadLine {
    custom_id: Option<String>,
    code: &'static str,
    message: String,
}

impl BadLine {
    /// A line of which nothing is known.
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { custom_id: None, code, message: message.into() }
    }
}

impl Request {
    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(line: &[u8]) -> Result<Self, BadLine> {
        let damaged = |e| BadLine::new("invalid_json_line", format!("not valid JSON: {e}"));
        serde_json::from_slice::<Unique>(line).map_err(damaged)?;
        let value: Value = serde_json::from_slice(line).map_err(damaged)?;
        let Value::Object(mut fields) = value else {
            return Err(BadLine::new("invalid_json_line", "expected a JSON object"));
        };
        let custom_id = match fields.get("custom_id") {
            Some(Value::String(id)) if (1..=MAX_CUSTOM_ID).contains(&id.len()) => id.clone(),
            _ => {
                let message = format!("custom_id has to be a text of 1 to {MAX_CUSTOM_ID} bytes");
                return Err(BadLine::new("invalid_custom_id", message));
            }
        };
        let bad =
            |code, message: String| BadLine { custom_id: Some(custom_id.clone()), code, message };
        if fields.get("method").and_then(Value::as_str) != Some("POST") {
            let message = format!("method is {}, expected \"POST\"", short(fields.get("method")));
            return Err(bad("invalid_method", message));
        }
        let asked = fields.get("url").and_then(Value::as_str);
        let Some(url) = URLS.into_iter().find(|url| Some(*url) == asked) else {
            let expected = URLS.join(" or ");
            let message = format!("url is {}, expected {expected}", short(fields.get("url")));
            return Err(bad("invalid_url", message));
        };
        let known = ["custom_id", "method", "url", "body"];
        if let Some(other) = fields.keys().find(|name| !known.contains(&name.as_str())) {
            let other: String = other.chars().take(64).collect();
            return Err(bad("unknown_field", format!("'{other}' is no field of a batch's line")));
        }
        let body = match fields.remove("body") {
            Some(Value::Object(body)) => body,
            other => {
                let message = format!("body is {}, expected an object", short(other.as_ref()));
                return Err(bad("invalid_body", message));
            }
        };
        if body.get("stream") == Some(&Value::Bool(true)) {
            let message = "stream is for those who read along; leave it out of a batch".to_owned();
            return Err(bad("unsupported_parameter", message));
        }
        Ok(Self { custom_id, url, body })
    }

    /// How many answers it asks the engine for at once.
    pub(super) fn choices(&self) -> u64 {
        let number = |name| self.body.get(name).and_then(Value::as_u64).unwrap_or(1);
        let made = number("n").max(number("best_of"));
        let prompts = match self.body.get("prompt") {
            Some(Value::Array(items)) if items.first().is_some_and(|item| !item.is_number()) => {
                items.len() as u64
            }
            _ => 1,
        };
        made.max(1).saturating_mul(prompts)
    }
}

/// The line that tells what the server answered.
pub(super) fn answered(
    custom_id: &str,
    status: StatusCode,
    request_id: &str,
    body: &Value,
) -> Value {
    let response = json!({"status_code": status.as_u16(), "request_id": request_id, "body": body});
    json!({"id": new_id(), "custom_id": custom_id, "response": response, "error": null})
}

/// The line that tells why a line was not sent.
pub(super) fn refused(number: u64, bad: &BadLine) -> Value {
    let message = format!("line {number}: {}", bad.message);
    json!({
        "id": new_id(),
        "custom_id": bad.custom_id,
        "response": null,
        "error": {"code": bad.code, "message": message},
    })
}

fn new_id() -> String {
    format!("batch_req_{}", uuid::Uuid::new_v4().simple())
}

fn short(value: Option<&Value>) -> String {
    value.map_or("missing".to_owned(), |value| value.to_string().chars().take(64).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Request, BadLine> {
        Request::parse(line.as_bytes())
    }

    #[test]
    fn lines_are_read_or_refused_by_name() {
        let line = r#"{"custom_id": "a", "method": "POST", "url": "/v1/completions",
            "body": {"prompt": ["x", "y"], "n": 3}}"#;
        let request = parse(line).unwrap();
        assert_eq!((request.custom_id.as_str(), request.url), ("a", URLS[1]));
        assert_eq!(request.choices(), 6);
        let tokens = line.replace(r#"["x", "y"], "n": 3"#, "[1, 2]");
        assert_eq!(parse(&tokens).unwrap().choices(), 1);
        let best = line.replace(r#""n": 3"#, r#""n": 1, "best_of": 4"#);
        assert_eq!(parse(&best).unwrap().choices(), 8);
        let twice = line.replace(r#""n": 3"#, r#""n": 3, "n": 1"#);
        assert_eq!(parse(&twice).unwrap_err().code, "invalid_json_line");
        let huge = line.replace(r#""n": 3"#, r#""n": 18446744073709551615"#);
        assert_eq!(parse(&huge).unwrap().choices(), u64::MAX);
        for (from, to, code, custom_id) in [
            ("{\"custom_id\"", "{custom_id", "invalid_json_line", None),
            ("\"a\"", "\"\"", "invalid_custom_id", None),
            ("\"a\"", "7", "invalid_custom_id", None),
            ("POST", "GET", "invalid_method", Some("a")),
            ("/v1/completions", "/v1/embeddings", "invalid_url", Some("a")),
            ("\"n\": 3", "\"stream\": true", "unsupported_parameter", Some("a")),
            ("\"method\"", "\"metadata\": {}, \"method\"", "unknown_field", Some("a")),
            ("\"body\": {", "\"body\": [], \"x\": {", "unknown_field", Some("a")),
        ] {
            let bad = parse(&line.replacen(from, to, 1)).unwrap_err();
            assert_eq!((bad.code, bad.custom_id.as_deref()), (code, custom_id), "{to}");
        }
        assert_eq!(parse("[]").unwrap_err().message, "expected a JSON object");
        let bad = parse(r#"{"custom_id": "a", "method": "POST", "url": "/v1/completions"}"#);
        let told = refused(7, &bad.unwrap_err());
        assert_eq!(told["error"]["message"], "line 7: body is missing, expected an object");
        assert_eq!((&told["response"], &told["custom_id"]), (&Value::Null, &json!("a")));
    }
}
