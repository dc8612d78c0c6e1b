//! How the threads share a matrix of results.

use std::ops::Range;

use rayon::prelude::*;

/// Multiplications below which waking other threads costs more than it saves.
const SERIAL_WORK: usize = 1 << 17;

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
) -> Vec<f32> {
    let Grid { rows, outs, .. } = grid;
    let threads = rayon::current_num_threads();
    let mut y = vec![0f32; rows * outs];
    if threads == 1 || rows * outs * grid.k < SERIAL_WORK {
        compute(0..rows, 0..outs, &mut y);
    } else if rows >= grid.split_rows {
        let each = rows.div_ceil(threads).next_multiple_of(grid.tile_rows);
        y.par_chunks_mut(each * outs).enumerate().for_each(|(i, y)| {
            compute(i * each..rows.min((i + 1) * each), 0..outs, y);
        });
    } else {
        let each = outs.div_ceil(threads * PARTS_EACH).next_multiple_of(grid.tile_outs);
        let parts: Vec<(Range<usize>, Vec<f32>)> = (0..outs.div_ceil(each))
            .into_par_iter()
            .map(|i| {
                let range = i * each..outs.min((i + 1) * each);
                let mut part = vec![0f32; rows * range.len()];
                compute(0..rows, range.clone(), &mut part);
                (range, part)
            })
            .collect();
        for (range, part) in parts {
            for (row, values) in y.chunks_mut(outs).zip(part.chunks(range.len())) {
                row[range.clone()].copy_from_slice(values);
            }
        }
    }
    y
}
