//! Attention over key runs with an online softmax, in f32.
//!
//! The score of a key is four chains of multiply-adds over the head, and keys enter the softmax run
//! by run: what a row computes does not depend on how many rows are computed with it, nor on which
//! of the two ways below its scores are found.

use std::sync::Arc;

use rayon::prelude::*;

use super::isa::{CpuPath, Isa, Kernel, dispatch, madd};
use super::vector::{Stored, exp};
use crate::rows::{Attend, KeyRun, KeySource, PAGE_SIZE, Span};

/// Most keys scored at once; longer runs are cut.
const MAX_RUN: usize = PAGE_SIZE;
/// From this many rows on, turning a span's keys round pays: then 16 keys are scored in one go.
const TURN_ROWS: usize = 8;
/// Independent chains of multiply-adds a score is summed in: hides their latency.
const CHAINS: usize = 4;
/// Head rows one task takes at least.
const MIN_TASK: usize = 4;

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
) -> Vec<f32> {
    let width = plan.heads * plan.head_dim;
    let mut out = vec![0f32; query.len()];
    let mut rest = out.as_mut_slice();
    for span in plan.spans.iter() {
        let (own, after) = rest.split_at_mut(span.rows.len() * width);
        rest = after;
        let parts: Vec<Part<'_, T>> = span
            .keys
            .iter()
            .flat_map(|run| parts(*run, kv, plan.kv_heads * plan.head_dim))
            .collect();
        let turned = (span.rows.len() >= TURN_ROWS).then(|| turn(plan, &parts));
        own.par_chunks_mut(plan.head_dim).enumerate().with_min_len(MIN_TASK).for_each(
            |(i, out)| {
                let (row, head) = (span.rows.start + i / plan.heads, i % plan.heads);
                let end = match span.attend {
                    Attend::Causal => plan.positions[row] + 1,
                    Attend::Bidirectional => usize::MAX,
                };
                let query = &query[row * width + head * plan.head_dim..][..plan.head_dim];
                let kv_head = head / (plan.heads / plan.kv_heads);
                let (parts, turned) = (parts.as_slice(), turned.as_deref());
                dispatch(path, HeadRow { plan, parts, turned, query, kv_head, end, out });
            },
        );
    }
    out
}

/// At most `MAX_RUN` keys stored one after the other.
#[derive(Clone, Copy)]
struct Part<'a, T> {
    /// `[n, stride]`
    keys: &'a [T],
    values: &'a [T],
    /// Absolute position of the first key.
    position: usize,
    n: usize,
    /// Elements from one key to the next.
    stride: usize,
}

fn parts<T>(
    run: KeyRun,
    kv: KeysValues<'_, T>,
    stride: usize,
) -> impl Iterator<Item = Part<'_, T>> {
    let (keys, values, first) = match run.source {
        KeySource::Pool { slot } => (kv.pool_keys, kv.pool_values, slot),
        KeySource::Rows { row } => (kv.own_keys, kv.own_values, row),
    };
    (0..run.len).step_by(MAX_RUN).map(move |done| {
        let from = (first + done) * stride;
        let n = (run.len - done).min(MAX_RUN);
        let (keys, values) = (&keys[from..from + n * stride], &values[from..from + n * stride]);
        Part { keys, values, position: run.position + done, n, stride }
    })
}

/// Keys of a span as `[part][kv_head][head_dim][MAX_RUN]`, missing keys zero.
fn turn<T: Stored>(plan: &AttentionPlan, parts: &[Part<'_, T>]) -> Vec<f32> {
    let size = plan.kv_heads * plan.head_dim * MAX_RUN;
    let mut turned = vec![0f32; parts.len() * size];
    turned.par_chunks_mut(size).zip(parts).for_each(|(to, part)| {
        for (key, row) in part.keys.chunks_exact(part.stride).enumerate() {
            for (d, x) in row.iter().enumerate() {
                to[d * MAX_RUN + key] = x.widen();
            }
        }
    });
    turned
}

/// One query row of one head.
struct HeadRow<'a, T> {
    plan: &'a AttentionPlan,
    parts: &'a [Part<'a, T>],
    turned: Option<&'a [f32]>,
    query: &'a [f32],
    kv_head: usize,
    /// It may see keys at positions below this.
    end: usize,
    out: &'a mut [f32],
}

impl<T: Stored> Kernel for HeadRow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let dim = self.plan.head_dim;
        let offset = self.kv_head * dim;
        let size = self.plan.kv_heads * dim * MAX_RUN;
        let scale = 1.0 / (dim as f32).sqrt();
        let (mut max, mut sum) = (f32::NEG_INFINITY, 0f32);
        for (i, part) in self.parts.iter().enumerate() {
            let n = self.end.saturating_sub(part.position).min(part.n);
            if n == 0 {
                continue;
            }
            let scores = match self.turned {
                Some(turned) => {
                    let keys = &turned[i * size + offset * MAX_RUN..][..dim * MAX_RUN];
                    turned_scores::<I>(self.query, keys)
                }
                None => stored_scores::<T, I>(self.query, &part.keys[offset..], part.stride, n),
            };
            let weights = softmax_step::<I>(scores, (n, scale), (&mut max, &mut sum), self.out);
            add_values(isa, &weights[..n], &part.values[offset..], part.stride, self.out);
        }
        let scale = 1.0 / sum;
        for x in self.out {
            *x *= scale;
        }
    }
}

/// Products of a query with 16 keys, lane by lane.
#[inline(always)]
fn turned_scores<I: Isa>(query: &[f32], keys: &[f32]) -> [f32; MAX_RUN] {
    let mut chains = [[0f32; MAX_RUN]; CHAINS];
    let (queries, query_tail) = query.as_chunks::<CHAINS>();
    let (groups, tail) = keys.as_chunks::<{ CHAINS * MAX_RUN }>();
    for (queries, group) in queries.iter().zip(groups) {
        for chain in 0..CHAINS {
            for key in 0..MAX_RUN {
                let k = group[chain * MAX_RUN + key];
                chains[chain][key] = madd::<I>(queries[chain], k, chains[chain][key]);
            }
        }
    }
    for (chain, (&q, keys)) in query_tail.iter().zip(tail.as_chunks::<MAX_RUN>().0).enumerate() {
        for key in 0..MAX_RUN {
            chains[chain][key] = madd::<I>(q, keys[key], chains[chain][key]);
        }
    }
    let [mut scores, second, third, fourth] = chains;
    for key in 0..MAX_RUN {
        scores[key] = (scores[key] + second[key]) + (third[key] + fourth[key]);
    }
    scores
}

/// The same products, read where the keys are stored.
#[inline(always)]
fn stored_scores<T: Stored, I: Isa>(
    query: &[f32],
    keys: &[T],
    stride: usize,
    n: usize,
) -> [f32; MAX_RUN] {
    let mut scores = [0f32; MAX_RUN];
    for (key, score) in scores[..n].iter_mut().enumerate() {
        let key = &keys[key * stride..][..query.len()];
        let mut chains = [0f32; CHAINS];
        let (queries, query_tail) = query.as_chunks::<CHAINS>();
        let (groups, tail) = key.as_chunks::<CHAINS>();
        for (queries, group) in queries.iter().zip(groups) {
            for chain in 0..CHAINS {
                chains[chain] = madd::<I>(queries[chain], group[chain].widen(), chains[chain]);
            }
        }
        for (chain, (&q, &k)) in query_tail.iter().zip(tail).enumerate() {
            chains[chain] = madd::<I>(q, k.widen(), chains[chain]);
        }
        *score = (chains[0] + chains[1]) + (chains[2] + chains[3]);
    }
    scores
}

/// Folds `n` scores into the running maximum and sum, rescales what was summed before, and returns
/// the weights of the new keys.
#[inline(always)]
fn softmax_step<I: Isa>(
    mut scores: [f32; MAX_RUN],
    (n, scale): (usize, f32),
    (max, sum): (&mut f32, &mut f32),
    out: &mut [f32],
) -> [f32; MAX_RUN] {
    for (key, score) in scores.iter_mut().enumerate() {
        *score = if key < n { *score * scale } else { f32::NEG_INFINITY };
    }
    let best = fold(scores, |a, b| if a > b { a } else { b });
    let new_max = if best > *max { best } else { *max };
    if new_max > *max {
        let correction = exp::<I>(*max - new_max);
        *sum *= correction;
        for x in out.iter_mut() {
            *x *= correction;
        }
        *max = new_max;
    }
    for score in &mut scores {
        *score = exp::<I>(*score - new_max);
    }
    // Weights past the end are 0.
    *sum += fold(scores, |a, b| a + b);
    scores
}

/// Combines all values pairwise, halving their number each time.
#[inline(always)]
fn fold(mut values: [f32; MAX_RUN], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = MAX_RUN / 2;
    while half > 0 {
        for i in 0..half {
            values[i] = combine(values[i], values[i + half]);
        }
        half /= 2;
    }
    values[0]
}

/// `out += Σ weight · value`, a vector of the head at a time, keys in order.
#[inline(always)]
fn add_values<T: Stored, I: Isa>(
    isa: I,
    weights: &[f32],
    values: &[T],
    stride: usize,
    out: &mut [f32],
) {
    let dim = out.len();
    let mut at = 0;
    while at < dim {
        let to = &mut out[at..(at + I::LANES).min(dim)];
        let whole = to.len() == I::LANES;
        let mut acc = if whole { isa.load(to) } else { isa.load_part(to) };
        for (key, &weight) in weights.iter().enumerate() {
            let value = &values[key * stride + at..][..to.len()];
            let value = if whole { T::load(isa, value) } else { T::load_part(isa, value) };
            acc = isa.madd(isa.splat(weight), value, acc);
        }
        isa.store(acc, to);
        at += I::LANES;
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::rows::{RaggedRows, SpanRequest};

    const WIDTH: usize = 3 * 20;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 22) as f32 - 2.0
            })
            .collect()
    }

    /// A causal sequence cut into chunks of these lengths, over pages in no order.
    fn chunks<T: Stored>(path: CpuPath, lengths: &[usize], keys: &[T], values_: &[T]) -> Vec<f32> {
        let (mut out, mut start) = (Vec::new(), 0);
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
                heads: 3,
                kv_heads: 3,
                head_dim: 20,
            };
            let query = &values(40 * WIDTH, 9)[start * WIDTH..(start + len) * WIDTH];
            let kv = KeysValues {
                own_keys: &[],
                own_values: &[],
                pool_keys: keys,
                pool_values: values_,
            };
            out.extend(attention(path, &plan, query, kv));
            start += len;
        }
        out
    }

    #[test]
    fn every_path_agrees_and_turned_keys_give_the_same_bits_as_stored_ones() {
        let (keys, vals) = (values(48 * WIDTH, 1), values(48 * WIDTH, 2));
        let half = |v: &[f32]| v.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
        let widened = |v: &[f32]| half(v).iter().map(|x| x.to_f32()).collect::<Vec<_>>();
        let reference = chunks(CpuPath::Portable, &[40], &keys, &vals);
        for path in CpuPath::available() {
            let whole = chunks(path, &[40], &keys, &vals);
            for (a, b) in whole.iter().zip(&reference) {
                assert!((a - b).abs() < 3e-6, "{path}: {a} {b}");
            }
            assert!(whole == chunks(path, &[1; 40], &keys, &vals), "{path}: one row at a time");
            assert!(whole == chunks(path, &[7, 33], &keys, &vals), "{path}: uneven chunks");
            let narrow = chunks(path, &[40], &half(&keys), &half(&vals));
            let wide = chunks(path, &[40], &widened(&keys), &widened(&vals));
            assert!(narrow == wide, "{path}: bf16 widens exactly");
        }
    }
}
