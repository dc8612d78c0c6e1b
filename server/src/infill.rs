//! Text with gaps: `suffix`, and `diffusion.infill`, a list of texts and gaps after the prompt.
//!
//! A number is a gap of that many tokens; `{"max_tokens": n}` one that may end earlier.

use dfastllm_engine::InfillPart;
use dfastllm_models::{SpecialTokens, Tokenizer};
use serde_json::Value;

use crate::ApiError;

const MAX_PARTS: usize = 256;

/// What follows the prompt; empty for one gap and nothing behind it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Infill {
    parts: Vec<InfillPart>,
    /// Texts between one gap and the next.
    between: Vec<String>,
    /// Whether the gap's length is the request's.
    is_suffix: bool,
}

impl Infill {
    /// One gap, as long as the answer may be, before a text.
    pub(crate) fn suffix(text: &str, tokenizer: &Tokenizer) -> Result<Self, ApiError> {
        let ids = tokenizer
            .encode(text, SpecialTokens::Skip)
            .map_err(|e| ApiError::invalid("suffix", format!("suffix: {e}")))?;
        Ok(Self { parts: vec![InfillPart::Given(ids)], is_suffix: true, ..Self::default() })
    }

    /// Positions to fill, where the request says.
    pub(crate) fn open(&self) -> Option<usize> {
        if self.is_suffix || self.parts.is_empty() {
            return None;
        }
        let len = |part: &InfillPart| match part {
            InfillPart::Gap { len, .. } => *len,
            InfillPart::Given(_) => 0,
        };
        Some(self.parts.iter().map(len).fold(0, usize::saturating_add))
    }

    /// Tokens that are given.
    pub(crate) fn given(&self) -> usize {
        let len = |part: &InfillPart| match part {
            InfillPart::Given(ids) => ids.len(),
            InfillPart::Gap { .. } => 0,
        };
        self.parts.iter().map(len).sum()
    }

    /// The parts for an answer of at most `max_tokens`.
    pub(crate) fn parts(&self, max_tokens: usize) -> Vec<InfillPart> {
        let gap = InfillPart::Gap { len: max_tokens, is_free: true };
        let first = self.is_suffix.then_some(gap);
        first.into_iter().chain(self.parts.iter().cloned()).collect()
    }

    pub(crate) fn between(&self) -> &[String] {
        &self.between
    }
}

/// Reads `diffusion.infill`.
pub(crate) fn parse_infill(given: &Value, tokenizer: &Tokenizer) -> Result<Infill, ApiError> {
    let param = "diffusion.infill";
    let expected = "a list of texts, gap lengths and {\"max_tokens\": n}, at least one gap";
    let refuse = || ApiError::invalid(param, format!("{param}: expected {expected}"));
    let list = given.as_array().filter(|list| list.len() <= MAX_PARTS).ok_or_else(refuse)?;
    let mut infill = Infill::default();
    let (mut gaps, mut text_since_gap) = (0, String::new());
    for item in list {
        let gap = |len: &Value, is_free| {
            let len = len.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(refuse)?;
            Ok::<InfillPart, ApiError>(InfillPart::Gap { len, is_free })
        };
        let part = match item {
            Value::String(text) => {
                text_since_gap.push_str(text);
                let ids = tokenizer.encode(text, SpecialTokens::Skip);
                InfillPart::Given(ids.map_err(|e| ApiError::invalid(param, e))?)
            }
            Value::Object(fields) if fields.len() == 1 => {
                gap(fields.get("max_tokens").unwrap_or(&Value::Null), true)?
            }
            number => gap(number, false)?,
        };
        if matches!(part, InfillPart::Gap { .. }) {
            let text = std::mem::take(&mut text_since_gap);
            if gaps > 0 {
                infill.between.push(text);
            } else if !text.is_empty() {
                let message = format!("{param}: the text before the first gap is the prompt's");
                return Err(ApiError::invalid(param, message));
            }
            gaps += 1;
        }
        infill.parts.push(part);
    }
    if gaps == 0 { Err(refuse()) } else { Ok(infill) }
}
