//! Quantised weights in the layout that devices other than the CPU read.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::cpu::BlockRows;
use crate::{PackedMatrix, WeightFormat, upload, upload_ints};

/// Weights that share a scale, along `in`.
const BLOCK: usize = 32;

/// How a quantised weight is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// `weight / scale + 128` in a byte, four in a word.
    Bytes,
    /// `weight / scale + 8` in half a byte, eight in a word.
    Nibbles,
}

impl BlockFormat {
    /// Weights in a word, neighbours along `in` from its lowest bits up.
    #[must_use]
    pub fn per_word(self) -> usize {
        match self {
            Self::Bytes => 4,
            Self::Nibbles => 8,
        }
    }

    /// What a weight of 0 is kept as.
    #[must_use]
    pub fn zero(self) -> u32 {
        match self {
            Self::Bytes => 128,
            Self::Nibbles => 8,
        }
    }
}

/// A quantised weight `[out, in]`: `in` in blocks of 32 with a scale each, the last filled up with
/// zeros. Quantised as on CPU ([`PackedMatrix`]): a block with what is no number has a scale of NaN.
#[derive(Debug, Clone)]
pub struct Blocks {
    /// How weights are kept.
    pub format: BlockFormat,
    /// `in`, the filling not counted.
    pub inputs: usize,
    /// `[out, words of a row]`, u32.
    pub words: Tensor<2, Int>,
    /// `[out, blocks of a row]`, in f16 where the device computes in it, else in f32.
    pub scales: Tensor<2>,
}

impl Blocks {
    /// The blocks of a quantised weight, on a device; `None` if it is not quantised.
    pub(super) fn new(matrix: &PackedMatrix, device: &Device) -> Option<Self> {
        let format = match matrix.format() {
            WeightFormat::Int8 => BlockFormat::Bytes,
            WeightFormat::Int4 => BlockFormat::Nibbles,
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Bf16 => return None,
        };
        let [outs, inputs] = matrix.dims();
        let BlockRows { words, scales } = matrix.block_rows()?;
        let blocks = inputs.div_ceil(BLOCK);
        let words = TensorData::new(words, [outs, blocks * BLOCK / format.per_word()]);
        let dtype = if device.supports_dtype(DType::F16) { DType::F16 } else { DType::F32 };
        let scales = TensorData::new(scales, [outs, blocks]).convert_dtype(dtype);
        Some(Self {
            format,
            inputs,
            words: upload_ints(words, device),
            scales: upload(scales, device),
        })
    }

    /// The weights `[out, in]` on the same device: the portable default, by way of the host.
    #[must_use]
    pub fn dequantised(&self, dtype: DType) -> Tensor<2> {
        let device = self.scales.device();
        let [outs, blocks] = self.scales.dims();
        let scales: Vec<f32> = self.scales.clone().into_data().iter::<f32>().collect();
        let words: Vec<u32> = self.words.clone().into_data().iter::<u32>().collect();
        let (per_word, zero) = (self.format.per_word(), self.format.zero());
        let bits = 32 / per_word;
        let weight = |index: usize| {
            let (out, i) = (index / self.inputs, index % self.inputs);
            let word = words[(out * blocks * BLOCK + i) / per_word];
            let stored = word >> (bits * (i % per_word)) & ((1 << bits) - 1);
            (stored as f32 - zero as f32) * scales[out * blocks + i / BLOCK]
        };
        let values: Vec<f32> = (0..outs * self.inputs).map(weight).collect();
        let data = TensorData::new(values, [outs, self.inputs]).convert_dtype(dtype);
        Tensor::from_data(data, (&device, dtype))
    }
}
