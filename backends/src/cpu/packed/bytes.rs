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
/// Words of a cache line.
const WORDS_OF_LINE: usize = 16;

/// Words of one row's block: its bytes, the bits of what they count in, and what comes off each sum
/// of products with them because stored weights are not negative.
const X_WORDS: usize = ROW_WORDS + 2;
const SCALE: usize = ROW_WORDS;
const OFFSET: usize = ROW_WORDS + 1;

/// Activations in blocks of 32 bytes.
pub(super) struct Quantised {
    /// `[rows, blocks, X_WORDS]`
    words: Buffer,
    /// Blocks of a row.
    len: usize,
}

impl Quantised {
    /// Quantises `x [rows, k]` for weights of a format: the largest of a block becomes 127.
    pub(super) fn new(path: CpuPath, x: &[f32], k: usize, format: WeightFormat) -> Self {
        let zero = if format == WeightFormat::Int4 { Nibbles::ZERO } else { Bytes::ZERO };
        let (rows, len) = (x.len() / k, k.div_ceil(BLOCK));
        let mut words = Buffer::new(rows * len * X_WORDS);
        words
            .words_mut()
            .par_chunks_mut(len * X_WORDS)
            .zip(x.par_chunks(k))
            .with_min_len(16)
            .for_each(|(words, x)| dispatch(path, Quantise { words, x, zero }));
        Self { words, len }
    }
}

struct Quantise<'a> {
    words: &'a mut [u32],
    x: &'a [f32],
    zero: i32,
}

impl Kernel for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        for (words, x) in
            self.words.as_chunks_mut::<X_WORDS>().0.iter_mut().zip(self.x.chunks(BLOCK))
        {
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
            for (word, four) in words.iter_mut().zip(bytes.as_chunks::<GROUP>().0) {
                *word = u32::from_le_bytes(four.map(|byte| byte as u8));
            }
            words[SCALE] = (largest / 127.0 + invalid).to_bits();
            words[OFFSET] = (-self.zero * sum).cast_unsigned();
        }
    }
}

/// A matrix and rows to multiply it with.
#[derive(Clone, Copy)]
pub(super) struct ByteTiles<'a> {
    /// `[panels, blocks]` of words and scales.
    weights: &'a [u32],
    /// `[rows, blocks]`
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
    fn rows(&self) -> usize {
        self.x.len() / self.len
    }

    fn with_rows(self, from: usize, to: usize) -> Self {
        Self { x: &self.x[from * self.len..to * self.len], ..self }
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

/// What is left of [`Nibbles`] once they are spread to bytes.
struct Spread;

impl Layout for Spread {
    const GROUPS: usize = 1;

    #[inline(always)]
    fn groups<I: Isa>(_: I, words: I::W) -> [I::W; 2] {
        [words; 2]
    }
}

/// Words of a block whose weights are bytes.
const BYTES_BLOCK: usize = ROW_WORDS * PANEL + SCALE_WORDS;
/// Blocks that the tiles of several rows go through in turn: they stay in the nearest cache.
const CHUNK: usize = 8;
/// Rows whose sums are kept meanwhile.
const ROWS_TOGETHER: usize = 48;

#[inline(always)]
fn panel_of<I: Isa, L: Layout>(
    isa: I,
    tiles: ByteTiles<'_>,
    panel: usize,
    target: &mut Target<'_>,
) {
    let stride = ROW_WORDS / L::GROUPS * PANEL + SCALE_WORDS;
    let weights = &tiles.weights[panel * tiles.len * stride..][..tiles.len * stride];
    let (first, rows) = (panel * PANEL, tiles.rows());
    if tile_rows::<I>(rows) == rows {
        let mut sums = [0f32; TILE_ROWS * PANEL];
        blocks::<I, L>(isa, tiles, (0, weights, &[]), &mut sums);
        put(isa, &sums, (0, rows, first), target);
        return;
    }
    let mut bytes = [0u32; CHUNK * BYTES_BLOCK];
    let mut row = 0;
    while row < rows {
        let together = (rows - row).min(ROWS_TOGETHER);
        let group = tiles.with_rows(row, row + together);
        let mut sums = [0f32; ROWS_TOGETHER * PANEL];
        let mut block = 0;
        while block < tiles.len {
            let count = (tiles.len - block).min(CHUNK);
            let packed = &weights[block * stride..(block + count) * stride];
            // The memory is asked for what comes next by the first rows only.
            let upcoming = if row == 0 { packed } else { &[] };
            if L::GROUPS == 1 {
                blocks::<I, L>(isa, group, (block, packed, upcoming), &mut sums);
            } else {
                spread_bytes::<I, L>(isa, packed, &mut bytes);
                let bytes = &bytes[..count * BYTES_BLOCK];
                blocks::<I, Spread>(isa, group, (block, bytes, upcoming), &mut sums);
            }
            block += count;
        }
        put(isa, &sums, (row, together, first), target);
        row += together;
    }
}

/// Spreads blocks of nibbles to blocks of bytes; their scales are copied.
#[inline(always)]
fn spread_bytes<I: Isa, L: Layout>(isa: I, packed: &[u32], bytes: &mut [u32]) {
    let words = ROW_WORDS / L::GROUPS * PANEL;
    let packed = packed.chunks_exact(words + SCALE_WORDS);
    for (from, to) in packed.zip(bytes.chunks_exact_mut(BYTES_BLOCK)) {
        for word in 0..ROW_WORDS / L::GROUPS {
            let mut lane = 0;
            while lane < PANEL {
                let groups = L::groups(isa, isa.load_words(&from[word * PANEL + lane..]));
                for (group, bytes) in groups.into_iter().enumerate().take(L::GROUPS) {
                    let at = (word * L::GROUPS + group) * PANEL + lane;
                    isa.store_words(bytes, &mut to[at..]);
                }
                lane += I::LANES;
            }
        }
        to[ROW_WORDS * PANEL..].copy_from_slice(&from[words..]);
    }
}

/// Writes the sums of some rows.
#[inline(always)]
fn put<I: Isa>(
    isa: I,
    sums: &[f32],
    (row, rows, first): (usize, usize, usize),
    target: &mut Target<'_>,
) {
    for r in 0..rows {
        let mut lane = 0;
        while lane < PANEL {
            let value = isa.load(&sums[r * PANEL + lane..]);
            target.put(isa, row + r, first + lane, value);
            lane += I::LANES;
        }
    }
}

/// Adds some blocks to the sums `[rows, PANEL]` of all rows. `weights` are those from `first` on;
/// behind `upcoming` lies what is read next, if the memory is to be asked for it.
#[inline(always)]
fn blocks<I: Isa, L: Layout>(
    isa: I,
    tiles: ByteTiles<'_>,
    (first, weights, upcoming): (usize, &[u32], &[u32]),
    sums: &mut [f32],
) {
    let rows = tiles.rows();
    let mut lane = 0;
    while lane < PANEL {
        let mut row = 0;
        while row < rows {
            let upcoming = if row == 0 && lane == 0 { upcoming } else { &[] };
            let part = Part { first, weights, upcoming, row, lane };
            let together = tile_rows::<I>(rows - row);
            match together {
                TILE_ROWS => tile::<I, L, TILE_ROWS>(isa, tiles, part, sums),
                4 => tile::<I, L, 4>(isa, tiles, part, sums),
                3 => tile::<I, L, 3>(isa, tiles, part, sums),
                2 => tile::<I, L, 2>(isa, tiles, part, sums),
                _ => tile::<I, L, 1>(isa, tiles, part, sums),
            }
            row += together;
        }
        lane += 2 * I::LANES;
    }
}

/// How many of these rows the next tile takes: rather twice four than six and two, of which the latter
/// would load as much for fewer.
#[inline(always)]
fn tile_rows<I: Isa>(rows: usize) -> usize {
    match rows {
        4 | 7 | 8 if I::LANES >= 16 => 4,
        TILE_ROWS.. if I::LANES >= 16 => TILE_ROWS,
        _ => rows.min(3),
    }
}

/// Some blocks of a panel, two vectors of its outputs, and the first of some rows.
#[derive(Clone, Copy)]
struct Part<'a> {
    first: usize,
    weights: &'a [u32],
    upcoming: &'a [u32],
    row: usize,
    lane: usize,
}

/// `R` rows times two vectors of a panel's outputs.
#[inline(always)]
fn tile<I: Isa, L: Layout, const R: usize>(
    isa: I,
    tiles: ByteTiles<'_>,
    Part { first, weights, upcoming, row, lane }: Part<'_>,
    to: &mut [f32],
) {
    let words = ROW_WORDS / L::GROUPS * PANEL;
    let count = weights.len() / (words + SCALE_WORDS);
    let mut x: [&[[u32; X_WORDS]]; R] = [&[]; R];
    let mut sums = [[isa.zero(); 2]; R];
    for r in 0..R {
        let from = (row + r) * tiles.len + first;
        x[r] = &tiles.x[from..][..count];
        let to = &to[(row + r) * PANEL + lane..];
        sums[r] = [isa.load(to), isa.load(&to[I::LANES..])];
    }
    // One row waits for the memory; more have enough to do meanwhile.
    let is_only_row = R == 1 && tiles.rows() == 1;
    let upcoming_words = upcoming.len() / count;
    for block in 0..count {
        let mut word = 0;
        while word < upcoming_words {
            isa.prefetch_once(&upcoming[block * upcoming_words + word..], AHEAD);
            word += WORDS_OF_LINE;
        }
        let weights = &weights[block * (words + SCALE_WORDS)..][..words + SCALE_WORDS];
        let mut dots = [[isa.splat_word(0); 2]; R];
        for r in 0..R {
            dots[r] = [isa.splat_word(x[r][block][OFFSET].cast_signed()); 2];
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
                    let x = x[r][block][word * L::GROUPS + group];
                    dots[r][0] = isa.dot_bytes(dots[r][0], w[0][group], x);
                    dots[r][1] = isa.dot_bytes(dots[r][1], w[1][group], x);
                }
            }
        }
        let scales: &[f16] = bytemuck::cast_slice(&weights[words..]);
        let scales = [isa.load_f16(&scales[lane..]), isa.load_f16(&scales[lane + I::LANES..])];
        for r in 0..R {
            let of_row = isa.splat(f32::from_bits(x[r][block][SCALE]));
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
