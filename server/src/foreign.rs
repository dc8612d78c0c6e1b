//! The fields of another API's request, taken one by one; whatever is left is refused by name.

use axum::http::HeaderMap;
use serde_json::{Map, Value};

use crate::ApiError;
use crate::openai::types::{Body, parse};

/// Fields of our endpoints that mean the same in requests of other APIs.
const SHARED: [&str; 22] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "skip_special_tokens",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "priority",
    "stream",
    "diffusion",
    "model",
    // Diffusion settings under the names of the original scripts and of the replaced server.
    "remasking",
    "alg",
    "alg_temp",
    "parallel_decoding",
    "confidence_threshold",
];
/// Most characters of a client's field name that an error repeats.
const MAX_NAME: usize = 64;

/// What of a request was not looked at yet; `null` is the same as absent.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// The fields of a JSON body.
    pub(crate) async fn parse(headers: &HeaderMap, body: Body) -> Result<Self, ApiError> {
        parse(headers, body).await.map(Self)
    }

    /// The fields of an object inside a request.
    pub(crate) fn of(object: Map<String, Value>) -> Self {
        Self(object)
    }

    /// Takes a field.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a field that has to be a text.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(ApiError::wrong(name, &other, "a string")),
        }
    }

    /// Takes a field that has to be true or false.
    pub(crate) fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(ApiError::wrong(name, &other, "true or false")),
        }
    }

    /// Takes a field that is a list of objects or texts.
    pub(crate) fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(ApiError::wrong(name, &other, "a list")),
        }
    }

    /// Takes fields that change nothing in an answer.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.0.remove(*name);
        }
    }

    /// Takes a field that is accepted only where it asks for nothing.
    pub(crate) fn refuse_unless(
        &mut self,
        name: &str,
        asks_for_nothing: impl Fn(&Value) -> bool,
        reason: &str,
    ) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !asks_for_nothing(&value) => {
                Err(ApiError::unsupported(name, format!("{name}: {reason}")))
            }
            _ => Ok(()),
        }
    }

    /// Moves a field to one of our endpoints' under another name.
    pub(crate) fn rename(&mut self, name: &str, ours: &str, to: &mut Map<String, Value>) {
        if let Some(value) = self.take(name) {
            to.insert(ours.to_owned(), value);
        }
    }

    /// Moves what means the same on our endpoints and refuses the rest.
    pub(crate) fn finish(mut self, to: &mut Map<String, Value>) -> Result<(), ApiError> {
        for name in SHARED {
            self.rename(name, name, to);
        }
        self.refuse_rest()
    }

    /// Refuses whatever is left.
    pub(crate) fn refuse_rest(self) -> Result<(), ApiError> {
        match self.0.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => {
                let name: String = name.chars().take(MAX_NAME).collect();
                let message = format!("'{name}' is not supported by this endpoint");
                Err(ApiError::unsupported(&name, message))
            }
        }
    }
}

/// Refuses diffusion settings that only OpenAI's endpoints answer.
pub(crate) fn refuse_told(to: &Map<String, Value>, names: &[&str]) -> Result<(), ApiError> {
    let Some(given) = to.get("diffusion").and_then(Value::as_object) else { return Ok(()) };
    let asks =
        |name: &&&str| given.get(**name).is_some_and(|v| !v.is_null() && *v != Value::Bool(false));
    match names.iter().find(asks) {
        None => Ok(()),
        Some(name) => {
            let message = format!("{name} is told on /v1/completions and /v1/chat/completions");
            Err(ApiError::unsupported(&format!("diffusion.{name}"), message))
        }
    }
}

/// An error about one of our fields, in the words of the API the request came through.
pub(crate) fn in_words_of(error: ApiError, names: &[(&str, &str)]) -> ApiError {
    let ApiError::Invalid { param: Some(param), code, message } = error else { return error };
    match names.iter().find(|(ours, _)| *ours == param) {
        Some((ours, theirs)) => {
            // Names without an underscore are also words.
            let message = match message.strip_prefix(ours) {
                Some(rest) => format!("{theirs}{rest}"),
                None if ours.contains('_') => message.replace(ours, theirs),
                None => message,
            };
            ApiError::Invalid { param: Some((*theirs).to_owned()), code, message }
        }
        None => ApiError::Invalid { param: Some(param), code, message },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;
    use utoipa::PartialSchema;

    use super::*;
    use crate::openapi::requests::SharedFields;

    fn fields(value: Value) -> Fields {
        Fields(value.as_object().cloned().unwrap_or_default())
    }

    #[test]
    fn every_shared_field_is_documented() {
        let schema = serde_json::to_value(SharedFields::schema()).unwrap();
        let documented = schema["properties"].as_object().unwrap().keys().map(String::as_str);
        // Some APIs require it, others do not.
        let documented: BTreeSet<&str> = documented.chain(["model"]).collect();
        assert_eq!(documented, SHARED.into_iter().collect());
    }

    #[test]
    fn what_nobody_took_is_refused_by_name_unless_null() {
        let mut moved = Map::new();
        let mut given = fields(json!({"seed": 3, "max": 4, "best": null, "odd": []}));
        given.rename("max", "max_tokens", &mut moved);
        let error = given.finish(&mut moved).unwrap_err();
        assert_eq!(error.body()["error"]["param"], "odd");
        assert_eq!(Value::Object(moved), json!({"max_tokens": 4, "seed": 3}));
        assert!(fields(json!({"best": null})).refuse_rest().is_ok());
    }

    #[test]
    fn errors_name_the_field_that_was_sent() {
        let error = ApiError::invalid("max_tokens", "max_tokens is 0, expected at least 1");
        let error = in_words_of(error, &[("stop", "x"), ("max_tokens", "n_predict")]).body();
        assert_eq!(error["error"]["param"], "n_predict");
        assert_eq!(error["error"]["message"], "n_predict is 0, expected at least 1");
        let error = ApiError::invalid("stop", "a stop string has 0 bytes");
        let error = in_words_of(error, &[("stop", "stop_sequences")]).body();
        assert_eq!(error["error"]["param"], "stop_sequences");
        assert_eq!(error["error"]["message"], "a stop string has 0 bytes");
    }
}
