//! Decode steps of a model over one pool, recorded once and replayed as one launch each.
//!
//! A step of a causal model is the same launches every time if it has the same number of rows: one for
//! every sequence, each written and seeing what is before it. There is one recording for every power of
//! two of rows, which serves any number up to it, and all of them see as far as the model does: how far
//! only decides into how many parts the keys of a row are cut.

use dfastllm_backends::ops::{DecodeInputs, DecodeShape, InputForm, RecordedPass, record, records};
use dfastllm_backends::{Attend, DType, KvPool, PAGE_SIZE, RaggedRows, SpanRequest, Tensor};

use crate::model::{Halves, LanguageModel, unobserved};

/// Most rows of a recording. More rows compute for so long that launching them is hidden behind it.
const MOST_ROWS: usize = 64;
/// Pages with something in them while recordings are compared.
const FILLED: usize = 4;

/// Recorded decode steps, those of few rows first.
#[derive(Debug, Default)]
pub struct RecordedSteps {
    steps: Vec<Step>,
}

/// Why a step of some rows is not recorded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NotRecorded {
    /// The device does not record it.
    #[error("the device refuses: {0}")]
    Refused(String),
    /// The device does not replay it.
    #[error("it cannot be replayed: {0}")]
    NotReplayed(String),
    /// A replay gives something else.
    #[error("a replay differs by {found:.1e} of the values, expected at most {expected:.1e}")]
    Differs {
        /// Root mean square of the difference, relative to the values.
        found: f32,
        /// Its limit.
        expected: f32,
    },
}

#[derive(Debug)]
struct Step {
    // Before what it reads.
    recorded: Box<dyn RecordedPass>,
    inputs: DecodeInputs,
}

impl RecordedSteps {
    /// Records steps of up to `most_rows` sequences where the device is to, and compares each with the
    /// pass itself. Overwrites pages of the pool. Also returns what could not be recorded.
    #[must_use]
    pub fn new(
        model: &dyn LanguageModel,
        pool: &mut KvPool,
        most_rows: usize,
    ) -> (Self, Vec<(usize, NotRecorded)>) {
        let (mut steps, mut failed) = (Vec::new(), Vec::new());
        let Some(halves) = model.halves().filter(|_| model.attend() == Attend::Causal) else {
            return (Self::default(), failed);
        };
        // Each sequence has a page of its own.
        let most_rows = most_rows.min(MOST_ROWS).min(pool.pages());
        if most_rows == 0 || !records(pool.device()) {
            return (Self::default(), failed);
        }
        let pages = model.shape().max_positions.div_ceil(PAGE_SIZE).min(pool.pages());
        fill_pages(model, pool);
        for rows in (0..).map(|i| 1 << i).take_while(|&rows| rows < 2 * most_rows) {
            let shape = DecodeShape { rows, pages };
            match Step::new(model, halves, pool, (shape, most_rows)) {
                Some(Ok(step)) => steps.push(step),
                Some(Err(reason)) => failed.push((rows, reason)),
                None => {}
            }
        }
        (Self { steps }, failed)
    }

    /// Numbers of rows that there are recordings for.
    #[must_use]
    pub fn rows(&self) -> Vec<usize> {
        self.steps.iter().map(|step| step.inputs.shape().rows).collect()
    }

    /// The hidden rows of a pass of `model`, and maybe more rows after them, if the pass is a decode step
    /// that there is a recording of. Valid until the next call.
    ///
    /// # Errors
    /// When a replay fails; all recordings are dropped then.
    pub fn replay(
        &mut self,
        model: &dyn LanguageModel,
        rows: &RaggedRows,
    ) -> Result<Option<Tensor<2>>, NotRecorded> {
        let step = self.steps.iter_mut().find(|step| step.inputs.shape().holds(rows));
        let (Some(step), Some(halves)) = (step, model.halves()) else { return Ok(None) };
        let replayed = step.replay(halves.input_form(), rows);
        if replayed.is_err() {
            self.steps.clear();
        }
        replayed.map(Some)
    }
}

impl Step {
    /// Nothing on a device without kernels.
    fn new(
        model: &dyn LanguageModel,
        halves: &dyn Halves,
        pool: &mut KvPool,
        (shape, most_rows): (DecodeShape, usize),
    ) -> Option<Result<Self, NotRecorded>> {
        let (form, device) = (halves.input_form(), pool.device().clone());
        let inputs = DecodeInputs::new(shape, form, &device)?;
        let mut pass = || halves.run(inputs.pass(), pool, &mut unobserved);
        let recorded = match record(&device, &mut pass) {
            Ok(recorded) => recorded,
            Err(reason) => return Some(Err(NotRecorded::Refused(reason))),
        };
        let mut step = Self { recorded, inputs };
        // All rows with the longest sequences, and one less with shorter ones.
        let full = shape.rows.min(most_rows);
        for (rows, longest) in [(full, shape.pages), (full.max(2) - 1, shape.pages.div_ceil(2))] {
            let trial = trial(model, pool, (rows, longest))?;
            if let Err(reason) = step.compare(model, pool, &trial) {
                return Some(Err(reason));
            }
        }
        Some(Ok(step))
    }

    fn replay(&mut self, form: InputForm<'_>, rows: &RaggedRows) -> Result<Tensor<2>, NotRecorded> {
        self.inputs.fill(rows, form);
        self.recorded.replay().map_err(NotRecorded::NotReplayed)
    }

    /// Whether a replay gives what the pass itself does. The two cut and add keys in other orders.
    fn compare(
        &mut self,
        model: &dyn LanguageModel,
        pool: &mut KvPool,
        rows: &RaggedRows,
    ) -> Result<(), NotRecorded> {
        let Some(halves) = model.halves() else { return Ok(()) };
        let itself = model.forward(rows, pool, &mut unobserved);
        let expected = if itself.dtype() == DType::F32 { 1e-3 } else { 5e-2 };
        let replayed = self.replay(halves.input_form(), rows)?.slice([0..rows.len()]);
        let found = difference(&values(replayed), &values(itself));
        // Written so that NaN differs.
        if found <= expected { Ok(()) } else { Err(NotRecorded::Differs { found, expected }) }
    }
}

fn values(x: Tensor<2>) -> Vec<f32> {
    x.cast(DType::F32).into_data().iter::<f32>().collect()
}

/// Root mean square of `a - b`, relative to that of `b`.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    let sum = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
    let (apart, all) = (sum(&mut a.iter().zip(b).map(|(a, b)| a - b)), sum(&mut b.iter().copied()));
    if apart == 0.0 { 0.0 } else { (apart / all).sqrt() }
}

/// Puts keys and values into the first pages.
fn fill_pages(model: &dyn LanguageModel, pool: &mut KvPool) {
    let pages = pool.pages().min(FILLED);
    let positions = (pages * PAGE_SIZE).min(model.shape().max_positions);
    let span = SpanRequest {
        rows: 0..positions,
        attend: Attend::Causal,
        write: true,
        visible: Vec::new(),
        pages: (0..pages as u32).collect(),
    };
    let tokens = (0..positions).map(|i| token(model, i, 0)).collect();
    let rows = RaggedRows::new(tokens, (0..positions).collect(), vec![span], PAGE_SIZE);
    if let Ok(rows) = rows {
        drop(model.forward(&rows, pool, &mut unobserved));
    }
}

/// Some token.
fn token(model: &dyn LanguageModel, row: usize, salt: usize) -> u32 {
    ((37 * row + 101 * salt + 11) % model.shape().vocab) as u32
}

/// A step of sequences of up to so many pages, each longer than the next. They share pages that have
/// something in them, and each writes to one of its own.
fn trial(
    model: &dyn LanguageModel,
    pool: &KvPool,
    (rows, longest): (usize, usize),
) -> Option<RaggedRows> {
    let last = (longest * PAGE_SIZE).min(model.shape().max_positions) - 1;
    let positions: Vec<usize> = (0..rows).map(|row| last - last * row / rows).collect();
    let filled = pool.pages().min(FILLED);
    let span = |(row, &position): (usize, &usize)| SpanRequest {
        rows: row..row + 1,
        attend: Attend::Causal,
        write: true,
        visible: vec![0..position],
        pages: (0..position / PAGE_SIZE)
            .map(|page| ((row + 3 * page + longest) % filled) as u32)
            .chain([row as u32])
            .collect(),
    };
    let spans = positions.iter().enumerate().map(span).collect();
    let tokens = (0..rows).map(|row| token(model, row, longest)).collect();
    RaggedRows::new(tokens, positions, spans, PAGE_SIZE).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_relative_to_the_values() {
        assert_eq!(difference(&[0.0, 0.0], &[0.0, 0.0]), 0.0);
        assert!((difference(&[3.0, 4.5], &[3.0, 4.0]) - 0.1).abs() < 1e-6);
        assert!(difference(&[f32::NAN, 1.0], &[1.0, 1.0]).is_nan());
        assert!(difference(&[1.0], &[0.0]).is_infinite());
    }
}
