//! Float weights, by steps along `k`: a vector of neighbouring outputs times one row's activations
//! in all lanes.

use std::ops::Range;

use rayon::prelude::*;

use super::super::buffers::Buffer;
use super::super::isa::{CpuPath, Isa, Kernel, dispatch};
use super::super::share::NUMBERS_EACH;
use super::super::vector::Stored;
use super::{AHEAD, PANEL, PackedMatrix, Target, Tiles};

/// Rows that share what is loaded of a panel, where there are registers for it.
const TILE_ROWS: usize = 12;

/// How weights lie in a panel and what they are multiplied with.
pub(super) trait Step: Copy + Sync {
    /// What one output has of a step.
    type Weight: bytemuck::Pod + Sync;
    /// What a row has.
    type X: Copy + Sync;
    /// A vector of weights.
    type Loaded<I: Isa>: Copy;

    /// The first lanes of a slice at least that long.
    fn load<I: Isa>(isa: I, from: &[Self::Weight]) -> Self::Loaded<I>;
    /// Adds to every lane its weight times `x`.
    fn madd<I: Isa>(isa: I, sums: I::V, w: Self::Loaded<I>, x: Self::X) -> I::V;
}

/// Pairs of bf16, multiplied with pairs of bf16 into f32 sums.
#[derive(Clone, Copy)]
pub(super) struct Pairs;

impl Step for Pairs {
    type Weight = u32;
    type X = u32;
    type Loaded<I: Isa> = I::W;

    #[inline(always)]
    fn load<I: Isa>(isa: I, from: &[u32]) -> I::W {
        isa.load_words(from)
    }

    #[inline(always)]
    fn madd<I: Isa>(isa: I, sums: I::V, w: I::W, x: u32) -> I::V {
        isa.dot_bf16(sums, w, x)
    }
}

/// Single numbers, widened, times activations as they are.
impl<T: Stored> Step for T {
    type Weight = T;
    type X = f32;
    type Loaded<I: Isa> = I::V;

    #[inline(always)]
    fn load<I: Isa>(isa: I, from: &[T]) -> I::V {
        Stored::load(isa, from)
    }

    #[inline(always)]
    fn madd<I: Isa>(isa: I, sums: I::V, w: I::V, x: f32) -> I::V {
        isa.madd(isa.splat(x), w, sums)
    }
}

/// Rounds `x [rows, k]` to pairs of bf16 along `k`, to nearest with ties to even; the last is filled
/// up with 0.
pub(super) fn pairs(path: CpuPath, x: &[f32], k: usize) -> Buffer {
    let len = k.div_ceil(2);
    let mut pairs = Buffer::new(x.len() / k * len);
    let words = pairs.words_mut();
    words
        .par_chunks_mut(len)
        .zip(x.par_chunks(k))
        .with_min_len(NUMBERS_EACH.div_ceil(k))
        .for_each(|(words, x)| dispatch(path, Round { words, x }));
    pairs
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
pub(in super::super) fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    let up = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { 0x7fc0 } else { up }
}

/// A matrix and rows to multiply it with.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a, S: Step> {
    /// `[panels, steps, PANEL]`
    weights: &'a [S::Weight],
    /// `[rows, steps]`
    x: &'a [S::X],
    steps: usize,
}

impl<'a, S: Step> Columns<'a, S> {
    pub(super) fn new(matrix: &'a PackedMatrix, x: &'a [S::X], steps: usize) -> Self {
        Self { weights: bytemuck::cast_slice(matrix.words()), x, steps }
    }
}

impl<S: Step> Tiles for Columns<'_, S> {
    const TILE_ROWS: usize = TILE_ROWS;

    fn rows(&self) -> usize {
        self.x.len() / self.steps
    }

    fn with_rows(self, from: usize, to: usize) -> Self {
        Self { x: &self.x[from * self.steps..to * self.steps], ..self }
    }

    #[inline(always)]
    fn panels<I: Isa>(self, isa: I, panels: Range<usize>, target: &mut Target<'_>) {
        for panel in panels {
            self.panel(isa, panel, target);
        }
    }
}

impl<S: Step> Columns<'_, S> {
    #[inline(always)]
    fn panel<I: Isa>(self, isa: I, panel: usize, target: &mut Target<'_>) {
        let len = self.steps * PANEL;
        let weights = &self.weights[panel * len..(panel + 1) * len];
        let first = panel * PANEL;
        let rows = self.x.len() / self.steps;
        let mut lane = 0;
        while lane < PANEL {
            let mut row = 0;
            while row < rows {
                let together = tile_rows::<I>(rows - row);
                let at = (row, first, lane);
                match together {
                    TILE_ROWS => tile::<I, S, TILE_ROWS>(isa, self, weights, at, target),
                    10 => tile::<I, S, 10>(isa, self, weights, at, target),
                    8 => tile::<I, S, 8>(isa, self, weights, at, target),
                    7 => tile::<I, S, 7>(isa, self, weights, at, target),
                    6 => tile::<I, S, 6>(isa, self, weights, at, target),
                    5 => tile::<I, S, 5>(isa, self, weights, at, target),
                    4 => tile::<I, S, 4>(isa, self, weights, at, target),
                    3 => tile::<I, S, 3>(isa, self, weights, at, target),
                    2 => tile::<I, S, 2>(isa, self, weights, at, target),
                    1 => tile::<I, S, 1>(isa, self, weights, at, target),
                    _ => unreachable!("no such tile"),
                }
                row += together;
            }
            lane += 2 * I::LANES;
        }
    }
}

/// Rows of the next tile, of those that are left: as many as there are registers for sums, two a row. Nine
/// and eleven are not worth code of their own.
#[inline(always)]
fn tile_rows<I: Isa>(rows: usize) -> usize {
    match rows {
        _ if I::LANES < 16 => rows.min(4),
        TILE_ROWS.. => TILE_ROWS,
        11 => 10,
        9 => 8,
        _ => rows,
    }
}

/// `R` rows times two vectors of a panel's outputs.
#[inline(always)]
fn tile<I: Isa, S: Step, const R: usize>(
    isa: I,
    tiles: Columns<'_, S>,
    weights: &[S::Weight],
    (row, first, lane): (usize, usize, usize),
    target: &mut Target<'_>,
) {
    let steps = tiles.steps;
    let mut x: [&[S::X]; R] = [&[]; R];
    for (r, x) in x.iter_mut().enumerate() {
        *x = &tiles.x[(row + r) * steps..][..steps];
    }
    let mut sums = [[isa.zero(); 2]; R];
    let is_only_tile = R * steps == tiles.x.len();
    for step in 0..steps {
        let at = &weights[step * PANEL + lane..];
        if is_only_tile {
            isa.prefetch_once(at, AHEAD);
            isa.prefetch_once(at, AHEAD + I::LANES);
        } else if row == 0 {
            isa.prefetch(at, AHEAD);
            isa.prefetch(at, AHEAD + I::LANES);
        }
        let w = [S::load(isa, at), S::load(isa, &at[I::LANES..])];
        for r in 0..R {
            sums[r][0] = S::madd(isa, sums[r][0], w[0], x[r][step]);
            sums[r][1] = S::madd(isa, sums[r][1], w[1], x[r][step]);
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        target.put(isa, row + r, first + lane, sums[0]);
        target.put(isa, row + r, first + lane + I::LANES, sums[1]);
    }
}
