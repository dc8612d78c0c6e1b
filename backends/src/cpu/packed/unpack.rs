//! From panels back to rows, for devices that read them otherwise.

use half::{bf16, f16};
use rayon::prelude::*;

use super::pack::{GROUP, SCALE_WORDS};
use super::{BLOCK, PANEL, PackedMatrix, WeightFormat};

/// Quantised rows, each in blocks of 32 weights along `k`.
pub(crate) struct BlockRows {
    /// `[outs, blocks, 8]` for bytes, `[outs, blocks, 4]` for nibbles; neighbouring weights from the
    /// lowest bits of a word up.
    pub(crate) words: Vec<u32>,
    /// `[outs, blocks]`
    pub(crate) scales: Vec<f16>,
}

impl PackedMatrix {
    /// What it is kept as.
    #[must_use]
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// `[outs, k]`
    #[must_use]
    pub fn dims(&self) -> [usize; 2] {
        [self.outs, self.k]
    }

    /// The weights `[outs, k]` as its products see them.
    pub(crate) fn rows(&self) -> Vec<f32> {
        let mut rows = vec![0f32; self.outs * self.k];
        rows.par_chunks_mut(self.k).enumerate().for_each(|(out, row)| {
            let (panel, lane) = (self.panel(out), out % PANEL);
            for (i, to) in row.iter_mut().enumerate() {
                *to = self.format.weight(panel, lane, i);
            }
        });
        rows
    }

    /// The words and scales of every row, if it is quantised.
    pub(crate) fn block_rows(&self) -> Option<BlockRows> {
        let words_of_block = words_of_block(self.format)?;
        let blocks = self.k.div_ceil(BLOCK);
        let mut words = vec![0u32; self.outs * blocks * words_of_block];
        let mut scales = vec![f16::ZERO; self.outs * blocks];
        words
            .par_chunks_mut(blocks * words_of_block)
            .zip(scales.par_chunks_mut(blocks))
            .enumerate()
            .for_each(|(out, (words, scales))| {
                let lane = out % PANEL;
                let from = self.panel(out).chunks_exact(words_of_block * PANEL + SCALE_WORDS);
                let to = words.chunks_exact_mut(words_of_block).zip(scales);
                for (from, (words, scale)) in from.zip(to) {
                    let (packed, packed_scales) = from.split_at(words_of_block * PANEL);
                    *scale = bytemuck::cast_slice::<u32, f16>(packed_scales)[lane];
                    for (group, word) in words.iter_mut().enumerate() {
                        *word = in_order(self.format, packed[group * PANEL + lane]);
                    }
                }
            });
        Some(BlockRows { words, scales })
    }

    /// The panel of an output.
    fn panel(&self, out: usize) -> &[u32] {
        let [_, words] = Self::words_of(self.format, [self.outs, self.k]);
        &self.words()[out / PANEL * words..][..words]
    }
}

/// Words of one output's block of 32 weights.
fn words_of_block(format: WeightFormat) -> Option<usize> {
    match format {
        WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Bf16 => None,
        WeightFormat::Int8 => Some(BLOCK / GROUP),
        WeightFormat::Int4 => Some(BLOCK / GROUP / 2),
    }
}

/// A word's weights from the lowest bits up: nibbles are packed with the fifth beside the first.
fn in_order(format: WeightFormat, word: u32) -> u32 {
    if format != WeightFormat::Int4 {
        return word;
    }
    let nibble = |i: usize| word >> (8 * (i % GROUP) + 4 * (i / GROUP)) & 0xf;
    (0..2 * GROUP).fold(0, |all, i| all | nibble(i) << (4 * i))
}

impl WeightFormat {
    /// Weight `i` of one output of a panel.
    fn weight(self, panel: &[u32], lane: usize, i: usize) -> f32 {
        let quantised = |per_word: usize, zero: f32, bits: u32| {
            let words = BLOCK / per_word * PANEL;
            let block = &panel[i / BLOCK * (words + SCALE_WORDS)..][..words + SCALE_WORDS];
            let scale = bytemuck::cast_slice::<u32, f16>(&block[words..])[lane];
            let word = in_order(self, block[i % BLOCK / per_word * PANEL + lane]);
            let stored = word >> (bits as usize * (i % per_word)) & ((1 << bits) - 1);
            (stored as f32 - zero) * scale.to_f32()
        };
        match self {
            Self::F32 => f32::from_bits(panel[i * PANEL + lane]),
            Self::F16 => bytemuck::cast_slice::<u32, f16>(panel)[i * PANEL + lane].to_f32(),
            Self::Bf16 => {
                let word = panel[i / 2 * PANEL + lane];
                bf16::from_bits((word >> (16 * (i % 2))) as u16).to_f32()
            }
            Self::Int8 => quantised(GROUP, 128.0, 8),
            Self::Int4 => quantised(2 * GROUP, 8.0, 4),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, Tensor, TensorData};

    use super::super::super::testing::values;
    use super::*;

    fn pack(w: &[f32], shape: [usize; 2], format: WeightFormat) -> PackedMatrix {
        let data = TensorData::new(w.to_vec(), shape);
        PackedMatrix::pack(Tensor::from_data(data, (&Device::flex(), DType::F32)), format)
    }

    #[test]
    fn rows_come_back_as_they_were_rounded() {
        for (outs, k) in [(1, 1), (33, 31), (40, 64), (7, 97)] {
            let w = values(outs * k, 3);
            for (format, round) in [
                (WeightFormat::F32, (|v| v) as fn(f32) -> f32),
                (WeightFormat::F16, |v| f16::from_f32(v).to_f32()),
                (WeightFormat::Bf16, |v| bf16::from_f32(v).to_f32()),
            ] {
                let want: Vec<f32> = w.iter().map(|&v| round(v)).collect();
                assert_eq!(pack(&w, [outs, k], format).rows(), want, "{format:?} {outs}x{k}");
            }
        }
    }

    #[test]
    fn blocks_hold_the_same_weights_as_panels() {
        for (outs, k) in [(1, 1), (33, 31), (40, 64), (7, 97)] {
            let w = values(outs * k, 4);
            for (format, bits, zero, step) in
                [(WeightFormat::Int8, 8, 128.0, 1.0 / 127.0), (WeightFormat::Int4, 4, 8.0, 0.125)]
            {
                let packed = pack(&w, [outs, k], format);
                let rows = packed.rows();
                let BlockRows { words, scales } = packed.block_rows().unwrap();
                let (blocks, per_word) = (k.div_ceil(BLOCK), 32 / bits);
                for (i, (&got, &exact)) in rows.iter().zip(&w).enumerate() {
                    let (out, at) = (i / k, i % k);
                    let word = words[out * blocks * BLOCK / per_word + at / per_word];
                    let stored = word >> (bits * (at % per_word)) & ((1 << bits) - 1);
                    let scale = scales[out * blocks + at / BLOCK].to_f32();
                    assert_eq!(got, (stored as f32 - zero) * scale, "{format:?} {outs}x{k} {i}");
                    // Half a step, or a whole one at that end of nibbles which has no 8.
                    let far = (got - exact).abs();
                    assert!(far <= step * 1.01, "{format:?} {got} for {exact}");
                }
            }
        }
    }

    #[test]
    fn dense_weights_have_no_blocks() {
        assert!(pack(&[1.0], [1, 1], WeightFormat::Bf16).block_rows().is_none());
    }
}
