//! Many queries: keys are turned round and values widened head by head, so that 16 keys are scored in one
//! go.

use aligned_vec::{AVec, avec};

use super::super::isa::Isa;
use super::super::vector::Stored;
use super::steps::{add_values, turned_scores};
use super::sums::Sums;
use super::task::{Task, Visit, Way};
use super::{MAX_RUN, Part, lines};

/// A part's keys and values, of one head. Beyond the part's end stays what was there: no one looks at it.
pub(super) struct Turned {
    /// `[head_dim][MAX_RUN]`
    keys: AVec<f32>,
    /// `[MAX_RUN][head_dim]`
    values: AVec<f32>,
}

impl<T: Stored> Way<T> for Turned {
    #[inline(always)]
    fn visit<I: Isa>(
        &mut self,
        isa: I,
        task: &Task<'_, T>,
        Visit { part, next, .. }: Visit<'_, T>,
        query: &[f32],
        sums: &mut Sums,
    ) {
        let dim = task.plan.head_dim;
        let mut i = 0;
        for head in task.heads.clone() {
            if let Some(next) = next {
                for key in 0..next.n {
                    let at = key * next.stride + head * dim;
                    for line in lines::<T>(dim) {
                        isa.prefetch(&next.keys[at..at + dim], line);
                        isa.prefetch(&next.values[at..at + dim], line);
                    }
                }
            }
            self.fill(isa, part, head * dim);
            let (keys, values) = (&self.keys[..], (&self.values[..], dim));
            for row in 0..task.rows.len() {
                for _ in 0..task.group {
                    let scores = turned_scores(isa, &query[i * dim..][..dim], keys);
                    let view = task.view(part, row);
                    if view.n > 0 {
                        let weights = task.weights(isa, view, scores, (i, sums));
                        let out = &mut sums.out[i * dim..][..dim];
                        add_values(isa, &weights[..view.n], values, out);
                    }
                    i += 1;
                }
            }
        }
    }
}

impl Turned {
    pub(super) fn new(dim: usize) -> Self {
        Self { keys: avec![0.0; dim * MAX_RUN], values: avec![0.0; dim * MAX_RUN] }
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
