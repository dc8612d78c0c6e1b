//! bf16 weights: pairs along `k`, multiplied with pairs of bf16 activations into f32 sums.

use rayon::prelude::*;

use super::super::isa::{CpuPath, Isa, Kernel, dispatch};
use super::{AHEAD, PANEL, PackedMatrix, Target, Tiles};

/// Rows that share what is loaded of a panel, where there are registers for it.
pub(super) const TILE_ROWS: usize = 12;

/// Activations as pairs of bf16 along `k`, the last filled up with 0.
pub(super) struct Pairs {
    words: Vec<u32>,
    /// Pairs of a row.
    len: usize,
}

impl Pairs {
    /// Rounds `x [rows, k]` to nearest, ties to even.
    pub(super) fn new(path: CpuPath, x: &[f32], k: usize) -> Self {
        let len = k.div_ceil(2);
        let mut words = vec![0u32; x.len() / k * len];
        words.par_chunks_mut(len).zip(x.par_chunks(k)).with_min_len(16).for_each(|(words, x)| {
            dispatch(path, Round { words, x });
        });
        Self { words, len }
    }
}

struct Round<'a> {
    words: &'a mut [u32],
    x: &'a [f32],
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let (pairs, rest) = self.x.as_chunks::<2>();
        for (word, pair) in self.words.iter_mut().zip(pairs) {
            *word = rounded(pair[0]) | rounded(pair[1]) << 16;
        }
        if let ([last], Some(word)) = (rest, self.words.last_mut()) {
            *word = rounded(*last);
        }
    }
}

/// The bits of the nearest bf16. NaN stays NaN.
#[inline(always)]
pub(super) fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    let up = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { 0x7fc0 } else { up }
}

/// A matrix and rows to multiply it with.
#[derive(Clone, Copy)]
pub(super) struct PairTiles<'a> {
    /// `[panels, pairs, PANEL]`
    weights: &'a [u32],
    /// `[rows, pairs]`
    x: &'a [u32],
    len: usize,
}

impl<'a> PairTiles<'a> {
    pub(super) fn new(matrix: &'a PackedMatrix, x: &'a Pairs) -> Self {
        Self { weights: matrix.words(), x: &x.words, len: x.len }
    }
}

impl Tiles for PairTiles<'_> {
    fn rows(&self) -> usize {
        self.x.len() / self.len
    }

    fn with_rows(self, from: usize, to: usize) -> Self {
        Self { x: &self.x[from * self.len..to * self.len], ..self }
    }

    #[inline(always)]
    fn panel<I: Isa>(self, isa: I, panel: usize, target: &mut Target<'_>) {
        let words = self.len * PANEL;
        let weights = &self.weights[panel * words..(panel + 1) * words];
        let first = panel * PANEL;
        let rows = self.x.len() / self.len;
        let mut lane = 0;
        while lane < PANEL {
            let mut row = 0;
            while I::LANES >= 16 && row + TILE_ROWS <= rows {
                tile::<I, TILE_ROWS>(isa, self, weights, (row, first, lane), target);
                row += TILE_ROWS;
            }
            while I::LANES >= 16 && row + 8 <= rows {
                tile::<I, 8>(isa, self, weights, (row, first, lane), target);
                row += 8;
            }
            while row + 4 <= rows {
                tile::<I, 4>(isa, self, weights, (row, first, lane), target);
                row += 4;
            }
            match rows - row {
                3 => tile::<I, 3>(isa, self, weights, (row, first, lane), target),
                2 => tile::<I, 2>(isa, self, weights, (row, first, lane), target),
                1 => tile::<I, 1>(isa, self, weights, (row, first, lane), target),
                _ => {}
            }
            lane += 2 * I::LANES;
        }
    }
}

/// `R` rows times two vectors of a panel's outputs.
#[inline(always)]
fn tile<I: Isa, const R: usize>(
    isa: I,
    tiles: PairTiles<'_>,
    weights: &[u32],
    (row, first, lane): (usize, usize, usize),
    target: &mut Target<'_>,
) {
    let len = tiles.len;
    let mut x: [&[u32]; R] = [&[]; R];
    for (r, x) in x.iter_mut().enumerate() {
        *x = &tiles.x[(row + r) * len..][..len];
    }
    let mut sums = [[isa.zero(); 2]; R];
    for pair in 0..len {
        let at = &weights[pair * PANEL + lane..];
        if row == 0 {
            isa.prefetch(at, AHEAD);
            isa.prefetch(at, AHEAD + I::LANES);
        }
        let w = [isa.load_words(at), isa.load_words(&at[I::LANES..])];
        for r in 0..R {
            sums[r][0] = isa.dot_bf16(sums[r][0], w[0], x[r][pair]);
            sums[r][1] = isa.dot_bf16(sums[r][1], w[1], x[r][pair]);
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        target.put(isa, row + r, first + lane, sums[0]);
        target.put(isa, row + r, first + lane + I::LANES, sums[1]);
    }
}
