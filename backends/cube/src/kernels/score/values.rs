//! Numbers of a row of logits as kernels see them.
//!
//! A logit is kept as a *key*: an unsigned integer that orders as its float does, `-0` being 0. Keys
//! compare exactly on every device, and no infinity or NaN is ever computed with, which WGSL leaves
//! undefined. Probabilities that are added up in search of a place are 64-bit fixed point, as two
//! words: such sums do not depend on their order.

use cubecl::prelude::*;

/// Key of `-inf`.
pub(super) const LEAST: u32 = 0x007f_ffff;
/// Key of whatever is neither finite nor `-inf`.
pub(super) const BAD: u32 = 0xffff_ffff;
/// Key of 0, and the bits of `-0`.
pub(super) const ZERO: u32 = 0x8000_0000;
/// No index, no row.
pub(super) const NONE: u32 = 0xffff_ffff;
/// Bits of `-inf`.
pub(super) const MINUS_INFINITY: u32 = 0xff80_0000;
/// All bits of the exponent.
const EXPONENT: u32 = 0x7f80_0000;
const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// Exponentials of less are 0.
const LOWEST_EXPONENT: f32 = -87.0;

/// The key of a value.
#[cube]
pub(super) fn key_of(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    let mut key = bits | ZERO;
    if bits >= ZERO {
        key = bits ^ 0xffff_ffffu32;
    }
    if bits == ZERO {
        key = ZERO;
    }
    if (bits & EXPONENT) == EXPONENT {
        key = BAD;
    }
    if bits == MINUS_INFINITY {
        key = LEAST;
    }
    key
}

/// The value of a key, which has to be a finite one's.
#[cube]
pub(super) fn value_of(key: u32) -> f32 {
    let mut bits = key ^ 0xffff_ffffu32;
    if key >= ZERO {
        bits = key ^ ZERO;
    }
    f32::reinterpret(bits)
}

/// Whether a key is that of a finite value.
#[cube]
pub(super) fn is_finite(key: u32) -> bool {
    key > LEAST && key != BAD
}

/// `exp(x)` for `x` of at most 0, to about one unit in the last place; 0 below -87. The same steps as
/// on the host: what devices bring differs in the fifth digit.
#[cube]
pub(super) fn exponential(x: f32) -> f32 {
    let clamped = clamp(x, LOWEST_EXPONENT, 0.0f32);
    let n = f32::floor(clamped * LOG2_E + 0.5f32);
    let r = clamped - n * 0.693_359_4f32 + n * 2.121_944_4e-4f32;
    let mut p = r * (1.0f32 / 720.0f32) + 1.0f32 / 120.0f32;
    p = p * r + 1.0f32 / 24.0f32;
    p = p * r + 1.0f32 / 6.0f32;
    p = p * r + 0.5f32;
    p = p * r + 1.0f32;
    p = p * r + 1.0f32;
    let scale = f32::reinterpret(u32::cast_from(n + 127.0f32) << 23u32);
    let mut e = p * scale;
    if x < LOWEST_EXPONENT {
        e = 0.0f32;
    }
    e
}

/// Number of tokens and their probability, times `2^44` relative to the best one's.
#[derive(CubeType, CubeTypeMut, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct Mass {
    pub(super) count: u32,
    pub(super) high: u32,
    pub(super) low: u32,
}

/// Nothing.
#[cube]
pub(super) fn no_mass() -> Mass {
    Mass { count: 0u32.runtime(), high: 0u32.runtime(), low: 0u32.runtime() }
}

/// The mass of one token whose probability is `e`, at most 1, times the best one's.
#[cube]
pub(super) fn mass_of(e: f32) -> Mass {
    let scaled = e * 4096.0f32;
    let high = u32::cast_from(scaled);
    let low = u32::cast_from((scaled - f32::cast_from(high)) * 4_294_967_296.0f32);
    Mass { count: 1u32.runtime(), high, low }
}

/// Their sum.
#[cube]
pub(super) fn add(a: Mass, b: Mass) -> Mass {
    let low = a.low + b.low;
    let carry = u32::cast_from(low < a.low);
    Mass { count: a.count + b.count, high: a.high + b.high + carry, low }
}

/// What `a` weighs more than `b`, which is part of it.
#[cube]
pub(super) fn subtract(a: Mass, b: Mass) -> Mass {
    let borrow = u32::cast_from(a.low < b.low);
    Mass { count: a.count - b.count, high: a.high - b.high - borrow, low: a.low - b.low }
}

/// Whether `a` weighs more than `b`.
#[cube]
pub(super) fn outweighs(a: Mass, b: Mass) -> bool {
    a.high > b.high || (a.high == b.high && a.low > b.low)
}

/// The share of a mass that the fraction `(high : low) / 2^64` is, rounded down.
#[cube]
pub(super) fn share_of(mass: Mass, high: u32, low: u32) -> Mass {
    let across = u32::mul_hi(mass.low, low) + mass.high * low;
    let first_carry = u32::cast_from(across < mass.high * low);
    let lowest = across + mass.low * high;
    let second_carry = u32::cast_from(lowest < across);
    // Three words of the upper half's lower word, and what they carry.
    let start = mass.high * high;
    let one = start + u32::mul_hi(mass.high, low);
    let mut top = u32::mul_hi(mass.high, high) + u32::cast_from(one < start);
    let two = one + u32::mul_hi(mass.low, high);
    top += u32::cast_from(two < one);
    let three = two + first_carry + second_carry;
    top += u32::cast_from(three < two);
    Mass { count: 0u32.runtime(), high: top, low: three }
}

/// The Gumbel noise `-ln(-ln(u))` of a token, `u` being the host's 53 random bits. Right to some
/// units in the last place over the whole range, which takes care at both ends: large noise is that
/// of `u` near 1.
#[cube]
pub(super) fn gumbel_noise(token: u32, seed: (u32, u32), place: (u32, u32)) -> f32 {
    let (high, low) = philox(token, seed, place);
    // 53 bits; all zero would be noise of -inf.
    let mut tail = low >> 11u32;
    if high == 0u32 && tail == 0u32 {
        tail = 1u32;
    }
    let mut e = -f32::ln(unit_fraction(high, tail));
    if high >= ZERO {
        // 1 - u without rounding: the complement of the bits.
        let missing = unit_fraction(high ^ 0xffff_ffffu32, 0x0020_0000u32 - tail);
        e = minus_log_one_minus(missing);
    }
    -f32::ln(e)
}

/// `(high * 2^21 + low) / 2^53`
#[cube]
fn unit_fraction(high: u32, low: u32) -> f32 {
    f32::cast_from(high) * 2.328_306_4e-10f32 + f32::cast_from(low) * 1.110_223e-16f32
}

/// `-ln(1 - v)` for `v` in `(0, 0.5]`: `2 atanh(v / (2 - v))` by its series.
#[cube]
fn minus_log_one_minus(v: f32) -> f32 {
    let s = v / (2.0f32 - v);
    let t = s * s;
    let mut p = t * (1.0f32 / 15.0f32) + 1.0f32 / 13.0f32;
    p = p * t + 1.0f32 / 11.0f32;
    p = p * t + 1.0f32 / 9.0f32;
    p = p * t + 1.0f32 / 7.0f32;
    p = p * t + 1.0f32 / 5.0f32;
    p = p * t + 1.0f32 / 3.0f32;
    p = p * t + 1.0f32;
    2.0f32 * s * p
}

/// The first two words of `dfastllm_backends::ops::philox` for choosing a token.
#[cube]
fn philox(token: u32, seed: (u32, u32), place: (u32, u32)) -> (u32, u32) {
    let mut a = place.0;
    let mut b = place.1;
    // Zero is the purpose of drawing tokens.
    let mut c = 0u32.runtime();
    let mut d = token;
    let mut first_key = seed.0;
    let mut second_key = seed.1;
    #[unroll]
    for _ in 0..10 {
        let first_high = u32::mul_hi(a, 0xd251_1f53u32);
        let first_low = a * 0xd251_1f53u32;
        let second_high = u32::mul_hi(c, 0xcd9e_8d57u32);
        let second_low = c * 0xcd9e_8d57u32;
        a = second_high ^ b ^ first_key;
        b = second_low;
        c = first_high ^ d ^ second_key;
        d = first_low;
        first_key += 0x9e37_79b9u32;
        second_key += 0xbb67_ae85u32;
    }
    (a, b)
}
