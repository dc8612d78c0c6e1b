//! Steps of a model over one pool, recorded once and replayed as one launch each.
//!
//! Steps of few rows are the same launches every time if they have the same number of rows: a row of every
//! sequence of a causal model, which is written and sees what is before it; blocks of the sequences of a
//! model that denoises. There is a recording for some numbers of rows, which serves all steps that
//! [fit](StepShape::holds) into it, and all of them see as far as the model does: how far only decides into
//! how many parts the keys of a row are cut.

mod trial;

use dfastllm_backends::ops::{
    InputForm, RecordedPass, StepInputs, StepShape, record, records, select_rows,
};
use dfastllm_backends::{Attend, DType, KeySource, KvPool, PAGE_SIZE, RaggedRows, Tensor};

use self::trial::Trials;
use crate::model::{Halves, LanguageModel, unobserved};

/// Rows of recordings of causal models, whose steps have any number of sequences. More rows compute for so
/// long that launching them is hidden behind it.
const DECODE_ROWS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Rows of recordings of models that denoise. Projections of few rows take sixteen at a time, so that less
/// between multiples of it would not be faster; the last rows of a block are fewer. Models that predict
/// the next position compute a row more than a block of 32 has, which 48 are for.
const BLOCK_ROWS: [usize; 5] = [8, 16, 32, 48, 64];

/// Recorded steps, those of few rows first.
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
    inputs: StepInputs,
}

impl RecordedSteps {
    /// Records steps of up to `most_rows` rows where the device is to, and compares each with the pass
    /// itself. Overwrites pages of the pool. Also returns what could not be recorded.
    #[must_use]
    pub fn new(
        model: &dyn LanguageModel,
        pool: &mut KvPool,
        most_rows: usize,
    ) -> (Self, Vec<(usize, NotRecorded)>) {
        let (mut steps, mut failed) = (Vec::new(), Vec::new());
        let Some(halves) = model.halves() else { return (Self::default(), failed) };
        if !records(pool.device()) {
            return (Self::default(), failed);
        }
        let (attend, pages) = (model.attend(), pool.pages());
        // Each sequence of a causal model has a page of its own.
        let most_rows = if attend == Attend::Causal { most_rows.min(pages) } else { most_rows };
        let pages = model.shape().max_positions.div_ceil(PAGE_SIZE).min(pages);
        let shapes = shapes(attend, most_rows, pages);
        let trials = Trials::new(model, pool);
        if !shapes.is_empty() {
            trials.fill_pages(model, pool);
        }
        for shape in shapes {
            let passes = trials.passes(shape, most_rows);
            match Step::new(model, halves, pool, (shape, &passes)) {
                Some(Ok(step)) => steps.push(step),
                Some(Err(reason)) => failed.push((shape.rows, reason)),
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

    /// The hidden rows of a pass of `model`, and maybe more rows after them, if the pass is a step that
    /// there is a recording of. Valid until the next call.
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

/// Steps of up to `most_rows` rows and so many pages of a sequence, the last the first that has room for
/// all rows.
fn shapes(attend: Attend, most_rows: usize, pages: usize) -> Vec<StepShape> {
    let is_causal = attend == Attend::Causal;
    let sizes: &[usize] = if is_causal { &DECODE_ROWS } else { &BLOCK_ROWS };
    let shape = if is_causal { StepShape::decode } else { StepShape::blocks };
    let smaller = std::iter::once(0).chain(sizes.iter().copied());
    let wanted = sizes.iter().zip(smaller).take_while(|(_, smaller)| *smaller < most_rows);
    wanted.map(|(&rows, _)| shape(rows, pages)).collect()
}

impl Step {
    /// A recording of a shape, compared with passes that fit; nothing on a device without kernels.
    fn new(
        model: &dyn LanguageModel,
        halves: &dyn Halves,
        pool: &mut KvPool,
        (shape, trials): (StepShape, &[RaggedRows]),
    ) -> Option<Result<Self, NotRecorded>> {
        let (form, device) = (halves.input_form(), pool.device().clone());
        let inputs = StepInputs::new(shape, form, &device)?;
        let mut pass = || halves.run(inputs.pass(), pool, &mut unobserved);
        let recorded = match record(&device, &mut pass) {
            Ok(recorded) => recorded,
            Err(reason) => return Some(Err(NotRecorded::Refused(reason))),
        };
        let mut step = Self { recorded, inputs };
        for rows in trials {
            if let Err(reason) = step.compare(model, pool, rows) {
                return Some(Err(reason));
            }
        }
        Some(Ok(step))
    }

    fn replay(&mut self, form: InputForm<'_>, rows: &RaggedRows) -> Result<Tensor<2>, NotRecorded> {
        self.inputs.fill(rows, form);
        self.recorded.replay().map_err(NotRecorded::NotReplayed)
    }

    /// Whether a replay gives and writes what the pass itself does. The two cut and add keys in other
    /// orders.
    fn compare(
        &mut self,
        model: &dyn LanguageModel,
        pool: &mut KvPool,
        rows: &RaggedRows,
    ) -> Result<(), NotRecorded> {
        let Some(halves) = model.halves() else { return Ok(()) };
        let (last, slots) = (model.shape().layers - 1, written(rows));
        // The replay first, and all that comes of it: the pass itself writes the same slots.
        let replayed = values(self.replay(halves.input_form(), rows)?.slice([0..rows.len()]));
        let kept = stored(pool, last, &slots);
        let itself = model.forward(rows, pool, &mut unobserved);
        let expected = if itself.dtype() == DType::F32 { 1e-3 } else { 5e-2 };
        let of_rows = std::iter::once((replayed, values(itself)));
        let of_pages = kept.into_iter().zip(stored(pool, last, &slots));
        for (replayed, itself) in of_rows.chain(of_pages) {
            let found = relative(&replayed, &itself);
            // False for NaN, which differs.
            let is_same = found <= expected;
            if !is_same {
                return Err(NotRecorded::Differs { found, expected });
            }
        }
        Ok(())
    }
}

/// Slots of the pool that rows are written to.
fn written(rows: &RaggedRows) -> Vec<usize> {
    let mut slots = Vec::new();
    for span in rows.spans().iter().filter(|span| span.attend != Attend::Shadow) {
        for &position in &rows.positions()[span.rows.clone()] {
            slots.extend(span.keys.iter().find_map(|run| match run.source {
                // A row that is not written is a key of its own.
                KeySource::Pool { slot }
                    if (run.position..run.position + run.len).contains(&position) =>
                {
                    Some(slot + position - run.position)
                }
                _ => None,
            }));
        }
    }
    slots
}

/// Keys and values in some slots of a layer.
fn stored(pool: &KvPool, layer: usize, slots: &[usize]) -> Vec<Vec<f32>> {
    if slots.is_empty() {
        return Vec::new();
    }
    let (keys, values_) = pool.layer(layer);
    [keys, values_].map(|pages| values(select_rows(pages.clone(), slots))).into()
}

fn values(x: Tensor<2>) -> Vec<f32> {
    x.cast(DType::F32).into_data().iter::<f32>().collect()
}

/// Root mean square of `a - b`, relative to that of `b`; both have the same shape.
#[must_use]
pub fn difference(a: Tensor<2>, b: Tensor<2>) -> f32 {
    relative(&values(a), &values(b))
}

fn relative(a: &[f32], b: &[f32]) -> f32 {
    let sum = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
    let (apart, all) = (sum(&mut a.iter().zip(b).map(|(a, b)| a - b)), sum(&mut b.iter().copied()));
    if apart == 0.0 { 0.0 } else { (apart / all).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_shape_has_room_for_all_rows() {
        let rows = |attend, most_rows| -> Vec<usize> {
            shapes(attend, most_rows, 4).iter().map(|shape| shape.rows).collect()
        };
        assert_eq!(rows(Attend::Causal, 0), [0; 0]);
        assert_eq!(rows(Attend::Causal, 1), [1]);
        assert_eq!(rows(Attend::Causal, 5), [1, 2, 4, 8]);
        assert_eq!(rows(Attend::Causal, 500), DECODE_ROWS);
        assert_eq!(rows(Attend::Bidirectional, 3), [8]);
        assert_eq!(rows(Attend::Bidirectional, 33), [8, 16, 32, 48]);
        assert_eq!(rows(Attend::Bidirectional, 2048), BLOCK_ROWS);
    }

    #[test]
    fn differences_are_relative_to_the_values() {
        assert_eq!(relative(&[0.0, 0.0], &[0.0, 0.0]), 0.0);
        assert!((relative(&[3.0, 4.5], &[3.0, 4.0]) - 0.1).abs() < 1e-6);
        assert!(relative(&[f32::NAN, 1.0], &[1.0, 1.0]).is_nan());
        assert!(relative(&[1.0], &[0.0]).is_infinite());
    }
}
