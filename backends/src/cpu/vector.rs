//! Numbers a kernel reads, and what it computes lane by lane.

use burn::tensor::Element;
use half::{bf16, f16};

use super::isa::{Isa, madd};
use super::packed::rounded;

/// A stored number that widens to f32 exactly.
pub(crate) trait Stored: Element + bytemuck::Pod + Default {
    /// The first lanes of a slice at least that long.
    fn load<I: Isa>(isa: I, from: &[Self]) -> I::V;
    /// A shorter slice, filled up with zeros.
    fn load_part<I: Isa>(isa: I, from: &[Self]) -> I::V;
    /// One number.
    fn widen(self) -> f32;
    /// The nearest there is.
    fn narrow(x: f32) -> Self;
}

impl Stored for f32 {
    #[inline(always)]
    fn load<I: Isa>(isa: I, from: &[Self]) -> I::V {
        isa.load(from)
    }

    #[inline(always)]
    fn load_part<I: Isa>(isa: I, from: &[Self]) -> I::V {
        isa.load_part(from)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn load<I: Isa>(isa: I, from: &[Self]) -> I::V {
        isa.load_bf16(from)
    }

    #[inline(always)]
    fn load_part<I: Isa>(isa: I, from: &[Self]) -> I::V {
        isa.load_bf16_part(from)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self::from_bits(rounded(x) as u16)
    }
}

impl Stored for f16 {
    #[inline(always)]
    fn load<I: Isa>(isa: I, from: &[Self]) -> I::V {
        isa.load_f16(from)
    }

    #[inline(always)]
    fn load_part<I: Isa>(isa: I, from: &[Self]) -> I::V {
        let mut lanes = [Self::ZERO; MOST_LANES];
        lanes[..from.len()].copy_from_slice(from);
        isa.load_f16(&lanes)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self::from_f32(x)
    }
}

/// Lanes of the widest vector there is.
const MOST_LANES: usize = 16;

/// GELU in its tanh form, `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`, as `x · sigmoid(2u)`.
#[inline(always)]
pub(super) fn gelu<I: Isa>(isa: I, v: I::V) -> I::V {
    const TWO_ROOT_2_OVER_PI: f32 = 1.595_769;
    by_lane(isa, v, |x| {
        let u = TWO_ROOT_2_OVER_PI * x * madd::<I>(0.044_715 * x, x, 1.0);
        x / (1.0 + exp::<I>(-u))
    })
}

/// `x · sigmoid(x)`
#[inline(always)]
pub(super) fn silu<I: Isa>(isa: I, v: I::V) -> I::V {
    by_lane(isa, v, |x| x / (1.0 + exp::<I>(-x)))
}

/// [`exp`] of every lane.
#[inline(always)]
pub(super) fn exp_lanes<I: Isa>(isa: I, v: I::V) -> I::V {
    by_lane(isa, v, |x| exp::<I>(x))
}

#[inline(always)]
fn by_lane<I: Isa>(isa: I, v: I::V, f: impl Fn(f32) -> f32) -> I::V {
    let mut lanes = [0f32; MOST_LANES];
    isa.store(v, &mut lanes[..I::LANES]);
    for lane in &mut lanes[..I::LANES] {
        *lane = f(*lane);
    }
    isa.load(&lanes)
}

/// Adding it rounds a number of at most 2^22 to the nearest integer, ties to even, in the lowest bits;
/// subtracting it again gives that as a number.
pub(super) const ROUND: f32 = 12_582_912.0;

/// `exp(x)` to about one unit in the last place; 0 below -87, without branches.
///
/// Cody-Waite reduction by ln 2 and the Taylor polynomial of degree 6, which is enough on
/// ±ln 2 / 2.
#[inline(always)]
pub(crate) fn exp<I: Isa>(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = madd::<I>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = madd::<I>(n, -LN2_LOW, madd::<I>(n, -LN2_HIGH, clamped));
    let mut p = 1.0 / 720.0;
    p = madd::<I>(p, r, 1.0 / 120.0);
    p = madd::<I>(p, r, 1.0 / 24.0);
    p = madd::<I>(p, r, 1.0 / 6.0);
    p = madd::<I>(p, r, 0.5);
    p = madd::<I>(p, r, 1.0);
    p = madd::<I>(p, r, 1.0);
    // The lowest bits of `shifted` are n, which is in -126..=127: the exponent field neither
    // overflows nor becomes subnormal. NaN stays NaN through `p`.
    let biased = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let scale = f32::from_bits(biased << 23);
    if x < -87.0 { 0.0 } else { p * scale }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::CpuPath;
    use crate::cpu::isa::{Kernel, dispatch};

    struct Exp(f32);
    impl Kernel for Exp {
        type Output = f32;
        #[inline(always)]
        fn run<I: Isa>(self, _: I) -> f32 {
            exp::<I>(self.0)
        }
    }

    #[test]
    fn exp_is_within_two_ulp_on_every_path() {
        for path in CpuPath::available() {
            for i in 0..20_000 {
                let x = -86.9 + i as f32 * (86.9 + 80.0) / 20_000.0;
                let (got, want) = (dispatch(path, Exp(x)), f64::from(x).exp());
                assert!((f64::from(got) / want - 1.0).abs() < 2.5e-7, "{path} {x}: {got} {want}");
            }
            assert_eq!(dispatch(path, Exp(0.0)), 1.0);
            assert_eq!(dispatch(path, Exp(f32::NEG_INFINITY)), 0.0);
            assert!(dispatch(path, Exp(f32::NAN)).is_nan());
        }
    }
}
