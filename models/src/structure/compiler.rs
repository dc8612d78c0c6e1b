//! Structures to guides.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use serde_json::json;

use super::guide::Rules;
use super::vocabulary::Vocabulary;
use super::{Guide, Structure, StructureError};
use crate::Tokenizer;

/// Compiles structures for one tokenizer. Made once per model; cheap to clone, shared between
/// threads.
#[derive(Clone)]
pub struct StructureCompiler {
    inner: Arc<Inner>,
}

struct Inner {
    factory: ParserFactory,
    rules: Arc<Rules>,
}

impl StructureCompiler {
    /// For a tokenizer: `vocab` are the rows of the head (ids beyond the tokenizer's are never
    /// allowed), `ends` the ids that end an answer.
    ///
    /// # Errors
    /// When the tokenizer's decoder is not known.
    pub fn new(tokenizer: &Tokenizer, vocab: usize, ends: &[u32]) -> Result<Self, StructureError> {
        let vocabulary = Arc::new(Vocabulary::new(tokenizer, vocab, ends)?);
        let tokens: TokEnv = vocabulary.clone();
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), &slices)
            .map_err(|e| StructureError::Tokenizer(e.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
        let rules = Arc::new(Rules { vocabulary, slicer: factory.slicer() });
        Ok(Self { inner: Arc::new(Inner { factory, rules }) })
    }

    /// The guide of a structure. Blocking; bounded in time, size and depth.
    ///
    /// # Errors
    /// When the structure is damaged, contradicts itself, uses what is not supported or is too
    /// large.
    pub fn compile(&self, structure: &Structure) -> Result<Guide, StructureError> {
        let grammar = match structure {
            Structure::JsonObject => TopLevelGrammar::from_json_schema(json!({"type": "object"})),
            Structure::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema.clone()),
            Structure::Regex(text) => TopLevelGrammar::from_regex(text),
            Structure::Choice(texts) => TopLevelGrammar::from_lark(
                texts.iter().map(|text| json!(text).to_string()).collect::<Vec<_>>().join("|"),
            ),
            Structure::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        };
        let parser = self
            .inner
            .factory
            .create_parser(grammar)
            .map_err(|e| StructureError::invalid(e.to_string()))?;
        Ok(Guide::new(self.inner.rules.clone(), parser.parser))
    }
}
