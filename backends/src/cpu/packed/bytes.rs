//! Quantised weights: bytes or nibbles in blocks of 32 with a scale, multiplied as integers with
//! activations quantised alike.

use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use super::super::CACHE_LINE;
use super::super::buffers::Buffer;
use super::super::isa::{CpuPath, Isa, Kernel, dispatch};
use super::super::share::NUMBERS_EACH;
use super::super::vector::ROUND;
use super::pack::{GROUP, SCALE_WORDS};
use super::{AHEAD, BLOCK, PANEL, PackedMatrix, Target, Tiles, WeightFormat};

/// Rows that share what is loaded of a panel, where there are registers for their integers, and whose
/// activations lie side by side.
const TILE_ROWS: usize = 8;
/// Words of one row's block of activations: four signed bytes in each.
const ROW_WORDS: usize = BLOCK / GROUP;
/// Words of a line of the cache.
const WORDS_OF_LINE: usize = CACHE_LINE / size_of::<u32>();

/// Words of one row's block: its bytes, the bits of what they count in, and what comes off each sum
/// of products with them because stored weights are not negative.
const X_WORDS: usize = ROW_WORDS + 2;
const SCALE: usize = ROW_WORDS;
const OFFSET: usize = ROW_WORDS + 1;

/// Activations in blocks of 32 bytes.
pub(super) struct Quantised {
    /// Tiles `[blocks, TILE_ROWS, X_WORDS]`, the last of as many rows as are left: what a tile reads is
    /// one stream.
    words: Buffer,
    /// Blocks of a row.
    len: usize,
}

impl Quantised {
    /// Quantises `x [rows, k]` for weights of a format: the largest of a block becomes 127. A block whose
    /// largest is so small (below 2^-121) that 127 cannot be divided by it becomes 0.
    pub(super) fn new(path: CpuPath, x: &[f32], k: usize, format: WeightFormat) -> Self {
        let zero = if format == WeightFormat::Int4 { Nibbles::ZERO } else { Bytes::ZERO };
        let (rows, len) = (x.len() / k, k.div_ceil(BLOCK));
        let mut words = Buffer::new(rows * len * X_WORDS);
        let tiles = words.words_mut().par_chunks_mut(TILE_ROWS * len * X_WORDS);
        let tiles = tiles.zip(x.par_chunks(TILE_ROWS * k));
        tiles.with_min_len(NUMBERS_EACH.div_ceil(TILE_ROWS * k)).for_each(|(words, x)| {
            let rows = x.len() / k;
            let each = len.div_ceil((x.len() / NUMBERS_EACH).max(1));
            words.par_chunks_mut(each * rows * X_WORDS).enumerate().for_each(|(i, words)| {
                dispatch(path, Quantise { words, x, k, first: i * each, zero });
            });
        });
        Self { words, len }
    }
}

/// Some blocks of a tile's rows.
struct Quantise<'a> {
    /// `[blocks, rows, X_WORDS]`, from block `first` on.
    words: &'a mut [u32],
    /// `[rows, k]`
    x: &'a [f32],
    k: usize,
    first: usize,
    zero: i32,
}

impl Kernel for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let rows = self.x.len() / self.k;
        for (row, x) in self.x.chunks(self.k).enumerate() {
            let blocks = x.chunks(BLOCK).skip(self.first);
            let words = self.words.as_chunks_mut::<X_WORDS>().0.iter_mut();
            for (words, x) in words.skip(row).step_by(rows).zip(blocks) {
                quantise(x, self.zero, words);
            }
        }
    }
}

/// At most a block.
#[inline(always)]
fn quantise(x: &[f32], zero: i32, words: &mut [u32; X_WORDS]) {
    let mut values = [0f32; BLOCK];
    match x.first_chunk() {
        Some(whole) => values = *whole,
        None => values[..x.len()].copy_from_slice(x),
    }
    // Magnitudes are ordered as their bits are, NaN last.
    let mut largest = 0;
    for value in values {
        largest = value.abs().to_bits().max(largest);
    }
    let largest = f32::from_bits(largest);
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let mut bytes = [0i8; BLOCK];
    let mut sum = 0;
    for (byte, value) in bytes.iter_mut().zip(values) {
        // The lowest byte of what is rounded so is the integer, ties to even.
        *byte = (value * inverse + ROUND).to_bits() as i8;
        sum += i32::from(*byte);
    }
    for (word, four) in words.iter_mut().zip(bytes.as_chunks::<GROUP>().0) {
        *word = u32::from_le_bytes([four[0] as u8, four[1] as u8, four[2] as u8, four[3] as u8]);
    }
    // NaN for NaN and infinity, which have no place among bytes.
    words[SCALE] = (largest / 127.0 + 0.0 * largest).to_bits();
    words[OFFSET] = (-zero * sum).cast_unsigned();
}

/// A matrix and rows to multiply it with.
#[derive(Clone, Copy)]
pub(super) struct ByteTiles<'a> {
    /// `[panels, blocks]` of words and scales.
    weights: &'a [u32],
    /// As in [`Quantised`].
    x: &'a [[u32; X_WORDS]],
    len: usize,
    is_nibbles: bool,
}

impl<'a> ByteTiles<'a> {
    pub(super) fn new(matrix: &'a PackedMatrix, x: &'a Quantised) -> Self {
        let is_nibbles = matrix.format() == WeightFormat::Int4;
        let x_blocks = x.words.words().as_chunks().0;
        Self { weights: matrix.words(), x: x_blocks, len: x.len, is_nibbles }
    }
}

impl Tiles for ByteTiles<'_> {
    const TILE_ROWS: usize = TILE_ROWS;

    fn rows(&self) -> usize {
        self.x.len() / self.len
    }

    fn with_rows(self, from: usize, to: usize) -> Self {
        assert!(from.is_multiple_of(TILE_ROWS), "rows of a tile lie side by side");
        Self { x: &self.x[from * self.len..to * self.len], ..self }
    }

    #[inline(always)]
    fn panels<I: Isa>(self, isa: I, panels: Range<usize>, target: &mut Target<'_>) {
        for panel in panels {
            self.panel(isa, panel, target);
        }
    }
}

impl ByteTiles<'_> {
    #[inline(always)]
    fn panel<I: Isa>(self, isa: I, panel: usize, target: &mut Target<'_>) {
        if self.is_nibbles {
            panel_of::<I, Nibbles>(isa, self, panel, target);
        } else {
            panel_of::<I, Bytes>(isa, self, panel, target);
        }
    }
}

/// How weights lie in a block.
trait Layout {
    /// Groups of four weights in one word of each output.
    const GROUPS: usize;
    /// Words of an output in a block.
    const STEPS: usize = ROW_WORDS / Self::GROUPS;

    /// The groups of a word, as bytes.
    fn groups<I: Isa>(isa: I, words: I::W) -> [I::W; 2];
}

/// `weight + 128` in a byte.
struct Bytes;

impl Bytes {
    /// Subtracted from a stored weight to get its value.
    const ZERO: i32 = 128;
}

impl Layout for Bytes {
    const GROUPS: usize = 1;

    #[inline(always)]
    fn groups<I: Isa>(_: I, words: I::W) -> [I::W; 2] {
        [words; 2]
    }
}

/// `weight + 8` in half a byte: one group in the lower halves of a word, the next in the upper.
struct Nibbles;

impl Nibbles {
    /// Subtracted from a stored weight to get its value.
    const ZERO: i32 = 8;
}

impl Layout for Nibbles {
    const GROUPS: usize = 2;

    #[inline(always)]
    fn groups<I: Isa>(isa: I, words: I::W) -> [I::W; 2] {
        [isa.low_nibbles(words), isa.high_nibbles(words)]
    }
}

/// Blocks that the tiles of several rows go through in turn: they stay in the nearest cache.
const CHUNK: usize = 8;
/// Rows whose sums are kept meanwhile: whole tiles.
const ROWS_TOGETHER: usize = 6 * TILE_ROWS;

/// Words of a block: its steps, of two lines each, and a line of scales.
const fn stride<L: Layout>() -> usize {
    L::STEPS * PANEL + SCALE_WORDS
}

#[inline(always)]
fn panel_of<I: Isa, L: Layout>(
    isa: I,
    tiles: ByteTiles<'_>,
    panel: usize,
    target: &mut Target<'_>,
) {
    let stride = stride::<L>();
    let weights = &tiles.weights[panel * tiles.len * stride..][..tiles.len * stride];
    let (first, rows) = (panel * PANEL, tiles.rows());
    if tile_rows::<I>(0, rows) == rows {
        let mut sums = [0f32; TILE_ROWS * PANEL];
        blocks::<I, L>(isa, tiles, (0, weights, true), &mut sums);
        target.put_rows(isa, &sums, (0, rows, first));
        return;
    }
    for row in (0..rows).step_by(ROWS_TOGETHER) {
        let together = (rows - row).min(ROWS_TOGETHER);
        let some = tiles.with_rows(row, row + together);
        let mut sums = [0f32; ROWS_TOGETHER * PANEL];
        for block in (0..tiles.len).step_by(CHUNK) {
            let chunk = &weights[block * stride..(block + CHUNK).min(tiles.len) * stride];
            // The memory is asked for what comes next by the first rows only.
            blocks::<I, L>(isa, some, (block, chunk, row == 0), &mut sums);
        }
        target.put_rows(isa, &sums, (row, together, first));
    }
}

/// Adds some blocks to the sums `[rows, PANEL]` of all rows. `weights` are those from `first` on; `asks`:
/// whether the memory is asked for what is read next, which lies behind them.
#[inline(always)]
fn blocks<I: Isa, L: Layout>(
    isa: I,
    tiles: ByteTiles<'_>,
    (first, weights, asks): (usize, &[u32], bool),
    sums: &mut [f32],
) {
    let rows = tiles.rows();
    let mut lane = 0;
    while lane < PANEL {
        let mut row = 0;
        while row < rows {
            let together = tile_rows::<I>(row, rows);
            // Every tile asks for its share, so that the memory has something to do nearly all the time.
            let share = [row, row + together].map(|row| (L::STEPS + 1) * row / rows);
            let asking = if asks && lane == 0 { share[0]..share[1] } else { 0..0 };
            let part = Part { first, weights, asking, row, lane };
            match together {
                8 => tile::<I, L, 8>(isa, tiles, part, sums),
                7 => tile::<I, L, 7>(isa, tiles, part, sums),
                6 => tile::<I, L, 6>(isa, tiles, part, sums),
                5 => tile::<I, L, 5>(isa, tiles, part, sums),
                4 => tile::<I, L, 4>(isa, tiles, part, sums),
                3 => tile::<I, L, 3>(isa, tiles, part, sums),
                2 => tile::<I, L, 2>(isa, tiles, part, sums),
                1 => tile::<I, L, 1>(isa, tiles, part, sums),
                _ => unreachable!("more than TILE_ROWS"),
            }
            row += together;
        }
        lane += 2 * I::LANES;
    }
}

/// Rows of the next tile: of those that lie side by side as many as leave registers for what is loaded,
/// 16 of 32 with wide vectors and 6 of 16 with others.
#[inline(always)]
fn tile_rows<I: Isa>(row: usize, rows: usize) -> usize {
    let left = (rows - row).min(TILE_ROWS - row % TILE_ROWS);
    if I::LANES >= 16 { left } else { left.min(3) }
}

/// Some blocks of a panel, two vectors of its outputs, and the first of some rows.
struct Part<'a> {
    first: usize,
    weights: &'a [u32],
    /// Steps of every block at which the memory is asked for what lies [`AHEAD`]; step `STEPS` are the scales.
    asking: Range<usize>,
    row: usize,
    lane: usize,
}

/// `R` rows times two vectors of a panel's outputs.
#[inline(always)]
fn tile<I: Isa, L: Layout, const R: usize>(
    isa: I,
    tiles: ByteTiles<'_>,
    Part { first, weights, asking, row, lane }: Part<'_>,
    to: &mut [f32],
) {
    let words = stride::<L>() - SCALE_WORDS;
    let count = weights.len() / stride::<L>();
    let (tile_first, in_tile) = (row / TILE_ROWS * TILE_ROWS, row % TILE_ROWS);
    let aside = (tiles.rows() - tile_first).min(TILE_ROWS);
    let x = &tiles.x[tile_first * tiles.len + first * aside..][..count * aside];
    let mut sums = [[isa.zero(); 2]; R];
    for r in 0..R {
        let to = &to[(row + r) * PANEL + lane..];
        sums[r] = [isa.load(to), isa.load(&to[I::LANES..])];
    }
    for block in 0..count {
        let x = &x[block * aside + in_tile..][..R];
        let weights = &weights[block * stride::<L>()..][..stride::<L>()];
        let mut dots = [[isa.splat_word(0); 2]; R];
        for r in 0..R {
            dots[r] = [isa.splat_word(x[r][OFFSET].cast_signed()); 2];
        }
        for step in 0..L::STEPS {
            let at = &weights[step * PANEL + lane..];
            // Line by line as they are read: of many at once the memory keeps the last ones waiting.
            if asking.contains(&step) {
                isa.prefetch_once(at, AHEAD);
                isa.prefetch_once(at, AHEAD + WORDS_OF_LINE);
            }
            let w = [
                L::groups(isa, isa.load_words(at)),
                L::groups(isa, isa.load_words(&at[I::LANES..])),
            ];
            for group in 0..L::GROUPS {
                for r in 0..R {
                    let x = x[r][step * L::GROUPS + group];
                    dots[r][0] = isa.dot_bytes(dots[r][0], w[0][group], x);
                    dots[r][1] = isa.dot_bytes(dots[r][1], w[1][group], x);
                }
            }
        }
        if asking.contains(&L::STEPS) {
            isa.prefetch_once(&weights[words..], AHEAD);
        }
        let scales: &[f16] = bytemuck::cast_slice(&weights[words..]);
        let scales = [isa.load_f16(&scales[lane..]), isa.load_f16(&scales[lane + I::LANES..])];
        for r in 0..R {
            let of_row = isa.splat(f32::from_bits(x[r][SCALE]));
            for half in 0..2 {
                let scale = isa.mul(scales[half], of_row);
                sums[r][half] = isa.madd(isa.to_f32(dots[r][half]), scale, sums[r][half]);
            }
        }
    }
    for r in 0..R {
        let to = &mut to[(row + r) * PANEL + lane..][..2 * I::LANES];
        isa.store(sums[r][0], to);
        isa.store(sums[r][1], &mut to[I::LANES..]);
    }
}
