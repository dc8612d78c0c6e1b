//! bf16 weights multiplied by a tile unit: any number of rows, and each as if it were alone.

use std::ops::Range;

use rayon::prelude::*;

use super::super::CACHE_LINE;
use super::super::buffers::Buffer;
use super::super::isa::amx::{Amx, COLUMNS, TILE_ROWS, TILE_WORDS, TileSums};
use super::super::isa::{CpuPath, Isa, Kernel, dispatch};
use super::super::share::{Few, NUMBERS_EACH};
use super::columns::rounded;
use super::ordered::{MOST_ROWS, OrderedPairs, Widened};
use super::{AHEAD, PANEL, PackedMatrix, Product, Target, Tiles, spread};

const _: () = assert!(PANEL == COLUMNS, "a panel is as wide as what is computed together");

const WORDS_OF_LINE: usize = CACHE_LINE / size_of::<u32>();
/// Rows that share what is loaded of a panel.
const BLOCK_ROWS: usize = 2 * TILE_ROWS;
/// Rows up to which reading the weights takes longer than computing with them.
const FEW_ROWS: usize = 2 * BLOCK_ROWS;
/// Steps of the unit that several blocks of rows go through in turn (64 KiB of a panel): its weights come from
/// the second cache then, and so do the activations of as many steps for several panels.
const CHUNK_STEPS: usize = 32;
/// Words of a panel in a step of the unit.
const STEP_WORDS: usize = TILE_WORDS * PANEL;

/// [`super::multiply`] with bf16 weights.
pub(super) fn multiply(
    (amx, path): (Amx, CpuPath),
    products: &[Product<'_>],
    x: &[f32],
    k: usize,
) -> Few<Buffer> {
    if x.len() <= MOST_ROWS * k {
        let x = Widened::new(path, x, k);
        return spread(path, products, |matrix| OrderedPairs::new(matrix, &x));
    }
    let x = TiledPairs::new(path, x, k);
    spread(path, products, |matrix| PairTiles::new(amx, matrix, &x))
}

/// Activations, rounded to pairs of bf16.
struct TiledPairs {
    /// Tiles of rows, `[steps, TILE_ROWS, TILE_WORDS]` each, the last of as many rows as are left.
    words: Buffer,
    /// Where they begin: with a line of the cache, as the unit reads a line at a time.
    start: usize,
    len: usize,
}

impl TiledPairs {
    /// Rounds `x [rows, k]`; the last step is filled up with 0.
    fn new(path: CpuPath, x: &[f32], k: usize) -> Self {
        let (rows, steps) = (x.len() / k, k.div_ceil(2 * TILE_WORDS));
        let len = rows * steps * TILE_WORDS;
        let mut words = Buffer::new(len + WORDS_OF_LINE - 1);
        // The distance may be unknown; then it is slower, nothing else.
        let start = words.words().as_ptr().align_offset(CACHE_LINE).min(WORDS_OF_LINE - 1);
        words.words_mut()[start..start + len]
            .par_chunks_mut(TILE_ROWS * steps * TILE_WORDS)
            .zip(x.par_chunks(TILE_ROWS * k))
            .with_min_len(NUMBERS_EACH.div_ceil(TILE_ROWS * k))
            .for_each(|(words, x)| dispatch(path, Round { words, x, k }));
        Self { words, start, len }
    }
}

/// A tile of rows.
struct Round<'a> {
    /// `[steps, rows, TILE_WORDS]`
    words: &'a mut [u32],
    /// `[rows, k]`
    x: &'a [f32],
    k: usize,
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let rows = self.x.len() / self.k;
        let words = self.words.as_chunks_mut::<TILE_WORDS>().0;
        for (row, x) in self.x.chunks(self.k).enumerate() {
            for (words, x) in words.iter_mut().skip(row).step_by(rows).zip(x.chunks(2 * TILE_WORDS))
            {
                let mut values = [0f32; 2 * TILE_WORDS];
                match x.first_chunk() {
                    Some(whole) => values = *whole,
                    None => values[..x.len()].copy_from_slice(x),
                }
                for (word, pair) in words.iter_mut().zip(values.as_chunks::<2>().0) {
                    *word = rounded(pair[0]) | rounded(pair[1]) << 16;
                }
            }
        }
    }
}

/// A matrix and rows to multiply it with.
#[derive(Clone, Copy)]
struct PairTiles<'a> {
    amx: Amx,
    /// `[panels, pairs, PANEL]`
    weights: &'a [u32],
    /// Pairs along `k`.
    pairs: usize,
    /// As in [`TiledPairs`].
    x: &'a [u32],
}

impl<'a> PairTiles<'a> {
    fn new(amx: Amx, matrix: &'a PackedMatrix, x: &'a TiledPairs) -> Self {
        let pairs = matrix.k().div_ceil(2);
        let x = &x.words.words()[x.start..x.start + x.len];
        Self { amx, weights: matrix.words(), pairs, x }
    }

    /// Adds to the sums of all rows what some steps from `first` on give.
    #[inline(always)]
    fn add(self, first: usize, weights: &[u32], sums: &mut [TileSums]) {
        let steps = weights.len() / STEP_WORDS;
        let tile = |row: usize| {
            let rows = self.rows().saturating_sub(row).min(TILE_ROWS);
            let at = row.min(self.rows()) * self.row_words() + first * rows * TILE_WORDS;
            &self.x[at..at + steps * rows * TILE_WORDS]
        };
        for (i, sums) in sums.iter_mut().enumerate().take(self.rows().div_ceil(BLOCK_ROWS)) {
            let x = [tile(i * BLOCK_ROWS), tile(i * BLOCK_ROWS + TILE_ROWS)];
            // For the first rows they come from the memory, for the others from a cache.
            self.amx.add_pairs::<AHEAD>((weights, i == 0), x, sums);
        }
    }

    /// Multiplies `PANELS` panels at once with up to `BLOCKS` blocks of rows at once.
    #[inline(always)]
    fn by_groups<I: Isa, const PANELS: usize, const BLOCKS: usize>(
        self,
        isa: I,
        panels: Range<usize>,
        target: &mut Target<'_>,
    ) {
        for row in (0..self.rows()).step_by(BLOCKS * BLOCK_ROWS) {
            let some = self.with_rows(row, self.rows().min(row + BLOCKS * BLOCK_ROWS));
            for first in panels.clone().step_by(PANELS) {
                let panels = first..panels.end.min(first + PANELS);
                let sums = some.group::<PANELS, BLOCKS>(panels.clone());
                for (panel, sums) in panels.zip(&sums) {
                    for (i, sums) in sums.iter().enumerate().take(some.rows().div_ceil(BLOCK_ROWS))
                    {
                        let rows = (some.rows() - i * BLOCK_ROWS).min(BLOCK_ROWS);
                        let at = (row + i * BLOCK_ROWS, rows, panel * PANEL);
                        target.put_rows(isa, sums.0.as_flattened(), at);
                    }
                }
            }
        }
    }

    /// Panels that go through `k` side by side, [`CHUNK_STEPS`] at a time.
    #[inline(always)]
    fn group<const PANELS: usize, const BLOCKS: usize>(
        self,
        panels: Range<usize>,
    ) -> [[TileSums; BLOCKS]; PANELS] {
        let mut sums = [const { [const { TileSums::ZERO }; BLOCKS] }; PANELS];
        let len = self.pairs * PANEL;
        for step in (0..self.pairs.div_ceil(TILE_WORDS)).step_by(CHUNK_STEPS) {
            for (panel, sums) in panels.clone().zip(&mut sums) {
                let weights = &self.weights[panel * len..(panel + 1) * len];
                let to = len.min((step + CHUNK_STEPS) * STEP_WORDS);
                let (whole, rest) = weights[step * STEP_WORDS..to].as_chunks::<STEP_WORDS>();
                self.add(step, whole.as_flattened(), sums);
                if !rest.is_empty() {
                    let mut last = [0; STEP_WORDS];
                    last[..rest.len()].copy_from_slice(rest);
                    self.add(step + whole.len(), &last, sums);
                }
            }
        }
        sums
    }

    /// Words of a row.
    fn row_words(&self) -> usize {
        self.pairs.next_multiple_of(TILE_WORDS)
    }
}

impl Tiles for PairTiles<'_> {
    const TILE_ROWS: usize = TILE_ROWS;

    fn rows(&self) -> usize {
        self.x.len() / self.row_words()
    }

    fn with_rows(self, from: usize, to: usize) -> Self {
        assert!(from.is_multiple_of(TILE_ROWS), "rows of a tile lie side by side");
        let x = &self.x[from * self.row_words()..to * self.row_words()];
        Self { x, ..self }
    }

    #[inline(always)]
    fn panels<I: Isa>(self, isa: I, panels: Range<usize>, target: &mut Target<'_>) {
        if self.rows() <= FEW_ROWS {
            // One panel after the other, as they lie in memory.
            self.by_groups::<I, 1, { FEW_ROWS / BLOCK_ROWS }>(isa, panels, target);
        } else {
            self.by_groups::<I, 4, 8>(isa, panels, target);
        }
    }
}
