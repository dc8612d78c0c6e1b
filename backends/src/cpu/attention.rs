//! Attention over key runs with an online softmax, in f32.

use std::sync::Arc;

use rayon::prelude::*;

use super::isa::{CpuPath, Isa, Kernel, dispatch, madd};
use super::vector::{Stored, exp};
use crate::rows::{Attend, KeyRun, KeySource, PAGE_SIZE, Span};

/// Most keys scored at once; longer runs are cut.
const MAX_RUN: usize = PAGE_SIZE;

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
        let end = match span.attend {
            Attend::Causal => plan.positions[row] + 1,
            Attend::Bidirectional => usize::MAX,
        };
        let query = &query[row * width + head * plan.head_dim..][..plan.head_dim];
        let kv_head = head / (plan.heads / plan.kv_heads);
        dispatch(path, HeadRow { plan, runs: &span.keys, query, kv_head, end, kv, out });
    });
    out
}

/// One query row of one head.
struct HeadRow<'a, T> {
    plan: &'a AttentionPlan,
    runs: &'a [KeyRun],
    query: &'a [f32],
    kv_head: usize,
    /// It may see keys at positions below this.
    end: usize,
    kv: KeysValues<'a, T>,
    out: &'a mut [f32],
}

impl<T: Stored> Kernel for HeadRow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let mut softmax = OnlineSoftmax { max: f32::NEG_INFINITY, sum: 0.0 };
        for run in self.runs {
            let visible = self.end.saturating_sub(run.position).min(run.len);
            let (keys, values, first) = match run.source {
                KeySource::Pool { slot } => (self.kv.pool_keys, self.kv.pool_values, slot),
                KeySource::Rows { row } => (self.kv.own_keys, self.kv.own_values, row),
            };
            let mut done = 0;
            while done < visible {
                let n = (visible - done).min(MAX_RUN);
                let part = Part { keys, values, first: first + done, n };
                softmax.add(isa, &part, self.plan, self.kv_head, (self.query, self.out));
                done += n;
            }
        }
        let scale = 1.0 / softmax.sum;
        for x in self.out {
            *x *= scale;
        }
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
    fn add<T: Stored, I: Isa>(
        &mut self,
        isa: I,
        part: &Part<'_, T>,
        plan: &AttentionPlan,
        kv_head: usize,
        (query, out): (&[f32], &mut [f32]),
    ) {
        let (dim, stride) = (plan.head_dim, plan.kv_heads * plan.head_dim);
        let start = part.first * stride + kv_head * dim;
        let scale = 1.0 / (dim as f32).sqrt();
        let mut scores = [f32::NEG_INFINITY; MAX_RUN];
        let mut max = self.max;
        for i in 0..part.n {
            scores[i] = dot(isa, query, &part.keys[start + i * stride..][..dim]) * scale;
            max = if scores[i] > max { scores[i] } else { max };
        }
        let correction = exp::<I>(self.max - max);
        self.max = max;
        self.sum *= correction;
        for x in out.iter_mut() {
            *x *= correction;
        }
        // All of them, so that they are vectors; scores past the end are -inf and give 0.
        for score in &mut scores {
            *score = exp::<I>(*score - max);
        }
        for (i, &weight) in scores[..part.n].iter().enumerate() {
            self.sum += weight;
            let values = &part.values[start + i * stride..][..dim];
            for (x, value) in out.iter_mut().zip(values) {
                *x = madd::<I>(weight, value.widen(), *x);
            }
        }
    }
}

#[inline(always)]
fn dot<T: Stored, I: Isa>(isa: I, a: &[f32], b: &[T]) -> f32 {
    let mut acc = isa.zero();
    let mut at = 0;
    while at + I::LANES <= a.len() {
        acc = isa.madd(isa.load(&a[at..]), T::load(isa, &b[at..]), acc);
        at += I::LANES;
    }
    if at < a.len() {
        acc = isa.madd(isa.load_part(&a[at..]), T::load_part(isa, &b[at..]), acc);
    }
    isa.sum(acc)
}
