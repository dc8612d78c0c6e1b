//! `y = x Wᵀ + b` with the weight in its checkpoint layout `[out, in]`.

use std::ops::Range;

use rayon::prelude::*;

use super::isa::{CpuPath, Isa, Kernel, dispatch};

/// Rows and outputs of one register tile.
const ROWS: usize = 4;
const OUTS: usize = 4;
/// Multiplications below which waking other threads costs more than it saves.
const SERIAL_WORK: usize = 1 << 17;
/// From this many rows on, threads share the rows; below, the outputs, and each reads its share of
/// the weight once.
const SPLIT_ROWS: usize = 128;
/// Bytes of the weight that all rows pass over before the next ones: they stay in the core's cache.
const BLOCK_BYTES: usize = 128 << 10;

/// Operands of one product.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    /// `[rows, k]`
    pub(crate) x: &'a [f32],
    /// `[outs, k]`
    pub(crate) w: &'a [f32],
    /// `[outs]`
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) k: usize,
}

impl<'a> Product<'a> {
    fn outs(&self) -> usize {
        self.w.len() / self.k
    }

    fn with_rows(self, x: &'a [f32]) -> Self {
        Self { x, ..self }
    }

    fn with_outs(self, from: usize, to: usize) -> Self {
        let bias = self.bias.map(|b| &b[from..to]);
        Self { w: &self.w[from * self.k..to * self.k], bias, ..self }
    }
}

/// `[rows, outs]`. Each element is one dot product, summed lane-wise along `k` and then over the
/// lanes, whatever its neighbours.
pub(crate) fn linear(path: CpuPath, product: Product<'_>) -> Vec<f32> {
    let (rows, outs) = (product.x.len() / product.k, product.outs());
    let mut y = vec![0f32; rows * outs];
    let threads = rayon::current_num_threads();
    if threads == 1 || rows * outs * product.k < SERIAL_WORK {
        dispatch(path, Tiles { product, y: &mut y });
    } else if rows >= SPLIT_ROWS {
        let rows_each = rows.div_ceil(threads).next_multiple_of(ROWS);
        y.par_chunks_mut(rows_each * outs)
            .zip(product.x.par_chunks(rows_each * product.k))
            .for_each(|(y, x)| dispatch(path, Tiles { product: product.with_rows(x), y }));
    } else {
        split_outs(path, product, &mut y);
    }
    y
}

/// Few rows: every thread takes a range of outputs.
fn split_outs(path: CpuPath, product: Product<'_>, y: &mut [f32]) {
    let outs = product.outs();
    let outs_each = outs.div_ceil(rayon::current_num_threads() * 2).next_multiple_of(2 * OUTS);
    let parts: Vec<(usize, Vec<f32>)> = (0..outs.div_ceil(outs_each))
        .into_par_iter()
        .map(|i| {
            let (from, to) = (i * outs_each, ((i + 1) * outs_each).min(outs));
            let mut part = vec![0f32; product.x.len() / product.k * (to - from)];
            dispatch(path, Tiles { product: product.with_outs(from, to), y: &mut part });
            (from, part)
        })
        .collect();
    for (from, part) in parts {
        let width = part.len() / (y.len() / outs);
        for (row, values) in y.chunks_mut(outs).zip(part.chunks(width)) {
            row[from..from + width].copy_from_slice(values);
        }
    }
}

struct Tiles<'a> {
    product: Product<'a>,
    y: &'a mut [f32],
}

impl Kernel for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { product, y } = self;
        let (rows, outs) = (product.x.len() / product.k, product.outs());
        let each = BLOCK_BYTES / (product.k * size_of::<f32>()).max(1);
        let each = each.next_multiple_of(2 * OUTS);
        for from in (0..outs).step_by(each) {
            let block = from..(from + each).min(outs);
            let mut row = 0;
            while row + ROWS <= rows {
                row_block::<I, ROWS, OUTS>(isa, product, (row, block.clone()), y);
                row += ROWS;
            }
            let rest = (row, block);
            match rows - row {
                3 => row_block::<I, 3, OUTS>(isa, product, rest, y),
                2 => row_block::<I, 2, OUTS>(isa, product, rest, y),
                // One row has registers for twice the outputs, which hides the latency of its sums.
                1 => row_block::<I, 1, { 2 * OUTS }>(isa, product, rest, y),
                _ => {}
            }
        }
    }
}

#[inline(always)]
fn row_block<I: Isa, const R: usize, const N: usize>(
    isa: I,
    product: Product<'_>,
    (row, outs): (usize, Range<usize>),
    y: &mut [f32],
) {
    let mut out = outs.start;
    while out + N <= outs.end {
        tile::<I, R, N>(isa, product, row, out, y);
        out += N;
    }
    while out < outs.end {
        tile::<I, R, 1>(isa, product, row, out, y);
        out += 1;
    }
}

#[inline(always)]
fn tile<I: Isa, const R: usize, const N: usize>(
    isa: I,
    product: Product<'_>,
    row: usize,
    out: usize,
    y: &mut [f32],
) {
    let (k, outs) = (product.k, product.outs());
    let mut x: [&[f32]; R] = [&[]; R];
    for (r, x) in x.iter_mut().enumerate() {
        *x = &product.x[(row + r) * k..][..k];
    }
    let mut w: [&[f32]; N] = [&[]; N];
    for (n, w) in w.iter_mut().enumerate() {
        *w = &product.w[(out + n) * k..][..k];
    }
    let mut acc = [[isa.zero(); N]; R];
    let mut xs = [isa.zero(); R];
    let mut at = 0;
    while at + I::LANES <= k {
        for r in 0..R {
            xs[r] = isa.load(&x[r][at..]);
        }
        for n in 0..N {
            // A few tiles on: rows are too short for the hardware to see a pattern in time.
            isa.prefetch(&w[n][at..], 3 * N * k);
            let ws = isa.load(&w[n][at..]);
            for r in 0..R {
                acc[r][n] = isa.madd(xs[r], ws, acc[r][n]);
            }
        }
        at += I::LANES;
    }
    if at < k {
        for n in 0..N {
            let ws = isa.load_part(&w[n][at..]);
            for r in 0..R {
                acc[r][n] = isa.madd(isa.load_part(&x[r][at..]), ws, acc[r][n]);
            }
        }
    }
    for r in 0..R {
        for n in 0..N {
            let bias = match product.bias {
                Some(bias) => bias[out + n],
                None => 0.0,
            };
            y[(row + r) * outs + out + n] = isa.sum(acc[r][n]) + bias;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn every_path_matches_f64_over_odd_shapes() {
        for path in CpuPath::available() {
            for (rows, outs, k) in [
                (1, 1, 1),
                (1, 9, 17),
                (2, 8, 16),
                (3, 7, 40),
                (5, 13, 160),
                (33, 66, 130),
                (129, 31, 64),
            ] {
                let (x, w, b) = (values(rows * k, 1), values(outs * k, 2), values(outs, 3));
                let y = linear(path, Product { x: &x, w: &w, bias: Some(&b), k });
                for r in 0..rows {
                    for n in 0..outs {
                        let want: f64 = (0..k)
                            .map(|i| f64::from(x[r * k + i]) * f64::from(w[n * k + i]))
                            .sum::<f64>()
                            + f64::from(b[n]);
                        let got = f64::from(y[r * outs + n]);
                        // k products of size at most 1, each rounded to 2^-24 of the partial sum.
                        assert!((got - want).abs() < k as f64 * 1e-7 + 1e-6, "{path} {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_is_bitwise_the_same_alone_and_in_a_batch() {
        let (rows, outs, k) = (67, 300, 160);
        let (x, w) = (values(rows * k, 5), values(outs * k, 6));
        for path in CpuPath::available() {
            let all = linear(path, Product { x: &x, w: &w, bias: None, k });
            for r in 0..rows {
                let x = &x[r * k..(r + 1) * k];
                let one = linear(path, Product { x, w: &w, bias: None, k });
                assert_eq!(one, all[r * outs..(r + 1) * outs], "{path} row {r}");
            }
        }
    }
}
