//! Weights of every format as f32.

use cubecl::prelude::*;
use dfastllm_backends::ops::BlockFormat;

/// Weights that share a scale.
pub(super) const BLOCK: usize = 32;

/// How a weight lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Format {
    /// Floats, a vector of them at a time.
    Floats,
    /// Words, four of them at a time.
    Blocks(BlockFormat),
}

/// 2²³: added to an integer below it as bits, it makes a float of both.
const WHOLE: u32 = 0x4b00_0000;

/// Weight `i` of a word, its scale not applied. Free of conversions, which are slower than sums on
/// many GPUs; exact.
#[cube]
pub(super) fn stored(word: u32, #[comptime] i: usize, #[comptime] format: BlockFormat) -> f32 {
    let bits = comptime!(32 / format.per_word());
    let shift = comptime!((bits * i) as u32);
    let mask = comptime!((1u32 << bits) - 1);
    let zero = comptime!((8_388_608 + format.zero()) as f32);
    f32::reinterpret(((word >> shift) & mask) | WHOLE) - zero
}
