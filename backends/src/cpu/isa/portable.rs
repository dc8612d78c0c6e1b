//! What any CPU can do: eight lanes in plain Rust.

use half::{bf16, f16};

use super::Isa;

/// What any CPU can do: eight lanes in plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Isa for Portable {
    type V = [f32; 8];
    type W = [u32; 8];
    const LANES: usize = 8;
    const FMA: bool = false;

    #[inline(always)]
    fn zero(self) -> Self::V {
        [0.0; 8]
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> Self::V {
        let mut v = [0.0; 8];
        v.copy_from_slice(&from[..8]);
        v
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> Self::V {
        let mut v = [0.0; 8];
        for (v, x) in v.iter_mut().zip(&from[..8]) {
            *v = x.to_f32();
        }
        v
    }

    #[inline(always)]
    fn load_part(self, from: &[f32]) -> Self::V {
        let mut lanes = [0.0; Self::LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    #[inline(always)]
    fn load_bf16_part(self, from: &[bf16]) -> Self::V {
        let mut lanes = [bf16::ZERO; Self::LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load_bf16(&lanes)
    }

    #[inline(always)]
    fn madd(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let mut v = c;
        for lane in 0..8 {
            v[lane] = a[lane] * b[lane] + c[lane];
        }
        v
    }

    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        (v[0] + v[4] + (v[2] + v[6])) + (v[1] + v[5] + (v[3] + v[7]))
    }

    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, |most, x| if x > most { x } else { most })
    }

    #[inline(always)]
    fn interleave(self, a: Self::V, b: Self::V) -> (Self::V, Self::V) {
        (
            [a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3]],
            [a[4], b[4], a[5], b[5], a[6], b[6], a[7], b[7]],
        )
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; 8]
    }

    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32]) {
        for (to, x) in to.iter_mut().zip(v) {
            *to = x;
        }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> Self::V {
        std::array::from_fn(|lane| from[lane].to_f32())
    }

    #[inline(always)]
    fn load_words(self, from: &[u32]) -> Self::W {
        let mut w = [0; 8];
        w.copy_from_slice(&from[..8]);
        w
    }

    #[inline(always)]
    fn splat_word(self, word: i32) -> Self::W {
        [word as u32; 8]
    }

    #[inline(always)]
    fn widen_pairs(self, w: Self::W) -> [Self::V; 2] {
        [w.map(|w| f32::from_bits(w << 16)), w.map(|w| f32::from_bits(w & 0xffff_0000))]
    }

    #[inline(always)]
    fn dot_bytes(self, mut sums: Self::W, w: Self::W, x: u32) -> Self::W {
        let x = x.to_le_bytes();
        for lane in 0..8 {
            let w = w[lane].to_le_bytes();
            for i in 0..4 {
                let product = i32::from(w[i]) * i32::from(x[i] as i8);
                sums[lane] = sums[lane].wrapping_add(product as u32);
            }
        }
        sums
    }

    #[inline(always)]
    fn low_nibbles(self, w: Self::W) -> Self::W {
        w.map(|w| w & 0x0f0f_0f0f)
    }

    #[inline(always)]
    fn high_nibbles(self, w: Self::W) -> Self::W {
        w.map(|w| w >> 4 & 0x0f0f_0f0f)
    }

    #[inline(always)]
    fn to_f32(self, w: Self::W) -> Self::V {
        w.map(|w| w as i32 as f32)
    }
}
