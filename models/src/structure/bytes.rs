//! The bytes that each token stands for, as the tokenizer's decoder writes them.

use std::collections::HashMap;

use serde_json::Value;

use super::StructureError;
use crate::Tokenizer;

/// Longer tokens are left out: the trie's depth is bounded.
const LONGEST: usize = 512;

/// What a decoder does with one token.
enum Step {
    /// GPT-2's letters for bytes; a token with other letters is text as it stands.
    ByteLevel(HashMap<char, u8>),
    /// One text in place of another.
    Replace(String, String),
    /// `<0x0A>` is a byte.
    ByteFallback,
}

/// Bytes of every id below `vocab`; empty for ids without text: control tokens, and rows of the
/// head beyond the tokenizer.
pub(super) fn token_bytes(
    tokenizer: &Tokenizer,
    vocab: usize,
) -> Result<Vec<Vec<u8>>, StructureError> {
    let inner = tokenizer.inner();
    let steps = steps(inner)?;
    let added = inner.get_added_tokens_decoder();
    let known = vocab.min(tokenizer.size());
    let mut bytes = vec![Vec::new(); vocab];
    for (id, out) in (0..).zip(bytes.iter_mut().take(known)) {
        if added.get(&id).is_some_and(|token| token.special || is_marker(&token.content)) {
            continue;
        }
        let Some(token) = inner.id_to_token(id) else { continue };
        let text = apply(&steps, &token);
        // No UTF-8 holds 0xFF, which the trie keeps for markers.
        if text.len() <= LONGEST && !text.contains(&0xff) {
            *out = text;
        }
    }
    Ok(bytes)
}

/// `<|im_start|>` and its like, whether or not the checkpoint calls it special.
fn is_marker(token: &str) -> bool {
    token.starts_with("<|") && token.ends_with("|>")
}

fn apply(steps: &[Step], token: &str) -> Vec<u8> {
    let mut text = token.to_owned();
    for step in steps {
        match step {
            Step::ByteLevel(bytes) => {
                let spelled: Option<Vec<u8>> =
                    text.chars().map(|c| bytes.get(&c).copied()).collect();
                return spelled.unwrap_or_else(|| text.into_bytes());
            }
            Step::Replace(from, to) => text = text.replace(from, to),
            Step::ByteFallback => {
                let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                let byte = hex.filter(|hex| hex.len() == 2);
                if let Some(byte) = byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    return vec![byte];
                }
            }
        }
    }
    text.into_bytes()
}

/// The decoder as steps, read from what it writes into `tokenizer.json`.
fn steps(tokenizer: &tokenizers::Tokenizer) -> Result<Vec<Step>, StructureError> {
    let decoder = serde_json::to_value(tokenizer.get_decoder())
        .map_err(|e| StructureError::Tokenizer(e.to_string()))?;
    let list = match &decoder["decoders"] {
        Value::Array(list) => list.as_slice(),
        _ => std::slice::from_ref(&decoder),
    };
    let mut steps = Vec::new();
    for step in list {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        steps.push(match step["type"].as_str() {
            Some("ByteLevel") => Step::ByteLevel(byte_letters()),
            Some("ByteFallback") => Step::ByteFallback,
            // They join tokens and trim the whole text's ends.
            Some("Fuse" | "Strip") => continue,
            Some("Metaspace") => match text(&step["replacement"]) {
                Some(letter) => Step::Replace(letter, " ".to_owned()),
                None => return Err(unknown(step)),
            },
            Some("Replace") => match (text(&step["pattern"]["String"]), text(&step["content"])) {
                (Some(from), Some(to)) => Step::Replace(from, to),
                _ => return Err(unknown(step)),
            },
            _ => return Err(unknown(step)),
        });
    }
    Ok(steps)
}

fn unknown(step: &Value) -> StructureError {
    StructureError::Tokenizer(format!("its decoder {step} is not known"))
}

/// GPT-2's letters: printable Latin-1 stands for itself, the other bytes follow from U+0100 on
/// (`openai/gpt-2`, `src/encoder.py`).
fn byte_letters() -> HashMap<char, u8> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let itself = (0..=255).filter(printable).map(|byte| (char::from(byte), byte));
    let others = (0..=255).filter(|byte| !printable(byte));
    let moved = ('\u{100}'..).zip(others);
    itself.chain(moved).collect()
}
