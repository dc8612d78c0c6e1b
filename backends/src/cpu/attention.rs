//! Attention over key runs with an online softmax, in f32.
//!
//! The score of a key is a chain of multiply-adds a vector lane over the head, and keys enter the
//! softmax run by run: what a row computes does not depend on how many rows are computed with it,
//! nor on which of the two ways below its scores are found.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::buffers::Buffer;
use super::isa::{CpuPath, Isa, Kernel, dispatch};
use super::vector::{Stored, exp, exp_lanes};
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

/// A part's keys and values, of one head, for many queries. Beyond the part's end stays what was
/// there: no one looks at it.
struct Prepared {
    /// `[head_dim][MAX_RUN]`
    keys: Vec<f32>,
    /// `[MAX_RUN][head_dim]`
    values: Vec<f32>,
}

impl Prepared {
    fn new(dim: usize) -> Self {
        Self { keys: vec![0.0; dim * MAX_RUN], values: vec![0.0; dim * MAX_RUN] }
    }

    /// Turns keys round and widens values.
    #[inline(always)]
    fn fill<T: Stored, I: Isa>(&mut self, isa: I, part: &Part<'_, T>, offset: usize) {
        let dim = self.keys.len() / MAX_RUN;
        let whole = dim / I::LANES * I::LANES;
        for first in (0..MAX_RUN).step_by(I::LANES) {
            for d in (0..whole).step_by(I::LANES) {
                self.turn_block(isa, part, (first, d), offset);
            }
        }
        for key in 0..part.n {
            let at = key * part.stride + offset;
            for d in whole..dim {
                self.keys[d * MAX_RUN + key] = part.keys[at + d].widen();
            }
            let to = &mut self.values[key * dim..(key + 1) * dim];
            for (to, x) in to.iter_mut().zip(&part.values[at..][..dim]) {
                *to = x.widen();
            }
        }
    }

    /// As many keys as a vector has lanes, from the `first` on, and as many dimensions, from `d` on.
    /// Interleaving the first half of the rows with the second, again and again, turns a square.
    #[inline(always)]
    fn turn_block<T: Stored, I: Isa>(
        &mut self,
        isa: I,
        part: &Part<'_, T>,
        (first, d): (usize, usize),
        offset: usize,
    ) {
        let mut rows = [isa.zero(); MAX_RUN];
        let keys = I::LANES.min(part.n.saturating_sub(first));
        for (key, row) in rows[..keys].iter_mut().enumerate() {
            *row = T::load(isa, &part.keys[(first + key) * part.stride + offset + d..]);
        }
        let mut rounds = I::LANES;
        while rounds > 1 {
            let from = rows;
            for row in 0..I::LANES / 2 {
                let (low, high) = isa.interleave(from[row], from[row + I::LANES / 2]);
                (rows[2 * row], rows[2 * row + 1]) = (low, high);
            }
            rounds /= 2;
        }
        for (row, keys) in rows[..I::LANES].iter().enumerate() {
            let at = (d + row) * MAX_RUN + first;
            isa.store(*keys, &mut self.keys[at..at + I::LANES]);
        }
    }
}

/// Scores or weights of a part's keys, in as many vectors as that takes.
type Lanes<I> = [<I as Isa>::V; MOST_VECTORS];

/// Vectors of the narrowest instruction set.
const MOST_VECTORS: usize = 2;

/// Vectors of an instruction set.
const fn vectors<I: Isa>() -> usize {
    MAX_RUN / I::LANES
}

/// Products of a query with 16 keys, lane by lane. Dimension `d` of every key goes to chain
/// `d % LANES`, and the chains are added as [`Isa::sum`] adds lanes: halves upon halves.
#[inline(always)]
fn turned_scores<I: Isa>(isa: I, query: &[f32], keys: &[f32]) -> Lanes<I> {
    let mut scores = [isa.zero(); MOST_VECTORS];
    for (v, scores) in scores[..vectors::<I>()].iter_mut().enumerate() {
        let mut chains = [isa.zero(); MAX_RUN];
        let mut blocks = query.chunks_exact(I::LANES);
        let mut key = v * I::LANES;
        for query in &mut blocks {
            let keys = &keys[key..][..(I::LANES - 1) * MAX_RUN + I::LANES];
            for chain in 0..I::LANES {
                let lanes = isa.load(&keys[chain * MAX_RUN..]);
                chains[chain] = isa.madd(isa.splat(query[chain]), lanes, chains[chain]);
            }
            key += I::LANES * MAX_RUN;
        }
        let rest = blocks.remainder();
        // With a fixed number of turns the chains stay in registers.
        for chain in 0..I::LANES {
            if chain < rest.len() {
                let lanes = isa.load(&keys[key + chain * MAX_RUN..]);
                chains[chain] = isa.madd(isa.splat(rest[chain]), lanes, chains[chain]);
            }
        }
        let mut half = I::LANES / 2;
        while half > 0 {
            for chain in 0..half {
                chains[chain] = isa.add(chains[chain], chains[chain + half]);
            }
            half /= 2;
        }
        *scores = chains[0];
    }
    scores
}

/// The same from keys as they are stored, `stride` apart; the first `n` scores are set.
#[inline(always)]
fn stored_scores<T: Stored, I: Isa>(
    isa: I,
    query: &[f32],
    keys: &[T],
    (stride, n): (usize, usize),
) -> Lanes<I> {
    let mut scores = [0f32; MAX_RUN];
    for (key, score) in scores[..n].iter_mut().enumerate() {
        let key = &keys[key * stride..][..query.len()];
        let mut chains = isa.zero();
        let mut at = 0;
        while at + I::LANES <= query.len() {
            chains = isa.madd(isa.load(&query[at..]), T::load(isa, &key[at..]), chains);
            at += I::LANES;
        }
        if at < query.len() {
            let (query, key) = (isa.load_part(&query[at..]), T::load_part(isa, &key[at..]));
            chains = isa.madd(query, key, chains);
        }
        *score = isa.sum(chains);
    }
    loaded(isa, &scores)
}

#[inline(always)]
fn loaded<I: Isa>(isa: I, values: &[f32; MAX_RUN]) -> Lanes<I> {
    let mut lanes = [isa.zero(); MOST_VECTORS];
    for (v, lanes) in lanes[..vectors::<I>()].iter_mut().enumerate() {
        *lanes = isa.load(&values[v * I::LANES..]);
    }
    lanes
}

#[inline(always)]
fn stored<I: Isa>(isa: I, lanes: &Lanes<I>) -> [f32; MAX_RUN] {
    let mut values = [0f32; MAX_RUN];
    for (v, lanes) in lanes[..vectors::<I>()].iter().enumerate() {
        isa.store(*lanes, &mut values[v * I::LANES..(v + 1) * I::LANES]);
    }
    values
}

/// Hides what a row does not see: keys from the `n`th on, and one among them.
#[inline(always)]
fn hide<I: Isa>(isa: I, scores: &mut Lanes<I>, n: usize, hidden: Option<usize>) {
    if n == MAX_RUN && hidden.is_none() {
        return;
    }
    let mut values = stored(isa, scores);
    values[n..].fill(f32::NEG_INFINITY);
    if let Some(key) = hidden {
        values[key] = f32::NEG_INFINITY;
    }
    *scores = loaded(isa, &values);
}

/// Folds scores into the running maximum and sum, rescales what was summed before, and returns the
/// weights of the keys: 0 for hidden ones.
#[inline(always)]
fn softmax_step<I: Isa>(
    isa: I,
    mut scores: Lanes<I>,
    scale: f32,
    running: &mut Running,
    out: &mut [f32],
) -> [f32; MAX_RUN] {
    let mut new_max = running.max;
    for scores in &mut scores[..vectors::<I>()] {
        *scores = isa.mul(*scores, isa.splat(scale));
        let best = isa.largest(*scores);
        new_max = if best > new_max { best } else { new_max };
    }
    if new_max > running.max {
        let correction = exp::<I>(running.max - new_max);
        running.sum *= correction;
        for x in out.iter_mut() {
            *x *= correction;
        }
        running.max = new_max;
    }
    let mut sum = isa.zero();
    for scores in &mut scores[..vectors::<I>()] {
        *scores = exp_lanes(isa, isa.add(*scores, isa.splat(-new_max)));
        sum = isa.add(sum, *scores);
    }
    running.sum += isa.sum(sum);
    stored(isa, &scores)
}

/// `out += Σ weight · value`, keys in order. Vectors of the head go side by side, so that none waits
/// for the last sum of another.
#[inline(always)]
fn add_values<T: Stored, I: Isa>(
    isa: I,
    weights: &[f32],
    values: &[T],
    stride: usize,
    out: &mut [f32],
) {
    let mut at = 0;
    loop {
        let operands = (&values[at..], stride);
        let out = &mut out[at..];
        let vectors = match out.len() / I::LANES {
            0 => break add_rest(isa, weights, operands, out),
            1 => add_vectors::<T, I, 1>(isa, weights, operands, out),
            2 | 3 => add_vectors::<T, I, 2>(isa, weights, operands, out),
            4 => add_vectors::<T, I, 4>(isa, weights, operands, out),
            5..8 => add_vectors::<T, I, 5>(isa, weights, operands, out),
            _ => add_vectors::<T, I, 8>(isa, weights, operands, out),
        };
        at += vectors * I::LANES;
    }
}

/// The first `N` vectors of a head; returns `N`.
#[inline(always)]
fn add_vectors<T: Stored, I: Isa, const N: usize>(
    isa: I,
    weights: &[f32],
    (values, stride): (&[T], usize),
    out: &mut [f32],
) -> usize {
    let mut sums = [isa.zero(); N];
    for (n, sum) in sums.iter_mut().enumerate() {
        *sum = isa.load(&out[n * I::LANES..]);
    }
    for (key, &weight) in weights.iter().enumerate() {
        let value = &values[key * stride..][..N * I::LANES];
        let weight = isa.splat(weight);
        for (n, sum) in sums.iter_mut().enumerate() {
            *sum = isa.madd(weight, T::load(isa, &value[n * I::LANES..]), *sum);
        }
    }
    for (n, sum) in sums.into_iter().enumerate() {
        isa.store(sum, &mut out[n * I::LANES..(n + 1) * I::LANES]);
    }
    N
}

/// What is left of a head, less than a vector.
#[inline(always)]
fn add_rest<T: Stored, I: Isa>(
    isa: I,
    weights: &[f32],
    (values, stride): (&[T], usize),
    out: &mut [f32],
) {
    if out.is_empty() {
        return;
    }
    let mut sum = isa.load_part(out);
    for (key, &weight) in weights.iter().enumerate() {
        let value = T::load_part(isa, &values[key * stride..][..out.len()]);
        sum = isa.madd(isa.splat(weight), value, sum);
    }
    isa.store(sum, out);
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::testing;
    use super::*;
    use crate::rows::{RaggedRows, SpanRequest};

    const HEADS: usize = 3;

    /// Far enough apart for a softmax that is not flat.
    fn values(n: usize, seed: u32) -> Vec<f32> {
        testing::values(n, seed).iter().map(|x| 2.0 * x).collect()
    }

    /// A causal sequence cut into chunks of these lengths, over pages in no order.
    fn chunks<T: Stored>(path: CpuPath, lengths: &[usize], [keys, vals]: [&[T]; 2]) -> Vec<f32> {
        let (width, mut out, mut start) = (keys.len() / 48, Vec::new(), 0);
        for &len in lengths {
            let span = SpanRequest {
                rows: 0..len,
                attend: Attend::Causal,
                write: true,
                visible: vec![0..start],
                pages: vec![2, 0, 1],
            };
            let positions = (start..start + len).collect();
            let rows = RaggedRows::new(vec![0; len], positions, vec![span], PAGE_SIZE).unwrap();
            let plan = AttentionPlan {
                spans: rows.spans().clone(),
                positions: rows.positions().clone(),
                heads: HEADS,
                kv_heads: HEADS,
                head_dim: width / HEADS,
            };
            let query = &values(40 * width, 9)[start * width..(start + len) * width];
            let kv =
                KeysValues { own_keys: &[], own_values: &[], pool_keys: keys, pool_values: vals };
            out.extend_from_slice(&attention(path, &plan, query, kv));
            start += len;
        }
        out
    }

    #[test]
    fn every_path_agrees_and_turned_keys_give_the_same_bits_as_stored_ones() {
        let half = |v: &[f32]| v.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
        let widened = |v: &[f32]| half(v).iter().map(|x| x.to_f32()).collect::<Vec<_>>();
        // Less than a vector, every number of vectors side by side, and what is left beside them.
        for dim in [3, 20, 64, 80, 100, 128, 144] {
            let (keys, vals) = (values(48 * HEADS * dim, 1), values(48 * HEADS * dim, 2));
            let reference = chunks(CpuPath::Portable, &[40], [&keys, &vals]);
            for path in CpuPath::available() {
                let whole = chunks(path, &[40], [&keys, &vals]);
                for (a, b) in whole.iter().zip(&reference) {
                    assert!((a - b).abs() < 1e-5, "{path}: {a} {b}");
                }
                let one_by_one = chunks(path, &[1; 40], [&keys, &vals]);
                assert!(whole == one_by_one, "{path}, {dim}: one row at a time");
                let uneven = chunks(path, &[7, 33], [&keys, &vals]);
                assert!(whole == uneven, "{path}, {dim}: uneven chunks");
                let narrow = chunks(path, &[40], [&half(&keys), &half(&vals)]);
                let wide = chunks(path, &[40], [&widened(&keys), &widened(&vals)]);
                assert!(narrow == wide, "{path}, {dim}: bf16 widens exactly");
            }
        }
    }
}
