//! What all x86-64 instruction sets have in common.

use std::arch::x86_64::*;

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
