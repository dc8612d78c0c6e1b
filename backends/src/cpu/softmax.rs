//! What scoring wants to know of a row of logits, read from memory once and by all threads.

use rayon::prelude::*;

use super::isa::{CpuPath, Isa, Kernel, active_path, dispatch};
use super::vector::exp;

/// What the softmax of a row is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SoftmaxSums {
    /// Index of the largest value, the lowest one at a tie.
    pub(crate) argmax: usize,
    /// The largest value.
    pub(crate) max: f32,
    /// The largest value anywhere else (`-inf` if there is none).
    pub(crate) second: f32,
    /// Sum of `exp(x - max)`.
    pub(crate) sum: f64,
    /// Sum of `exp(x - max) * (x - max)`, zero where `exp` is.
    pub(crate) weighted: f64,
}

/// Logits of a piece (16 KiB): read from memory once, then again from the nearest cache.
const PIECE: usize = 4096;
/// Pieces a thread should find before another is woken.
const PIECES_EACH: usize = 4;

/// Sums a row up, in pieces that threads share and that are joined in order.
///
/// Exponentials are f32, sums f64: near certainty `sum - 1` keeps the relative precision of a
/// single exponential, so two nearly certain rows are still ordered. A row without a finite value,
/// or with NaN or infinity, has sums that are NaN.
pub(crate) fn softmax_sums(row: &[f32]) -> SoftmaxSums {
    sums_on(active_path(), row)
}

fn sums_on(path: CpuPath, row: &[f32]) -> SoftmaxSums {
    let pieces = row.par_chunks(PIECE).with_min_len(PIECES_EACH);
    let sums: Vec<SoftmaxSums> = pieces.map(|piece| dispatch(path, SumsKernel(piece))).collect();
    joined(&sums)
}

/// The sums of all pieces, each of which has its own maximum.
fn joined(pieces: &[SoftmaxSums]) -> SoftmaxSums {
    let nothing = SoftmaxSums {
        argmax: 0,
        max: f32::NEG_INFINITY,
        second: f32::NEG_INFINITY,
        sum: f64::NAN,
        weighted: f64::NAN,
    };
    let mut all = nothing;
    for (i, piece) in pieces.iter().enumerate() {
        if piece.max > all.max {
            all.second = all.max.max(piece.second);
            (all.argmax, all.max) = (i * PIECE + piece.argmax, piece.max);
        } else {
            all.second = all.second.max(piece.max);
        }
    }
    if all.max == f32::NEG_INFINITY {
        return nothing;
    }
    (all.sum, all.weighted) = (0.0, 0.0);
    // What has no finite value adds nothing, unless it is NaN.
    for piece in pieces.iter().filter(|piece| piece.sum != 0.0) {
        let apart = f64::from(piece.max) - f64::from(all.max);
        all.sum += piece.sum * apart.exp();
        all.weighted += (piece.weighted + piece.sum * apart) * apart.exp();
    }
    all
}

/// Lanes of the sums.
const SUM_LANES: usize = 16;

struct SumsKernel<'a>(&'a [f32]);

impl Kernel for SumsKernel<'_> {
    type Output = SoftmaxSums;

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> SoftmaxSums {
        let row = self.0;
        let max = maximum(row);
        let argmax = row.iter().position(|&x| x == max).unwrap_or(0);
        let second = maximum(&row[..argmax]).max(maximum(row.get(argmax + 1..).unwrap_or(&[])));
        // Exponentials of nothing but `-inf` are 0, not NaN.
        let reference = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let (mut sums, mut weighted) = ([0f64; SUM_LANES], [0f64; SUM_LANES]);
        let (chunks, tail) = row.as_chunks::<SUM_LANES>();
        for chunk in chunks {
            add_exponentials::<I>(chunk, reference, &mut sums, &mut weighted);
        }
        let mut last = [f32::NEG_INFINITY; SUM_LANES];
        last[..tail.len()].copy_from_slice(tail);
        add_exponentials::<I>(&last, reference, &mut sums, &mut weighted);
        let (sum, weighted) = (sums.iter().sum(), weighted.iter().sum());
        SoftmaxSums { argmax, max, second, sum, weighted }
    }
}

#[inline(always)]
fn add_exponentials<I: Isa>(
    chunk: &[f32; SUM_LANES],
    max: f32,
    sums: &mut [f64; SUM_LANES],
    weighted: &mut [f64; SUM_LANES],
) {
    for lane in 0..SUM_LANES {
        let shifted = chunk[lane] - max;
        let e = exp::<I>(shifted);
        sums[lane] += f64::from(e);
        // `0 * -inf` would be NaN; `exp` is 0 exactly where clamping changes nothing.
        weighted[lane] += f64::from(e) * f64::from(shifted.max(-88.0));
    }
}

#[inline(always)]
fn maximum(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; SUM_LANES];
    let (chunks, tail) = row.as_chunks::<SUM_LANES>();
    for chunk in chunks {
        for lane in 0..SUM_LANES {
            // Not `f32::max`: this form is one instruction, and a NaN shows up in the sums.
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    tail.iter().chain(&lanes).copied().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 % 10_007) as f32 - 5000.0) / 700.0).collect()
    }

    #[test]
    fn sums_match_f64_on_every_path_and_ties_take_the_lowest_index() {
        for len in [1, 2, 15, 16, 17, 100, PIECE - 1, PIECE, PIECE + 1, 50_001] {
            let row = row(len);
            let max = row.iter().copied().fold(f32::MIN, f32::max);
            let argmax = row.iter().position(|&x| x == max).unwrap();
            let shifted = || row.iter().map(|x| f64::from(x - max));
            let sum: f64 = shifted().map(f64::exp).sum();
            let weighted: f64 = shifted().map(|x| x * x.exp()).sum();
            let mut others = row.clone();
            others[argmax] = f32::NEG_INFINITY;
            let second = others.into_iter().fold(f32::NEG_INFINITY, f32::max);
            for path in CpuPath::available() {
                let got = sums_on(path, &row);
                assert_eq!(
                    (got.argmax, got.max, got.second),
                    (argmax, max, second),
                    "{path} {len}"
                );
                assert!((got.sum / sum - 1.0).abs() < 1e-6, "{path} {len}: {got:?} {sum}");
                assert!((got.weighted - weighted).abs() < 1e-6 * sum, "{path} {len}");
            }
        }
        let tie = softmax_sums(&[1.0, 3.0, 3.0, f32::NEG_INFINITY]);
        assert_eq!((tie.argmax, tie.second), (1, 3.0));
        let mut far = vec![0.0; 3 * PIECE];
        (far[7], far[PIECE + 3]) = (1.0, 2.0);
        let apart = softmax_sums(&far);
        assert_eq!((apart.argmax, apart.second), (PIECE + 3, 1.0), "the second best comes first");
        far[2 * PIECE + 5] = 2.0;
        let tie = softmax_sums(&far);
        assert_eq!((tie.argmax, tie.second), (PIECE + 3, 2.0));
    }

    #[test]
    fn any_number_of_threads_computes_the_same_bits() {
        let row = row(51_200);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| softmax_sums(&row))
        };
        let alone = on(1);
        assert!([2, 7].map(on).iter().all(|sums| *sums == alone));
    }

    #[test]
    fn hidden_logits_count_for_nothing_and_bad_ones_show() {
        let len = 3 * PIECE;
        let mut row = vec![f32::NEG_INFINITY; len];
        assert!(softmax_sums(&row).sum.is_nan(), "no token is left");
        (row[PIECE], row[PIECE + 1]) = (1.0, 0.0);
        let sums = softmax_sums(&row);
        assert_eq!((sums.argmax, sums.max, sums.second), (PIECE, 1.0, 0.0));
        assert!((sums.sum - 1.0 - (-1f64).exp()).abs() < 1e-7, "{sums:?}");
        assert!((sums.weighted + (-1f64).exp()).abs() < 1e-7, "{sums:?}");
        for bad in [f32::NAN, f32::INFINITY] {
            for at in [0, PIECE + 2, len - 1] {
                let mut row = row.clone();
                row[at] = bad;
                assert!(softmax_sums(&row).sum.is_nan(), "{bad} at {at}");
            }
        }
    }
}
