//! Which instruction set the kernels run with.

use std::fmt;
use std::sync::OnceLock;

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

/// A computation compiled once per instruction set.
///
/// Implementations mark `run` and everything it calls `#[inline(always)]`: only code inlined into
/// the functions below is compiled for their instruction set.
pub(crate) trait Kernel {
    /// What it computes.
    type Output;

    /// Runs it; `FMA` says whether `f32::mul_add` is one instruction.
    fn run<const FMA: bool>(self) -> Self::Output;
}

/// Runs a kernel on a path that [`CpuPath::available`] lists.
#[expect(unsafe_code, reason = "calls functions compiled for CPU features found at run time")]
pub(crate) fn dispatch<K: Kernel>(path: CpuPath, kernel: K) -> K::Output {
    match path {
        CpuPath::Portable => kernel.run::<false>(),
        // SAFETY: `path` comes from `active_path` or `CpuPath::available`, which list a path only
        // after its features were detected on this CPU.
        #[cfg(target_arch = "x86_64")]
        CpuPath::Avx2 => unsafe { avx2(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        CpuPath::Avx512 => unsafe { avx512(kernel) },
        #[cfg(not(target_arch = "x86_64"))]
        CpuPath::Avx2 | CpuPath::Avx512 => kernel.run::<false>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<true>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<true>()
}
