//! Passes that recordings are compared with.

use dfastllm_backends::ops::StepShape;
use dfastllm_backends::{Attend, KvPool, PAGE_SIZE, RaggedRows, SpanRequest};

use crate::model::{LanguageModel, unobserved};

/// Pages with something in them.
const FILLED: usize = 4;

/// What passes have to know of a model and its pool.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trials {
    attend: Attend,
    vocab: usize,
    pool_pages: usize,
    /// Longest sequence.
    longest: usize,
}

/// What a sequence has in a step.
struct Share {
    /// Position of its first row.
    first: usize,
    attend: Attend,
    write: bool,
    /// Where what it sees of the cache ends.
    seen: usize,
}

impl Trials {
    pub(super) fn new(model: &dyn LanguageModel, pool: &KvPool) -> Self {
        let (shape, pool_pages) = (model.shape(), pool.pages());
        let longest = shape.max_positions.min(pool_pages * PAGE_SIZE);
        Self { attend: model.attend(), vocab: shape.vocab, pool_pages, longest }
    }

    /// Puts keys and values into the first pages.
    pub(super) fn fill_pages(&self, model: &dyn LanguageModel, pool: &mut KvPool) {
        let positions = self.longest.min(FILLED * PAGE_SIZE);
        let span = SpanRequest {
            rows: 0..positions,
            attend: self.attend,
            write: true,
            visible: Vec::new(),
            pages: (0..FILLED as u32).collect(),
        };
        let tokens = (0..positions).map(|i| self.token(i, 0)).collect();
        let rows = RaggedRows::new(tokens, (0..positions).collect(), vec![span], PAGE_SIZE);
        if let Ok(rows) = rows {
            drop(model.forward(&rows, pool, &mut unobserved));
        }
    }

    /// Steps of a shape and at most so many rows, as engines make them: one that fills it, of sequences as
    /// long as can be, and a smaller one of shorter sequences.
    pub(super) fn passes(&self, shape: StepShape, most_rows: usize) -> Vec<RaggedRows> {
        let sizes = match self.attend {
            Attend::Causal => {
                let rows = shape.rows.min(most_rows);
                [vec![1; rows], vec![1; rows.max(2) - 1]]
            }
            // As many blocks as there are tiles, and a block whose last tile is not full.
            Attend::Bidirectional | Attend::Shadow => {
                [vec![shape.rows / shape.tiles; shape.tiles], vec![shape.rows - 3]]
            }
        };
        let lengths = [self.longest, self.longest / 2];
        // Other tokens in each, so that none finds in its slots what it is to write.
        let passes = sizes.iter().zip(lengths);
        let pass = |(sizes, longest): (&Vec<usize>, usize)| {
            self.pass(sizes, longest, shape.rows + longest)
        };
        passes.filter_map(pass).collect()
    }

    /// A step of sequences with so many rows each, of up to `longest` positions, each longer than the
    /// next. They share pages that have something in them, and each that writes does so to a page of its
    /// own.
    fn pass(&self, sizes: &[usize], longest: usize, salt: usize) -> Option<RaggedRows> {
        let (mut positions, mut spans) = (Vec::new(), Vec::new());
        for (index, &rows) in sizes.iter().enumerate() {
            let share = self.share(index, rows, longest - longest * index / sizes.len());
            let written = share.write.then_some(share.first / PAGE_SIZE);
            let shared = |page: usize| (index + 3 * page) % self.pool_pages.clamp(1, FILLED);
            let page = |at| if written == Some(at) { index } else { shared(at) };
            let pages = share.seen.div_ceil(PAGE_SIZE).max(written.map_or(0, |at| at + 1));
            spans.push(SpanRequest {
                rows: positions.len()..positions.len() + rows,
                attend: share.attend,
                write: share.write,
                visible: vec![0..share.seen],
                pages: (0..pages).map(|at| page(at) as u32).collect(),
            });
            positions.extend(share.first..share.first + rows);
        }
        let tokens = (0..positions.len()).map(|row| self.token(row, salt)).collect();
        RaggedRows::new(tokens, positions, spans, PAGE_SIZE).ok()
    }

    /// What the sequence with number `index`, of `len` positions, has in a step.
    fn share(&self, index: usize, rows: usize, len: usize) -> Share {
        match self.attend {
            // One more behind what is cached.
            Attend::Causal => {
                let first = len.saturating_sub(1);
                Share { first, attend: self.attend, write: true, seen: first }
            }
            // Amid the cache: some replace what is cached of them, some write it anew, some look at it
            // from beside it. Those that write are in one page.
            Attend::Bidirectional | Attend::Shadow => {
                let first = len.saturating_sub(rows) / 2 / PAGE_SIZE * PAGE_SIZE + 3;
                let has_page = index < self.pool_pages && 3 + rows <= PAGE_SIZE;
                let (attend, write) = match index % 3 {
                    0 => (Attend::Bidirectional, false),
                    1 => (Attend::Bidirectional, has_page),
                    _ => (Attend::Shadow, false),
                };
                Share { first, attend, write, seen: len }
            }
        }
    }

    /// Some token.
    fn token(&self, row: usize, salt: usize) -> u32 {
        ((37 * row + 101 * salt + 11) % self.vocab) as u32
    }
}

#[cfg(test)]
mod tests {
    use dfastllm_backends::{KeyRun, KeySource, Span};

    use super::super::shapes;
    use super::*;

    fn trials(attend: Attend, (longest, pool_pages): (usize, usize)) -> Trials {
        let longest = longest.min(pool_pages * PAGE_SIZE);
        Trials { attend, vocab: 50, pool_pages, longest }
    }

    #[test]
    fn trials_fit_whatever_the_sizes_of_a_model_and_its_pool() {
        for attend in [Attend::Causal, Attend::Bidirectional] {
            for sizes in [(1, 1), (7, 2), (40, 1), (40, 2), (100, 3), (512, 5), (4096, 300)] {
                let (trials, pool_pages) = (trials(attend, sizes), sizes.1);
                let most = if attend == Attend::Causal { pool_pages } else { 64 };
                for shape in shapes(attend, most, trials.longest.div_ceil(PAGE_SIZE)) {
                    let passes = trials.passes(shape, most);
                    assert_eq!(passes.len(), 2, "{shape:?}, {sizes:?}");
                    for rows in passes {
                        assert!(shape.holds(&rows), "{} rows, {shape:?}, {sizes:?}", rows.len());
                        let pages = rows.spans().iter().flat_map(|span| &span.keys);
                        let inside = |source| match source {
                            KeySource::Pool { slot } => slot / PAGE_SIZE < pool_pages,
                            KeySource::Rows { row } => row < rows.len(),
                        };
                        assert!(pages.into_iter().all(|run| inside(run.source)), "{sizes:?}");
                    }
                }
            }
        }
        // A pool without pages serves whole passes.
        let passes = trials(Attend::Bidirectional, (512, 0)).passes(StepShape::blocks(8, 0), 64);
        assert!(passes.len() == 2 && passes.iter().all(|rows| StepShape::blocks(8, 0).holds(rows)));
    }

    #[test]
    fn block_trials_are_what_engines_make_of_blocks() {
        let trials = trials(Attend::Bidirectional, (512, 40));
        let passes = trials.passes(StepShape::blocks(32, 32), 64);
        let is_own = |run: &KeyRun| matches!(run.source, KeySource::Rows { .. });
        let of = |rows: &RaggedRows| -> Vec<(Attend, usize, bool)> {
            let is_written = |span: &Span| !span.keys.iter().any(is_own);
            let spans = rows.spans().iter();
            spans.map(|span| (span.attend, span.rows.len(), is_written(span))).collect()
        };
        let (beside, around) = (Attend::Shadow, Attend::Bidirectional);
        let full = [(around, 8, false), (around, 8, true), (beside, 8, false), (around, 8, false)];
        assert_eq!(of(&passes[0]), full);
        assert_eq!(of(&passes[1]), [(around, 29, false)]);
        // Cached keys on both sides of the block, with its own in between.
        let keys = &passes[1].spans()[0].keys;
        let own: Vec<usize> =
            keys.iter().filter(|run| is_own(run)).map(|run| run.position).collect();
        assert_eq!(own, [115, 128]);
        let cached = |position| keys.iter().any(|run| run.position == position);
        assert!(cached(112) && cached(144) && cached(240));
    }
}
