//! Where the kernels of devices other than the CPU come in.
//!
//! The package that opens such devices knows how to write kernels for them and is above this one, so
//! it hands them over once, before it opens the first device. Operations ask for them by device and
//! fall back to their portable default where there are none.

use std::sync::OnceLock;

use burn::tensor::{Device, Tensor};

use super::{DeviceWeight, Epilogue, Normal};
use crate::cpu;

/// One projection of [`DeviceKernels::linears`]: its weight, its bias `[out]`, and what is done to
/// its result.
pub type DeviceLinear<'a> = (&'a DeviceWeight, Option<&'a Tensor<1>>, Epilogue);

/// The inference operations as kernels of a device. Contracts are those of the functions of the same
/// name in [`crate::ops`].
pub trait DeviceKernels: Sync {
    /// Numbers of rows, `most` at most, whose passes run kernels that no smaller number runs: what to
    /// try before the first request, because kernels are compiled and measured when they first run.
    fn new_kernels_at(&self, most: usize) -> Vec<usize>;

    /// LayerNorm or RMSNorm, by row.
    fn normalise(&self, x: Tensor<2>, normal: Normal<'_>, eps: f64) -> Tensor<2>;

    /// Projections of one input, `x [rows, in]` to `[rows, out]` each.
    fn linears(&self, x: Tensor<2>, layers: &[DeviceLinear<'_>]) -> Vec<Tensor<2>>;
}

static KERNELS: OnceLock<&'static dyn DeviceKernels> = OnceLock::new();

/// Hands over the kernels for all devices that are not the CPU; the first call counts.
pub fn install_kernels(kernels: &'static dyn DeviceKernels) {
    let _ = KERNELS.set(kernels);
}

/// Numbers of rows to run a pass of before requests come ([`DeviceKernels::new_kernels_at`]); none on
/// the CPU, whose kernels are compiled already.
#[must_use]
pub fn warm_up_rows(device: &Device, most: usize) -> Vec<usize> {
    kernels(device).map(|kernels| kernels.new_kernels_at(most)).unwrap_or_default()
}

/// The kernels for a device, unless it is the CPU or there are none.
pub(crate) fn kernels(device: &Device) -> Option<&'static dyn DeviceKernels> {
    if cpu::is_host(device) { None } else { KERNELS.get().copied() }
}
