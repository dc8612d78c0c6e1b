//! Few queries: keys and values are used as they are stored, each row of all heads from its beginning to
//! its end, while the memory is asked for the rows to come: so computing and reading overlap.

use std::ops::Range;

use super::super::isa::Isa;
use super::super::vector::Stored;
use super::steps::{add_value, add_values, loaded, score, whole_score};
use super::sums::Sums;
use super::task::{MANY_QUERIES, Scores, Task, View, Visit, Way};
use super::{MAX_RUN, Part, lines};

/// Bytes from what is computed with to what the memory is asked for, about; at most a part's keys.
const AHEAD: usize = 8 << 10;
/// Instead of the size of heads.
const ANY: usize = 0;

/// Scores, then weights, of a part's keys: those of all queries.
pub(super) struct AsStored(Vec<Scores>);

impl AsStored {
    pub(super) fn new(queries: usize) -> Self {
        Self(vec![Scores([0.0; MAX_RUN]); queries])
    }
}

impl<T: Stored> Way<T> for AsStored {
    #[inline(always)]
    fn visit<I: Isa>(
        &mut self,
        isa: I,
        task: &Task<'_, T>,
        visit: Visit<'_, T>,
        query: &[f32],
        sums: &mut Sums,
    ) {
        // With its size known, a head is one stretch of instructions.
        match task.plan.head_dim {
            64 => self.heads::<T, I, 64>(isa, task, visit, query, sums),
            80 => self.heads::<T, I, 80>(isa, task, visit, query, sums),
            128 => self.heads::<T, I, 128>(isa, task, visit, query, sums),
            _ => self.heads::<T, I, ANY>(isa, task, visit, query, sums),
        }
    }
}

impl AsStored {
    /// Heads of `DIM` numbers, which are whole vectors of every instruction set, or of `ANY`.
    #[inline(always)]
    fn heads<T: Stored, I: Isa, const DIM: usize>(
        &mut self,
        isa: I,
        task: &Task<'_, T>,
        Visit { part, n, next }: Visit<'_, T>,
        query: &[f32],
        sums: &mut Sums,
    ) {
        let dim = if DIM == ANY { task.plan.head_dim } else { DIM };
        let each = task.each();
        let rows =
            Rows { stride: part.stride, start: task.heads.start * dim, end: task.heads.end * dim };
        // Parts of vectors take longer: their values are added head by head, once all of them are here.
        let by_heads = !dim.is_multiple_of(I::LANES);
        let row_size = (rows.end - rows.start) * size_of::<T>();
        let ahead = if by_heads { n } else { AHEAD.div_ceil(row_size).min(n) };
        let next_keys = next.map_or(&[][..], |next| next.keys);
        for key in 0..n {
            let row = rows.with_coming((part.keys, part.values), key, (n, ahead));
            score_heads::<T, I, DIM>(isa, query, row, (&mut self.0, key), (dim, each));
        }
        let mut views = [View::default(); MANY_QUERIES];
        for (query, view) in views[..each].iter_mut().enumerate() {
            *view = task.view(part, query / task.group);
        }
        let views = &views[..each];
        for (i, scores) in self.0.iter_mut().enumerate() {
            let view = views[i % each];
            if view.n > 0 {
                scores.0 = task.weights(isa, view, loaded(isa, &scores.0), (i, sums));
            }
        }
        if by_heads {
            return self.add_by_heads(isa, task, part, views, sums);
        }
        for key in 0..n {
            let row = rows.with_coming((part.values, next_keys), key, (n, ahead));
            add_heads(isa, (&self.0, views), row, (&mut sums.out, key), dim);
        }
    }

    /// Adds a part's values head by head.
    #[inline(always)]
    fn add_by_heads<T: Stored, I: Isa>(
        &self,
        isa: I,
        task: &Task<'_, T>,
        part: &Part<'_, T>,
        views: &[View],
        sums: &mut Sums,
    ) {
        let dim = task.plan.head_dim;
        let mut sums = sums.out.chunks_mut(dim);
        for (head, weights) in task.heads.clone().zip(self.0.chunks(views.len())) {
            for ((view, weights), sum) in views.iter().zip(weights).zip(&mut sums) {
                let values = (&part.values[head * dim..], part.stride);
                add_values(isa, &weights.0[..view.n], values, sum);
            }
        }
    }
}

/// The heads of a task in `[keys, stride]`.
struct Rows {
    stride: usize,
    start: usize,
    end: usize,
}

impl Rows {
    #[inline(always)]
    fn at(&self, key: usize) -> Range<usize> {
        key * self.stride + self.start..key * self.stride + self.end
    }

    /// A row, and the one that is read `ahead` rows later: of the first `n` of a matrix, or of what is read
    /// after those.
    #[inline(always)]
    fn with_coming<'a, T>(
        &self,
        (matrix, then): (&'a [T], &'a [T]),
        key: usize,
        (n, ahead): (usize, usize),
    ) -> (&'a [T], &'a [T]) {
        let row = &matrix[self.at(key)];
        let coming = match key + ahead < n {
            true => matrix.get(self.at(key + ahead)),
            false => then.get(self.at(key + ahead - n)),
        };
        // What is here already costs nothing to ask for.
        (row, coming.unwrap_or(row))
    }
}

/// Scores a key, head by head: `queries [heads, each, dim]`, its row and the one that is coming `[heads, dim]`.
#[inline(always)]
fn score_heads<T: Stored, I: Isa, const DIM: usize>(
    isa: I,
    mut queries: &[f32],
    (row, coming): (&[T], &[T]),
    (scores, key): (&mut [Scores], usize),
    (dim, each): (usize, usize),
) {
    // It is less anyway; said so that no bounds are checked at every head.
    let key = key % MAX_RUN;
    let mut at = 0;
    for scores in scores.chunks_mut(each) {
        ask_for(isa, &coming[at..at + dim]);
        let row = &row[at..at + dim];
        for scores in scores {
            let query = &queries[..dim];
            scores.0[key] = match DIM {
                ANY => score(isa, query, row),
                _ => whole_score(isa, query, row),
            };
            queries = &queries[dim..];
        }
        at += dim;
    }
}

/// Adds a value times what it weighs to the sums `[heads, each, dim]` of those queries that see it.
#[inline(always)]
fn add_heads<T: Stored, I: Isa>(
    isa: I,
    (weights, views): (&[Scores], &[View]),
    (row, coming): (&[T], &[T]),
    (sums, key): (&mut [f32], usize),
    dim: usize,
) {
    let key = key % MAX_RUN;
    let (mut at, mut query) = (0, 0);
    for weights in weights.chunks(views.len()) {
        ask_for(isa, &coming[at..at + dim]);
        let row = &row[at..at + dim];
        for (view, weights) in views.iter().zip(weights) {
            if key < view.n {
                add_value(isa, weights.0[key], row, &mut sums[query..query + dim]);
            }
            query += dim;
        }
        at += dim;
    }
}

/// Asks the memory for numbers that are used once.
#[inline(always)]
fn ask_for<T, I: Isa>(isa: I, numbers: &[T]) {
    for line in lines::<T>(numbers.len()) {
        isa.prefetch_once(numbers, line);
    }
}
