//! Where an answer is in its structure.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use llguidance::derivre::NextByte;
use llguidance::earley::{BiasComputer, Parser, ParserRecognizer, SlicedBiasComputer};
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::{Recognizer, SimpleVob, TokTrie, TokenizerEnv};

use super::limits::FORCED_BYTES;
use super::vocabulary::Vocabulary;
use super::{StructureError, TokenSet};

/// What all guides of a tokenizer share.
pub(super) struct Rules {
    pub(super) vocabulary: Arc<Vocabulary>,
    pub(super) slicer: Arc<SlicedBiasComputer>,
}

/// Where an answer is in its structure, and so which tokens may come next. A clone is at the same
/// place and moves by itself, but shares what is built of the automata and its limit; a fork shares
/// nothing.
#[derive(Clone)]
pub struct Guide {
    rules: Arc<Rules>,
    parser: Parser,
    /// What is known about the place: texts that may come next, and whether the answer may end.
    next: Option<TokenSet>,
    may_end: Option<bool>,
    ended: bool,
    failed: Option<StructureError>,
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy(self.parser.get_bytes());
        f.debug_struct("Guide")
            .field("text", &text)
            .field("ended", &self.ended)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl Guide {
    pub(super) fn new(rules: Arc<Rules>, parser: Parser) -> Self {
        Self { rules, parser, next: None, may_end: None, ended: false, failed: None }
    }

    /// A copy for another answer.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { parser: self.parser.deep_clone(), ..self.clone() }
    }

    /// Tokens that may come next, end tokens among them exactly where the answer may end. Bits,
    /// `[vocab.div_ceil(32)]`; none after an end token.
    ///
    /// # Errors
    /// When nothing can follow, or to find out takes more than the limits allow.
    pub fn allowed(&mut self) -> Result<TokenSet, StructureError> {
        if let Some(next) = &self.next {
            return Ok(next.clone());
        }
        let vocabulary = self.rules.vocabulary.clone();
        let mut words = vec![0; vocabulary.texts().words().len()];
        if !self.ended {
            let slicer = self.rules.slicer.clone();
            let may = self.run(|parser| parser.compute_bias(&*slicer, &[]))?;
            let texts = vocabulary.texts().words();
            for ((word, may), text) in words.iter_mut().zip(may.as_slice()).zip(texts) {
                *word = may & text;
            }
            if self.may_end() {
                for end in vocabulary.ends() {
                    words[*end as usize / 32] |= 1 << (end % 32);
                }
            } else if words.iter().all(|word| *word == 0) {
                return Err(self.fail("no token continues it"));
            }
        }
        let next = TokenSet::new(words);
        self.next = Some(next.clone());
        Ok(next)
    }

    /// Whether this token may come next; cheaper than [`Guide::allowed`].
    ///
    /// # Errors
    /// When to find out takes more than the limits allow.
    pub fn allows(&mut self, token: u32) -> Result<bool, StructureError> {
        if let Some(next) = &self.next {
            return Ok(next.contains(token));
        }
        if self.rules.vocabulary.ends().contains(&token) {
            return Ok(!self.ended && self.may_end());
        }
        if self.ended || !self.rules.vocabulary.texts().contains(token) {
            return Ok(false);
        }
        self.run(|parser| parser.validate_tokens(&[token]) == 1)
    }

    /// Moves behind a token.
    ///
    /// # Errors
    /// [`StructureError::NotAllowed`], with nothing changed; or when the limits do not allow more.
    pub fn advance(&mut self, token: u32) -> Result<(), StructureError> {
        if !self.allows(token)? {
            return Err(self.failed.clone().unwrap_or(StructureError::NotAllowed(token)));
        }
        self.next = None;
        if self.rules.vocabulary.ends().contains(&token) {
            self.ended = true;
            return Ok(());
        }
        self.may_end = None;
        let vocabulary = self.rules.vocabulary.clone();
        let bytes = vocabulary.tok_trie().token(token);
        match self.run(|parser| parser.apply_token(bytes, token))? {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.fail("it takes text back")),
            Err(e) => Err(self.fail(&e.to_string())),
        }
    }

    /// Tokens that follow here whatever the model says, as the tokenizer itself would write them;
    /// may be empty. Ends before what could be one token together with what is open. Does not
    /// advance.
    pub fn forced(&mut self) -> Vec<u32> {
        if self.ended || self.may_end() {
            return Vec::new();
        }
        let vocabulary = self.rules.vocabulary.clone();
        let Ok(Some(first)) = self.run(forced_byte) else { return Vec::new() };
        let mut text = vec![first];
        // A copy goes ahead, byte by byte: the library's own way has no bound.
        let mut ahead = self.clone();
        while let Some(last) = text.last().copied() {
            let applied = ahead.run(|parser| parser.apply_token(&[last], 0).is_ok());
            if applied != Ok(true) || text.len() == FORCED_BYTES {
                break;
            }
            match ahead.run(forced_byte) {
                Ok(Some(byte)) => text.push(byte),
                _ => break,
            }
        }
        let mut tokens = vocabulary.spell(&text);
        let open = ahead.run(|parser| {
            parser.with_recognizer(|r| vocabulary.tok_trie().chop_tokens(r, &tokens).0)
        });
        tokens.truncate(tokens.len() - open.unwrap_or(tokens.len()));
        tokens
    }

    /// Whether the answer may end here.
    pub fn may_end(&mut self) -> bool {
        if let Some(may_end) = self.may_end {
            return may_end;
        }
        let may_end = self.run(Parser::is_accepting).unwrap_or(false);
        self.may_end = Some(may_end);
        may_end
    }

    /// Whether the answer has ended, or has to end here.
    pub fn has_ended(&mut self) -> bool {
        if self.ended {
            return true;
        }
        if !self.may_end() {
            return false;
        }
        let ends = self.rules.vocabulary.clone();
        let only_ends = |next: TokenSet| next.ids().all(|id| ends.ends().contains(&id));
        !self.parser.can_advance() || self.allowed().is_ok_and(only_ends)
    }

    /// Asks the library, which may panic or run into its limits; after that it cannot go on.
    fn run<T>(&mut self, ask: impl FnOnce(&mut Parser) -> T) -> Result<T, StructureError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let rules = self.rules.clone();
        let parser = &mut self.parser;
        let answer = catch_unwind(AssertUnwindSafe(|| {
            parser.compute_bias(&Refuel(rules.vocabulary.tok_trie()), b"\0");
            let answer = ask(parser);
            Ok((answer, parser.get_error()))
        }));
        match answer {
            Ok((answer, None)) => Ok(answer),
            Ok((_, Some(limit))) => Err(self.fail(&limit.message())),
            Err(panic) => Err(self.fail(&panic.to_string())),
        }
    }

    fn fail(&mut self, reason: &str) -> StructureError {
        let first = reason.lines().next().unwrap_or_default();
        let error = StructureError::Stuck(first.to_owned());
        self.failed = Some(error.clone());
        error
    }
}

/// A mask that costs nothing: asking for one gives the lexer the fuel of a new step, which asking
/// for single tokens would use up without.
struct Refuel<'a>(&'a TokTrie);

impl BiasComputer for Refuel<'_> {
    fn compute_bias(&self, _: &mut ParserRecognizer<'_>, _: &[u8]) -> SimpleVob {
        SimpleVob::new()
    }

    fn trie(&self) -> &TokTrie {
        self.0
    }
}

/// The byte that comes next whatever the model says: the only one there is, where the answer may
/// not end.
fn forced_byte(parser: &mut Parser) -> Option<u8> {
    if parser.is_accepting() {
        return None;
    }
    parser.with_recognizer(|r| {
        let state = r.lexer_state();
        let hint = r.lexer_mut().next_byte(state);
        if let NextByte::ForcedByte(byte) = hint {
            return Some(byte);
        }
        r.trie_started("forced byte");
        let mut fits = |byte: &u8| {
            let fits = r.try_push_byte(*byte);
            r.pop_bytes(usize::from(fits));
            fits
        };
        let hints = hint.some_bytes();
        let free = hints.len() > 1 && hints.iter().all(&mut fits);
        let mut open = (0..=u8::MAX).filter(&mut fits);
        let forced = if free { None } else { open.next().filter(|_| open.next().is_none()) };
        r.trie_finished();
        forced
    })
}
