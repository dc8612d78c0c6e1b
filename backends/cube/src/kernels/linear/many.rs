//! What stands around a matrix product of many rows: weights before it, epilogues after it.

use std::ops::Range;

use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;
use dfastllm_backends::ops::{BlockFormat, Blocks};
use dfastllm_backends::{DType, Tensor};

use super::super::buffers::{buffer, element, int_buffer, room, tensor, units, vector_size};
use super::decode::{BLOCK, stored};
use super::epilogue::{Finish, finished};

/// Most units of a cube.
const UNITS: u32 = 256;

/// Some outputs of quantised weights as floats, `[outs, inputs]` of all from `first` on.
#[cube(launch)]
fn dequantise_kernel<S: Float, F: Float, N: Size>(
    words: &[u32],
    scales: &[S],
    weight: &mut [Vector<F, N>],
    inputs: u32,
    first: u32,
    #[comptime] format: BlockFormat,
    #[define(S, F)] _dtypes: [ElemType; 2],
) {
    if ABSOLUTE_POS < weight.len() {
        let vector = N::value();
        let vectors = inputs / vector as u32;
        let at = ABSOLUTE_POS as u32;
        let (out, i) = (first + at / vectors, at % vectors * vector as u32);
        let blocks = inputs.div_ceil(BLOCK as u32);
        let per_word = comptime!(format.per_word() as u32);
        let row_words = blocks * comptime!(BLOCK as u32 / per_word);
        let word = words[(out * row_words + i / per_word) as usize];
        let scale = f32::cast_from(scales[(out * blocks + i / BLOCK as u32) as usize]);
        // Of a part of the word, moved to where it begins; by nothing if it is the whole word.
        let word = word >> (i % per_word * comptime!(32 / per_word));
        let mut values = Vector::<F, N>::empty();
        #[unroll]
        for k in 0..vector {
            values.insert(k, F::cast_from(stored(word, k, format) * scale));
        }
        weight[ABSOLUTE_POS] = values;
    }
}

/// Some outputs of a quantised weight as `[outs, inputs]` of a float type.
pub(super) fn dequantise(blocks: &Blocks, outs: Range<usize>, dtype: DType) -> CubeTensor {
    let (first, outs) = (outs.start, outs.len());
    let (words, scales) = (int_buffer(blocks.words.clone()), buffer(blocks.scales.clone()));
    let (format, inputs) = (blocks.format, blocks.inputs);
    let weight = room(&scales, [outs, inputs], dtype);
    let client = scales.client.clone();
    let vector = vector_size(&client, dtype, inputs).min(format.per_word());
    let dim = CubeDim::new_1d(units(&client, UNITS));
    let dtypes = [element(scales.dtype), element(dtype)];
    dequantise_kernel::launch(
        &client,
        calculate_cube_count_elemwise(&client, outs * inputs / vector, dim),
        dim,
        vector,
        words.into_buffer_arg(),
        scales.into_buffer_arg(),
        weight.clone().into_buffer_arg(),
        inputs as u32,
        first as u32,
        format,
        dtypes,
    );
    weight
}

/// The library's product as it is where nothing is measured.
pub(super) fn pinned_product(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let dtype = x.dtype();
    let [x, weight] =
        [x, weight].map(|operand| match operand.try_into_primitive::<CubeBackend>() {
            Ok(operand) => operand,
            Err(e) => unreachable!("{e:?}"),
        });
    match matmul(x, weight, None, MatmulStrategy::Cube, dtype) {
        Ok(product) => tensor(product),
        Err(e) => unreachable!("shapes were checked at load: {e:?}"),
    }
}

/// Products `[rows, width]` to results `[rows, outs]` from output `first` on.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arguments are its bindings")]
fn finish_kernel<F: Float, N: Size>(
    products: &[Vector<F, N>],
    bias: &Sequence<Box<[Vector<F, N>]>>,
    other: &Sequence<Box<[Vector<F, N>]>>,
    results: &mut [Vector<F, N>],
    width: u32,
    outs: u32,
    first: u32,
    #[comptime] has_bias: bool,
    #[comptime] finish: Finish,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < products.len() {
        let at = ABSOLUTE_POS as u32;
        let out = first + at % width;
        let to = (at / width * outs + out) as usize;
        let vector = N::value();
        let mut values = Vector::<f32, N>::cast_from(products[ABSOLUTE_POS]);
        if comptime!(has_bias) {
            values += Vector::<f32, N>::cast_from(bias[0][out as usize]);
        }
        let mut beside = Vector::<f32, N>::new(0.0f32);
        if comptime!(finish.has_other()) {
            beside = Vector::<f32, N>::cast_from(other[0][to]);
        }
        let mut done = Vector::<f32, N>::empty();
        #[unroll]
        for k in 0..vector {
            done.insert(k, finished(values.extract(k), beside.extract(k), finish));
        }
        results[to] = Vector::cast_from(done);
    }
}

/// Where products go: to all rows of some outputs.
pub(super) struct Target<'a> {
    /// `[rows, outs]`
    pub(super) results: &'a CubeTensor,
    /// The first of these outputs.
    pub(super) first: usize,
    /// `[outs]`
    pub(super) bias: Option<&'a CubeTensor>,
    pub(super) finish: Finish,
    /// `[rows, outs]`
    pub(super) other: Option<&'a CubeTensor>,
}

/// Finishes products `[rows, width]` and writes them.
pub(super) fn finish(products: CubeTensor, target: &Target<'_>) {
    let client = products.client.clone();
    let [rows, width] = products.meta.shape.dims();
    let outs = target.results.meta.shape[1];
    let dtype = products.dtype;
    let vector = [width, outs, target.first]
        .map(|size| vector_size(&client, dtype, size))
        .into_iter()
        .fold(usize::MAX, usize::min);
    let dim = CubeDim::new_1d(units(&client, UNITS));
    let arg = |x: Option<&CubeTensor>| x.cloned().map(CubeTensor::into_buffer_arg);
    finish_kernel::launch(
        &client,
        calculate_cube_count_elemwise(&client, rows * width / vector, dim),
        dim,
        vector,
        products.into_buffer_arg(),
        arg(target.bias).into_iter().collect(),
        arg(target.other).into_iter().collect(),
        target.results.clone().into_buffer_arg(),
        (width / vector) as u32,
        (outs / vector) as u32,
        (target.first / vector) as u32,
        target.bias.is_some(),
        target.finish,
        element(dtype),
    );
}
