//! Keys and values of a part, laid out for many queries.

use super::super::isa::Isa;
use super::super::vector::Stored;
use super::{MAX_RUN, Part};

/// A part's keys and values, of one head, for many queries. Beyond the part's end stays what was
/// there: no one looks at it.
pub(super) struct Prepared {
    /// `[head_dim][MAX_RUN]`
    pub(super) keys: Vec<f32>,
    /// `[MAX_RUN][head_dim]`
    pub(super) values: Vec<f32>,
}

impl Prepared {
    pub(super) fn new(dim: usize) -> Self {
        Self { keys: vec![0.0; dim * MAX_RUN], values: vec![0.0; dim * MAX_RUN] }
    }

    /// Turns keys round and widens values.
    #[inline(always)]
    pub(super) fn fill<T: Stored, I: Isa>(&mut self, isa: I, part: &Part<'_, T>, offset: usize) {
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
