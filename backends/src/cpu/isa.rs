//! Instruction sets: the few vector operations kernels are written in, once per set.
//!
//! A value of an [`Isa`] type is proof that the CPU has its instructions, because only
//! [`dispatch`] makes one, after detection. All `unsafe` of the kernels is in this file.

use std::fmt;
use std::sync::OnceLock;

use half::bf16;

/// Vector operations over `LANES` f32. Everything is `#[inline(always)]`, so that it ends up
/// inside the function that `dispatch` compiles for the instruction set.
pub(crate) trait Isa: Copy + Send + Sync {
    /// A vector.
    type V: Copy;
    /// Lanes of a vector.
    const LANES: usize;
    /// Whether `f32::mul_add` is one instruction.
    const FMA: bool;

    fn zero(self) -> Self::V;
    /// The first `LANES` values of a slice at least that long.
    fn load(self, from: &[f32]) -> Self::V;
    /// The same of bf16, widened.
    fn load_bf16(self, from: &[bf16]) -> Self::V;
    /// A slice shorter than `LANES`, filled up with zeros.
    fn load_part(self, from: &[f32]) -> Self::V;
    /// The same of bf16, widened.
    fn load_bf16_part(self, from: &[bf16]) -> Self::V;
    /// `a * b + c`
    fn madd(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Sum of the lanes, in one fixed order.
    fn sum(self, v: Self::V) -> f32;
    /// One number in all lanes.
    fn splat(self, x: f32) -> Self::V;
    /// Writes as many lanes as the slice takes, at most `LANES`.
    fn store(self, v: Self::V, to: &mut [f32]);

    /// Tells the memory that what lies `ahead` elements after the slice's first is wanted soon. It
    /// may lie outside of any allocation.
    #[inline(always)]
    fn prefetch<T>(self, from: &[T], ahead: usize) {
        let _ = (from, ahead);
    }
}

/// `a * b + c` for one number, fused where that is one instruction.
#[inline(always)]
pub(crate) fn madd<I: Isa>(a: f32, b: f32, c: f32) -> f32 {
    if I::FMA { a.mul_add(b, c) } else { a * b + c }
}

/// What any CPU can do: eight lanes in plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Isa for Portable {
    type V = [f32; 8];
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
    fn splat(self, x: f32) -> Self::V {
        [x; 8]
    }

    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32]) {
        for (to, x) in to.iter_mut().zip(v) {
            *to = x;
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector intrinsics of instruction sets found at run time")]
mod x86 {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::Isa;

    /// AVX2 with fused multiply-add. A value is proof that the CPU has both.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(pub(super) ());

    /// A prefetch into the second-level cache, which every x86-64 has.
    #[inline(always)]
    fn prefetch<T>(from: &[T], ahead: usize) {
        // SAFETY: a prefetch reads nothing and never faults; the address is only computed, not
        // dereferenced.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.as_ptr().wrapping_add(ahead).cast()) }
    }

    /// AVX-512 F, BW, DQ and VL. A value is proof that the CPU has them.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(pub(super) ());

    // SAFETY of every block below: the receiver proves that the CPU has the instructions; loads
    // are from slices whose length was just checked to cover all lanes.

    impl Isa for Avx2 {
        type V = __m256;
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
        fn splat(self, x: f32) -> __m256 {
            // SAFETY: see above.
            unsafe { _mm256_set1_ps(x) }
        }

        #[inline(always)]
        fn prefetch<T>(self, from: &[T], ahead: usize) {
            prefetch(from, ahead);
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
    }

    impl Isa for Avx512 {
        type V = __m512;
        const LANES: usize = 16;
        const FMA: bool = true;

        #[inline(always)]
        fn zero(self) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        fn load(self, from: &[f32]) -> __m512 {
            let from = &from[..Self::LANES];
            // SAFETY: see above; 16 values are readable.
            unsafe { from.as_ptr().cast::<__m512>().read_unaligned() }
        }

        #[inline(always)]
        fn load_bf16(self, from: &[bf16]) -> __m512 {
            let from = &from[..Self::LANES];
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
        fn splat(self, x: f32) -> __m512 {
            // SAFETY: see above.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        fn prefetch<T>(self, from: &[T], ahead: usize) {
            prefetch(from, ahead);
        }

        #[inline(always)]
        fn store(self, v: __m512, to: &mut [f32]) {
            match to.first_chunk_mut::<{ Self::LANES }>() {
                // SAFETY: see above; 16 values are writable.
                Some(to) => unsafe { to.as_mut_ptr().cast::<__m512>().write_unaligned(v) },
                None => {
                    let mask = (1u16 << to.len().min(15)) - 1;
                    // SAFETY: see above; lanes beyond the slice are masked and not written.
                    unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), mask, v) }
                }
            }
        }
    }
}

/// An instruction set the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CpuPath {
    /// Whatever the target guarantees; no fused multiply-add.
    Portable,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
}

impl CpuPath {
    /// All paths this CPU can run, slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut paths = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx2 {
                paths.push(Self::Avx2);
            }
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                paths.push(Self::Avx512);
            }
        }
        paths
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        static AVAILABLE: OnceLock<Vec<CpuPath>> = OnceLock::new();
        AVAILABLE.get_or_init(Self::available).contains(&self)
    }
}

impl fmt::Display for CpuPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

/// The path in use: the best available, or the one named by `DFASTLLM_CPU_PATH`
/// (`portable`, `avx2`, `avx512`) if this CPU has it.
pub fn active_path() -> CpuPath {
    static ACTIVE: OnceLock<CpuPath> = OnceLock::new();
    *ACTIVE.get_or_init(|| {
        let available = CpuPath::available();
        let best = available.last().copied().unwrap_or(CpuPath::Portable);
        match std::env::var("DFASTLLM_CPU_PATH") {
            Ok(name) => available.into_iter().find(|p| p.to_string() == name).unwrap_or(best),
            Err(_) => best,
        }
    })
}

/// A computation written once and compiled for each instruction set.
///
/// Implementations mark `run` and what it calls `#[inline(always)]` and use loops rather than
/// closures: code that is not inlined is compiled without the instruction set.
pub(crate) trait Kernel {
    /// What it computes.
    type Output;

    /// Runs it.
    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

/// Runs a kernel on a path; on the portable one if this CPU does not have it.
#[cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls functions compiled for CPU features found at run time")
)]
pub(crate) fn dispatch<K: Kernel>(path: CpuPath, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if path.is_available() {
        // SAFETY: the path's features were detected on this CPU.
        match path {
            CpuPath::Avx512 => return unsafe { run_avx512(kernel) },
            CpuPath::Avx2 => return unsafe { run_avx2(kernel) },
            CpuPath::Portable => {}
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = path;
    kernel.run(Portable)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}
