//! NEON, the vector instructions that every AArch64 CPU has.

use std::arch::aarch64::*;
use std::arch::asm;

use half::{bf16, f16};

use super::Isa;

const LANES: usize = 8;

/// NEON; with `DOT` also dot products of bytes (`dotprod`). A value is proof that the CPU has them.
/// A vector is two registers: there are twice as many as with AVX2, of half the length, so tiles
/// made for eight lanes fit.
#[derive(Clone, Copy)]
pub(crate) struct Neon<const DOT: bool>(pub(super) ());

// SAFETY of every block below: the receiver proves that the CPU has the instructions; loads are
// from slices whose length was just checked to cover all lanes.

impl<const DOT: bool> Isa for Neon<DOT> {
    type V = float32x4x2_t;
    type W = uint32x4x2_t;
    const LANES: usize = LANES;
    const FMA: bool = true;

    #[inline(always)]
    fn zero(self) -> float32x4x2_t {
        self.splat(0.0)
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> float32x4x2_t {
        let from = &from[..LANES];
        // SAFETY: see above; 8 values are readable.
        unsafe { from.as_ptr().cast::<float32x4x2_t>().read_unaligned() }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> float32x4x2_t {
        let from = &from[..LANES];
        // SAFETY: see above; 8 values of 16 bits are readable. bf16 is the upper half of f32.
        unsafe {
            let bits = from.as_ptr().cast::<uint16x8_t>().read_unaligned();
            float32x4x2_t(
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(bits))),
                vreinterpretq_f32_u32(vshll_high_n_u16::<16>(bits)),
            )
        }
    }

    #[inline(always)]
    fn load_part(self, from: &[f32]) -> float32x4x2_t {
        let mut lanes = [0.0; LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    #[inline(always)]
    fn load_bf16_part(self, from: &[bf16]) -> float32x4x2_t {
        let mut lanes = [bf16::ZERO; LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load_bf16(&lanes)
    }

    #[inline(always)]
    fn madd(self, a: float32x4x2_t, b: float32x4x2_t, c: float32x4x2_t) -> float32x4x2_t {
        // SAFETY: see above.
        unsafe { float32x4x2_t(vfmaq_f32(c.0, a.0, b.0), vfmaq_f32(c.1, a.1, b.1)) }
    }

    #[inline(always)]
    fn sum(self, v: float32x4x2_t) -> f32 {
        // SAFETY: see above.
        unsafe {
            let four = vaddq_f32(v.0, v.1);
            vaddv_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        }
    }

    #[inline(always)]
    fn largest(self, v: float32x4x2_t) -> f32 {
        // SAFETY: see above.
        unsafe { vmaxvq_f32(vmaxq_f32(v.0, v.1)) }
    }

    #[inline(always)]
    fn interleave(self, a: float32x4x2_t, b: float32x4x2_t) -> (float32x4x2_t, float32x4x2_t) {
        // SAFETY: see above.
        unsafe {
            (
                float32x4x2_t(vzip1q_f32(a.0, b.0), vzip2q_f32(a.0, b.0)),
                float32x4x2_t(vzip1q_f32(a.1, b.1), vzip2q_f32(a.1, b.1)),
            )
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4x2_t {
        // SAFETY: see above.
        let four = unsafe { vdupq_n_f32(x) };
        float32x4x2_t(four, four)
    }

    #[inline(always)]
    fn store(self, v: float32x4x2_t, to: &mut [f32]) {
        match to.first_chunk_mut::<LANES>() {
            // SAFETY: see above; 8 values are writable.
            Some(to) => unsafe { to.as_mut_ptr().cast::<float32x4x2_t>().write_unaligned(v) },
            None => {
                let mut lanes = [0.0; LANES];
                self.store(v, &mut lanes);
                let n = to.len();
                to.copy_from_slice(&lanes[..n]);
            }
        }
    }

    #[inline(always)]
    fn add(self, a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        // SAFETY: see above.
        unsafe { float32x4x2_t(vaddq_f32(a.0, b.0), vaddq_f32(a.1, b.1)) }
    }

    #[inline(always)]
    fn mul(self, a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        // SAFETY: see above.
        unsafe { float32x4x2_t(vmulq_f32(a.0, b.0), vmulq_f32(a.1, b.1)) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> float32x4x2_t {
        let from = &from[..LANES];
        // SAFETY: see above; 8 values of 16 bits are readable.
        unsafe {
            let values = from.as_ptr().cast::<float16x8_t>().read_unaligned();
            float32x4x2_t(vcvt_f32_f16(vget_low_f16(values)), vcvt_high_f32_f16(values))
        }
    }

    #[inline(always)]
    fn load_words(self, from: &[u32]) -> uint32x4x2_t {
        let from = &from[..LANES];
        // SAFETY: see above; 8 words are readable.
        unsafe { from.as_ptr().cast::<uint32x4x2_t>().read_unaligned() }
    }

    #[inline(always)]
    fn splat_word(self, word: i32) -> uint32x4x2_t {
        // SAFETY: see above.
        let four = unsafe { vdupq_n_u32(word as u32) };
        uint32x4x2_t(four, four)
    }

    #[inline(always)]
    fn widen_pairs(self, w: uint32x4x2_t) -> [float32x4x2_t; 2] {
        // SAFETY: see above. bf16 is the upper half of f32.
        unsafe {
            let upper = vdupq_n_u32(0xffff_0000);
            let low = float32x4x2_t(
                vreinterpretq_f32_u32(vshlq_n_u32::<16>(w.0)),
                vreinterpretq_f32_u32(vshlq_n_u32::<16>(w.1)),
            );
            let high = float32x4x2_t(
                vreinterpretq_f32_u32(vandq_u32(w.0, upper)),
                vreinterpretq_f32_u32(vandq_u32(w.1, upper)),
            );
            [low, high]
        }
    }

    #[inline(always)]
    fn dot_bytes(self, sums: uint32x4x2_t, w: uint32x4x2_t, x: u32) -> uint32x4x2_t {
        if DOT {
            // SAFETY: see above; with `DOT` the CPU has dotprod.
            return unsafe {
                // The instruction takes signed bytes: `w` less 128, whose products lack 128 times
                // `x`. That is added by subtracting -128 times `x`, as 128 is no signed byte.
                let x = vreinterpretq_s8_u32(vdupq_n_u32(x));
                let off = sdot(vdupq_n_s32(0), vdupq_n_s8(-128), x);
                let top = vdupq_n_u32(0x8080_8080);
                let first = vreinterpretq_s8_u32(veorq_u32(w.0, top));
                let first = sdot(vsubq_s32(vreinterpretq_s32_u32(sums.0), off), first, x);
                let second = vreinterpretq_s8_u32(veorq_u32(w.1, top));
                let second = sdot(vsubq_s32(vreinterpretq_s32_u32(sums.1), off), second, x);
                uint32x4x2_t(vreinterpretq_u32_s32(first), vreinterpretq_u32_s32(second))
            };
        }
        // SAFETY: see above. Products of 255 and -128 fit the 32 bits they are added in.
        unsafe {
            // Bytes 0 and 1 of all eight words, and 2 and 3.
            let (a, b) = (vreinterpretq_u16_u32(w.0), vreinterpretq_u16_u32(w.1));
            let (lower, upper) = (vuzp1q_u16(a, b), vuzp2q_u16(a, b));
            let byte = vdupq_n_u16(0xff);
            let w0 = vreinterpretq_s16_u16(vandq_u16(lower, byte));
            let w1 = vreinterpretq_s16_u16(vshrq_n_u16::<8>(lower));
            let w2 = vreinterpretq_s16_u16(vandq_u16(upper, byte));
            let w3 = vreinterpretq_s16_u16(vshrq_n_u16::<8>(upper));
            let x = vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(x))));
            let mut first = vreinterpretq_s32_u32(sums.0);
            first = vmlal_lane_s16::<0>(first, vget_low_s16(w0), x);
            first = vmlal_lane_s16::<1>(first, vget_low_s16(w1), x);
            first = vmlal_lane_s16::<2>(first, vget_low_s16(w2), x);
            first = vmlal_lane_s16::<3>(first, vget_low_s16(w3), x);
            let mut second = vreinterpretq_s32_u32(sums.1);
            second = vmlal_high_lane_s16::<0>(second, w0, x);
            second = vmlal_high_lane_s16::<1>(second, w1, x);
            second = vmlal_high_lane_s16::<2>(second, w2, x);
            second = vmlal_high_lane_s16::<3>(second, w3, x);
            uint32x4x2_t(vreinterpretq_u32_s32(first), vreinterpretq_u32_s32(second))
        }
    }

    #[inline(always)]
    fn low_nibbles(self, w: uint32x4x2_t) -> uint32x4x2_t {
        // SAFETY: see above.
        unsafe {
            let lower = vdupq_n_u32(0x0f0f_0f0f);
            uint32x4x2_t(vandq_u32(w.0, lower), vandq_u32(w.1, lower))
        }
    }

    #[inline(always)]
    fn high_nibbles(self, w: uint32x4x2_t) -> uint32x4x2_t {
        // SAFETY: see above.
        unsafe {
            let first = vshrq_n_u8::<4>(vreinterpretq_u8_u32(w.0));
            let second = vshrq_n_u8::<4>(vreinterpretq_u8_u32(w.1));
            uint32x4x2_t(vreinterpretq_u32_u8(first), vreinterpretq_u32_u8(second))
        }
    }

    #[inline(always)]
    fn to_f32(self, w: uint32x4x2_t) -> float32x4x2_t {
        // SAFETY: see above.
        unsafe {
            float32x4x2_t(
                vcvtq_f32_s32(vreinterpretq_s32_u32(w.0)),
                vcvtq_f32_s32(vreinterpretq_s32_u32(w.1)),
            )
        }
    }
}

/// Adds to each word of `sums` the products of the four signed bytes of `a` and `b` in its place.
/// The standard library's own function for it is not stable yet.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the CPU has the instruction, which changes nothing but its result.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
