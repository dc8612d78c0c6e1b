//! Attention over key runs with an online softmax, in f32.

use std::sync::Arc;

use rayon::prelude::*;

use super::vector::{Stored, exp, madd};
use super::{CpuPath, Kernel, dispatch};
use crate::rows::{Attend, KeyRun, KeySource, Span};

/// Lanes of the dot products over a head; head sizes are multiples of 8 in every family served.
const HEAD_LANES: usize = 8;
/// Most keys of one run, so that their scores fit on the stack; longer runs are cut.
const MAX_RUN: usize = 64;

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
    let span_of_row: Vec<usize> = plan
        .spans
        .iter()
        .enumerate()
        .flat_map(|(i, span)| std::iter::repeat_n(i, span.rows.len()))
        .collect();
    let mut out = vec![0f32; query.len()];
    out.par_chunks_mut(plan.head_dim).enumerate().with_min_len(4).for_each(|(i, out)| {
        let (row, head) = (i / plan.heads, i % plan.heads);
        let span = &plan.spans[span_of_row[row]];
        let last = match span.attend {
            Attend::Causal => plan.positions[row],
            Attend::Bidirectional => usize::MAX,
        };
        let query = &query[row * width + head * plan.head_dim..][..plan.head_dim];
        let kv_head = head / (plan.heads / plan.kv_heads);
        dispatch(path, HeadRow { plan, runs: &span.keys, query, kv_head, last, kv, out });
    });
    out
}

/// One query row of one head.
struct HeadRow<'a, T> {
    plan: &'a AttentionPlan,
    runs: &'a [KeyRun],
    query: &'a [f32],
    kv_head: usize,
    /// Last position it may see.
    last: usize,
    kv: KeysValues<'a, T>,
    out: &'a mut [f32],
}

impl<T: Stored> Kernel for HeadRow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let mut softmax = OnlineSoftmax { max: f32::NEG_INFINITY, sum: 0.0 };
        for run in self.runs {
            let visible = (self.last + usize::from(self.last != usize::MAX))
                .saturating_sub(run.position)
                .min(run.len);
            let (keys, values, first) = match run.source {
                KeySource::Pool { slot } => (self.kv.pool_keys, self.kv.pool_values, slot),
                KeySource::Rows { row } => (self.kv.own_keys, self.kv.own_values, row),
            };
            let mut done = 0;
            while done < visible {
                let n = (visible - done).min(MAX_RUN);
                let part = Part { keys, values, first: first + done, n };
                softmax.add::<T, FMA>(&part, self.plan, self.kv_head, self.query, self.out);
                done += n;
            }
        }
        let scale = 1.0 / softmax.sum;
        self.out.iter_mut().for_each(|x| *x *= scale);
    }
}

/// At most `MAX_RUN` keys stored one after the other.
struct Part<'a, T> {
    keys: &'a [T],
    values: &'a [T],
    first: usize,
    n: usize,
}

struct OnlineSoftmax {
    max: f32,
    sum: f32,
}

impl OnlineSoftmax {
    #[inline(always)]
    fn add<T: Stored, const FMA: bool>(
        &mut self,
        part: &Part<'_, T>,
        plan: &AttentionPlan,
        kv_head: usize,
        query: &[f32],
        out: &mut [f32],
    ) {
        let (dim, stride) = (plan.head_dim, plan.kv_heads * plan.head_dim);
        let at = |i: usize| (part.first + i) * stride + kv_head * dim;
        let scale = (dim as f32).sqrt().recip();
        let mut scores = [f32::NEG_INFINITY; MAX_RUN];
        let mut max = self.max;
        for (i, score) in scores[..part.n].iter_mut().enumerate() {
            *score = dot::<T, FMA>(query, &part.keys[at(i)..at(i) + dim]) * scale;
            max = max.max(*score);
        }
        let correction = exp::<FMA>(self.max - max);
        self.max = max;
        self.sum *= correction;
        out.iter_mut().for_each(|x| *x *= correction);
        // In eights, so that exponentials are vectors; scores past the end are -inf and give 0.
        for eight in scores[..part.n.next_multiple_of(8)].as_chunks_mut::<8>().0 {
            *eight = eight.map(|s| exp::<FMA>(s - max));
        }
        for (i, &weight) in scores[..part.n].iter().enumerate() {
            self.sum += weight;
            for (x, value) in out.iter_mut().zip(&part.values[at(i)..at(i) + dim]) {
                *x = madd::<FMA>(weight, value.widen(), *x);
            }
        }
    }
}

#[inline(always)]
fn dot<T: Stored, const FMA: bool>(a: &[f32], b: &[T]) -> f32 {
    let mut lanes = [0f32; HEAD_LANES];
    let (a_chunks, a_tail) = a.as_chunks::<HEAD_LANES>();
    let (b_chunks, b_tail) = b.as_chunks::<HEAD_LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..HEAD_LANES {
            lanes[lane] = madd::<FMA>(a[lane], b[lane].widen(), lanes[lane]);
        }
    }
    for (lane, (a, b)) in a_tail.iter().zip(b_tail).enumerate() {
        lanes[lane] = madd::<FMA>(*a, b.widen(), lanes[lane]);
    }
    let half: [f32; 4] = std::array::from_fn(|i| lanes[i] + lanes[i + 4]);
    (half[0] + half[2]) + (half[1] + half[3])
}
