//! Where the kernels of devices other than the CPU come in.
//!
//! The package that opens such devices knows how to write kernels for them and is above this one, so
//! it hands them over once, before it opens the first device. Operations ask for them by device and
//! fall back to their portable default where there are none.

use std::sync::OnceLock;

use burn::tensor::{Device, Tensor};

use super::{DeviceWeight, Epilogue, Normal, RowParams, RowScore};
use crate::cpu;

/// One projection of [`DeviceKernels::linears`]: its weight, its bias `[out]`, and what is done to
/// its result.
pub type DeviceLinear<'a> = (&'a DeviceWeight, Option<&'a Tensor<1>>, Epilogue);

/// The inference operations as kernels of a device. Contracts are those of the functions of the same
/// name in [`crate::ops`].
pub trait DeviceKernels: Sync {
    /// LayerNorm or RMSNorm, by row.
    fn normalise(&self, x: Tensor<2>, normal: Normal<'_>, eps: f64) -> Tensor<2>;

    /// Projections of one input, `x [rows, in]` to `[rows, out]` each.
    fn linears(&self, x: Tensor<2>, layers: &[DeviceLinear<'_>]) -> Vec<Tensor<2>>;

    /// Scores of rows of logits, all of them [reducible](RowParams::is_reducible).
    fn score_rows(&self, logits: Tensor<2>, params: &[RowParams]) -> Vec<RowScore>;
}

static KERNELS: OnceLock<&'static dyn DeviceKernels> = OnceLock::new();

/// Hands over the kernels for all devices that are not the CPU; the first call counts.
pub fn install_kernels(kernels: &'static dyn DeviceKernels) {
    let _ = KERNELS.set(kernels);
}

/// The kernels for a device, unless it is the CPU or there are none.
pub(crate) fn kernels(device: &Device) -> Option<&'static dyn DeviceKernels> {
    if cpu::is_host(device) { None } else { KERNELS.get().copied() }
}
