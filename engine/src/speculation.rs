//! Drafts for causal models, looked up in what was said before.
//!
//! Prompt lookup (Saxena, "Prompt Lookup Decoding", 2023): where the last tokens occurred before,
//! what followed then is likely to follow again. A draft is verified in one pass and never changes
//! a token. How long drafts are, and how long to wait after one that failed, follows from the
//! request's own history alone, so that its passes do not depend on its neighbours.

use std::collections::HashMap;

/// Tokens that have to agree before what followed is believed.
const GRAM: usize = 3;
/// Passes without a draft after failed ones, at most.
const MAX_WAIT: u32 = 64;

/// The drafts of one request.
#[derive(Debug)]
pub(crate) struct PromptLookup {
    /// Where each run of tokens ended last.
    ends: HashMap<[u32; GRAM], usize>,
    /// Ends entered so far.
    indexed: usize,
    max_len: usize,
    /// Length of the next draft.
    len: usize,
    /// Drafts in a row of which nothing was right.
    failures: u32,
    /// Passes to go without a draft.
    wait: u32,
}

impl PromptLookup {
    pub(crate) fn new(max_len: usize) -> Self {
        Self {
            ends: HashMap::new(),
            indexed: GRAM,
            max_len,
            len: max_len.min(4),
            failures: 0,
            wait: 0,
        }
    }

    /// What may follow `tokens`: at most `room` tokens, often none. Once a pass.
    pub(crate) fn draft(&mut self, tokens: &[u32], room: usize) -> Vec<u32> {
        if self.wait > 0 {
            self.wait -= 1;
            return Vec::new();
        }
        for end in self.indexed..tokens.len() {
            if let Some(gram) = tokens[..end].last_chunk() {
                self.ends.insert(*gram, end);
            }
        }
        self.indexed = self.indexed.max(tokens.len());
        let end = tokens.last_chunk().and_then(|gram: &[u32; GRAM]| self.ends.get(gram));
        let Some(&end) = end else { return Vec::new() };
        // Past the end of what was said the draft repeats itself.
        let period = tokens.len() - end;
        (0..self.len.min(room)).map(|i| tokens[end + i % period]).collect()
    }

    /// How many tokens of the last draft were right.
    pub(crate) fn verified(&mut self, drafted: usize, right: usize) {
        if drafted == 0 {
            return;
        }
        if right == 0 {
            self.failures += 1;
            self.wait = (1 << self.failures.min(16)).min(MAX_WAIT);
            self.len = 1;
            return;
        }
        self.failures = 0;
        let len = if right == drafted { self.len * 2 } else { right + 1 };
        self.len = len.min(self.max_len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_last_time_is_drafted() {
        let mut lookup = PromptLookup::new(8);
        assert_eq!(lookup.draft(&[1, 2, 3, 4, 5, 6, 1, 2, 3], 8), [4, 5, 6, 1]);
        assert_eq!(lookup.draft(&[1, 2, 3, 4, 5, 6, 1, 2, 3], 1), [4]);
        assert_eq!(lookup.draft(&[1, 2, 3, 4, 5, 6, 1, 2, 3, 9], 8), [0; 0]);
        // Twice now: the later occurrence counts.
        assert_eq!(lookup.draft(&[1, 2, 3, 4, 5, 6, 1, 2, 3, 9, 1, 2, 3], 8), [9, 1, 2, 3]);
    }

    #[test]
    fn a_draft_goes_round_in_circles_with_its_text() {
        let mut lookup = PromptLookup::new(8);
        lookup.verified(4, 4);
        assert_eq!(lookup.draft(&[5, 1, 2, 1, 2, 1, 2], 8), [1, 2, 1, 2, 1, 2, 1, 2]);
    }

    #[test]
    fn failed_drafts_become_rare_and_short_and_good_ones_long() {
        let mut lookup = PromptLookup::new(8);
        let text = [1, 1, 1, 1];
        let mut drafted = 0;
        for _ in 0..1000 {
            let draft = lookup.draft(&text, 8);
            drafted += draft.len();
            lookup.verified(draft.len(), 0);
        }
        assert!(drafted < 25, "{drafted}");
        while lookup.draft(&text, 8).is_empty() {}
        for expected in [2, 4, 8, 8] {
            lookup.verified(lookup.len, lookup.len);
            assert_eq!(lookup.draft(&text, 8).len(), expected);
        }
        lookup.verified(8, 3);
        assert_eq!(lookup.draft(&text, 8).len(), 4);
    }

    #[test]
    fn short_texts_have_no_draft() {
        assert_eq!(PromptLookup::new(8).draft(&[1, 1], 8), [0; 0]);
        assert_eq!(PromptLookup::new(0).draft(&[1, 1, 1, 1, 1], 8), [0; 0]);
    }
}
