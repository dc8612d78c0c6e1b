//! Attention over key runs with an online softmax, in f32.
//!
//! The score of a key is a chain of multiply-adds a vector lane over the head, and keys enter the
//! softmax run by run: what a row computes does not depend on how many rows are computed with it,
//! nor on which of the two ways below its scores are found.

mod prepared;
mod steps;

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use self::prepared::Prepared;
use self::steps::{add_values, hide, softmax_step, stored_scores, turned_scores};
use super::buffers::Buffer;
use super::isa::{CpuPath, Isa, Kernel, dispatch};
use super::vector::Stored;
use crate::rows::{Attend, KeyRun, KeySource, PAGE_SIZE, Span};

/// Most keys scored at once; longer runs are cut.
const MAX_RUN: usize = PAGE_SIZE;
/// Queries one task takes, about: enough for turning keys round to cost little beside them, few
/// enough for their sums to stay in the core's cache.
const TASK_QUERIES: usize = 128;
/// From this many queries on, turning keys round pays, for then 16 keys are scored in one go, and so
/// does widening values.
const MANY_QUERIES: usize = 8;
/// Bytes the memory hands out at once.
const CACHE_LINE: usize = 64;
/// Tasks a thread should find, so that none waits long for another.
const TASKS_PER_THREAD: usize = 3;

/// Head counts and what every span sees.
#[derive(Debug, Clone)]
pub(crate) struct AttentionPlan {
    pub(crate) spans: Arc<[Span]>,
    /// Absolute position of each row.
    pub(crate) positions: Arc<[usize]>,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl AttentionPlan {
    /// Whether any row looks at keys that are not in the pool.
    pub(super) fn reads_own_rows(&self) -> bool {
        let is_own = |run: &KeyRun| matches!(run.source, KeySource::Rows { .. });
        self.spans.iter().any(|span| span.keys.iter().any(is_own))
    }
}

/// Keys and values: `[n, kv_heads * head_dim]`, of this pass's rows and of the pool.
#[derive(Clone, Copy)]
pub(crate) struct KeysValues<'a, T> {
    pub(crate) own_keys: &'a [T],
    pub(crate) own_values: &'a [T],
    pub(crate) pool_keys: &'a [T],
    pub(crate) pool_values: &'a [T],
}

/// `query` is `[rows, heads * head_dim]`, and so is the result.
pub(crate) fn attention<T: Stored>(
    path: CpuPath,
    plan: &AttentionPlan,
    query: &[f32],
    kv: KeysValues<'_, T>,
) -> Buffer {
    let (dim, group) = (plan.head_dim, plan.heads / plan.kv_heads);
    let parts: Vec<Vec<Part<'_, T>>> = plan.spans.iter().map(|s| span_parts(plan, s, kv)).collect();
    let tasks = tasks(plan, query, &parts);
    let done: Vec<Vec<f32>> = tasks.par_iter().map(|task| dispatch(path, task)).collect();
    let mut out = Buffer::new(query.len());
    for (task, values) in tasks.iter().zip(done) {
        let width = task.heads.len() * group * dim;
        for (row, values) in task.rows.clone().zip(values.chunks_exact(width)) {
            let at = (row * plan.heads + task.heads.start * group) * dim;
            out[at..at + width].copy_from_slice(values);
        }
    }
    out
}

/// Cuts the work into tasks: few queries take many heads, whose keys lie side by side in memory.
fn tasks<'a, T: Stored>(
    plan: &'a AttentionPlan,
    query: &'a [f32],
    parts: &'a [Vec<Part<'a, T>>],
) -> Vec<Task<'a, T>> {
    let group = plan.heads / plan.kv_heads;
    let rows_each = (TASK_QUERIES / group).max(1);
    let blocks: usize = plan.spans.iter().map(|s| s.rows.len().div_ceil(rows_each)).sum();
    let enough = rayon::current_num_threads() * TASKS_PER_THREAD;
    let mut tasks = Vec::new();
    for (span, parts) in plan.spans.iter().zip(parts) {
        for first in span.rows.clone().step_by(rows_each) {
            let rows = first..(first + rows_each).min(span.rows.end);
            let fill = TASK_QUERIES / (rows.len() * group);
            let heads_each = fill.min(plan.kv_heads * blocks / enough).max(1);
            tasks.extend((0..plan.kv_heads).step_by(heads_each).map(|first| {
                let heads = first..(first + heads_each).min(plan.kv_heads);
                Task { plan, span, parts, query, rows: rows.clone(), heads }
            }));
        }
    }
    tasks
}

/// At most `MAX_RUN` keys stored one after the other.
#[derive(Clone, Copy)]
struct Part<'a, T> {
    /// `[n, stride]`
    keys: &'a [T],
    values: &'a [T],
    /// Absolute position of the first key.
    position: usize,
    is_cached: bool,
    n: usize,
    /// Elements from one key to the next.
    stride: usize,
}

impl<T: Stored> Part<'_, T> {
    /// Asks the memory for what a head has of every key and value: they lie too far apart for the
    /// hardware to see a pattern.
    #[inline(always)]
    fn prefetch<I: Isa>(&self, isa: I, offset: usize, dim: usize) {
        let line = CACHE_LINE / size_of::<T>();
        for key in 0..self.n {
            let from = key * self.stride + offset;
            for at in (from..from + dim).step_by(line) {
                isa.prefetch(&self.keys[at..], 0);
                isa.prefetch(&self.values[at..], 0);
            }
        }
    }
}

fn parts<T>(
    run: KeyRun,
    kv: KeysValues<'_, T>,
    stride: usize,
) -> impl Iterator<Item = Part<'_, T>> {
    let (keys, values, first, is_cached) = match run.source {
        KeySource::Pool { slot } => (kv.pool_keys, kv.pool_values, slot, true),
        KeySource::Rows { row } => (kv.own_keys, kv.own_values, row, false),
    };
    (0..run.len).step_by(MAX_RUN).map(move |done| {
        let from = (first + done) * stride;
        let n = (run.len - done).min(MAX_RUN);
        let (keys, values) = (&keys[from..from + n * stride], &values[from..from + n * stride]);
        Part { keys, values, position: run.position + done, is_cached, n, stride }
    })
}

/// The keys a span sees, in order.
fn span_parts<'a, T: Stored>(
    plan: &AttentionPlan,
    span: &Span,
    kv: KeysValues<'a, T>,
) -> Vec<Part<'a, T>> {
    span.keys.iter().flat_map(|run| parts(*run, kv, plan.kv_heads * plan.head_dim)).collect()
}

/// Some rows of a span and some key heads, with the query heads that share those: they go over the
/// keys together, so that each key is fetched from memory once.
struct Task<'a, T> {
    plan: &'a AttentionPlan,
    span: &'a Span,
    parts: &'a [Part<'a, T>],
    query: &'a [f32],
    rows: Range<usize>,
    /// Key heads.
    heads: Range<usize>,
}

/// The online softmax of one query.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

impl<T: Stored> Kernel for &Task<'_, T> {
    /// `[rows, heads * group, head_dim]`
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Vec<f32> {
        let dim = self.plan.head_dim;
        let group = self.plan.heads / self.plan.kv_heads;
        let queries = self.rows.len() * self.heads.len() * group;
        let mut out = vec![0f32; queries * dim];
        let mut running = vec![Running { max: f32::NEG_INFINITY, sum: 0.0 }; queries];
        let is_worth_it = self.rows.len() * group >= MANY_QUERIES;
        let mut prepared = is_worth_it.then(|| Prepared::new(dim));
        let positions = &self.plan.positions[self.rows.clone()];
        let furthest = (0..self.rows.len()).max_by_key(|&row| positions[row]).unwrap_or(0);
        for (index, part) in self.parts.iter().enumerate() {
            if self.seen(part, furthest) > 0 {
                for head in self.heads.clone() {
                    if let Some(next) = self.parts.get(index + 1) {
                        next.prefetch(isa, head * dim, dim);
                    }
                    self.head(isa, (part, head), prepared.as_mut(), (&mut running, &mut out));
                }
            }
        }
        for (out, running) in out.chunks_exact_mut(dim).zip(running) {
            let scale = 1.0 / running.sum;
            for x in out {
                *x *= scale;
            }
        }
        out
    }
}

impl<T: Stored> Task<'_, T> {
    /// Takes all queries of a key head over a part.
    #[inline(always)]
    fn head<I: Isa>(
        &self,
        isa: I,
        (part, head): (&Part<'_, T>, usize),
        mut prepared: Option<&mut Prepared>,
        (running, out): (&mut [Running], &mut [f32]),
    ) {
        let plan = self.plan;
        let (dim, group) = (plan.head_dim, plan.heads / plan.kv_heads);
        let offset = head * dim;
        let scale = 1.0 / (dim as f32).sqrt();
        if let Some(prepared) = &mut prepared {
            prepared.fill(isa, part, offset);
        }
        for row in 0..self.rows.len() {
            let (n, hidden) = (self.seen(part, row), self.hidden(part, row));
            if n == 0 || (n == 1 && hidden.is_some()) {
                continue;
            }
            for member in 0..group {
                let at = ((self.rows.start + row) * plan.heads + head * group + member) * dim;
                let query = &self.query[at..][..dim];
                let mut scores = match &prepared {
                    Some(prepared) => turned_scores(isa, query, &prepared.keys),
                    None => stored_scores(isa, query, &part.keys[offset..], (part.stride, n)),
                };
                hide(isa, &mut scores, n, hidden);
                let i = (row * self.heads.len() + head - self.heads.start) * group + member;
                let out = &mut out[i * dim..][..dim];
                let weights = softmax_step(isa, scores, scale, &mut running[i], out);
                let weights = &weights[..n];
                match &prepared {
                    Some(prepared) => add_values(isa, weights, &prepared.values, dim, out),
                    None => add_values(isa, weights, &part.values[offset..], part.stride, out),
                }
            }
        }
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

#[cfg(test)]
mod tests;
