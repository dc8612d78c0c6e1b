//! AVX-512.

use std::arch::x86_64::*;
use std::mem::transmute;

use half::{bf16, f16};

use super::x86::{ReadOnce, prefetch, widened};
use super::{Isa, dot_widened};

const LANES: usize = 16;

/// AVX-512 F, BW, DQ and VL; with `DOT` also BF16 and VNNI. A value is proof that the CPU has them.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const DOT: bool>(pub(super) ReadOnce);

// SAFETY of every block below: the receiver proves that the CPU has the instructions; loads are
// from slices whose length was just checked to cover all lanes.

impl<const DOT: bool> Isa for Avx512<DOT> {
    type V = __m512;
    type W = __m512i;
    const LANES: usize = LANES;
    const FMA: bool = true;

    #[inline(always)]
    fn zero(self) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        let from = &from[..LANES];
        // SAFETY: see above; 16 values are readable.
        unsafe { from.as_ptr().cast::<__m512>().read_unaligned() }
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> __m512 {
        let from = &from[..LANES];
        // SAFETY: see above; 16 values of 16 bits are readable.
        unsafe {
            let bits = from.as_ptr().cast::<__m256i>().read_unaligned();
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
        }
    }

    #[inline(always)]
    fn load_part(self, from: &[f32]) -> __m512 {
        let mask = (1u16 << from.len().min(15)) - 1;
        // SAFETY: see above; lanes beyond the slice are masked and not read.
        unsafe { _mm512_maskz_loadu_ps(mask, from.as_ptr()) }
    }

    #[inline(always)]
    fn load_bf16_part(self, from: &[bf16]) -> __m512 {
        let mask = (1u16 << from.len().min(15)) - 1;
        // SAFETY: see above; lanes beyond the slice are masked and not read.
        unsafe {
            let bits = _mm256_maskz_loadu_epi16(mask, from.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
        }
    }

    #[inline(always)]
    fn madd(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_add_ps(v) }
    }

    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_max_ps(v) }
    }

    #[inline(always)]
    fn interleave(self, a: __m512, b: __m512) -> (__m512, __m512) {
        // SAFETY: see above. An index from 16 on means a lane of the second vector.
        unsafe {
            let low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            (_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b))
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(x) }
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
    fn store(self, v: __m512, to: &mut [f32]) {
        match to.first_chunk_mut::<{ LANES }>() {
            // SAFETY: see above; 16 values are writable.
            Some(to) => unsafe { to.as_mut_ptr().cast::<__m512>().write_unaligned(v) },
            None => {
                let mask = (1u16 << to.len().min(15)) - 1;
                // SAFETY: see above; lanes beyond the slice are masked and not written.
                unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), mask, v) }
            }
        }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> __m512 {
        let from = &from[..LANES];
        // SAFETY: see above; 16 values of 16 bits are readable.
        unsafe { _mm512_cvtph_ps(from.as_ptr().cast::<__m256i>().read_unaligned()) }
    }

    #[inline(always)]
    fn load_words(self, from: &[u32]) -> __m512i {
        let from = &from[..LANES];
        // SAFETY: see above; 16 words are readable.
        unsafe { from.as_ptr().cast::<__m512i>().read_unaligned() }
    }

    #[inline(always)]
    fn splat_word(self, word: i32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_set1_epi32(word) }
    }

    #[inline(always)]
    fn widen_pairs(self, w: __m512i) -> [__m512; 2] {
        // SAFETY: see above. bf16 is the upper half of f32.
        unsafe {
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let low = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(w));
            [low, _mm512_castsi512_ps(_mm512_and_si512(w, upper))]
        }
    }

    #[inline(always)]
    fn dot_bf16(self, sums: __m512, w: __m512i, x: u32) -> __m512 {
        if DOT {
            // SAFETY: see above; with `DOT` the CPU has AVX512_BF16. Both types are 64 bytes.
            return unsafe {
                let x = transmute::<__m512i, __m512bh>(self.splat_word(x as i32));
                _mm512_dpbf16_ps(sums, transmute::<__m512i, __m512bh>(w), x)
            };
        }
        dot_widened(self, sums, w, x)
    }

    #[inline(always)]
    fn dot_bytes(self, sums: __m512i, w: __m512i, x: u32) -> __m512i {
        if DOT {
            // SAFETY: see above; with `DOT` the CPU has AVX512_VNNI.
            return unsafe { _mm512_dpbusd_epi32(sums, w, self.splat_word(x as i32)) };
        }
        let (even, odd) = widened(x);
        // SAFETY: see above. Products of 255 and -128 fit 17 bits, sums of two of them 32.
        unsafe {
            let w_even = _mm512_and_si512(w, _mm512_set1_epi32(0x00ff_00ff));
            let w_odd = _mm512_srli_epi16::<8>(w);
            let sums = _mm512_add_epi32(sums, _mm512_madd_epi16(w_even, self.splat_word(even)));
            _mm512_add_epi32(sums, _mm512_madd_epi16(w_odd, self.splat_word(odd)))
        }
    }

    #[inline(always)]
    fn low_nibbles(self, w: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_and_si512(w, _mm512_set1_epi32(0x0f0f_0f0f)) }
    }

    #[inline(always)]
    fn high_nibbles(self, w: __m512i) -> __m512i {
        // SAFETY: see above.
        self.low_nibbles(unsafe { _mm512_srli_epi32::<4>(w) })
    }

    #[inline(always)]
    fn to_f32(self, w: __m512i) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(w) }
    }
}
