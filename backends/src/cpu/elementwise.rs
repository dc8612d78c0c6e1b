//! What happens to rows between products, a pass over memory each.

use rayon::prelude::*;

use super::buffers::Buffer;
use super::isa::{CpuPath, Isa, Kernel, dispatch};
use super::share::share_rows;
use super::vector::Stored;

/// A normalisation over the features.
#[derive(Clone, Copy)]
pub(crate) enum Normal<'a> {
    /// To mean 0 and variance 1, then scaled and moved.
    Layer { weight: &'a [f32], bias: &'a [f32] },
    /// To a mean square of 1, then scaled.
    Rms { weight: &'a [f32] },
}

/// Normalises every row of `x [rows, width]`.
pub(super) fn normalise(path: CpuPath, x: &[f32], normal: Normal<'_>, eps: f32) -> Buffer {
    let width = match normal {
        Normal::Layer { weight, .. } | Normal::Rms { weight } => weight.len(),
    };
    share_rows(x.len() / width, width, |rows, y| {
        let x = &x[rows.start * width..rows.end * width];
        dispatch(path, Normalise { x, normal, eps, width, y });
    })
}

struct Normalise<'a> {
    x: &'a [f32],
    normal: Normal<'a>,
    eps: f32,
    width: usize,
    y: &'a mut [f32],
}

impl Kernel for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let n = self.width as f32;
        for (x, y) in self.x.chunks(self.width).zip(self.y.chunks_mut(self.width)) {
            match self.normal {
                Normal::Layer { weight, bias } => {
                    let mean = lane_sum(x, |x| x) / n;
                    let scale =
                        1.0 / (lane_sum(x, |x| (x - mean) * (x - mean)) / n + self.eps).sqrt();
                    for i in 0..x.len() {
                        y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
                    }
                }
                Normal::Rms { weight } => {
                    let scale = 1.0 / (lane_sum(x, |x| x * x) / n + self.eps).sqrt();
                    for i in 0..x.len() {
                        y[i] = x[i] * scale * weight[i];
                    }
                }
            }
        }
    }
}

/// `Σ term(x)`: sixteen sums side by side, then those.
#[inline(always)]
fn lane_sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; 16];
    let (chunks, tail) = x.as_chunks::<16>();
    for chunk in chunks {
        for lane in 0..16 {
            lanes[lane] += term(chunk[lane]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane += term(x);
    }
    lanes.iter().sum()
}

/// Sines and cosines `[rows, half]`, of heads of `head_dim` whose first `2 * half` dimensions turn.
#[derive(Clone, Copy)]
pub(super) struct Turns<'a> {
    pub(super) cos: &'a [f32],
    pub(super) sin: &'a [f32],
    pub(super) half: usize,
    pub(super) head_dim: usize,
}

/// Turns every head of `x [rows, heads * head_dim]`: dimension `i` with `i + half`.
pub(super) fn rotate(path: CpuPath, x: &[f32], turns: Turns<'_>, rows: usize) -> Buffer {
    let (width, half) = (x.len() / rows, turns.half);
    share_rows(rows, width, |rows, y| {
        let x = &x[rows.start * width..rows.end * width];
        let cos = &turns.cos[rows.start * half..rows.end * half];
        let sin = &turns.sin[rows.start * half..rows.end * half];
        dispatch(path, Rotate { x, turns: Turns { cos, sin, ..turns }, width, y });
    })
}

struct Rotate<'a> {
    x: &'a [f32],
    turns: Turns<'a>,
    width: usize,
    y: &'a mut [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        let Turns { cos, sin, half, head_dim } = self.turns;
        let rows = self.x.chunks(self.width).zip(self.y.chunks_mut(self.width));
        for (row, (x, y)) in rows.enumerate() {
            let (cos, sin) = (&cos[row * half..][..half], &sin[row * half..][..half]);
            for (x, y) in x.chunks(head_dim).zip(y.chunks_mut(head_dim)) {
                let (first, second, rest) = (&x[..half], &x[half..2 * half], &x[2 * half..]);
                let (to_first, to) = y.split_at_mut(half);
                let (to_second, to_rest) = to.split_at_mut(half);
                for i in 0..half {
                    to_first[i] = first[i] * cos[i] - second[i] * sin[i];
                    to_second[i] = second[i] * cos[i] + first[i] * sin[i];
                }
                to_rest.copy_from_slice(rest);
            }
        }
    }
}

/// Rounds numbers to what they are stored as.
pub(super) fn narrow<T: Stored>(path: CpuPath, from: &[f32], to: &mut [T]) {
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).with_min_len(4).for_each(|(to, from)| {
        dispatch(path, Narrow { from, to });
    });
}

/// Numbers rounded in one go.
const CHUNK: usize = 1 << 12;

struct Narrow<'a, T> {
    from: &'a [f32],
    to: &'a mut [T],
}

impl<T: Stored> Kernel for Narrow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _: I) {
        for (to, &from) in self.to.iter_mut().zip(self.from) {
            *to = T::narrow(from);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::super::testing::values;
    use super::*;

    /// Sizes around vectors and around what several threads share.
    const SHAPES: [(usize, usize); 5] = [(1, 1), (1, 40), (3, 17), (129, 31), (70, 520)];

    fn row_of(values: &[f32], row: usize, width: usize) -> Vec<f64> {
        values[row * width..(row + 1) * width].iter().map(|&x| f64::from(x)).collect()
    }

    fn assert_near(got: f32, want: f64, path: CpuPath) {
        // A sum of up to 520 squares of at most 1, then a few operations of one rounding each.
        assert!((f64::from(got) - want).abs() <= 4e-6 * want.abs().max(1.0), "{path} {got} {want}");
    }

    #[test]
    fn norms_match_f64_on_every_path() {
        let eps = 1e-5;
        for (rows, width) in SHAPES {
            let (x, w, b) = (values(rows * width, 1), values(width, 2), values(width, 3));
            for path in CpuPath::available() {
                let layer = normalise(path, &x, Normal::Layer { weight: &w, bias: &b }, eps);
                let rms = normalise(path, &x, Normal::Rms { weight: &w }, eps);
                for row in 0..rows {
                    let (x, n) = (row_of(&x, row, width), width as f64);
                    let mean = x.iter().sum::<f64>() / n;
                    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                    let square = x.iter().map(|x| x * x).sum::<f64>() / n;
                    for i in 0..width {
                        let (w, b) = (f64::from(w[i]), f64::from(b[i]));
                        let want = (x[i] - mean) / (variance + f64::from(eps)).sqrt() * w + b;
                        assert_near(layer[row * width + i], want, path);
                        let want = x[i] / (square + f64::from(eps)).sqrt() * w;
                        assert_near(rms[row * width + i], want, path);
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_is_normalised_alike_alone_and_in_a_batch() {
        let (rows, width) = (70, 520);
        let (x, w) = (values(rows * width, 4), values(width, 5));
        for path in CpuPath::available() {
            let all = normalise(path, &x, Normal::Rms { weight: &w }, 1e-6);
            for row in 0..rows {
                let at = row * width..(row + 1) * width;
                let one = normalise(path, &x[at.clone()], Normal::Rms { weight: &w }, 1e-6);
                assert_eq!(one[..], all[at], "{path} row {row}");
            }
        }
    }

    #[test]
    fn parts_of_heads_turn_and_the_rest_stays() {
        let (rows, heads, head_dim, half) = (130, 3, 20, 7);
        let x = values(rows * heads * head_dim, 6);
        let angles = values(rows * half, 7);
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        for path in CpuPath::available() {
            let y = rotate(path, &x, Turns { cos: &cos, sin: &sin, half, head_dim }, rows);
            for (i, &got) in y.iter().enumerate() {
                let (row, d) = (i / (heads * head_dim), i % head_dim);
                let want = match d {
                    d if d < half => x[i] * cos[row * half + d] - x[i + half] * sin[row * half + d],
                    d if d < 2 * half => {
                        let turn = row * half + d - half;
                        x[i] * cos[turn] + x[i - half] * sin[turn]
                    }
                    _ => x[i],
                };
                assert!((got - want).abs() < 1e-6, "{path} {i}: {got} {want}");
            }
        }
    }

    #[test]
    fn narrow_numbers_are_the_nearest_there_are() {
        let x: Vec<f32> = values(3 * CHUNK + 5, 8).iter().map(|x| x * 100.0).collect();
        for path in CpuPath::available() {
            let (mut half, mut brain) = (vec![f16::ZERO; x.len()], vec![bf16::ZERO; x.len()]);
            narrow(path, &x, &mut half);
            narrow(path, &x, &mut brain);
            for (i, &x) in x.iter().enumerate() {
                assert_eq!((half[i], brain[i]), (f16::from_f32(x), bf16::from_f32(x)), "{path}");
            }
        }
    }
}
