//! What one thread does at a time: some queries over some of their keys.

use std::ops::Range;

use aligned_vec::{AVec, avec};

use super::super::isa::{Isa, Kernel};
use super::super::vector::Stored;
use super::steps::{Lanes, hide, softmax_step};
use super::sums::Sums;
use super::{AttentionPlan, CHUNK_PARTS, MAX_RUN, Part};
use crate::rows::{Attend, Span};

/// From this many queries of a key head on, turning keys round pays, for then 16 keys are scored in
/// one go, and so does widening values.
pub(super) const MANY_QUERIES: usize = 8;

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

/// Scores of a part's keys, a line of the cache as [`Sums::out`] has them.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Scores(pub(super) [f32; MAX_RUN]);

/// How a task's queries go over a part of its keys. Queries stand in the order of [`Task::places`].
pub(super) trait Way<T: Stored> {
    /// Adds a visited part to the sums of `query [queries, head_dim]`.
    fn visit<I: Isa>(
        &mut self,
        isa: I,
        task: &Task<'_, T>,
        visit: Visit<'_, T>,
        query: &[f32],
        sums: &mut Sums,
    );
}

/// A part of which some row sees the first `n` keys and none sees others.
#[derive(Clone, Copy)]
pub(super) struct Visit<'a, T> {
    pub(super) part: &'a Part<'a, T>,
    pub(super) n: usize,
    /// Read after it.
    pub(super) next: Option<&'a Part<'a, T>>,
}

/// A task, and how to do it.
pub(super) struct Run<'a, T, W> {
    pub(super) task: &'a Task<'a, T>,
    pub(super) way: W,
}

impl<T: Stored, W: Way<T>> Kernel for Run<'_, T, W> {
    type Output = Sums;

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) -> Sums {
        let task = self.task;
        let (queries, dim) = (task.queries(), task.plan.head_dim);
        let query = task.gathered();
        let mut sums = Sums::new(queries, dim);
        let mut next = Sums::new(if task.parts.len() > CHUNK_PARTS { queries } else { 0 }, dim);
        for first in (0..task.parts.len()).step_by(CHUNK_PARTS) {
            if first == 0 {
                self.chunk(isa, first, &query, &mut sums);
            } else if task.sees_some(first) {
                next.clear();
                self.chunk(isa, first, &query, &mut next);
                sums.join(isa, &next);
            }
        }
        sums
    }
}

impl<T: Stored, W: Way<T>> Run<'_, T, W> {
    /// Takes all queries over the chunk that begins with a part.
    #[inline(always)]
    fn chunk<I: Isa>(&mut self, isa: I, first: usize, query: &[f32], sums: &mut Sums) {
        let furthest = self.task.furthest();
        for (part, next) in self.task.parts_of(first) {
            let n = self.task.seen(part, furthest);
            if n > 0 {
                self.way.visit(isa, self.task, Visit { part, n, next }, query, sums);
            }
        }
    }
}

/// The keys of a part that enter a row's sums: the first `n`, of which one may be hidden and weighs nothing.
#[derive(Clone, Copy, Default)]
pub(super) struct View {
    pub(super) n: usize,
    hidden: Option<usize>,
}

impl<'a, T: Stored> Task<'a, T> {
    /// Queries of a key head.
    #[inline(always)]
    pub(super) fn each(&self) -> usize {
        self.rows.len() * self.group
    }

    pub(super) fn queries(&self) -> usize {
        self.heads.len() * self.each()
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

    /// Its queries, divided by what scores are divided by.
    fn gathered(&self) -> AVec<f32> {
        let dim = self.plan.head_dim;
        let scale = 1.0 / (dim as f32).sqrt();
        let mut query = avec![0.0; self.queries() * dim];
        for (place, to) in self.places().zip(query.chunks_mut(self.group * dim)) {
            for (to, x) in to.iter_mut().zip(&self.query[place]) {
                *to = x * scale;
            }
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

    /// What a part's keys weigh for query number `i`, whose sums so far are made to count in the same.
    #[inline(always)]
    pub(super) fn weights<I: Isa>(
        &self,
        isa: I,
        view: View,
        mut scores: Lanes<I>,
        (i, sums): (usize, &mut Sums),
    ) -> [f32; MAX_RUN] {
        let dim = self.plan.head_dim;
        hide(isa, &mut scores, view.n, view.hidden);
        softmax_step(isa, scores, &mut sums.running[i], &mut sums.out[i * dim..][..dim])
    }

    /// What a row sees of a part.
    #[inline(always)]
    pub(super) fn view(&self, part: &Part<'_, T>, row: usize) -> View {
        let (n, hidden) = (self.seen(part, row), self.hidden(part, row));
        // Where the only key is hidden, there is none.
        View { n: if n == 1 && hidden.is_some() { 0 } else { n }, hidden }
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
