//! `y = x Wᵀ + b` with the weight in its checkpoint layout `[out, in]`.

use std::ops::Range;

use super::isa::{CpuPath, Isa, Kernel, dispatch};
use super::share::{Grid, share};

/// Rows and outputs of one register tile.
const ROWS: usize = 4;
const OUTS: usize = 4;
/// From this many rows on, threads share the rows.
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

    /// Some rows and some outputs of it.
    fn part(self, rows: Range<usize>, outs: Range<usize>) -> Self {
        let k = self.k;
        Self {
            x: &self.x[rows.start * k..rows.end * k],
            w: &self.w[outs.start * k..outs.end * k],
            bias: self.bias.map(|bias| &bias[outs]),
            k,
        }
    }
}

/// `[rows, outs]`. Each element is one dot product, summed lane-wise along `k` and then over the
/// lanes, whatever its neighbours.
pub(crate) fn linear(path: CpuPath, product: Product<'_>) -> Vec<f32> {
    let (rows, outs, k) = (product.x.len() / product.k, product.outs(), product.k);
    let tile_outs = 2 * OUTS;
    let grid = Grid { rows, outs, k, split_rows: SPLIT_ROWS, tile_rows: ROWS, tile_outs };
    share(grid, |rows, outs, y| {
        dispatch(path, Tiles { product: product.part(rows, outs), y });
    })
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
    use super::super::testing::values;
    use super::*;

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
