//! Regular expressions, before the library sees them.

use regex_syntax::ast::parse::ParserBuilder;
use regex_syntax::ast::{
    AssertionKind, Ast, Flag, Flags, GroupKind, RepetitionKind, RepetitionRange, Visitor, visit,
};

use super::StructureError;
use super::limits::{ALTERNATIVES, GROUPS, REGEX_BYTES, REPETITIONS, at_most};

/// Checks size, depth, repetitions and that everything in it can be followed: `^` and `$` can,
/// other assertions cannot.
pub(super) fn check(text: &str) -> Result<(), StructureError> {
    if text.is_empty() {
        return Err(StructureError::invalid("the regular expression is empty"));
    }
    at_most("the regular expression's length in bytes", text.len(), REGEX_BYTES)?;
    let ast = ParserBuilder::new()
        .nest_limit(GROUPS as u32)
        .build()
        .parse(text)
        .map_err(|e| invalid(text, &e.kind().to_string(), e.span().start.offset))?;
    visit(&ast, Check { text, alternatives: 0 })
}

fn invalid(text: &str, reason: &str, at: usize) -> StructureError {
    let before = text.get(..at).map_or(at, |before| before.chars().count());
    StructureError::invalid(format!("regular expression: {reason}, at character {before}"))
}

const SPACED: &str = "the flag 'x' is not supported";

/// Whether blanks and comments do not count: the expression's line ends are rewritten.
fn is_spaced(flags: &Flags) -> bool {
    flags.flag_state(Flag::IgnoreWhitespace) == Some(true)
}

struct Check<'a> {
    text: &'a str,
    alternatives: usize,
}

impl Visitor for Check<'_> {
    type Output = ();
    type Err = StructureError;

    fn finish(self) -> Result<(), StructureError> {
        Ok(())
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), StructureError> {
        let refused = |what: &str| Err(invalid(self.text, what, ast.span().start.offset));
        match ast {
            Ast::Assertion(assertion) => match assertion.kind {
                AssertionKind::StartLine
                | AssertionKind::EndLine
                | AssertionKind::StartText
                | AssertionKind::EndText => Ok(()),
                _ => refused("word boundaries are not supported"),
            },
            Ast::Group(group) => match &group.kind {
                // The library's spelling of look-ahead, which takes text back.
                GroupKind::CaptureName { name, .. } if name.name == "stop" => {
                    refused("a group must not be called 'stop'")
                }
                GroupKind::NonCapturing(flags) if is_spaced(flags) => refused(SPACED),
                _ => Ok(()),
            },
            Ast::Flags(flags) if is_spaced(&flags.flags) => refused(SPACED),
            Ast::Repetition(repetition) => {
                let most = match &repetition.op.kind {
                    RepetitionKind::Range(RepetitionRange::Exactly(n)) => *n,
                    RepetitionKind::Range(RepetitionRange::AtLeast(n)) => *n,
                    RepetitionKind::Range(RepetitionRange::Bounded(_, n)) => *n,
                    _ => 0,
                };
                at_most("a repetition of the regular expression", most as usize, REPETITIONS)
            }
            _ => Ok(()),
        }
    }

    fn visit_alternation_in(&mut self) -> Result<(), StructureError> {
        self.alternatives += 1;
        at_most("the number of alternatives", self.alternatives, ALTERNATIVES)
    }
}
