//! AVX2 with fused multiply-add.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::Isa;
use super::x86::{ReadOnce, prefetch, widened};

/// AVX2, FMA and F16C. A value is proof that the CPU has them.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(pub(super) ReadOnce);

// SAFETY of every block below: the receiver proves that the CPU has the instructions; loads are
// from slices whose length was just checked to cover all lanes.

impl Isa for Avx2 {
    type V = __m256;
    type W = __m256i;
    const LANES: usize = 8;
    const FMA: bool = true;

    #[inline(always)]
    fn zero(self) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        let from = &from[..Self::LANES];
        // SAFETY: see above; 8 values are readable.
        unsafe { from.as_ptr().cast::<__m256>().read_unaligned() }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> __m256 {
        let from = &from[..Self::LANES];
        // SAFETY: see above; 8 values of 16 bits are readable. bf16 is the upper half of f32.
        unsafe {
            let bits = from.as_ptr().cast::<__m128i>().read_unaligned();
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
        }
    }

    #[inline(always)]
    fn load_part(self, from: &[f32]) -> __m256 {
        let mut lanes = [0.0; Self::LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    #[inline(always)]
    fn load_bf16_part(self, from: &[bf16]) -> __m256 {
        let mut lanes = [bf16::ZERO; Self::LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load_bf16(&lanes)
    }

    #[inline(always)]
    fn madd(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        // SAFETY: see above.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn largest(self, v: __m256) -> f32 {
        // SAFETY: see above.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn interleave(self, a: __m256, b: __m256) -> (__m256, __m256) {
        // SAFETY: see above.
        unsafe {
            let (even, odd) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            (_mm256_permute2f128_ps::<0x20>(even, odd), _mm256_permute2f128_ps::<0x31>(even, odd))
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    fn prefetch<T>(self, from: &[T], ahead: usize) {
        prefetch::<_MM_HINT_T1, T>(from, ahead);
    }

    #[inline(always)]
    fn prefetch_once<T>(self, from: &[T], ahead: usize) {
        self.0.prefetch(from, ahead);
    }

    #[inline(always)]
    fn store(self, v: __m256, to: &mut [f32]) {
        match to.first_chunk_mut::<{ Self::LANES }>() {
            // SAFETY: see above; 8 values are writable.
            Some(to) => unsafe { to.as_mut_ptr().cast::<__m256>().write_unaligned(v) },
            None => {
                let mut lanes = [0.0; Self::LANES];
                self.store(v, &mut lanes);
                let n = to.len();
                to.copy_from_slice(&lanes[..n]);
            }
        }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> __m256 {
        let from = &from[..Self::LANES];
        // SAFETY: see above; 8 values of 16 bits are readable.
        unsafe { _mm256_cvtph_ps(from.as_ptr().cast::<__m128i>().read_unaligned()) }
    }

    #[inline(always)]
    fn load_words(self, from: &[u32]) -> __m256i {
        let from = &from[..Self::LANES];
        // SAFETY: see above; 8 words are readable.
        unsafe { from.as_ptr().cast::<__m256i>().read_unaligned() }
    }

    #[inline(always)]
    fn splat_word(self, word: i32) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_set1_epi32(word) }
    }

    #[inline(always)]
    fn widen_pairs(self, w: __m256i) -> [__m256; 2] {
        // SAFETY: see above. bf16 is the upper half of f32.
        unsafe {
            let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let low = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w));
            [low, _mm256_castsi256_ps(_mm256_and_si256(w, upper))]
        }
    }

    #[inline(always)]
    fn dot_bytes(self, sums: __m256i, w: __m256i, x: u32) -> __m256i {
        let (even, odd) = widened(x);
        // SAFETY: see above. Products of 255 and -128 fit 17 bits, sums of two of them 32.
        unsafe {
            let w_even = _mm256_and_si256(w, _mm256_set1_epi32(0x00ff_00ff));
            let w_odd = _mm256_srli_epi16::<8>(w);
            let sums = _mm256_add_epi32(sums, _mm256_madd_epi16(w_even, self.splat_word(even)));
            _mm256_add_epi32(sums, _mm256_madd_epi16(w_odd, self.splat_word(odd)))
        }
    }

    #[inline(always)]
    fn low_nibbles(self, w: __m256i) -> __m256i {
        // SAFETY: see above.
        unsafe { _mm256_and_si256(w, _mm256_set1_epi32(0x0f0f_0f0f)) }
    }

    #[inline(always)]
    fn high_nibbles(self, w: __m256i) -> __m256i {
        // SAFETY: see above.
        self.low_nibbles(unsafe { _mm256_srli_epi32::<4>(w) })
    }

    #[inline(always)]
    fn to_f32(self, w: __m256i) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_cvtepi32_ps(w) }
    }
}
