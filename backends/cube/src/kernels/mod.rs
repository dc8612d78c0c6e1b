//! The inference operations as CubeCL kernels, one file each: the kernel, its launch, and what the
//! device has to be able to do for it.
//!
//! They are compiled at run time for whatever device opened: CUDA C++ for NVIDIA, WGSL or Metal
//! elsewhere.

mod buffers;
mod linear;
mod norm;
mod reduce;

use dfastllm_backends::Tensor;
use dfastllm_backends::ops::{DeviceKernels, DeviceLinear, Normal};

/// All kernels of this package.
#[derive(Debug)]
pub(crate) struct CubeKernels;

impl DeviceKernels for CubeKernels {
    fn new_kernels_at(&self, most: usize) -> Vec<usize> {
        // Tiles of few rows, and the first number that is many; each doubling is tuned anew.
        let last = if cfg!(feature = "autotune") { most } else { most.min(128) };
        (0..).map(|i| 1 << i).take_while(|&rows| rows <= last).collect()
    }

    fn normalise(&self, x: Tensor<2>, normal: Normal<'_>, eps: f64) -> Tensor<2> {
        norm::normalise(x, normal, eps)
    }

    fn linears(&self, x: Tensor<2>, layers: &[DeviceLinear<'_>]) -> Vec<Tensor<2>> {
        linear::linears(x, layers)
    }
}
