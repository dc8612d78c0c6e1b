//! Which tokens an answer may hold: the only ones there are, and words it may not say.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::checks::check_ids;
use super::{ModelLimits, RequestParams};
use crate::RequestError;

/// Most words, each spelling counted.
const MAX_WORDS: usize = 256;
/// Most tokens of a word.
const MAX_WORD_TOKENS: usize = 64;

/// What is added to single logits, and what is allowed at all.
pub(super) struct Vocabulary {
    /// The request's bias with what is never chosen: the mask, and words of one token.
    pub(super) bias: Arc<[(u32, f32)]>,
    /// The only tokens there are.
    pub(super) only: Option<Arc<[u32]>>,
    /// Words of several tokens.
    pub(super) words: Arc<[Vec<u32>]>,
}

impl Vocabulary {
    /// Checks lists against the model, and that something is left to choose.
    pub(super) fn new(params: &RequestParams, limits: &ModelLimits) -> Result<Self, RequestError> {
        let (sampling, vocab) = (&params.sampling, limits.vocab);
        let only = sampling.allowed_token_ids.clone();
        check_ids("allowed_token_ids", only.as_deref().unwrap_or_default(), vocab)?;
        if only.as_ref().is_some_and(|ids| ids.is_empty() || ids.len() > vocab) {
            let message = format!("allowed_token_ids: expected 1 to {vocab} token ids");
            return Err(RequestError::new("allowed_token_ids", message));
        }
        check_words(&sampling.bad_words, limits)?;
        let (single, several): (Vec<Vec<u32>>, Vec<Vec<u32>>) =
            sampling.bad_words.iter().cloned().partition(|word| word.len() == 1);
        let never: Vec<u32> = single.into_iter().flatten().chain(limits.mask_id).collect();
        let mut banned: BTreeSet<u32> = never.iter().copied().collect();
        banned.extend(several.iter().filter_map(|word| word.last()));
        if params.min_tokens > 0 || !params.infill.is_empty() {
            banned.extend(limits.end_ids.iter().chain(&params.stop_token_ids));
        }
        let (param, is_some_left) = match &only {
            Some(ids) => ("allowed_token_ids", ids.iter().any(|id| !banned.contains(id))),
            None => ("bad_words", banned.len() < vocab),
        };
        if !is_some_left {
            let message = format!("{param} and other options leave no token to choose");
            return Err(RequestError::new(param, message));
        }
        let never = never.into_iter().map(|id| (id, f32::NEG_INFINITY));
        let bias = sampling.logit_bias.iter().copied().chain(never).collect();
        Ok(Self { bias, only, words: several.into() })
    }
}

fn check_words(words: &[Vec<u32>], limits: &ModelLimits) -> Result<(), RequestError> {
    let refuse = |message: String| Err(RequestError::new("bad_words", message));
    if words.len() > MAX_WORDS {
        return refuse(format!("{} spellings of bad_words, at most {MAX_WORDS}", words.len()));
    }
    for word in words {
        if !(1..=MAX_WORD_TOKENS).contains(&word.len()) {
            let found = word.len();
            return refuse(format!(
                "a bad word of {found} tokens, expected 1 to {MAX_WORD_TOKENS}"
            ));
        }
        if word.len() > 1 && limits.mask_id.is_some() {
            let message = "a bad word of several tokens; a model that fills positions in any order \
                           can be kept from single tokens only";
            return refuse(message.to_owned());
        }
        check_ids("bad_words", word, limits.vocab)?;
    }
    Ok(())
}

/// Last tokens of words that an answer which says this so far must not complete.
pub(super) fn endings<'a>(
    words: &'a [Vec<u32>],
    said: &'a [u32],
) -> impl Iterator<Item = u32> + 'a {
    words.iter().filter_map(move |word| {
        let (last, beginning) = word.split_last()?;
        said.ends_with(beginning).then_some(*last)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_banned_where_it_would_be_complete() {
        let words = [vec![1, 2, 3], vec![2, 9], vec![7, 8]];
        let banned = |said: &[u32]| endings(&words, said).collect::<Vec<_>>();
        assert_eq!(banned(&[1, 2]), [3, 9]);
        assert_eq!(banned(&[2]), [9]);
        assert_eq!(banned(&[7]), [8]);
        assert!(banned(&[]).is_empty() && banned(&[1]).is_empty());
    }
}
