//! What queries have summed up so far, and how chunks are joined.

use aligned_vec::{AVec, avec};

use super::super::isa::{Isa, Kernel};
use super::super::vector::{Stored, exp};
use super::task::Task;

/// The online softmax of one query.
#[derive(Clone, Copy)]
pub(super) struct Running {
    pub(super) max: f32,
    pub(super) sum: f32,
}

/// Before the first key.
const NOTHING: Running = Running { max: f32::NEG_INFINITY, sum: 0.0 };

/// The sums of some queries over some keys.
pub(super) struct Sums {
    pub(super) running: Vec<Running>,
    /// `[queries, head_dim]`, not divided yet.
    ///
    /// Begins a line of the cache, as all numbers here that vectors are loaded from: beginning inside of
    /// one, as memory may, every vector of the widest kind would take two lines.
    pub(super) out: AVec<f32>,
}

impl Sums {
    pub(super) fn new(queries: usize, dim: usize) -> Self {
        Self { running: vec![NOTHING; queries], out: avec![0.0; queries * dim] }
    }

    pub(super) fn clear(&mut self) {
        self.running.fill(NOTHING);
        self.out.fill(0.0);
    }

    /// Adds what the same queries have of the keys after these.
    #[inline(always)]
    pub(super) fn join<I: Isa>(&mut self, _: I, next: &Self) {
        let dim = self.out.len() / self.running.len();
        let theirs = next.running.iter().zip(next.out.chunks_exact(dim));
        let ours = self.running.iter_mut().zip(self.out.chunks_exact_mut(dim));
        for ((ours, out), (theirs, more)) in ours.zip(theirs) {
            // Saw none of these keys: its maximum is no number to compute with.
            if theirs.sum == 0.0 {
                continue;
            }
            let apart = exp::<I>(-(theirs.max - ours.max).abs());
            let (max, a, b) = match theirs.max > ours.max {
                true => (theirs.max, apart, 1.0),
                false => (ours.max, 1.0, apart),
            };
            *ours = Running { max, sum: ours.sum * a + theirs.sum * b };
            for (x, y) in out.iter_mut().zip(more) {
                *x = *x * a + *y * b;
            }
        }
    }
}

/// Joins what tasks of the same rows have, those of the same heads side by side, and divides.
pub(super) struct Join<'a, T> {
    pub(super) tasks: &'a [Task<'a, T>],
    /// One a task.
    pub(super) done: &'a mut [Sums],
    /// `[rows, heads * head_dim]`
    pub(super) out: &'a mut [f32],
}

impl<T: Stored> Kernel for Join<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let mut done = self.done;
        for tasks in self.tasks.chunk_by(Task::has_same_heads) {
            let now;
            (now, done) = done.split_at_mut(tasks.len());
            if let (Some(task), Some((first, rest))) = (tasks.first(), now.split_first_mut()) {
                for next in rest {
                    first.join(isa, next);
                }
                task.write(first, self.out);
            }
        }
    }
}
