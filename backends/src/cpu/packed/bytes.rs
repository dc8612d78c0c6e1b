//! Quantised weights: bytes or nibbles in blocks of 32 with a scale, multiplied as integers with
//! activations quantised alike.

use half::f16;
use rayon::prelude::*;

use super::super::buffers::Buffer;
use super::super::isa::{CpuPath, Isa, Kernel, dispatch};
use super::pack::{GROUP, SCALE_WORDS};
use super::{AHEAD, BLOCK, PANEL, PackedMatrix, Target, Tiles, WeightFormat};

/// Rows that share what is loaded of a panel, where there are registers for it.
const TILE_ROWS: usize = 6;
/// Words of one row's block of activations: four signed bytes in each.
const ROW_WORDS: usize = BLOCK / GROUP;

/// Activations in blocks of 32 bytes.
pub(super) struct Quantised {
    /// `[rows, blocks, ROW_WORDS]`
    words: Buffer,
    /// `[rows, blocks]`: what the bytes count in, and their sum.
    blocks: Vec<(f32, i32)>,
    /// Blocks of a row.
    len: usize,
}

impl Quantised {
    /// Quantises `x [rows, k]`: the largest of a block becomes 127.
    pub(super) fn new(path: CpuPath, x: &[f32], k: usize) -> Self {
        let (rows, len) = (x.len() / k, k.div_ceil(BLOCK));
        let mut words = Buffer::new(rows * len * ROW_WORDS);
        let mut blocks = vec![(0f32, 0i32); rows * len];
        words
            .words_mut()
            .par_chunks_mut(len * ROW_WORDS)
            .zip(blocks.par_chunks_mut(len))
            .zip(x.par_chunks(k))
            .with_min_len(16)
            .for_each(|((words, blocks), x)| dispatch(path, Quantise { words, blocks, x }));
        Self { words, blocks, len }
    }
}

struct Quantise<'a> {
    words: &'a mut [u32],
    blocks: &'a mut [(f32, i32)],
    x: &'a [f32],
}

impl Kernel for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        for (index, x) in self.x.chunks(BLOCK).enumerate() {
            let mut values = [0f32; BLOCK];
            values[..x.len()].copy_from_slice(x);
            let (mut largest, mut invalid) = (0f32, 0f32);
            for value in values {
                largest = if value.abs() > largest { value.abs() } else { largest };
                // NaN for NaN and infinity, which have no place among bytes.
                invalid += value * 0.0;
            }
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let mut bytes = [0i8; BLOCK];
            let mut sum = 0;
            for (byte, value) in bytes.iter_mut().zip(values) {
                *byte = (value * inverse).round_ties_even() as i8;
                sum += i32::from(*byte);
            }
            self.blocks[index] = (largest / 127.0 + invalid, sum);
            let words = &mut self.words[index * ROW_WORDS..(index + 1) * ROW_WORDS];
            for (word, four) in words.iter_mut().zip(bytes.as_chunks::<GROUP>().0) {
                *word = u32::from_le_bytes(four.map(|byte| byte as u8));
            }
        }
    }
}

/// A matrix and rows to multiply it with.
#[derive(Clone, Copy)]
pub(super) struct ByteTiles<'a> {
    /// `[panels, blocks]` of words and scales.
    weights: &'a [u32],
    x: &'a [u32],
    blocks: &'a [(f32, i32)],
    len: usize,
    is_nibbles: bool,
}

impl<'a> ByteTiles<'a> {
    pub(super) fn new(matrix: &'a PackedMatrix, x: &'a Quantised) -> Self {
        let is_nibbles = matrix.format() == WeightFormat::Int4;
        let weights = matrix.words();
        Self { weights, x: x.words.words(), blocks: &x.blocks, len: x.len, is_nibbles }
    }
}

impl Tiles for ByteTiles<'_> {
    fn rows(&self) -> usize {
        self.blocks.len() / self.len
    }

    fn with_rows(self, from: usize, to: usize) -> Self {
        let x = &self.x[from * self.len * ROW_WORDS..to * self.len * ROW_WORDS];
        Self { x, blocks: &self.blocks[from * self.len..to * self.len], ..self }
    }

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
    /// Subtracted from a stored weight to get its value.
    const ZERO: i32;

    /// The groups of a word, as bytes.
    fn groups<I: Isa>(isa: I, words: I::W) -> [I::W; 2];
}

/// `weight + 128` in a byte.
struct Bytes;

impl Layout for Bytes {
    const GROUPS: usize = 1;
    const ZERO: i32 = 128;

    #[inline(always)]
    fn groups<I: Isa>(_: I, words: I::W) -> [I::W; 2] {
        [words; 2]
    }
}

/// `weight + 8` in half a byte: one group in the lower halves of a word, the next in the upper.
struct Nibbles;

impl Layout for Nibbles {
    const GROUPS: usize = 2;
    const ZERO: i32 = 8;

    #[inline(always)]
    fn groups<I: Isa>(isa: I, words: I::W) -> [I::W; 2] {
        [isa.low_nibbles(words), isa.high_nibbles(words)]
    }
}

#[inline(always)]
fn panel_of<I: Isa, L: Layout>(
    isa: I,
    tiles: ByteTiles<'_>,
    panel: usize,
    target: &mut Target<'_>,
) {
    let words = tiles.len * (ROW_WORDS / L::GROUPS * PANEL + SCALE_WORDS);
    let weights = &tiles.weights[panel * words..(panel + 1) * words];
    let (first, rows) = (panel * PANEL, tiles.blocks.len() / tiles.len);
    let mut lane = 0;
    while lane < PANEL {
        let mut row = 0;
        while row < rows {
            let at = (row, first, lane);
            let together = tile_rows::<I>(rows - row);
            match together {
                TILE_ROWS => tile::<I, L, TILE_ROWS>(isa, tiles, weights, at, target),
                4 => tile::<I, L, 4>(isa, tiles, weights, at, target),
                3 => tile::<I, L, 3>(isa, tiles, weights, at, target),
                2 => tile::<I, L, 2>(isa, tiles, weights, at, target),
                _ => tile::<I, L, 1>(isa, tiles, weights, at, target),
            }
            row += together;
        }
        lane += 2 * I::LANES;
    }
}

/// How many of these rows the next tile takes: rather twice four than six and two, of which the latter
/// would unpack as much for fewer.
#[inline(always)]
fn tile_rows<I: Isa>(rows: usize) -> usize {
    match rows {
        4 | 7 | 8 if I::LANES >= 16 => 4,
        TILE_ROWS.. if I::LANES >= 16 => TILE_ROWS,
        _ => rows.min(3),
    }
}

/// `R` rows times two vectors of a panel's outputs.
#[inline(always)]
fn tile<I: Isa, L: Layout, const R: usize>(
    isa: I,
    tiles: ByteTiles<'_>,
    weights: &[u32],
    (row, first, lane): (usize, usize, usize),
    target: &mut Target<'_>,
) {
    let mut x: [&[u32]; R] = [&[]; R];
    let mut of_row: [&[(f32, i32)]; R] = [&[]; R];
    for r in 0..R {
        x[r] = &tiles.x[(row + r) * tiles.len * ROW_WORDS..][..tiles.len * ROW_WORDS];
        of_row[r] = &tiles.blocks[(row + r) * tiles.len..][..tiles.len];
    }
    let words = ROW_WORDS / L::GROUPS * PANEL;
    // One row waits for the memory; more have enough to do meanwhile.
    let is_only_row = R == 1 && tiles.len == tiles.blocks.len();
    let mut sums = [[isa.zero(); 2]; R];
    for block in 0..tiles.len {
        let weights = &weights[block * (words + SCALE_WORDS)..][..words + SCALE_WORDS];
        let mut dots = [[isa.splat_word(0); 2]; R];
        for r in 0..R {
            // Stored weights are not negative: what was added to them comes off here.
            dots[r] = [isa.splat_word(-L::ZERO * of_row[r][block].1); 2];
        }
        for word in 0..ROW_WORDS / L::GROUPS {
            let at = &weights[word * PANEL + lane..];
            if is_only_row {
                isa.prefetch_once(at, AHEAD);
                isa.prefetch_once(at, AHEAD + I::LANES);
            }
            let w = [
                L::groups(isa, isa.load_words(at)),
                L::groups(isa, isa.load_words(&at[I::LANES..])),
            ];
            for group in 0..L::GROUPS {
                for r in 0..R {
                    let x = x[r][block * ROW_WORDS + word * L::GROUPS + group];
                    dots[r][0] = isa.dot_bytes(dots[r][0], w[0][group], x);
                    dots[r][1] = isa.dot_bytes(dots[r][1], w[1][group], x);
                }
            }
        }
        let scales: &[f16] = bytemuck::cast_slice(&weights[words..]);
        let scales = [isa.load_f16(&scales[lane..]), isa.load_f16(&scales[lane + I::LANES..])];
        for r in 0..R {
            let of_row = isa.splat(of_row[r][block].0);
            for half in 0..2 {
                let scale = isa.mul(scales[half], of_row);
                sums[r][half] = isa.madd(isa.to_f32(dots[r][half]), scale, sums[r][half]);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        target.put(isa, row + r, first + lane, sums[0]);
        target.put(isa, row + r, first + lane + I::LANES, sums[1]);
    }
}
