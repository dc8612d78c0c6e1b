//! How the threads share a matrix of results.

use std::ops::Range;

use rayon::prelude::*;
use smallvec::SmallVec;

use super::buffers::Buffer;

/// One for each of some products of one input, of which there are rarely more.
pub(crate) type Few<T> = SmallVec<[T; 4]>;

/// Multiplications below which waking other threads costs more than it saves.
pub(super) const SERIAL_WORK: usize = 1 << 17;

/// Results `[rows, outs]`, and how they may be cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) rows: usize,
    pub(super) outs: usize,
    /// Multiplications of one result.
    pub(super) k: usize,
    /// From this many rows on, threads share the rows; below, the outputs, and each reads its share
    /// of the weight once.
    pub(super) split_rows: usize,
    /// Rows that are not cut apart.
    pub(super) tile_rows: usize,
    /// The same of outputs.
    pub(super) tile_outs: usize,
}

/// Parts of the outputs a thread gets, one by one: one that is held up gets fewer, and no thread waits
/// long for the last part.
const PARTS_EACH: usize = 8;

/// A share of some results: of which, what rows and outputs, and where they go.
type Share<'a> = (usize, Range<usize>, Range<usize>, &'a mut [f32]);

/// Those of a few products for two threads, or of one for more, without memory of their own.
type Shares<'a> = SmallVec<[Share<'a>; 64]>;

/// `[rows, outs]` of each grid. `compute` gets the number of one, some rows and some outputs, and writes
/// `[rows, outs]` of those.
pub(super) fn share(
    grids: &[Grid],
    compute: impl Fn(usize, Range<usize>, Range<usize>, &mut [f32]) + Sync,
) -> Few<Buffer> {
    let threads = rayon::current_num_threads();
    let work: usize = grids.iter().map(|grid| grid.rows * grid.outs * grid.k).sum();
    let is_serial = threads == 1 || work < SERIAL_WORK;
    let mut results: Few<Buffer> =
        grids.iter().map(|grid| Buffer::new(grid.rows * grid.outs)).collect();
    // Outputs of several rows do not lie side by side: they are put where they belong afterwards.
    let mut apart: Few<Option<Buffer>> = grids
        .iter()
        .map(|grid| (!is_serial && grid.is_apart()).then(|| Buffer::new(grid.rows * grid.outs)))
        .collect();
    let mut shares = Shares::new();
    for (i, (y, apart)) in results.iter_mut().zip(&mut apart).enumerate() {
        let threads = if is_serial { 1 } else { threads };
        grids[i].cut(i, threads, apart.as_mut().unwrap_or(y), &mut shares);
    }
    let run = |(i, rows, outs, y): &mut Share<'_>| compute(*i, rows.clone(), outs.clone(), y);
    match is_serial {
        true => shares.iter_mut().for_each(run),
        false => shares.par_iter_mut().with_max_len(1).for_each(run),
    }
    drop(shares);
    for (grid, (y, apart)) in grids.iter().zip(results.iter_mut().zip(&apart)) {
        if let Some(apart) = apart {
            grid.put_together(threads, apart, y);
        }
    }
    results
}

impl Grid {
    /// Whether threads share the outputs of several rows.
    fn is_apart(&self) -> bool {
        (2..self.split_rows).contains(&self.rows)
    }

    /// Outputs of a share.
    fn outs_each(&self, threads: usize) -> usize {
        self.outs.div_ceil(threads * PARTS_EACH).next_multiple_of(self.tile_outs)
    }

    /// Cuts result number `i`. Of outputs of several rows, those of a share stand side by side.
    fn cut<'a>(&self, i: usize, threads: usize, y: &'a mut [f32], to: &mut Shares<'a>) {
        let Self { rows, outs, .. } = *self;
        if threads == 1 || y.is_empty() {
            to.push((i, 0..rows, 0..outs, y));
        } else if rows >= self.split_rows {
            let each = rows.div_ceil(threads).next_multiple_of(self.tile_rows);
            let parts = y.chunks_mut(each * outs).enumerate();
            to.extend(parts.map(|(n, y)| (i, n * each..rows.min((n + 1) * each), 0..outs, y)));
        } else {
            let each = self.outs_each(threads);
            let parts = y.chunks_mut(rows * each).enumerate();
            to.extend(parts.map(|(n, y)| (i, 0..rows, n * each..outs.min((n + 1) * each), y)));
        }
    }

    fn put_together(&self, threads: usize, apart: &[f32], y: &mut [f32]) {
        let each = self.outs_each(threads);
        for (i, from) in apart.chunks(self.rows * each).enumerate() {
            let part = i * each..self.outs.min((i + 1) * each);
            for (row, values) in y.chunks_mut(self.outs).zip(from.chunks(part.len())) {
                row[part.clone()].copy_from_slice(values);
            }
        }
    }
}

/// Numbers a thread should have to work on before another is woken.
pub(super) const NUMBERS_EACH: usize = 1 << 14;

/// `[rows, width]`, row by row: `compute` gets a range of rows and where they go.
pub(super) fn share_rows(
    rows: usize,
    width: usize,
    compute: impl Fn(Range<usize>, &mut [f32]) + Sync,
) -> Buffer {
    let mut y = Buffer::new(rows * width);
    let each = rows.div_ceil(rayon::current_num_threads()).max(NUMBERS_EACH.div_ceil(width));
    if each >= rows {
        compute(0..rows, &mut y);
        return y;
    }
    y.par_chunks_mut(each * width).enumerate().for_each(|(i, y)| {
        compute(i * each..rows.min((i + 1) * each), y);
    });
    y
}
