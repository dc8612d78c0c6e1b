//! Text to token ids and back.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::{LoadError, ModelFiles};

/// Qwen2's pre-tokenizer, which checkpoints with `vocab.json` and `merges.txt` leave to their
/// Python class (`tokenization_dream.py`).
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Whether special tokens are added (encoding) or kept in the text (decoding).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// As the checkpoint's post-processor adds them; or kept in the text.
    Include,
    /// None added; or left out of the text.
    Skip,
}

/// A checkpoint's tokenizer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    size: usize,
    config: Arc<Value>,
}

impl Tokenizer {
    /// From `tokenizer.json`, or from `vocab.json` and `merges.txt`.
    ///
    /// # Errors
    /// When files are missing or damaged.
    pub fn load(files: &ModelFiles) -> Result<Self, LoadError> {
        let mut inner = match files.read("tokenizer.json")? {
            Some(content) => tokenizers::Tokenizer::from_bytes(&content)
                .map_err(|e| error(files, "tokenizer.json", &e.to_string()))?,
            None => from_vocab_and_merges(files)?,
        };
        // Length limits are the server's business: a cut prompt would be answered as if it were whole.
        inner
            .with_padding(None)
            .with_truncation(None)
            .map_err(|e| error(files, "tokenizer.json", &e.to_string()))?;
        let highest = inner.get_vocab(true).into_values().max();
        let config: Value = files.json("tokenizer_config.json")?.unwrap_or_default();
        let size = highest.map_or(0, |id| id as usize + 1);
        Ok(Self { inner: Arc::new(inner), size, config: Arc::new(config) })
    }

    /// Highest id plus one, added tokens included.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The library's own, for what only it knows: decoders, added tokens.
    pub(crate) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// `tokenizer_config.json`, as the checkpoint has it; null if it has none.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// How the vocabulary spells a token: byte-level tokenizers write `Ġthe` for ` the`.
    #[must_use]
    pub fn spelling_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token spelled exactly so.
    #[must_use]
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether both turn every text into the same ids.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let written = |tokenizer: &Self| tokenizer.inner.to_string(false).ok();
        written(self).is_some() && written(self) == written(other)
    }

    /// Ids of a text. Special tokens spelled out in the text become their ids.
    ///
    /// # Errors
    /// When the tokenizer itself fails, with its own message.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>, String> {
        self.inner
            .encode_fast(text, special == SpecialTokens::Include)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|e| e.to_string())
    }

    /// Text of ids; ids without a token give nothing, bytes that are no UTF-8 give U+FFFD.
    #[must_use]
    pub fn decode(&self, ids: &[u32], special: SpecialTokens) -> String {
        self.inner.decode(ids, special == SpecialTokens::Skip).unwrap_or_default()
    }

    /// Bytes of one token, also where it is part of a character only.
    #[must_use]
    pub fn bytes_of(&self, id: u32) -> Vec<u8> {
        let text = self.decode(&[id], SpecialTokens::Include);
        if !text.contains('\u{FFFD}') {
            return text.into_bytes();
        }
        let spelling = self.inner.id_to_token(id).unwrap_or_default();
        let fallback = spelling.strip_prefix("<0x").and_then(|hex| hex.strip_suffix('>'));
        if let Some(byte) = fallback.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            return vec![byte];
        }
        spelling.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| text.into_bytes())
    }

    /// Decodes token by token.
    #[must_use]
    pub fn stream(&self, special: SpecialTokens) -> TokenStream {
        TokenStream { tokenizer: self.clone(), special, pending: Vec::new() }
    }
}

/// The byte that a character of a byte-level vocabulary stands for (`bytes_to_unicode` of GPT-2):
/// itself where it is printable, and the others in order from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    let is_printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u8::try_from(c).ok().filter(|&b| is_printable(b)) {
        Some(byte) => Some(byte),
        None => {
            let index = u32::from(c).checked_sub(0x100)?;
            (0..=u8::MAX).filter(|&b| !is_printable(b)).nth(index as usize)
        }
    }
}

/// Incremental decoding that never splits a character.
#[derive(Debug, Clone)]
pub struct TokenStream {
    tokenizer: Tokenizer,
    special: SpecialTokens,
    pending: Vec<u32>,
}

impl TokenStream {
    /// The text that became certain with this token; nothing while a character is unfinished.
    pub fn push(&mut self, id: u32) -> String {
        self.pending.push(id);
        let text = self.tokenizer.decode(&self.pending, self.special);
        if text.ends_with('\u{FFFD}') {
            return String::new();
        }
        self.pending.clear();
        text
    }

    /// What is left at the end: unfinished characters as U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = self.tokenizer.decode(&self.pending, self.special);
        self.pending.clear();
        text
    }
}

fn error(files: &ModelFiles, file: &str, reason: &str) -> LoadError {
    LoadError::Tokenizer { file: files.path_of(file), reason: reason.to_owned() }
}

#[derive(Deserialize)]
struct AddedTokenEntry {
    content: String,
    #[serde(default)]
    special: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
    normalized: Option<bool>,
}

/// A byte-level BPE as Qwen2's slow tokenizer builds it.
fn from_vocab_and_merges(files: &ModelFiles) -> Result<tokenizers::Tokenizer, LoadError> {
    let missing = || files.missing("tokenizer.json", " and no vocab.json with merges.txt");
    let vocab: Map<String, Value> = files.json("vocab.json")?.ok_or_else(missing)?;
    let merges = files.read("merges.txt")?.ok_or_else(missing)?;
    let vocab = vocab
        .into_iter()
        .map(|(token, id)| match id.as_u64().and_then(|id| u32::try_from(id).ok()) {
            Some(id) => Ok((token, id)),
            None => Err(error(files, "vocab.json", &format!("id of '{token}' is {id}"))),
        })
        .collect::<Result<Vocab, _>>()?;
    let merges = std::str::from_utf8(&merges)
        .map_err(|e| error(files, "merges.txt", &e.to_string()))?
        .lines()
        .filter(|line| !line.starts_with("#version") && !line.is_empty())
        .map(|line| match line.split_once(' ') {
            Some((a, b)) => Ok((a.to_owned(), b.to_owned())),
            None => Err(error(files, "merges.txt", &format!("line '{line}' is not a pair"))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .build()
        .map_err(|e| error(files, "merges.txt", &e.to_string()))?;
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    let split = Split::new(
        SplitPattern::Regex(QWEN2_PATTERN.to_owned()),
        SplitDelimiterBehavior::Isolated,
        false,
    )
    .map_err(|e| error(files, "vocab.json", &e.to_string()))?;
    let bytes = ByteLevel::new(false, false, false);
    tokenizer
        .with_normalizer(Some(NFC))
        .with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()])))
        .with_decoder(Some(bytes));
    add_tokens(files, &mut tokenizer)?;
    Ok(tokenizer)
}

/// Adds the tokens of `tokenizer_config.json`, in order of their ids, which have to continue the
/// vocabulary.
fn add_tokens(files: &ModelFiles, tokenizer: &mut tokenizers::Tokenizer) -> Result<(), LoadError> {
    const FILE: &str = "tokenizer_config.json";
    let config: Value = files.json(FILE)?.unwrap_or_default();
    let Some(entries) = config["added_tokens_decoder"].as_object() else { return Ok(()) };
    let mut tokens = Vec::new();
    for (id, entry) in entries {
        let id: u32 = id.parse().map_err(|_| error(files, FILE, &format!("token id '{id}'")))?;
        let entry = AddedTokenEntry::deserialize(entry)
            .map_err(|e| error(files, FILE, &format!("token {id}: {e}")))?;
        tokens.push((id, entry));
    }
    tokens.sort_by_key(|(id, _)| *id);
    for (id, entry) in tokens {
        let token = AddedToken::from(entry.content.clone(), entry.special)
            .lstrip(entry.lstrip)
            .rstrip(entry.rstrip)
            .single_word(entry.single_word)
            .normalized(entry.normalized.unwrap_or(!entry.special));
        if entry.special {
            tokenizer.add_special_tokens(&[token]);
        } else {
            tokenizer.add_tokens(&[token]);
        }
        let got = tokenizer.token_to_id(&entry.content);
        if got != Some(id) {
            let reason = format!("token '{}' would get id {got:?}, expected {id}", entry.content);
            return Err(error(files, FILE, &reason));
        }
    }
    Ok(())
}
