//! Structures with the built-in tokenizer and with made ones.

mod schemas;
mod walls;
mod words;

use super::{Guide, Structure, StructureCompiler, StructureError};
use crate::{SpecialTokens, Tokenizer, builtin_files};

const VOCAB: usize = 1024;
/// `<|endoftext|>` and `<|end|>`.
const ENDS: [u32; 2] = [0, 5];

fn tokenizer() -> Tokenizer {
    let files = builtin_files("tiny-llada").expect("a built-in model");
    Tokenizer::load(&files).expect("its tokenizer")
}

fn compiler() -> StructureCompiler {
    StructureCompiler::new(&tokenizer(), VOCAB, &ENDS).expect("a compiler")
}

fn guide(structure: &Structure) -> Guide {
    compiler().compile(structure).expect("a guide")
}

fn refusal(structure: &Structure) -> String {
    compiler().compile(structure).expect_err("a refusal").to_string()
}

/// Follows a text token by token; gives the first token that may not come.
fn follow(guide: &mut Guide, text: &str) -> Result<(), StructureError> {
    let ids = tokenizer().encode(text, SpecialTokens::Skip).expect("ids");
    ids.iter().try_for_each(|id| guide.advance(*id))
}

/// Whether a text is an answer: it can be followed, and may end there.
fn accepts(structure: &Structure, text: &str) -> bool {
    let mut guide = guide(structure);
    follow(&mut guide, text).is_ok() && guide.may_end()
}
