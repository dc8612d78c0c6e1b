//! What all x86-64 instruction sets have in common.

use std::arch::x86_64::*;
use std::sync::OnceLock;

use raw_cpuid::CpuId;

/// Where what is read once waits for it.
#[derive(Clone, Copy)]
pub(crate) enum ReadOnce {
    /// In the nearest cache, and it is kept in no other.
    Nearest,
    /// In the second: Intel's nearest cache waits for 16 lines from the memory at once, the second for 48
    /// (its optimisation manual, Golden Cove).
    Second,
}

impl ReadOnce {
    /// What suits this CPU.
    pub(super) fn here() -> Self {
        static HERE: OnceLock<ReadOnce> = OnceLock::new();
        *HERE.get_or_init(|| {
            let vendor = CpuId::new().get_vendor_info();
            match vendor.as_ref().map(|vendor| vendor.as_str()) {
                Some("AuthenticAMD") => Self::Nearest,
                _ => Self::Second,
            }
        })
    }

    /// A prefetch of what is read once.
    #[inline(always)]
    pub(super) fn prefetch<T>(self, from: &[T], ahead: usize) {
        match self {
            Self::Nearest => prefetch::<_MM_HINT_NTA, T>(from, ahead),
            Self::Second => prefetch::<_MM_HINT_T1, T>(from, ahead),
        }
    }
}

/// A prefetch, which every x86-64 has.
#[inline(always)]
pub(super) fn prefetch<const HINT: i32, T>(from: &[T], ahead: usize) {
    // SAFETY: a prefetch reads nothing and never faults; the address is only computed, not
    // dereferenced.
    unsafe { _mm_prefetch::<HINT>(from.as_ptr().wrapping_add(ahead).cast()) }
}

/// Signed bytes 0 and 2 of a word, and 1 and 3, as pairs of 16 bits.
#[inline(always)]
pub(super) fn widened(x: u32) -> (i32, i32) {
    let [a, b, c, d] = x.to_le_bytes().map(|byte| u32::from(i16::from(byte as i8) as u16));
    ((a | c << 16) as i32, (b | d << 16) as i32)
}
