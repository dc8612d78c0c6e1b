//! Lists of words and tokens that a request allows or bans.

use std::sync::Arc;

use dfastllm_models::{SpecialTokens, Tokenizer};
use serde_json::Value;

use crate::ApiError;

const MAX_WORDS: usize = 128;
const MAX_WORD_BYTES: usize = 256;

/// Token ids of `bad_words`: each word at the beginning of a line and after a space, or, where it
/// begins with a space itself, as it is.
pub(crate) fn bad_words(
    words: Option<&Vec<String>>,
    tokenizer: &Tokenizer,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let words = words.map(Vec::as_slice).unwrap_or_default();
    let refuse = |message: String| Err(ApiError::invalid("bad_words", message));
    if words.len() > MAX_WORDS {
        return refuse(format!("bad_words has {} words, at most {MAX_WORDS}", words.len()));
    }
    let mut found: Vec<Vec<u32>> = Vec::new();
    for word in words {
        if word.trim().is_empty() || word.len() > MAX_WORD_BYTES {
            let bytes = word.len();
            return refuse(format!(
                "a bad word has {bytes} bytes, expected 1 to {MAX_WORD_BYTES} and not only spaces"
            ));
        }
        let spaced = format!(" {word}");
        let spellings = if word.starts_with(' ') { &[word][..] } else { &[word, &spaced][..] };
        for spelling in spellings {
            let ids = tokenizer.encode(spelling, SpecialTokens::Skip);
            let ids = ids.map_err(|e| ApiError::invalid("bad_words", e))?;
            if !found.contains(&ids) {
                found.push(ids);
            }
        }
    }
    Ok(found)
}

/// `allowed_token_ids`, each once.
pub(crate) fn allowed_token_ids(
    given: Option<&Vec<Value>>,
    vocab: usize,
) -> Result<Option<Arc<[u32]>>, ApiError> {
    let Some(given) = given else { return Ok(None) };
    let param = "allowed_token_ids";
    if given.len() > vocab {
        let message = format!("{param} has {} entries, at most {vocab}", given.len());
        return Err(ApiError::invalid(param, message));
    }
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| ApiError::wrong(param, value, "token ids"))
    };
    let mut ids: Vec<u32> = given.iter().map(id).collect::<Result<_, _>>()?;
    ids.sort_unstable();
    ids.dedup();
    Ok(Some(ids.into()))
}
