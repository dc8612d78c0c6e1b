//! What is asked of rows, as words for the kernels.

use std::collections::HashMap;

use dfastllm_backends::ops::philox::{Counter, Purpose, uniform};
use dfastllm_backends::ops::{ConfidenceOf, Draw, FilterOrder, Penalties, RowParams, TokenSet};

use super::layout::{
    ALLOWED, ALLOWED_WORDS, ASKED, ASKED_COUNT, EDIT_ADD, EDIT_COUNT, EDIT_REPETITION,
    EDIT_SUBTRACT, EDITS, FLAG_CATEGORICAL, FLAG_FILTERED, FLAG_GIVEN, FLAG_GUMBEL, FLAG_MIN_P,
    FLAG_TOP_P, FLAG_TOP_P_FIRST, FLAGS, HEADER, KEPT, LOG_MIN_P, OTHER, POSITION, RECIPROCAL,
    REPETITION, ROW, SCALE, SEED_HIGH, SEED_LOW, STEP, TEMPERATURE, TOP_K, TOP_P_HIGH, TOP_P_LOW,
    UNIFORM_HIGH, UNIFORM_LOW,
};
use super::values::NONE;

/// What is asked of some rows.
pub(super) struct Request {
    /// Headers, then lists.
    pub(super) words: Vec<u32>,
    /// How many rows are kept for a second look.
    pub(super) kept: usize,
    /// Whether a row's tokens are edited or forbidden.
    pub(super) adjusts: bool,
    /// Whether a row has filters other than a temperature.
    pub(super) is_bounded: bool,
    /// The longest list of most probable tokens.
    pub(super) tops: usize,
}

/// Whether a row needs a second look.
pub(super) fn is_kept(params: &RowParams) -> bool {
    let draws = matches!(params.draw, Draw::Gumbel { .. } | Draw::Categorical { .. });
    draws || is_measured_filtered(params)
}

fn is_measured_filtered(params: &RowParams) -> bool {
    params.confidence_of == ConfidenceOf::Filtered && !params.filters.is_neutral()
}

/// `x` of `[0, 1)` times `2^64`, in two words.
fn fraction(x: f64) -> [u32; 2] {
    let scaled = (x * 2f64.powi(64)) as u64;
    [(scaled >> 32) as u32, scaled as u32]
}

impl Request {
    /// The words for `params` on rows of `vocab` logits.
    pub(super) fn new(params: &[RowParams], vocab: usize) -> Self {
        let mut request = Self {
            words: vec![0; params.len() * HEADER as usize],
            kept: 0,
            adjusts: false,
            is_bounded: false,
            tops: params.iter().map(|p| p.top_logprobs).max().unwrap_or(0),
        };
        let mut sets = HashMap::new();
        for (row, params) in params.iter().enumerate() {
            let header = row * HEADER as usize;
            request.put(header, ROW, params.row as u32);
            request.put(header, OTHER, params.guidance.map_or(NONE, |g| g.row as u32));
            request.put(header, SCALE, params.guidance.map_or(0.0, |g| g.scale + 1.0).to_bits());
            request.put_edits(header, params, vocab);
            request.put_set(header, params.allowed.as_ref(), &mut sets);
            request.put_asked(header, &params.mass_of, vocab);
            request.put_filters(header, params, vocab);
            request.put_draw(header, params, vocab);
        }
        request
    }

    fn put(&mut self, header: usize, at: u32, word: u32) {
        self.words[header + at as usize] = word;
    }

    fn put_edits(&mut self, header: usize, params: &RowParams, vocab: usize) {
        let repetition = params.penalties.as_ref().map_or(1.0, |p| p.repetition);
        self.put(header, REPETITION, repetition.to_bits());
        self.put(header, RECIPROCAL, repetition.recip().to_bits());
        let mut edits: Vec<(u32, u32, f32)> =
            params.penalties.as_deref().map(penalty_edits).unwrap_or_default();
        edits.extend(params.bias.iter().map(|&(id, bias)| (id, EDIT_ADD, bias)));
        edits.retain(|&(id, ..)| (id as usize) < vocab);
        // Stable, so that a token's edits stay in their order.
        edits.sort_by_key(|&(id, ..)| id);
        self.put(header, EDITS, self.words.len() as u32);
        self.put(header, EDIT_COUNT, edits.len() as u32);
        self.adjusts |= !edits.is_empty();
        self.words.extend(edits.iter().flat_map(|&(id, kind, by)| [id << 2 | kind, by.to_bits()]));
    }

    /// Sets that rows share are there once.
    fn put_set(
        &mut self,
        header: usize,
        allowed: Option<&TokenSet>,
        sets: &mut HashMap<(*const u32, usize), u32>,
    ) {
        let Some(words) = allowed.map(TokenSet::words) else {
            return self.put(header, ALLOWED, NONE);
        };
        self.adjusts = true;
        let end = self.words.len() as u32;
        let at = *sets.entry((words.as_ptr(), words.len())).or_insert(end);
        if at == end {
            self.words.extend_from_slice(words);
        }
        self.put(header, ALLOWED, at);
        self.put(header, ALLOWED_WORDS, words.len() as u32);
    }

    fn put_asked(&mut self, header: usize, ids: &[u32], vocab: usize) {
        let first = self.words.len();
        self.words.extend(ids.iter().filter(|&&id| (id as usize) < vocab));
        self.put(header, ASKED, first as u32);
        self.put(header, ASKED_COUNT, (self.words.len() - first) as u32);
    }

    fn put_filters(&mut self, header: usize, params: &RowParams, vocab: usize) {
        let filters = &params.filters;
        let temperature = if filters.temperature > 0.0 { filters.temperature as f32 } else { 1.0 };
        self.put(header, TEMPERATURE, temperature.to_bits());
        self.put(header, KEPT, NONE);
        if !is_kept(params) {
            return;
        }
        self.put(header, KEPT, self.kept as u32);
        self.kept += 1;
        let mut flags = if is_measured_filtered(params) { FLAG_FILTERED } else { 0 };
        if filters.order == FilterOrder::TopPFirst {
            flags |= FLAG_TOP_P_FIRST;
        }
        if let Some(k) = filters.top_k.filter(|&k| k < vocab) {
            self.put(header, TOP_K, k.max(1) as u32);
            self.is_bounded = true;
        }
        if let Some(p) = filters.top_p.filter(|&p| p < 1.0) {
            let [high, low] = fraction(p);
            self.put(header, TOP_P_HIGH, high);
            self.put(header, TOP_P_LOW, low);
            flags |= FLAG_TOP_P;
        }
        if let Some(p) = filters.min_p.filter(|&p| p > 0.0) {
            self.put(header, LOG_MIN_P, (p.ln() as f32).to_bits());
            flags |= FLAG_MIN_P;
        }
        self.is_bounded |= flags & (FLAG_TOP_P | FLAG_MIN_P) != 0;
        self.put(header, FLAGS, flags);
    }

    fn put_draw(&mut self, header: usize, params: &RowParams, vocab: usize) {
        let flag = match params.draw {
            Draw::Greedy => 0,
            Draw::Given(id) => {
                self.put(header, SEED_LOW, id.min(vocab as u32 - 1));
                FLAG_GIVEN
            }
            Draw::Gumbel { seed, position, step } => {
                self.put(header, SEED_LOW, seed as u32);
                self.put(header, SEED_HIGH, (seed >> 32) as u32);
                self.put(header, POSITION, position);
                self.put(header, STEP, step);
                FLAG_GUMBEL
            }
            Draw::Categorical { seed, position, step } => {
                let counter = Counter { position, step, purpose: Purpose::Token, draw: 0 };
                let [high, low] = fraction(uniform(seed, counter));
                self.put(header, UNIFORM_HIGH, high);
                self.put(header, UNIFORM_LOW, low);
                FLAG_CATEGORICAL
            }
        };
        self.words[header + FLAGS as usize] |= flag;
    }
}

/// Penalties in the order the host applies them.
fn penalty_edits(penalties: &Penalties) -> Vec<(u32, u32, f32)> {
    let seen = penalties.seen.iter().map(|&id| (id, EDIT_REPETITION, 0.0));
    let generated = penalties.generated.iter().map(|&(id, count)| {
        (id, EDIT_SUBTRACT, penalties.presence + penalties.frequency * count as f32)
    });
    seen.chain(generated).collect()
}
