//! The models that the promises are tried over.

use dfastllm_models::Alignment;
use dfastllm_tests::engine::{CONFIG, Served, serve, serve_model};
use dfastllm_tests::fixtures::parity;
use dfastllm_tests::golden::{ids, records};
use dfastllm_tests::tape::Tape;

/// Tapes that are tried for each prompt that a network is asked.
const TAPES: usize = 8;

/// A model to hold promises over.
pub(super) struct Subject {
    pub(super) name: &'static str,
    pub(super) served: Served,
    prompts: Vec<Vec<u32>>,
    /// Random logits: quick, and without the likeness between passes that a network has.
    pub(super) is_tape: bool,
}

impl Subject {
    fn parity(name: &'static str, file: &str) -> Self {
        let served = serve(parity(name), CONFIG);
        let mut prompts: Vec<Vec<u32>> = Vec::new();
        for record in records(file) {
            let prompt = ids(&record["prompt_ids"]);
            if !prompts.contains(&prompt) {
                prompts.push(prompt);
            }
        }
        Self { name, served, prompts, is_tape: false }
    }

    fn tape(name: &'static str, alignment: Alignment) -> Self {
        let tape = Tape::new(alignment);
        let limits = tape.limits();
        let served = serve_model(Box::new(tape), limits, CONFIG);
        Self { name, served, prompts: Tape::prompts(64), is_tape: true }
    }

    /// The first so many prompts, or so many times as many tapes.
    pub(super) fn prompts(&self, count: usize) -> &[Vec<u32>] {
        &self.prompts[..if self.is_tape { count * TAPES } else { count }]
    }
}

/// The parity checkpoints of both families.
pub(super) fn families() -> [Subject; 2] {
    [
        Subject::parity("llada", "llada/generate.jsonl"),
        Subject::parity("dream", "dream/diffusion_generate.jsonl"),
    ]
}

/// Random logits in both alignments.
pub(super) fn tapes() -> [Subject; 2] {
    [Subject::tape("tape", Alignment::Same), Subject::tape("shifted tape", Alignment::Next)]
}

pub(super) fn subjects() -> impl Iterator<Item = Subject> {
    families().into_iter().chain(tapes())
}
