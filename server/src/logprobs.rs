//! `logprobs` objects of both endpoints.

use dfastllm_engine::SettledToken;
use dfastllm_models::{SpecialTokens, Tokenizer};
use serde_json::{Map, Value, json};

use crate::convert::{AnswerOptions, Endpoint};

/// Log-probabilities of tokens that come one after the other, `offset` characters into their text;
/// `null` if nobody asked.
pub(crate) fn logprobs(
    tokens: &[SettledToken],
    endpoint: Endpoint,
    (options, offset): (&AnswerOptions, usize),
    tokenizer: &Tokenizer,
) -> Value {
    if options.logprobs.is_none() {
        return Value::Null;
    }
    let mut object = match endpoint {
        Endpoint::Chat => {
            json!({"content": tokens.iter().map(|t| chat(t, tokenizer)).collect::<Vec<_>>(), "refusal": null})
        }
        Endpoint::Completions => {
            let scored = tokens.iter().map(|t| (t, Some(t.logprob)));
            completions(scored, offset, tokenizer)
        }
    };
    if options.at_commit {
        object["measured"] = "at_commit".into();
    }
    object
}

/// The text of one token; the replacement character stands for bytes that are no text alone.
pub(crate) fn token_text(id: u32, tokenizer: &Tokenizer) -> String {
    let mut stream = tokenizer.stream(SpecialTokens::Include);
    let start = stream.push(id);
    start + &stream.finish()
}

fn chat(token: &SettledToken, tokenizer: &Tokenizer) -> Value {
    let entry = |id: u32, logprob: f64| {
        let text = token_text(id, tokenizer);
        json!({"token": text, "logprob": finite(logprob), "bytes": text.as_bytes()})
    };
    let mut object = entry(token.id, token.logprob);
    object["top_logprobs"] = token.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
    object
}

/// The completions form of tokens, the first of which begins at `offset` characters; a token
/// without a log-probability has nothing before it.
pub(crate) fn completions<'a>(
    scored: impl Iterator<Item = (&'a SettledToken, Option<f64>)>,
    mut offset: usize,
    tokenizer: &Tokenizer,
) -> Value {
    let (mut tokens, mut logprobs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    for (token, logprob) in scored {
        let text = token_text(token.id, tokenizer);
        offsets.push(offset);
        offset += text.chars().count();
        tokens.push(text);
        logprobs.push(logprob.map(finite));
        tops.push(match logprob {
            None => Value::Null,
            Some(_) => top(token, tokenizer),
        });
    }
    json!({
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": tops,
        "text_offset": offsets,
    })
}

fn top(token: &SettledToken, tokenizer: &Tokenizer) -> Value {
    let entries = token.top.iter();
    let map: Map<String, Value> =
        entries.map(|&(id, logprob)| (token_text(id, tokenizer), json!(finite(logprob)))).collect();
    Value::Object(map)
}

/// JSON knows no infinity: a token of probability 0 gets what OpenAI's clients take for it.
fn finite(logprob: f64) -> f64 {
    logprob.max(-9999.0)
}
