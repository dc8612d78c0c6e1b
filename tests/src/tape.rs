//! Random logits in place of a network: what a row says is a hash of everything it can see.
//!
//! A single key that is missing, stale or not meant to be visible changes every logit, where a
//! network's would change by little. Each prompt is a tape of its own.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Mutex;

use dfastllm_backends::{Attend, KeyRun, KeySource, Span};
use dfastllm_engine::ModelLimits;
use dfastllm_models::{
    Alignment, KvPool, LanguageModel, ModelShape, Probe, RaggedRows, ReferenceLoop, Tensor,
};

use crate::fixtures::cpu;

/// Rows of the embedding.
pub const VOCAB: usize = 32;
/// The open position.
pub const MASK: u32 = 31;
/// The end token.
pub const END: u32 = 30;
const MAX_POSITIONS: usize = 256;
/// Numbers of a hidden row: 16 bits of its hash in each.
const HIDDEN: usize = 4;

/// What a key of one position holds.
#[derive(Clone, Copy, Hash)]
struct Cell {
    position: usize,
    token: u32,
    /// Hash of what its row saw, as a second layer's keys depend on the first layer's output.
    seen: u64,
}

/// A bidirectional model of two layers of hashes, with the pool's slots as its cache.
pub struct Tape {
    alignment: Alignment,
    slots: Mutex<HashMap<usize, Cell>>,
}

impl Tape {
    /// A model whose rows predict their own position or the next one.
    #[must_use]
    pub fn new(alignment: Alignment) -> Self {
        Self { alignment, slots: Mutex::default() }
    }

    /// What requests to it are checked against.
    #[must_use]
    pub fn limits(&self) -> ModelLimits {
        ModelLimits {
            vocab: VOCAB,
            max_model_len: MAX_POSITIONS,
            end_ids: vec![END],
            mask_id: Some(MASK),
            reference: Some(match self.alignment {
                Alignment::Same => ReferenceLoop::EvenSplit,
                Alignment::Next => ReferenceLoop::Timesteps,
            }),
            alignment: self.alignment,
            has_verifier: false,
        }
    }

    /// Different prompts of one to nine tokens.
    #[must_use]
    pub fn prompts(count: usize) -> Vec<Vec<u32>> {
        let token = |seed: usize, place| (hash(&(seed, place)) % u64::from(END)) as u32;
        (0..count).map(|seed| (0..=seed % 9).map(|place| token(seed, place)).collect()).collect()
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn positions(run: &KeyRun) -> Range<usize> {
    run.position..run.position + run.len
}

/// The slots of a span's rows, if it writes: then all its keys are in the pool.
fn written(span: &Span, own: &[usize]) -> Option<Vec<usize>> {
    let slot = |position: &usize| {
        span.keys.iter().find_map(|run| match run.source {
            KeySource::Pool { slot } if positions(run).contains(position) => {
                Some(slot + position - run.position)
            }
            _ => None,
        })
    };
    let stays = |run: &KeyRun| matches!(run.source, KeySource::Rows { .. });
    if span.keys.iter().any(stays) { None } else { own.iter().map(slot).collect() }
}

/// Positions and digests of what a span's rows may see, in the order of its keys.
fn keys(
    span: &Span,
    rows: &[Cell],
    slots: &HashMap<usize, Cell>,
    digest: impl Fn(&Cell) -> u64,
) -> Vec<(usize, u64)> {
    let mut keys = Vec::new();
    for run in &span.keys {
        for (offset, position) in positions(run).enumerate() {
            let cell = match run.source {
                KeySource::Rows { row } => &rows[row + offset],
                KeySource::Pool { slot } => &slots[&(slot + offset)],
            };
            assert_eq!(cell.position, position, "a slot holds what another position left there");
            keys.push((position, digest(cell)));
        }
    }
    keys
}

/// One number for a row and what it sees, whose order counts.
fn mixed(row: &Cell, keys: &[(usize, u64)], attend: Attend) -> u64 {
    let is_seen = |key: &&(usize, u64)| attend != Attend::Shadow || key.0 != row.position;
    let mix = |sum: u64, key: &(usize, u64)| {
        (sum.rotate_left(23) ^ key.1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    };
    hash(&keys.iter().filter(is_seen).fold(hash(row), mix))
}

impl LanguageModel for Tape {
    fn shape(&self) -> ModelShape {
        ModelShape { vocab: VOCAB, max_positions: MAX_POSITIONS, layers: 1, kv_width: 8 }
    }

    fn alignment(&self) -> Alignment {
        self.alignment
    }

    fn attend(&self) -> Attend {
        Attend::Bidirectional
    }

    fn forward(&self, batch: &RaggedRows, _: &mut KvPool, _: &mut Probe<'_>) -> Tensor<2> {
        let mut slots = self.slots.lock().unwrap();
        let cell = |(&token, &position)| Cell { position, token, seen: 0 };
        let mut rows: Vec<Cell> =
            batch.tokens().iter().zip(&**batch.positions()).map(cell).collect();
        for is_last in [false, true] {
            for span in &**batch.spans() {
                let own = &batch.positions()[span.rows.clone()];
                for (row, slot) in span.rows.clone().zip(written(span, own).into_iter().flatten()) {
                    slots.insert(slot, rows[row]);
                }
            }
            // The first layer sees tokens only; what slots keep is its output.
            let digest = |cell: &Cell| match is_last {
                false => hash(&(cell.position, cell.token)),
                true => hash(cell),
            };
            let before = rows.clone();
            for span in &**batch.spans() {
                let keys = keys(span, &before, &slots, digest);
                for row in span.rows.clone() {
                    rows[row].seen = mixed(&before[row], &keys, span.attend);
                }
            }
        }
        let parts = |cell: &Cell| [0, 16, 32, 48].map(|bit| f32::from((cell.seen >> bit) as u16));
        let hidden: Vec<f32> = rows.iter().flat_map(parts).collect();
        Tensor::<1>::from_floats(hidden.as_slice(), &cpu().device).reshape([rows.len(), HIDDEN])
    }

    /// The tokens in a random order, each less probable than the one before by the same factor,
    /// from nearly 1 to e⁶: rows from undecided to certain.
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let rows = hidden.dims()[0];
        let hidden: Vec<f32> = hidden.into_data().try_to_vec().unwrap();
        let row = |hidden: &[f32]| {
            let bits: Vec<u32> = hidden.iter().map(|part| *part as u32).collect();
            let uniform = hash(&(&bits, "step")) as f64 / 2f64.powi(64);
            let step = 0.05 * 120f64.powf(uniform);
            let mut order: Vec<u32> = (0..VOCAB as u32).collect();
            order.sort_by_cached_key(|id| hash(&(&bits, id)));
            let mut logits = vec![0f32; VOCAB];
            for (rank, id) in order.into_iter().enumerate() {
                logits[id as usize] = (-step * rank as f64) as f32;
            }
            logits
        };
        let logits: Vec<f32> = hidden.chunks(HIDDEN).flat_map(row).collect();
        Tensor::<1>::from_floats(logits.as_slice(), &cpu().device).reshape([rows, VOCAB])
    }
}
