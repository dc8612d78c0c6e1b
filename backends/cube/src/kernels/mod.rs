//! The inference operations as CubeCL kernels, one file each: the kernel, its launch, and what the
//! device has to be able to do for it.
//!
//! They are compiled at run time for whatever device opened: CUDA C++ for NVIDIA, WGSL or Metal
//! elsewhere.

mod buffers;
mod norm;
mod reduce;
mod score;

use dfastllm_backends::Tensor;
use dfastllm_backends::ops::{
    DeviceKernels, DeviceLinear, Normal, RowParams, RowScore, portable_linear,
};

/// All kernels of this package.
#[derive(Debug)]
pub(crate) struct CubeKernels;

impl DeviceKernels for CubeKernels {
    fn normalise(&self, x: Tensor<2>, normal: Normal<'_>, eps: f64) -> Tensor<2> {
        norm::normalise(x, normal, eps)
    }

    fn linears(&self, x: Tensor<2>, layers: &[DeviceLinear<'_>]) -> Vec<Tensor<2>> {
        let linear = |(weight, bias, epilogue): &DeviceLinear<'_>| {
            portable_linear(x.clone(), weight, *bias, epilogue.clone())
        };
        layers.iter().map(linear).collect()
    }

    fn score_rows(&self, logits: Tensor<2>, params: &[RowParams]) -> Vec<RowScore> {
        score::score_rows(logits, params)
    }
}
