//! Sets of token ids.

use std::sync::Arc;

/// Set of token ids: a bit each, cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSet {
    words: Arc<[u32]>,
}

impl FromIterator<u32> for TokenSet {
    fn from_iter<T: IntoIterator<Item = u32>>(ids: T) -> Self {
        let mut words = Vec::new();
        for id in ids {
            let at = id as usize / 32;
            if at >= words.len() {
                words.resize(at + 1, 0);
            }
            words[at] |= 1 << (id % 32);
        }
        Self::new(words)
    }
}

impl TokenSet {
    /// From bits, id `32 w + b` being bit `b` of word `w`.
    #[must_use]
    pub fn new(words: Vec<u32>) -> Self {
        Self { words: words.into() }
    }

    /// Whether the token is in the set; ids beyond it are not.
    #[must_use]
    pub fn contains(&self, id: u32) -> bool {
        self.words.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// The bits, `[vocab.div_ceil(32)]`.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// How many tokens are in the set.
    #[must_use]
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The ids in the set, in order.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        let bits = |(at, word): (usize, &u32)| {
            let word = *word;
            (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at as u32 * 32 + bit)
        };
        self.words.iter().enumerate().flat_map(bits)
    }
}
