//! bf16 weights times so few rows that the tile unit takes longer than the memory: summed in its order.

use std::ops::Range;

use rayon::prelude::*;

use super::super::buffers::Buffer;
use super::super::isa::amx::TILE_WORDS;
use super::super::isa::{CpuPath, Isa, Kernel, dispatch};
use super::super::share::NUMBERS_EACH;
use super::columns::rounded;
use super::{AHEAD, PANEL, PackedMatrix, Target, Tiles};

/// Most rows: as many as there are registers for sums, six a row.
pub(super) const MOST_ROWS: usize = 4;

/// Activations rounded to bf16, widened again.
pub(super) struct Widened {
    /// `[rows, 2 * pairs]`, the last filled up with 0.
    values: Buffer,
    pairs: usize,
}

impl Widened {
    /// Rounds `x [rows, k]`.
    pub(super) fn new(path: CpuPath, x: &[f32], k: usize) -> Self {
        let pairs = k.div_ceil(2);
        let mut values = Buffer::new(x.len() / k * 2 * pairs);
        values
            .par_chunks_mut(2 * pairs)
            .zip(x.par_chunks(k))
            .with_min_len(NUMBERS_EACH.div_ceil(k))
            .for_each(|(to, x)| dispatch(path, Round { to, x }));
        Self { values, pairs }
    }
}

struct Round<'a> {
    to: &'a mut [f32],
    x: &'a [f32],
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let (to, last) = self.to.split_at_mut(self.x.len());
        for (to, x) in to.iter_mut().zip(self.x) {
            *to = f32::from_bits(rounded(*x) << 16);
        }
        last.fill(0.0);
    }
}

/// A matrix and at most [`MOST_ROWS`] rows to multiply it with.
#[derive(Clone, Copy)]
pub(super) struct OrderedPairs<'a> {
    /// `[panels, pairs, PANEL]`
    weights: &'a [u32],
    /// `[rows, 2 * pairs]`
    x: &'a [f32],
    pairs: usize,
}

impl<'a> OrderedPairs<'a> {
    pub(super) fn new(matrix: &'a PackedMatrix, x: &'a Widened) -> Self {
        Self { weights: matrix.words(), x: &x.values, pairs: x.pairs }
    }
}

impl Tiles for OrderedPairs<'_> {
    const TILE_ROWS: usize = MOST_ROWS;

    fn rows(&self) -> usize {
        self.x.len() / (2 * self.pairs)
    }

    fn with_rows(self, from: usize, to: usize) -> Self {
        Self { x: &self.x[from * 2 * self.pairs..to * 2 * self.pairs], ..self }
    }

    #[inline(always)]
    fn panels<I: Isa>(self, isa: I, panels: Range<usize>, target: &mut Target<'_>) {
        for panel in panels {
            let len = self.pairs * PANEL;
            let weights = &self.weights[panel * len..(panel + 1) * len];
            for lane in (0..PANEL).step_by(2 * I::LANES) {
                let at = (panel * PANEL, lane);
                match self.rows() {
                    1 => tile::<I, 1>(isa, self, weights, at, target),
                    2 => tile::<I, 2>(isa, self, weights, at, target),
                    3 => tile::<I, 3>(isa, self, weights, at, target),
                    MOST_ROWS => tile::<I, MOST_ROWS>(isa, self, weights, at, target),
                    rows => unreachable!("{rows} rows"),
                }
            }
        }
    }
}

/// `R` rows times two vectors of a panel's outputs: as in [`super::super::isa::amx::Amx::add_pairs`], but for
/// denormals.
#[inline(always)]
fn tile<I: Isa, const R: usize>(
    isa: I,
    tiles: OrderedPairs<'_>,
    weights: &[u32],
    (first, lane): (usize, usize),
    target: &mut Target<'_>,
) {
    let mut x: [&[[f32; 2]]; R] = [&[]; R];
    for (r, x) in x.iter_mut().enumerate() {
        *x = tiles.x[r * 2 * tiles.pairs..][..2 * tiles.pairs].as_chunks().0;
    }
    let mut sums = [[isa.zero(); 2]; R];
    for step in (0..tiles.pairs).step_by(TILE_WORDS) {
        let mut low = [[isa.zero(); 2]; R];
        let mut high = [[isa.zero(); 2]; R];
        for pair in step..tiles.pairs.min(step + TILE_WORDS) {
            let at = &weights[pair * PANEL + lane..];
            isa.prefetch_once(at, AHEAD);
            isa.prefetch_once(at, AHEAD + I::LANES);
            for half in 0..2 {
                let [w_low, w_high] = isa.widen_pairs(isa.load_words(&at[half * I::LANES..]));
                for r in 0..R {
                    let [x_low, x_high] = x[r][pair];
                    low[r][half] = isa.madd(isa.splat(x_low), w_low, low[r][half]);
                    high[r][half] = isa.madd(isa.splat(x_high), w_high, high[r][half]);
                }
            }
        }
        for r in 0..R {
            for half in 0..2 {
                sums[r][half] = isa.add(sums[r][half], isa.add(low[r][half], high[r][half]));
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        target.put(isa, r, first + lane, sums[0]);
        target.put(isa, r, first + lane + I::LANES, sums[1]);
    }
}
