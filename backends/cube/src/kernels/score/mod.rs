//! Row scoring: ids and a few numbers a row come to the host, never the logits.
//!
//! Four kernels over slices of rows and over rows. [`slices`] reads the logits once: guidance, edits,
//! statistics; what later kernels read again is kept as it is then. [`bounds`] finds what filters
//! leave, [`draws`] measures and draws from it, and [`answer`] puts a row together. A row's sums have
//! one order whatever other rows there are.

mod adjusted;
mod answer;
mod bounds;
mod draws;
mod layout;
mod reduce;
mod request;
mod response;
mod slices;
mod values;

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use dfastllm_backends::ops::{RowParams, RowScore};
use dfastllm_backends::{DType, Int, Tensor, TensorData};

use super::buffers::{buffer, element, int_buffer, int_tensor, room, units};
use answer::answer_kernel;
use bounds::bounds_kernel;
use draws::draws_kernel;
use layout::{ANSWER, BOUNDS, DRAWN, TOPS};
use request::{Request, is_kept};
use response::row_score;
use slices::slices_kernel;

/// Most units of a cube that reduces a slice.
const UNITS: u32 = 256;
/// Tokens a unit looks at.
const EACH: u32 = 8;
/// Most units of a cube that looks at a whole row again and again.
const ROW_UNITS: u32 = 1024;
/// Most bytes of rows kept for a second look at a time; the search for bounds takes twice as many
/// beside them, and a buffer has 128 MiB at most on some devices.
const KEPT_BYTES: usize = 32 << 20;

/// Scores of rows that [`RowParams::is_reducible`] says can be found here.
pub(super) fn score_rows(logits: Tensor<2>, params: &[RowParams]) -> Vec<RowScore> {
    let [_, vocab] = logits.dims();
    let logits = Logits { vocab, values: buffer(logits.clone()), tensor: logits };
    let most = if params.iter().any(is_kept) { KEPT_BYTES / (4 * vocab) } else { params.len() };
    let most = most.max(1);
    let chunks: Vec<_> = params.chunks(most).map(|chunk| logits.answers(chunk)).collect();
    let widths: Vec<_> = chunks.iter().map(|(_, width)| *width).collect();
    let mut answers: Vec<_> = chunks.into_iter().map(|(answers, _)| answers).collect();
    // One read, whatever the number of launches.
    let answers = if answers.len() == 1 { answers.remove(0) } else { Tensor::cat(answers, 0) };
    let words: Vec<u32> = answers.into_data().iter::<u32>().collect();
    let mut rest = words.as_slice();
    let mut scores = Vec::with_capacity(params.len());
    for (chunk, width) in params.chunks(most).zip(widths) {
        let (answers, after) = rest.split_at(chunk.len() * width);
        rest = after;
        let answers = answers.chunks_exact(width).zip(chunk);
        scores.extend(answers.map(|(answer, params)| row_score(answer, params)));
    }
    scores
}

struct Logits {
    vocab: usize,
    values: CubeTensor,
    tensor: Tensor<2>,
}

/// Buffers that go from kernel to kernel, of one call.
struct Buffers {
    asked: CubeTensor,
    slices: CubeTensor,
    kept: CubeTensor,
    bounds: CubeTensor,
    drawn: CubeTensor,
}

/// Sizes of one call.
struct Sizes {
    vocab: u32,
    rows: u32,
    /// Units of a cube that reduces a slice.
    units: u32,
    /// Tokens of a slice.
    len: u32,
    slices: u32,
    tops: u32,
    /// Words a slice leaves.
    stride: u32,
}

impl Sizes {
    fn of(logits: &Logits, rows: usize, request: &Request) -> Self {
        let units = units(&logits.values.client, UNITS);
        let (vocab, len, tops) = (logits.vocab as u32, units * EACH, request.tops as u32);
        let slices = vocab.div_ceil(len);
        Self { vocab, rows: rows as u32, units, len, slices, tops, stride: TOPS + 2 * tops }
    }

    /// A cube a slice of every row.
    fn by_slice(&self) -> (CubeCount, CubeDim) {
        (CubeCount::Static(self.slices, self.rows, 1), CubeDim::new_1d(self.units))
    }
}

impl Logits {
    /// Launches what answers rows; the answers, and the words of one.
    fn answers(&self, params: &[RowParams]) -> (Tensor<1, Int>, usize) {
        let request = Request::new(params, self.vocab);
        let sizes = Sizes::of(self, params.len(), &request);
        let words = |n: usize| room(&self.values, [n.max(1)], DType::U32);
        let (rows, slices) = (params.len(), params.len() * sizes.slices as usize);
        let is_bounded = request.is_bounded;
        let is_drawn = request.kept > 0;
        let buffers = Buffers {
            slices: words(slices * sizes.stride as usize),
            kept: words(request.kept * self.vocab),
            bounds: words(if is_bounded { rows * BOUNDS as usize } else { 0 }),
            drawn: words(if is_drawn { slices * DRAWN as usize } else { 0 }),
            asked: self.upload(request.words),
        };
        self.reduce_slices(&buffers, &sizes, request.adjusts);
        if is_bounded {
            self.find_bounds(&buffers, &sizes, request.kept);
        }
        if is_drawn {
            self.draw(&buffers, &sizes, is_bounded);
        }
        let width = (ANSWER + 2 * sizes.tops) as usize;
        let answers = words(rows * width);
        self.answer(&buffers, answers.clone(), &sizes, [is_drawn, is_bounded]);
        (int_tensor(answers), width)
    }

    fn upload(&self, words: Vec<u32>) -> CubeTensor {
        let shape = [words.len()];
        let data = TensorData::new(words, shape);
        int_buffer(Tensor::<1, Int>::from_data(data, (&self.tensor.device(), DType::U32)))
    }

    fn reduce_slices(&self, buffers: &Buffers, sizes: &Sizes, adjusts: bool) {
        let (count, dim) = sizes.by_slice();
        slices_kernel::launch(
            &self.values.client,
            count,
            dim,
            self.values.clone().into_buffer_arg(),
            buffers.asked.clone().into_buffer_arg(),
            buffers.slices.clone().into_buffer_arg(),
            buffers.kept.clone().into_buffer_arg(),
            sizes.vocab,
            sizes.tops,
            sizes.units,
            sizes.len,
            adjusts,
            sizes.tops > 0,
            element(self.values.dtype),
        );
    }

    fn find_bounds(&self, buffers: &Buffers, sizes: &Sizes, kept: usize) {
        let most = ROW_UNITS.min(sizes.vocab.next_power_of_two());
        let units = units(&self.values.client, most);
        let listed = (sizes.vocab.div_ceil(units) * units) as usize;
        let work = room(&self.values, [2 * kept * listed], DType::U32);
        bounds_kernel::launch(
            &self.values.client,
            CubeCount::Static(sizes.rows, 1, 1),
            CubeDim::new_1d(units),
            buffers.asked.clone().into_buffer_arg(),
            buffers.slices.clone().into_buffer_arg(),
            buffers.kept.clone().into_buffer_arg(),
            work.into_buffer_arg(),
            buffers.bounds.clone().into_buffer_arg(),
            sizes.vocab,
            sizes.slices,
            sizes.stride,
            units,
        );
    }

    fn draw(&self, buffers: &Buffers, sizes: &Sizes, is_bounded: bool) {
        let (count, dim) = sizes.by_slice();
        draws_kernel::launch(
            &self.values.client,
            count,
            dim,
            buffers.asked.clone().into_buffer_arg(),
            buffers.slices.clone().into_buffer_arg(),
            buffers.kept.clone().into_buffer_arg(),
            buffers.bounds.clone().into_buffer_arg(),
            buffers.drawn.clone().into_buffer_arg(),
            sizes.vocab,
            sizes.stride,
            sizes.units,
            sizes.len,
            is_bounded,
        );
    }

    fn answer(&self, buffers: &Buffers, answers: CubeTensor, sizes: &Sizes, has: [bool; 2]) {
        let [is_drawn, is_bounded] = has;
        answer_kernel::launch(
            &self.values.client,
            CubeCount::Static(sizes.rows, 1, 1),
            CubeDim::new_1d(sizes.units),
            self.values.clone().into_buffer_arg(),
            buffers.asked.clone().into_buffer_arg(),
            buffers.slices.clone().into_buffer_arg(),
            buffers.kept.clone().into_buffer_arg(),
            buffers.bounds.clone().into_buffer_arg(),
            buffers.drawn.clone().into_buffer_arg(),
            answers.into_buffer_arg(),
            sizes.vocab,
            sizes.slices,
            sizes.tops,
            sizes.units,
            sizes.len,
            sizes.tops > 0,
            is_drawn,
            is_bounded,
            element(self.values.dtype),
        );
    }
}
