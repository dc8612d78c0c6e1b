//! Instruction sets: the few vector operations kernels are written in, once per set.
//!
//! A value of an [`Isa`] type is proof that the CPU has its instructions, because only
//! [`dispatch`] makes one, after detection. All `unsafe` of the kernels is in this folder.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[expect(unsafe_code, reason = "instructions of a tile unit found at run time")]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector intrinsics of an instruction set found at run time")]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector intrinsics of an instruction set found at run time")]
mod avx512;
#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "vector intrinsics of an instruction set found at run time")]
mod neon;
mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "a prefetch, which any address may be given to")]
mod x86;

use std::fmt;
use std::sync::OnceLock;

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
pub(crate) use self::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use self::avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use self::neon::Neon;
pub(crate) use self::portable::Portable;
#[cfg(target_arch = "x86_64")]
use self::x86::ReadOnce;

/// Vector operations over `LANES` f32. Everything is `#[inline(always)]`, so that it ends up
/// inside the function that `dispatch` compiles for the instruction set.
pub(crate) trait Isa: Copy + Send + Sync {
    /// A vector.
    type V: Copy;
    /// A vector of `LANES` words of 32 bits.
    type W: Copy;
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
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// Sum of the lanes, in one fixed order.
    fn sum(self, v: Self::V) -> f32;
    /// The largest lane; where one is NaN, any.
    fn largest(self, v: Self::V) -> f32;
    /// Lanes of both in turn, `a` first: from their lower halves, and from their upper ones.
    fn interleave(self, a: Self::V, b: Self::V) -> (Self::V, Self::V);
    /// One number in all lanes.
    fn splat(self, x: f32) -> Self::V;
    /// Writes as many lanes as the slice takes, at most `LANES`.
    fn store(self, v: Self::V, to: &mut [f32]);

    /// The first `LANES` values of a slice at least that long, widened.
    fn load_f16(self, from: &[f16]) -> Self::V;
    /// The first `LANES` words of a slice at least that long.
    fn load_words(self, from: &[u32]) -> Self::W;
    /// One word in all lanes.
    fn splat_word(self, word: i32) -> Self::W;
    /// The lower and the upper bf16 of each word.
    fn widen_pairs(self, w: Self::W) -> [Self::V; 2];
    /// Adds to each lane the products of its two bf16 with those of `x`, the lower ones first where
    /// that is not one instruction.
    #[inline(always)]
    fn dot_bf16(self, sums: Self::V, w: Self::W, x: u32) -> Self::V {
        dot_widened(self, sums, w, x)
    }
    /// Adds to each lane, as signed words, the products of its four unsigned bytes with the signed
    /// bytes of `x`.
    fn dot_bytes(self, sums: Self::W, w: Self::W, x: u32) -> Self::W;
    /// The lower half of every byte.
    fn low_nibbles(self, w: Self::W) -> Self::W;
    /// The upper half of every byte.
    fn high_nibbles(self, w: Self::W) -> Self::W;
    /// Signed words as numbers.
    fn to_f32(self, w: Self::W) -> Self::V;

    /// Tells the memory that what lies `ahead` elements after the slice's first is wanted soon. It
    /// may lie outside of any allocation.
    #[inline(always)]
    fn prefetch<T>(self, from: &[T], ahead: usize) {
        let _ = (from, ahead);
    }

    /// The same for what is used once and need not be kept.
    #[inline(always)]
    fn prefetch_once<T>(self, from: &[T], ahead: usize) {
        let _ = (from, ahead);
    }
}

/// [`Isa::dot_bf16`] by two multiply-adds.
#[inline(always)]
fn dot_widened<I: Isa>(isa: I, sums: I::V, w: I::W, x: u32) -> I::V {
    let [low, high] = isa.widen_pairs(w);
    let sums = isa.madd(low, isa.splat(f32::from_bits(x << 16)), sums);
    isa.madd(high, isa.splat(f32::from_bits(x & 0xffff_0000)), sums)
}

/// `a * b + c` for one number, fused where that is one instruction.
#[inline(always)]
pub(crate) fn madd<I: Isa>(a: f32, b: f32, c: f32) -> f32 {
    if I::FMA { a.mul_add(b, c) } else { a * b + c }
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
    /// The same with dot products of bf16 and bytes (BF16, VNNI).
    Avx512Dot,
    /// The same with products of bf16 by a tile unit (AMX), where the system lets it be used (Linux).
    Amx,
    /// NEON, which every AArch64 CPU has.
    Neon,
    /// The same with dot products of bytes (dotprod).
    NeonDot,
}

impl CpuPath {
    /// All paths this CPU can run, slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut paths = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
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
            let dot =
                is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vnni");
            if avx2 && avx512 && dot {
                paths.push(Self::Avx512Dot);
                #[cfg(target_os = "linux")]
                if amx::Amx::here().is_some() {
                    paths.push(Self::Amx);
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            paths.push(Self::Neon);
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                paths.push(Self::NeonDot);
            }
        }
        paths
    }

    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
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
            Self::Avx512Dot => "avx512_dot",
            Self::Amx => "amx",
            Self::Neon => "neon",
            Self::NeonDot => "neon_dot",
        })
    }
}

/// The path in use: the best available, or the one named by `DFASTLLM_CPU_PATH`
/// (`portable`, `avx2`, `avx512`, `avx512_dot`, `amx`, `neon`, `neon_dot`) if this CPU has it.
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
    any(target_arch = "x86_64", target_arch = "aarch64"),
    expect(unsafe_code, reason = "calls functions compiled for CPU features found at run time")
)]
pub(crate) fn dispatch<K: Kernel>(path: CpuPath, kernel: K) -> K::Output {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if path.is_available() {
        match path {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the path's features were detected on this CPU.
            CpuPath::Avx512Dot | CpuPath::Amx => return unsafe { run_avx512_dot(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: likewise.
            CpuPath::Avx512 => return unsafe { run_avx512(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: likewise.
            CpuPath::Avx2 => return unsafe { run_avx2(kernel) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: likewise.
            CpuPath::NeonDot => return unsafe { run_neon_dot(kernel) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: likewise.
            CpuPath::Neon => return unsafe { run_neon(kernel) },
            _ => {}
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = path;
    kernel.run(Portable)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(ReadOnce::here()))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<false>(ReadOnce::here()))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni")]
fn run_avx512_dot<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<true>(ReadOnce::here()))
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn run_neon<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Neon::<false>(()))
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
fn run_neon_dot<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Neon::<true>(()))
}
