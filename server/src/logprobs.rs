//! `logprobs` objects of both endpoints.

use dfastllm_engine::SettledToken;
use dfastllm_models::{SpecialTokens, Tokenizer};
use serde_json::{Map, Value, json};

use crate::convert::{AnswerOptions, Endpoint};

/// Where tokens begin: characters of the text before them, and the gap that text ends in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) chars: usize,
    pub(crate) gap: usize,
}

impl Place {
    /// Where a token begins; moves on behind it. A character counts with its first byte.
    pub(crate) fn pass(
        &mut self,
        token: &SettledToken,
        options: &AnswerOptions,
        tokenizer: &Tokenizer,
    ) -> usize {
        for text in options.between.iter().take(token.gap).skip(self.gap) {
            self.chars += text.chars().count();
        }
        self.gap = token.gap;
        let begin = self.chars;
        if !token.is_end || options.keeps_stop {
            let starts = |byte: &&u8| **byte & 0xC0 != 0x80;
            self.chars += tokenizer.bytes_of(token.id).iter().filter(starts).count();
        }
        begin
    }
}

/// Log-probabilities of tokens that come one after the other from a place on; `null` if nobody
/// asked.
pub(crate) fn logprobs(
    tokens: &[SettledToken],
    endpoint: Endpoint,
    (options, place): (&AnswerOptions, Place),
    tokenizer: &Tokenizer,
) -> Value {
    if options.logprobs.is_none() {
        return Value::Null;
    }
    let mut object = match endpoint {
        Endpoint::Chat => {
            let tokens: Vec<Value> = tokens.iter().map(|t| chat(t, options, tokenizer)).collect();
            json!({"content": tokens, "refusal": null})
        }
        Endpoint::Completions => {
            let scored = tokens.iter().map(|t| (t, Some(t.logprob)));
            completions(scored, (place, options), tokenizer)
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

/// How a token is spelled.
fn spelled(id: u32, text: String, options: &AnswerOptions) -> String {
    if options.as_token_ids { format!("token_id:{id}") } else { text }
}

fn chat(token: &SettledToken, options: &AnswerOptions, tokenizer: &Tokenizer) -> Value {
    let entry = |id: u32, logprob: f64| {
        let text = spelled(id, token_text(id, tokenizer), options);
        // The text of a token that is part of a character is none; its bytes are.
        json!({"token": text, "logprob": finite(logprob), "bytes": tokenizer.bytes_of(id)})
    };
    let mut object = entry(token.id, token.logprob);
    object["top_logprobs"] = token.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
    object
}

/// The completions form of tokens from a place on, with texts between gaps; a token without a
/// log-probability has nothing before it.
pub(crate) fn completions<'a>(
    scored: impl Iterator<Item = (&'a SettledToken, Option<f64>)>,
    (mut place, options): (Place, &AnswerOptions),
    tokenizer: &Tokenizer,
) -> Value {
    let (mut tokens, mut logprobs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    for (token, logprob) in scored {
        let text = token_text(token.id, tokenizer);
        offsets.push(place.pass(token, options, tokenizer));
        tokens.push(spelled(token.id, text, options));
        logprobs.push(logprob.map(finite));
        tops.push(match logprob {
            None => Value::Null,
            Some(_) => top(token, options, tokenizer),
        });
    }
    json!({
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": tops,
        "text_offset": offsets,
    })
}

/// The most probable tokens, and the token itself wherever it stands. Of tokens with the same text
/// the most probable counts.
fn top(token: &SettledToken, options: &AnswerOptions, tokenizer: &Tokenizer) -> Value {
    let mut map = Map::new();
    for &(id, logprob) in token.top.iter().chain([&(token.id, token.logprob)]) {
        let text = spelled(id, token_text(id, tokenizer), options);
        map.entry(text).or_insert_with(|| json!(finite(logprob)));
    }
    Value::Object(map)
}

/// JSON knows no infinity: a token of probability 0 gets what OpenAI's clients take for it.
fn finite(logprob: f64) -> f64 {
    logprob.max(-9999.0)
}
