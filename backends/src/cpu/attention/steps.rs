//! What one query computes over one part: scores, weights, and the sum of values.

use super::super::isa::Isa;
use super::super::vector::{Stored, exp, exp_lanes};
use super::MAX_RUN;
use super::sums::Running;

/// Scores or weights of a part's keys, in as many vectors as that takes.
pub(super) type Lanes<I> = [<I as Isa>::V; MOST_VECTORS];

/// Vectors of the narrowest instruction set.
const MOST_VECTORS: usize = 2;

/// Vectors of an instruction set.
const fn vectors<I: Isa>() -> usize {
    MAX_RUN / I::LANES
}

/// Products of a query with 16 keys, lane by lane. Dimension `d` of every key goes to chain
/// `d % LANES`, and the chains are added as [`Isa::sum`] adds lanes: halves upon halves.
#[inline(always)]
pub(super) fn turned_scores<I: Isa>(isa: I, query: &[f32], keys: &[f32]) -> Lanes<I> {
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

/// The same of one key as it is stored.
#[inline(always)]
pub(super) fn score<T: Stored, I: Isa>(isa: I, mut query: &[f32], mut key: &[T]) -> f32 {
    let mut chains = isa.zero();
    loop {
        let operands = (query, key);
        let vectors = match query.len() / I::LANES {
            0 => break,
            1 => add_products::<T, I, 1>(isa, operands, &mut chains),
            2 | 3 => add_products::<T, I, 2>(isa, operands, &mut chains),
            4 => add_products::<T, I, 4>(isa, operands, &mut chains),
            5..8 => add_products::<T, I, 5>(isa, operands, &mut chains),
            _ => add_products::<T, I, 8>(isa, operands, &mut chains),
        };
        (query, key) = (&query[vectors * I::LANES..], &key[vectors * I::LANES..]);
    }
    if !query.is_empty() {
        let (query, key) = (isa.load_part(query), T::load_part(isa, &key[..query.len()]));
        chains = isa.madd(query, key, chains);
    }
    isa.sum(chains)
}

/// The same for heads of whole vectors: one stretch of instructions where their size is a constant.
#[inline(always)]
pub(super) fn whole_score<T: Stored, I: Isa>(isa: I, query: &[f32], key: &[T]) -> f32 {
    let mut chains = isa.zero();
    let mut at = 0;
    while at < query.len() {
        chains = isa.madd(isa.load(&query[at..]), T::load(isa, &key[at..]), chains);
        at += I::LANES;
    }
    isa.sum(chains)
}

/// The first `N` vectors of a head; returns `N`.
#[inline(always)]
fn add_products<T: Stored, I: Isa, const N: usize>(
    isa: I,
    (query, key): (&[f32], &[T]),
    chains: &mut I::V,
) -> usize {
    let (query, key) = (&query[..N * I::LANES], &key[..N * I::LANES]);
    for n in 0..N {
        let at = n * I::LANES;
        *chains = isa.madd(isa.load(&query[at..]), T::load(isa, &key[at..]), *chains);
    }
    N
}

/// Scores of a part's keys as vectors.
#[inline(always)]
pub(super) fn loaded<I: Isa>(isa: I, values: &[f32; MAX_RUN]) -> Lanes<I> {
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
pub(super) fn hide<I: Isa>(isa: I, scores: &mut Lanes<I>, n: usize, hidden: Option<usize>) {
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
pub(super) fn softmax_step<I: Isa>(
    isa: I,
    mut scores: Lanes<I>,
    running: &mut Running,
    out: &mut [f32],
) -> [f32; MAX_RUN] {
    let mut new_max = running.max;
    for scores in &scores[..vectors::<I>()] {
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
    // Where all scores so far are -inf, they weigh nothing.
    let from = if new_max == f32::NEG_INFINITY { 0.0 } else { new_max };
    let mut sum = isa.zero();
    for scores in &mut scores[..vectors::<I>()] {
        *scores = exp_lanes(isa, isa.add(*scores, isa.splat(-from)));
        sum = isa.add(sum, *scores);
    }
    running.sum += isa.sum(sum);
    stored(isa, &scores)
}

/// `out += weight · value`, for heads of whole vectors.
#[inline(always)]
pub(super) fn add_value<T: Stored, I: Isa>(isa: I, weight: f32, value: &[T], out: &mut [f32]) {
    let weight = isa.splat(weight);
    let mut at = 0;
    while at < out.len() {
        let sum = isa.madd(weight, T::load(isa, &value[at..]), isa.load(&out[at..]));
        isa.store(sum, &mut out[at..at + I::LANES]);
        at += I::LANES;
    }
}

/// `out += Σ weight · value`, keys in order. Vectors of the head go side by side, so that none waits
/// for the last sum of another.
#[inline(always)]
pub(super) fn add_values<T: Stored, I: Isa>(
    isa: I,
    weights: &[f32],
    (values, stride): (&[T], usize),
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
