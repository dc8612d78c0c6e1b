//! Attention over key runs with an online softmax, in f32.
//!
//! The score of a key is a chain of multiply-adds a vector lane over the head, and keys enter the
//! softmax run by run. Some runs are a chunk with a softmax of its own, and chunks are joined in order:
//! what a row computes does not depend on how many rows are computed with it, on which thread has
//! which chunk, nor on whether keys are used as they are ([`stored`]) or turned round ([`turned`]).

mod steps;
mod stored;
mod sums;
mod task;
mod turned;

use std::sync::Arc;

use rayon::prelude::*;

use self::stored::AsStored;
use self::sums::{Join, Sums};
use self::task::{Run, Task};
use self::turned::Turned;
use super::CACHE_LINE;
use super::buffers::Buffer;
use super::isa::{CpuPath, dispatch};
use super::share::SERIAL_WORK;
use super::vector::Stored;
use crate::rows::{KeyRun, KeySource, PAGE_SIZE, Span};

/// Most keys scored at once; longer runs are cut.
const MAX_RUN: usize = PAGE_SIZE;
/// Parts of a chunk.
const CHUNK_PARTS: usize = 16;
/// Queries one task takes, about: enough for turning keys round to cost little beside them, few
/// enough for their sums to stay in the core's cache.
const TASK_QUERIES: usize = 128;
/// The same for queries whose keys are scored as they are stored.
const FEW_QUERIES: usize = 32;
/// Tasks of many queries that a thread should find, so that none waits long for another.
const TASKS_PER_THREAD: usize = 3;
/// The same of few: the fewer heads a task has, the shorter is what it reads in one go.
const FEW_TASKS_PER_THREAD: usize = 2;

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

    /// Multiplications, about.
    fn work(&self) -> usize {
        let keys = |span: &Span| span.keys.iter().map(|run| run.len).sum::<usize>();
        let pairs: usize = self.spans.iter().map(|span| span.rows.len() * keys(span)).sum();
        2 * pairs * self.heads * self.head_dim
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
    let parts: Vec<Vec<Part<'_, T>>> = plan.spans.iter().map(|s| span_parts(plan, s, kv)).collect();
    let tasks = tasks(plan, query, &parts);
    let is_small = plan.work() < SERIAL_WORK;
    let mut done: Vec<Sums> = match is_small {
        true => tasks.iter().map(|task| run(path, task)).collect(),
        false => tasks.par_iter().map(|task| run(path, task)).collect(),
    };
    let mut out = Buffer::new(query.len());
    let joins = joins(&tasks, &mut done, &mut out);
    match is_small || joins.len() == 1 {
        true => joins.into_iter().for_each(|join| dispatch(path, join)),
        false => joins.into_par_iter().for_each(|join| dispatch(path, join)),
    }
    out
}

/// Each way is a function of its own, compiled for itself.
fn run<T: Stored>(path: CpuPath, task: &Task<'_, T>) -> Sums {
    if task.has_many_queries() {
        dispatch(path, Run { task, way: Turned::new(task.plan.head_dim) })
    } else {
        dispatch(path, Run { task, way: AsStored::new(task.queries()) })
    }
}

/// What is left to do once the tasks are done, by blocks of rows.
fn joins<'a, T: Stored>(
    tasks: &'a [Task<'a, T>],
    mut done: &'a mut [Sums],
    mut out: &'a mut [f32],
) -> Vec<Join<'a, T>> {
    let cut = tasks.chunk_by(Task::has_same_rows).map(|tasks| {
        let sizes = (tasks.len(), tasks.first().map_or(0, Task::out_size));
        let (now, later) = std::mem::take(&mut done).split_at_mut(sizes.0);
        let (to, rest) = std::mem::take(&mut out).split_at_mut(sizes.1);
        (done, out) = (later, rest);
        Join { tasks, done: now, out: to }
    });
    cut.collect()
}

/// Cuts the work into tasks. Many queries have a few heads each and go over all their keys. Few, whose
/// keys take longer to come than to be computed with, have one chunk and as many heads as leave every
/// thread enough to do: that way a thread reads its part of the memory from one end to the other.
fn tasks<'a, T: Stored>(
    plan: &'a AttentionPlan,
    query: &'a [f32],
    parts: &'a [Vec<Part<'a, T>>],
) -> Vec<Task<'a, T>> {
    let group = plan.heads / plan.kv_heads;
    let rows_each = (TASK_QUERIES / group).max(1);
    let threads = rayon::current_num_threads();
    let blocks: usize = plan.spans.iter().map(|s| s.rows.len().div_ceil(rows_each)).sum();
    // The last one of a span is less than whole.
    let chunks = (parts.iter().map(Vec::len).sum::<usize>() / CHUNK_PARTS).max(1);
    let mut tasks = Vec::new();
    for (span, parts) in plan.spans.iter().zip(parts) {
        for first in span.rows.clone().step_by(rows_each) {
            let rows = first..(first + rows_each).min(span.rows.end);
            let heads = 0..plan.kv_heads;
            let all = Task { plan, span, parts, query, rows, heads, group };
            let (heads_each, parts_each) = if all.has_many_queries() {
                let fill = TASK_QUERIES / (all.rows.len() * group);
                (fill.min(plan.kv_heads * blocks / (threads * TASKS_PER_THREAD)), parts.len())
            } else {
                let each =
                    plan.kv_heads.div_ceil((threads * FEW_TASKS_PER_THREAD).div_ceil(chunks));
                (each.min(FEW_QUERIES / (all.rows.len() * group)), CHUNK_PARTS)
            };
            tasks.extend(all.cut(heads_each.max(1), parts_each));
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

/// Where the lines of `len` numbers begin, each of which the memory hands out at once.
#[inline(always)]
fn lines<T>(len: usize) -> impl Iterator<Item = usize> {
    (0..len).step_by(CACHE_LINE / size_of::<T>())
}

#[cfg(test)]
mod tests;
