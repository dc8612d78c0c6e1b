//! From a matrix `[outs, k]` to panels.

use burn::tensor::Tensor;
use bytes::Bytes;
use half::{bf16, f16};
use rayon::prelude::*;

use super::super::vector::{ROUND, Stored};
use super::{BLOCK, PANEL, WeightFormat, rounded};
use crate::mapping::WordMemory;

/// Weights of one output in a word of bytes.
pub(super) const GROUP: usize = 4;
/// Words of a block's scales, two f16 in each.
pub(super) const SCALE_WORDS: usize = PANEL / 2;

/// A weight `[outs, k]` in the layout the CPU's kernels read: panels of 32 outputs, of 32-bit words.
#[derive(Debug)]
pub struct PackedMatrix {
    pub(super) format: WeightFormat,
    pub(super) outs: usize,
    pub(super) k: usize,
    words: Words,
}

#[derive(Debug)]
enum Words {
    Packed(WordMemory),
    /// Of a file; aligned.
    Mapped(Bytes),
}

impl PackedMatrix {
    /// Packs `weight [outs, k]`.
    #[must_use]
    pub fn pack(weight: Tensor<2>, format: WeightFormat) -> Self {
        let shape = weight.dims();
        let data = weight.into_data();
        if let Ok(values) = data.as_slice::<bf16>() {
            return Self::of_values(values, shape, format);
        }
        if let Ok(values) = data.as_slice::<f16>() {
            return Self::of_values(values, shape, format);
        }
        match data.as_slice::<f32>() {
            Ok(values) => Self::of_values(values, shape, format),
            Err(_) => Self::of_values(&data.iter::<f32>().collect::<Vec<_>>(), shape, format),
        }
    }

    fn of_values<T: Stored>(values: &[T], [outs, k]: [usize; 2], format: WeightFormat) -> Self {
        Self::new(format, (outs, k), |row, to| {
            to.iter_mut().zip(&values[row * k..]).for_each(|(to, v)| *to = v.widen());
        })
    }

    /// What [`PackedMatrix::as_bytes`] gave for a weight `[outs, k]`; `None` if there are fewer or
    /// more bytes than that takes.
    #[must_use]
    pub fn from_bytes(bytes: Bytes, format: WeightFormat, [outs, k]: [usize; 2]) -> Option<Self> {
        let [panels, words] = Self::words_of(format, [outs, k]);
        if bytes.len() != panels * words * size_of::<u32>() {
            return None;
        }
        let words = match bytemuck::try_cast_slice::<u8, u32>(&bytes) {
            Ok(_) => Words::Mapped(bytes),
            Err(_) => {
                let mut words = WordMemory::zeros(bytes.len() / size_of::<u32>());
                bytemuck::cast_slice_mut(&mut words).copy_from_slice(&bytes);
                Words::Packed(words)
            }
        };
        Some(Self { format, outs, k, words })
    }

    /// The packed weight, to be written to a file.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self.words())
    }

    /// Panels of a weight `[outs, k]`, and words of each.
    #[must_use]
    pub fn words_of(format: WeightFormat, [outs, k]: [usize; 2]) -> [usize; 2] {
        [outs.div_ceil(PANEL), panel_words(format, k)]
    }

    /// Packs `[outs, k]`, given by what reads the weights of one output.
    pub(super) fn new(
        format: WeightFormat,
        (outs, k): (usize, usize),
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let mut words = WordMemory::zeros(outs.div_ceil(PANEL) * panel_words(format, k));
        words.par_chunks_mut(panel_words(format, k)).enumerate().for_each(|(panel, words)| {
            let mut values = vec![0f32; k.next_multiple_of(BLOCK)];
            for lane in 0..PANEL.min(outs - panel * PANEL) {
                row(panel * PANEL + lane, &mut values[..k]);
                match format {
                    WeightFormat::F32 => {
                        pack_dense(&values[..k], lane, bytemuck::cast_slice_mut(words), |v| v)
                    }
                    WeightFormat::F16 => {
                        let words: &mut [f16] = bytemuck::cast_slice_mut(words);
                        pack_dense(&values[..k], lane, words, f16::from_f32);
                    }
                    WeightFormat::Bf16 => pack_pairs(&values, lane, words),
                    WeightFormat::Int8 => pack_bytes(&values, lane, words),
                    WeightFormat::Int4 => pack_nibbles(&values, lane, words),
                }
            }
        });
        Self { format, outs, k, words: Words::Packed(words) }
    }

    pub(super) fn outs(&self) -> usize {
        self.outs
    }

    pub(super) fn k(&self) -> usize {
        self.k
    }

    pub(super) fn words(&self) -> &[u32] {
        match &self.words {
            Words::Packed(words) => words,
            Words::Mapped(bytes) => bytemuck::cast_slice(bytes),
        }
    }
}

/// Words of a panel over the whole of `k`.
fn panel_words(format: WeightFormat, k: usize) -> usize {
    let blocks = k.div_ceil(BLOCK);
    match format {
        WeightFormat::F32 => k * PANEL,
        WeightFormat::F16 => k * PANEL / 2,
        WeightFormat::Bf16 => k.div_ceil(2) * PANEL,
        WeightFormat::Int8 => blocks * (BLOCK / GROUP * PANEL + SCALE_WORDS),
        WeightFormat::Int4 => blocks * (BLOCK / GROUP / 2 * PANEL + SCALE_WORDS),
    }
}

/// `[k, PANEL]`
fn pack_dense<T>(values: &[f32], lane: usize, to: &mut [T], convert: impl Fn(f32) -> T) {
    for (to, &value) in to.iter_mut().skip(lane).step_by(PANEL).zip(values) {
        *to = convert(value);
    }
}

/// `[pairs, PANEL]`
fn pack_pairs(values: &[f32], lane: usize, words: &mut [u32]) {
    let words = words.iter_mut().skip(lane).step_by(PANEL);
    for (word, pair) in words.zip(values.as_chunks::<2>().0) {
        *word = rounded(pair[0]) | rounded(pair[1]) << 16;
    }
}

/// `[blocks]` of `[BLOCK / GROUP, PANEL]` and scales: the largest weight of a block becomes 127.
fn pack_bytes(values: &[f32], lane: usize, words: &mut [u32]) {
    let words = words.chunks_mut(BLOCK / GROUP * PANEL + SCALE_WORDS);
    for (words, values) in words.zip(values.chunks(BLOCK)) {
        let (words, scales) = words.split_at_mut(BLOCK / GROUP * PANEL);
        let largest = values.iter().fold(0f32, |most, v| most.max(v.abs()));
        let scale = put_scale(scales, lane, largest / 127.0, values);
        let stored = |v: f32| (quotient(v, scale).clamp(-127.0, 127.0) + 128.0) as u32;
        for (word, four) in words.chunks_mut(PANEL).zip(values.as_chunks::<GROUP>().0) {
            word[lane] = (0..GROUP).fold(0, |bits, i| bits | stored(four[i]) << (8 * i));
        }
    }
}

/// The same with two groups in a word: the weight furthest from 0 becomes -8 (llama.cpp's `Q4_0`).
fn pack_nibbles(values: &[f32], lane: usize, words: &mut [u32]) {
    let words = words.chunks_mut(BLOCK / GROUP / 2 * PANEL + SCALE_WORDS);
    for (words, values) in words.zip(values.chunks(BLOCK)) {
        let (words, scales) = words.split_at_mut(BLOCK / GROUP / 2 * PANEL);
        let furthest =
            values.iter().fold(0f32, |most, &v| if v.abs() > most.abs() { v } else { most });
        let scale = put_scale(scales, lane, furthest / -8.0, values);
        let stored = |v: f32| (quotient(v, scale).clamp(-8.0, 7.0) + 8.0) as u32;
        for (word, eight) in words.chunks_mut(PANEL).zip(values.as_chunks::<{ 2 * GROUP }>().0) {
            let bits = |i: usize| stored(eight[i]) | stored(eight[GROUP + i]) << 4;
            word[lane] = (0..GROUP).fold(0, |all, i| all | bits(i) << (8 * i));
        }
    }
}

/// `value / scale` to the nearest integer, ties to even; 0 for a scale of 0. Without a call where the
/// target has no instruction that rounds.
fn quotient(value: f32, scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { value / scale + ROUND - ROUND }
}

/// Rounds a scale to f16 and stores it; NaN for weights that are no numbers, so that what is
/// computed with them is none either.
fn put_scale(scales: &mut [u32], lane: usize, scale: f32, values: &[f32]) -> f32 {
    let is_finite = values.iter().all(|v| v.is_finite());
    let scale = f16::from_f32(if is_finite { scale } else { f32::NAN });
    let scales: &mut [f16] = bytemuck::cast_slice_mut(scales);
    scales[lane] = scale;
    scale.to_f32()
}
