//! Structures to guides.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv};

use super::bounded::Places;
use super::guide::Rules;
use super::vocabulary::Vocabulary;
use super::{Guide, Structure, StructureError, lark, limits, regex, schema};
use crate::Tokenizer;

/// Compiles structures for one tokenizer. Made once per model; cheap to clone, shared between
/// threads.
#[derive(Clone)]
pub struct StructureCompiler {
    inner: Arc<Inner>,
}

struct Inner {
    places: Places,
    factory: ParserFactory,
    rules: Arc<Rules>,
}

impl std::fmt::Debug for StructureCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StructureCompiler").finish_non_exhaustive()
    }
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
        *factory.limits_mut() = limits::of_parser();
        let rules = Arc::new(Rules { vocabulary, slicer: factory.slicer() });
        Ok(Self { inner: Arc::new(Inner { places: Places::default(), factory, rules }) })
    }

    /// The guide of a structure. Blocking: a few milliseconds as a rule, and given up after five
    /// seconds.
    ///
    /// # Errors
    /// When the structure is damaged, contradicts itself, uses what is not supported or is too
    /// large; [`StructureError::Busy`] when too many are being compiled.
    pub fn compile(&self, structure: &Structure) -> Result<Guide, StructureError> {
        let (inner, structure) = (self.inner.clone(), structure.clone());
        self.inner.places.run(move || inner.compile(&structure))?
    }
}

impl Inner {
    fn compile(&self, structure: &Structure) -> Result<Guide, StructureError> {
        let grammar = match structure {
            Structure::JsonObject => TopLevelGrammar::from_json_schema(schema::object()),
            Structure::JsonSchema(value) => {
                TopLevelGrammar::from_json_schema(schema::prepare(value)?)
            }
            Structure::Regex(text) => {
                regex::check(text)?;
                TopLevelGrammar::from_regex(text)
            }
            Structure::Choice(texts) => TopLevelGrammar::from_lark(lark::of_choices(texts)?),
            Structure::Lark(text) => TopLevelGrammar::from_lark(lark::prepare(text)?),
        };
        let parser = self.factory.create_parser(grammar).map_err(|e| refused(&e.to_string()))?;
        let mut guide = Guide::new(self.rules.clone(), parser.parser);
        // What cannot begin is refused now, and what can has its first mask.
        guide.allowed().map_err(|e| StructureError::invalid(format!("nothing matches it: {e}")))?;
        if guide.has_ended() {
            return Err(StructureError::invalid("only an empty text matches it"));
        }
        Ok(guide)
    }
}

/// The library's reason in one line, with our names for its options.
fn refused(reason: &str) -> StructureError {
    let known = [
        ("oneOf constraints are not supported", "options of a oneOf may overlap; use anyOf"),
        ("panic:", "the library cannot compile it"),
        ("initial_lexer_fuel", "its regular expressions are too complex"),
        ("regex parse error", "one of its regular expressions is too large or not supported"),
        ("fuel exhausted", "its regular expressions are too complex"),
    ];
    let ours = known.iter().find(|(theirs, _)| reason.contains(theirs)).map(|(_, ours)| *ours);
    let first = reason.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    StructureError::invalid(ours.map_or_else(|| first.chars().take(300).collect(), str::to_owned))
}
