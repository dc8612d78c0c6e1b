//! What one thread does at a time: some queries over some of their keys.

use std::ops::Range;

use super::super::isa::{Isa, Kernel};
use super::super::vector::Stored;
use super::prepared::Prepared;
use super::steps::{Lanes, add_values, hide, loaded, score, softmax_step, turned_scores};
use super::sums::Sums;
use super::{AttentionPlan, CHUNK_PARTS, MAX_RUN, Part};
use crate::rows::{Attend, Span};

/// From this many queries of a key head on, turning keys round pays, for then 16 keys are scored in
/// one go, and so does widening values.
const MANY_QUERIES: usize = 8;
/// Bytes the memory hands out at once.
const CACHE_LINE: usize = 64;

/// Some rows of a span and some key heads, with the query heads that share those: they go over the
/// keys together, so that each key is fetched from memory once.
#[derive(Clone)]
pub(super) struct Task<'a, T> {
    pub(super) plan: &'a AttentionPlan,
    pub(super) span: &'a Span,
    /// Whole chunks.
    pub(super) parts: &'a [Part<'a, T>],
    /// `[rows, heads * head_dim]` of the whole pass.
    pub(super) query: &'a [f32],
    pub(super) rows: Range<usize>,
    /// Key heads.
    pub(super) heads: Range<usize>,
    /// Query heads of a key head.
    pub(super) group: usize,
}

/// Scores of a part's keys.
type Scores = [f32; MAX_RUN];

impl<T: Stored> Kernel for &Task<'_, T> {
    type Output = Sums;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Sums {
        let (queries, dim) = (self.heads.len() * self.each(), self.plan.head_dim);
        let mut work = Work { query: self.gathered(), way: Way::new(self, queries) };
        let mut sums = Sums::new(queries, dim);
        let mut next = Sums::new(if self.parts.len() > CHUNK_PARTS { queries } else { 0 }, dim);
        for first in (0..self.parts.len()).step_by(CHUNK_PARTS) {
            if first == 0 {
                self.chunk(isa, first, &mut work, &mut sums);
            } else if self.sees_some(first) {
                next.clear();
                self.chunk(isa, first, &mut work, &mut next);
                sums.join(isa, &next);
            }
        }
        sums
    }
}

/// What a task has beside its sums. Queries stand in the order of [`Task::places`].
struct Work {
    /// `[queries, head_dim]`
    query: Vec<f32>,
    way: Way,
}

/// How scores are found.
enum Way {
    /// Key by key, as they are stored: those of all queries.
    Stored(Vec<Scores>),
    /// Head by head, for many queries.
    Turned(Prepared),
}

impl Way {
    fn new<T: Stored>(task: &Task<'_, T>, queries: usize) -> Self {
        match task.has_many_queries() {
            true => Self::Turned(Prepared::new(task.plan.head_dim)),
            false => Self::Stored(vec![[0.0; MAX_RUN]; queries]),
        }
    }
}

impl<'a, T: Stored> Task<'a, T> {
    /// Queries of a key head.
    fn each(&self) -> usize {
        self.rows.len() * self.group
    }

    /// Numbers of its rows, of all heads.
    pub(super) fn out_size(&self) -> usize {
        self.rows.len() * self.plan.heads * self.plan.head_dim
    }

    /// Whether a key is used so often that preparing it pays.
    pub(super) fn has_many_queries(&self) -> bool {
        self.each() >= MANY_QUERIES
    }

    pub(super) fn has_same_rows(&self, other: &Self) -> bool {
        self.rows == other.rows
    }

    pub(super) fn has_same_heads(&self, other: &Self) -> bool {
        self.heads == other.heads
    }

    /// Tasks of some heads and parts; those of the same heads side by side, in the order of the parts.
    pub(super) fn cut(self, heads_each: usize, parts_each: usize) -> Vec<Self> {
        let mut tasks = Vec::new();
        for first in self.heads.clone().step_by(heads_each) {
            let heads = first..(first + heads_each).min(self.heads.end);
            let some = Self { heads, ..self.clone() };
            if self.parts.len() <= parts_each {
                tasks.push(some);
            } else {
                let parts = self.parts.chunks(parts_each);
                tasks.extend(parts.map(|parts| Self { parts, ..some.clone() }));
            }
        }
        tasks
    }

    /// Where the queries of a key head and row are in a matrix `[rows, heads * head_dim]`: those of a
    /// group side by side. In this order queries are numbered.
    fn places(&self) -> impl Iterator<Item = Range<usize>> {
        let size = self.group * self.plan.head_dim;
        let row_size = self.plan.heads * self.plan.head_dim;
        let rows = self.rows.clone();
        self.heads.clone().flat_map(move |head| {
            rows.clone().map(move |row| {
                let at = row * row_size + head * size;
                at..at + size
            })
        })
    }

    fn gathered(&self) -> Vec<f32> {
        let mut query = Vec::with_capacity(self.heads.len() * self.each() * self.plan.head_dim);
        for place in self.places() {
            query.extend_from_slice(&self.query[place]);
        }
        query
    }

    /// Writes the quotients of finished sums to the task's rows, `[rows, heads * head_dim]`.
    #[inline(always)]
    pub(super) fn write(&self, sums: &Sums, out: &mut [f32]) {
        let dim = self.plan.head_dim;
        let before = self.rows.start * self.plan.heads * dim;
        let of_groups = sums.running.chunks(self.group).zip(sums.out.chunks(self.group * dim));
        for (place, (running, from)) in self.places().zip(of_groups) {
            let to = &mut out[place.start - before..place.end - before];
            for (i, running) in running.iter().enumerate() {
                let scale = 1.0 / running.sum;
                for (to, x) in to[i * dim..][..dim].iter_mut().zip(&from[i * dim..][..dim]) {
                    *to = x * scale;
                }
            }
        }
    }

    /// The parts of the chunk that begins with one, and the one after each.
    fn parts_of(&self, first: usize) -> impl Iterator<Item = (&Part<'a, T>, Option<&Part<'a, T>>)> {
        let end = (first + CHUNK_PARTS).min(self.parts.len());
        (first..end).map(|i| (&self.parts[i], self.parts.get(i + 1)))
    }

    /// The row that sees furthest.
    fn furthest(&self) -> usize {
        let positions = &self.plan.positions[self.rows.clone()];
        (0..self.rows.len()).max_by_key(|&row| positions[row]).unwrap_or(0)
    }

    /// Whether some row sees a key of the chunk that begins with a part.
    fn sees_some(&self, first: usize) -> bool {
        let furthest = self.furthest();
        self.parts_of(first).any(|(part, _)| self.seen(part, furthest) > 0)
    }

    /// Takes all queries over the chunk that begins with a part.
    #[inline(always)]
    fn chunk<I: Isa>(&self, isa: I, first: usize, work: &mut Work, sums: &mut Sums) {
        let furthest = self.furthest();
        for (part, next) in self.parts_of(first) {
            let n = self.seen(part, furthest);
            if n == 0 {
                continue;
            }
            match &mut work.way {
                Way::Stored(scores) => self.stored(isa, (part, n), (&work.query, scores), sums),
                Way::Turned(prepared) => {
                    self.turned(isa, (part, next), (&work.query, prepared), sums);
                }
            }
        }
    }

    /// Scores the first `n` keys of a part one after the other, as they lie in memory, then adds their
    /// values head by head, which the memory was asked for meanwhile.
    #[inline(always)]
    fn stored<I: Isa>(
        &self,
        isa: I,
        (part, n): (&Part<'_, T>, usize),
        (query, scores): (&[f32], &mut [Scores]),
        sums: &mut Sums,
    ) {
        let (dim, heads) = (self.plan.head_dim, self.heads.clone());
        for key in 0..n {
            let row = key * part.stride + heads.start * dim..key * part.stride + heads.end * dim;
            let row = (&part.keys[row.clone()], &part.values[row]);
            self.score_keys(isa, row, query, (scores, key));
        }
        for (index, head) in heads.enumerate() {
            let values = (&part.values[head * dim..], part.stride);
            let mut i = index * self.each();
            for row in 0..self.rows.len() {
                for _ in 0..self.group {
                    self.fold(isa, (part, row), loaded(isa, &scores[i]), values, (i, sums));
                    i += 1;
                }
            }
        }
    }

    /// Scores one key of all heads, and asks the memory for its value.
    #[inline(always)]
    fn score_keys<I: Isa>(
        &self,
        isa: I,
        row: (&[T], &[T]),
        query: &[f32],
        scores: (&mut [Scores], usize),
    ) {
        let (dim, each) = (self.plan.head_dim, self.each());
        // With its size known, a head is one stretch of instructions.
        match (dim / I::LANES, dim % I::LANES) {
            (4, 0) => score_heads(isa, query, row, scores, (4 * I::LANES, each)),
            (5, 0) => score_heads(isa, query, row, scores, (5 * I::LANES, each)),
            (8, 0) => score_heads(isa, query, row, scores, (8 * I::LANES, each)),
            _ => score_heads(isa, query, row, scores, (dim, each)),
        }
    }

    /// Takes all queries of a head over a part, head by head.
    #[inline(always)]
    fn turned<I: Isa>(
        &self,
        isa: I,
        (part, next): (&Part<'_, T>, Option<&Part<'_, T>>),
        (query, prepared): (&[f32], &mut Prepared),
        sums: &mut Sums,
    ) {
        let dim = self.plan.head_dim;
        let mut i = 0;
        for head in self.heads.clone() {
            if let Some(next) = next {
                for key in 0..next.n {
                    let at = key * next.stride + head * dim;
                    prefetch(isa, &next.keys[at..at + dim]);
                    prefetch(isa, &next.values[at..at + dim]);
                }
            }
            prepared.fill(isa, part, head * dim);
            for row in 0..self.rows.len() {
                for _ in 0..self.group {
                    let scores = turned_scores(isa, &query[i * dim..][..dim], &prepared.keys);
                    self.fold(isa, (part, row), scores, (&prepared.values, dim), (i, sums));
                    i += 1;
                }
            }
        }
    }

    /// Adds a part's values to the sums of a row's query number `i`, by the scores of their keys.
    #[inline(always)]
    fn fold<I: Isa, S: Stored>(
        &self,
        isa: I,
        (part, row): (&Part<'_, T>, usize),
        mut scores: Lanes<I>,
        (values, stride): (&[S], usize),
        (i, sums): (usize, &mut Sums),
    ) {
        let dim = self.plan.head_dim;
        let (n, hidden) = (self.seen(part, row), self.hidden(part, row));
        if n == 0 || (n == 1 && hidden.is_some()) {
            return;
        }
        hide(isa, &mut scores, n, hidden);
        let out = &mut sums.out[i * dim..][..dim];
        let scale = 1.0 / (dim as f32).sqrt();
        let weights = softmax_step(isa, scores, scale, &mut sums.running[i], out);
        add_values(isa, &weights[..n], values, stride, out);
    }

    /// How many keys of a part a row sees.
    #[inline(always)]
    fn seen(&self, part: &Part<'_, T>, row: usize) -> usize {
        let end = match self.span.attend {
            Attend::Causal => self.plan.positions[self.rows.start + row] + 1,
            Attend::Bidirectional | Attend::Shadow => usize::MAX,
        };
        end.saturating_sub(part.position).min(part.n)
    }

    /// The key of a part that a shadow may not see: the cached one at its own position.
    #[inline(always)]
    fn hidden(&self, part: &Part<'_, T>, row: usize) -> Option<usize> {
        if self.span.attend != Attend::Shadow || !part.is_cached {
            return None;
        }
        let position = self.plan.positions[self.rows.start + row];
        position.checked_sub(part.position).filter(|&key| key < part.n)
    }
}

/// Scores of one key, head by head: `queries [heads, each, dim]`, key and value `[heads, dim]`.
#[inline(always)]
fn score_heads<T: Stored, I: Isa>(
    isa: I,
    mut queries: &[f32],
    (mut keys, mut values): (&[T], &[T]),
    (scores, key): (&mut [Scores], usize),
    (dim, each): (usize, usize),
) {
    // It is less anyway; said so that no bounds are checked at every head.
    let key = key % MAX_RUN;
    for scores in scores.chunks_mut(each) {
        prefetch(isa, &values[..dim]);
        for scores in scores {
            scores[key] = score(isa, &queries[..dim], &keys[..dim]);
            queries = &queries[dim..];
        }
        (keys, values) = (&keys[dim..], &values[dim..]);
    }
}

/// Asks the memory for numbers that lie side by side.
#[inline(always)]
fn prefetch<T, I: Isa>(isa: I, numbers: &[T]) {
    for at in (0..numbers.len()).step_by(CACHE_LINE / size_of::<T>()) {
        isa.prefetch(numbers, at);
    }
}
