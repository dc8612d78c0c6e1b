//! A tokenizer as `llguidance` wants to see it.

use llguidance::toktrie::{INVALID_TOKEN, TokRxInfo, TokTrie, TokenizerEnv};

use super::bytes::token_bytes;
use super::{StructureError, TokenSet};
use crate::{SpecialTokens, Tokenizer};

/// Ids the trie can hold.
const MOST: usize = 1 << 22;

/// Tokens by their bytes.
pub(super) struct Vocabulary {
    tokenizer: Tokenizer,
    trie: TokTrie,
    /// Tokens with text.
    texts: TokenSet,
    ends: Vec<u32>,
}

impl Vocabulary {
    pub(super) fn new(
        tokenizer: &Tokenizer,
        vocab: usize,
        ends: &[u32],
    ) -> Result<Self, StructureError> {
        if vocab == 0 || vocab > MOST {
            return Err(StructureError::Tokenizer(format!("{vocab} tokens")));
        }
        let mut bytes = token_bytes(tokenizer, vocab)?;
        let ends: Vec<u32> = ends.iter().copied().filter(|id| (*id as usize) < vocab).collect();
        for end in &ends {
            bytes[*end as usize].clear();
        }
        let mut words = vec![0; vocab.div_ceil(32)];
        for (id, _) in bytes.iter().enumerate().filter(|(_, bytes)| !bytes.is_empty()) {
            words[id / 32] |= 1 << (id % 32);
        }
        // Ends are ours to allow: the library sees none.
        let info = TokRxInfo::new(vocab as u32, INVALID_TOKEN);
        let trie = TokTrie::from(&info, &bytes);
        Ok(Self { tokenizer: tokenizer.clone(), trie, texts: TokenSet::new(words), ends })
    }

    pub(super) fn texts(&self) -> &TokenSet {
        &self.texts
    }

    pub(super) fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The tokens that the tokenizer makes of a text, as far as they spell it: normalisation may
    /// change a text, and a marker spelled in it is one token without text. What is left then is
    /// spelled with the longest tokens.
    pub(super) fn spell(&self, text: &[u8]) -> Vec<u32> {
        // An unfinished character at the end has no canonical tokens.
        let whole = match std::str::from_utf8(text) {
            Ok(whole) => whole,
            Err(e) => std::str::from_utf8(&text[..e.valid_up_to()]).unwrap_or_default(),
        };
        let tokens = self.tokenizer.encode(whole, SpecialTokens::Skip).unwrap_or_default();
        let (mut spelled, mut at) = (Vec::new(), 0);
        for token in tokens {
            if !self.texts.contains(token) || !text[at..].starts_with(self.trie.token(token)) {
                break;
            }
            at += self.trie.token(token).len();
            spelled.push(token);
        }
        if at < whole.len() {
            spelled.extend(self.trie.greedy_tokenize(&text[at..whole.len()]));
        }
        spelled
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, text: &[u8]) -> Vec<u32> {
        self.spell(text)
    }

    /// With canonical tokens the library would allow only one spelling of what is forced; a model
    /// may spell it as it likes, and [`super::Guide::forced`] spells it for the rest.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
