//! An infill request as a completion request.

use dfastllm_models::SpecialTokens;
use serde_json::{Map, Value, json};

use crate::foreign::{Fields, refuse_told};
use crate::openai::types::{CompletionRequest, typed};
use crate::{ApiError, ServedModel};

/// Tokens of a gap, unless the request says otherwise: a few lines.
const GAP_TOKENS: usize = 128;
const MAX_EXTRA: usize = 1024;
const MAX_RESPONSE_FIELDS: usize = 64;
/// Samplers that can be chosen; `infill`, llama-server's choice between going on and ending, is
/// what filling a gap does anyway.
const SAMPLERS: [&str; 6] = ["penalties", "top_k", "top_p", "min_p", "temperature", "infill"];
/// llama-server's slots and its cache of prompts, which models that denoise do not have, and a
/// limit on reading the prompt, which is no phase of its own here.
const IGNORED: [&str; 3] = ["id_slot", "cache_prompt", "t_max_prompt_ms"];

/// What was asked for.
pub(super) struct Asked {
    pub(super) completion: CompletionRequest,
    /// The text before the gap, to be repeated.
    pub(super) shown: String,
    /// Milliseconds after which the answer ends with what is there.
    pub(super) limit_ms: Option<u64>,
    /// Parts of the answer that are wanted, if not all.
    pub(super) response_fields: Option<Vec<String>>,
}

pub(super) async fn translate(mut given: Fields, served: &ServedModel) -> Result<Asked, ApiError> {
    let mut ours = Map::new();
    let mut prompt = extra(&mut given)?;
    prompt.push_str(&given.text("input_prefix")?.unwrap_or_default());
    prompt.push_str(&given.text("prompt")?.unwrap_or_default());
    if prompt.is_empty() {
        let message = "input_prefix is empty; the gap needs something before it";
        return Err(ApiError::invalid("input_prefix", message));
    }
    let suffix = given.text("input_suffix")?.unwrap_or_default();
    let tokens = match given.take("n_predict") {
        Some(n) if n != -1 => n,
        _ => json!(room(prompt.clone(), suffix.clone(), served).await?),
    };
    ours.insert("max_tokens".to_owned(), tokens);
    ours.insert("prompt".to_owned(), prompt.clone().into());
    ours.insert("suffix".to_owned(), suffix.into());
    given.rename("stop", "stop", &mut ours);
    given.rename("repeat_penalty", "repetition_penalty", &mut ours);
    given.rename("return_tokens", "return_token_ids", &mut ours);
    let limit_ms = limit(&mut given)?;
    let response_fields = response_fields(&mut given)?;
    let samplers = given.list("samplers")?;
    given.refuse_unless("n_probs", |v| *v == 0, "ask /v1/completions for logprobs")?;
    given.refuse_unless("n_indent", |v| *v == 0, "texts are not cut by their indentation")?;
    given.ignore(&IGNORED);
    given.finish(&mut ours)?;
    refuse_told(&ours, &["trace", "progress", "infill"])?;
    ours.entry("model").or_insert(served.name().into());
    // -1 asks for any.
    if ours.get("seed") == Some(&json!(-1)) {
        ours.remove("seed");
    }
    if let Some(samplers) = samplers {
        choose(&samplers, &mut ours)?;
    }
    let completion = typed(&Value::Object(ours))?;
    Ok(Asked { completion, shown: prompt, limit_ms, response_fields })
}

/// Texts from elsewhere, in front of the prefix.
fn extra(given: &mut Fields) -> Result<String, ApiError> {
    let list = given.list("input_extra")?.unwrap_or_default();
    if list.len() > MAX_EXTRA {
        let message = format!("{} texts, at most {MAX_EXTRA}", list.len());
        return Err(ApiError::invalid("input_extra", message));
    }
    let mut texts = String::new();
    for (index, entry) in list.iter().enumerate() {
        let param = format!("input_extra[{index}]");
        let Some(text) = entry["text"].as_str() else {
            return Err(ApiError::wrong(&param, entry, "an object with text and filename"));
        };
        let name = entry["filename"].as_str().unwrap_or("snippet");
        texts.push_str(&format!("--- {name} ---\n\n{text}\n\n"));
    }
    Ok(texts)
}

/// How long a gap of unknown length may be: what the context leaves, at most [`GAP_TOKENS`].
async fn room(prompt: String, suffix: String, served: &ServedModel) -> Result<usize, ApiError> {
    let (tokenizer, context) = (served.tokenizer.clone(), served.limits.max_model_len);
    let count = move || {
        let len = |text: &str, special| tokenizer.encode(text, special).map(|ids| ids.len());
        Ok(len(&prompt, SpecialTokens::Include)? + len(&suffix, SpecialTokens::Skip)?)
    };
    let counted: Result<usize, String> = tokio::task::spawn_blocking(count)
        .await
        .unwrap_or_else(|_| Err("tokenisation failed".to_owned()));
    let given = counted.map_err(|message| ApiError::invalid("input_prefix", message))?;
    Ok(GAP_TOKENS.min(context.saturating_sub(given)).max(1))
}

fn limit(given: &mut Fields) -> Result<Option<u64>, ApiError> {
    match given.take("t_max_predict_ms") {
        None => Ok(None),
        Some(value) => match value.as_i64() {
            Some(ms) => Ok(u64::try_from(ms).ok().filter(|&ms| ms > 0)),
            None => Err(ApiError::wrong("t_max_predict_ms", &value, "milliseconds")),
        },
    }
}

fn response_fields(given: &mut Fields) -> Result<Option<Vec<String>>, ApiError> {
    let Some(list) = given.list("response_fields")? else { return Ok(None) };
    let names: Option<Vec<String>> = list.iter().map(|v| v.as_str().map(str::to_owned)).collect();
    match names.filter(|names| names.len() <= MAX_RESPONSE_FIELDS) {
        Some(names) => Ok(Some(names).filter(|names| !names.is_empty())),
        None => {
            let message = format!("response_fields: expected at most {MAX_RESPONSE_FIELDS} names");
            Err(ApiError::invalid("response_fields", message))
        }
    }
}

/// Turns samplers off that are not in the list. Their order is ours.
fn choose(samplers: &[Value], ours: &mut Map<String, Value>) -> Result<(), ApiError> {
    let unknown = |name: &&Value| !name.as_str().is_some_and(|name| SAMPLERS.contains(&name));
    if let Some(name) = samplers.iter().find(unknown) {
        let message = format!("samplers: {name} is not one of {}", SAMPLERS.join(", "));
        return Err(ApiError::unsupported(
            "samplers",
            message.chars().take(200).collect::<String>(),
        ));
    }
    for (sampler, fields) in [
        ("penalties", &["repetition_penalty", "presence_penalty", "frequency_penalty"][..]),
        ("top_k", &["top_k"]),
        ("top_p", &["top_p"]),
        ("min_p", &["min_p"]),
        ("temperature", &["temperature"]),
    ] {
        if samplers.iter().any(|name| name == sampler) {
            continue;
        }
        for field in fields {
            let off = if *field == "top_k" { json!(0) } else { json!(1.0) };
            match *field {
                "top_k" | "top_p" | "temperature" => ours.insert((*field).to_owned(), off),
                _ => ours.remove(*field),
            };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samplers_that_are_not_listed_are_off() {
        let mut ours = Map::from_iter([
            ("top_k".to_owned(), json!(40)),
            ("min_p".to_owned(), json!(0.1)),
            ("presence_penalty".to_owned(), json!(1)),
        ]);
        choose(&[json!("top_k"), json!("infill")], &mut ours).unwrap();
        let expected = json!({"top_k": 40, "top_p": 1.0, "temperature": 1.0});
        assert_eq!(Value::Object(ours), expected);
        let error = choose(&[json!("dry")], &mut Map::new()).unwrap_err();
        assert_eq!(error.body()["error"]["param"], "samplers");
    }
}
