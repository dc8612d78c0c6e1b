//! What a structure may cost.

use llguidance::api::ParserLimits;

use super::StructureError;

/// Bytes of a regular expression.
pub(super) const REGEX_BYTES: usize = 32 << 10;
/// Bytes of a grammar, of all choices together, and of a schema as JSON.
pub(super) const TEXT_BYTES: usize = 256 << 10;
/// Choices, values of one `enum`, alternatives of a regular expression.
pub(super) const ALTERNATIVES: usize = 10_000;
/// How often something may be repeated by number: `{n}`, `maxLength`, `maxItems`.
pub(super) const REPETITIONS: usize = 10_000;
/// Levels of JSON in a schema.
pub(super) const SCHEMA_DEPTH: usize = 100;
/// Properties of one object.
pub(super) const PROPERTIES: usize = 1_000;
/// Definitions that a schema refers to.
pub(super) const REFERENCES: usize = 1_000;
/// Options of one `oneOf`, which are compared in pairs.
pub(super) const ONE_OF: usize = 256;
/// Groups within groups of a regular expression or grammar.
pub(super) const GROUPS: usize = 28;
/// Rules and terminals of a grammar.
pub(super) const RULES: usize = 1_000;

/// Seconds that compiling may take.
pub(super) const COMPILE_SECONDS: u64 = 5;
/// Structures being compiled at once, those given up among them while they still run.
pub(super) const COMPILING: usize = 4;
/// Stack of a thread that compiles: the library goes as deep as rules call each other. Only what
/// is used is ever there.
pub(super) const STACK_BYTES: usize = 128 << 20;
/// Bytes that [`super::Guide::forced`] looks ahead.
pub(super) const FORCED_BYTES: usize = 512;

/// The library's own limits: about 15 ms a mask, 100 MB of automata a request, 50 ms of automata
/// built in advance.
pub(super) fn of_parser() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 8_000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 64 << 10,
        max_grammar_size: 200_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

/// Refuses more than a limit.
pub(super) fn at_most(
    what: &'static str,
    found: usize,
    limit: usize,
) -> Result<(), StructureError> {
    if found > limit {
        return Err(StructureError::TooLarge { what, found, limit });
    }
    Ok(())
}
