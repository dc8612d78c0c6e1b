//! How the threads share a matrix of results.

use std::ops::Range;

use rayon::prelude::*;

use super::buffers::Buffer;

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
    /// Rows that are best computed together.
    pub(super) tile_rows: usize,
    /// Outputs that have to be.
    pub(super) tile_outs: usize,
}

/// Parts of the outputs a thread gets, so that one that is held up has fewer left.
const PARTS_EACH: usize = 4;

/// `[rows, outs]`. `compute` gets some rows and some outputs and writes `[rows, outs]` of those.
pub(super) fn share(
    grid: Grid,
    compute: impl Fn(Range<usize>, Range<usize>, &mut [f32]) + Sync,
) -> Buffer {
    let Grid { rows, outs, .. } = grid;
    let threads = rayon::current_num_threads();
    let mut y = Buffer::new(rows * outs);
    if threads == 1 || rows * outs * grid.k < SERIAL_WORK {
        compute(0..rows, 0..outs, &mut y);
    } else if rows >= grid.split_rows {
        let each = rows.div_ceil(threads).next_multiple_of(grid.tile_rows);
        y.par_chunks_mut(each * outs).enumerate().for_each(|(i, y)| {
            compute(i * each..rows.min((i + 1) * each), 0..outs, y);
        });
    } else {
        let each = outs.div_ceil(threads * PARTS_EACH).next_multiple_of(grid.tile_outs);
        let part = |i: usize| i * each..outs.min((i + 1) * each);
        if rows == 1 {
            y.par_chunks_mut(each).enumerate().for_each(|(i, y)| compute(0..1, part(i), y));
            return y;
        }
        let mut parts = Buffer::new(rows * outs);
        let chunks = parts.par_chunks_mut(rows * each).enumerate();
        chunks.for_each(|(i, to)| compute(0..rows, part(i), to));
        for (i, from) in parts.chunks(rows * each).enumerate() {
            let part = part(i);
            for (row, values) in y.chunks_mut(outs).zip(from.chunks(part.len())) {
                row[part.clone()].copy_from_slice(values);
            }
        }
    }
    y
}

/// Numbers a thread should have to work on before another is woken.
const NUMBERS_EACH: usize = 1 << 14;

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
