//! Where the kernels of devices other than the CPU come in.
//!
//! The package that opens such devices knows how to write kernels for them and is above this one, so
//! it hands them over once, before it opens the first device. Operations ask for them by device and
//! fall back to their portable default where there are none.

use std::sync::OnceLock;

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::{AttentionHeads, DeviceWeight, Epilogue, KeyTables, Normal, RopeAngles, RopeShape};
use super::{RecordedPass, RowParams, RowScore};
use crate::cpu;

/// One projection of [`DeviceKernels::linears`]: its weight, its bias `[out]`, and what is done to
/// its result.
pub type DeviceLinear<'a> = (&'a DeviceWeight, Option<&'a Tensor<1>>, Epilogue);

/// The inference operations as kernels of a device. Where a function of [`crate::ops`] has the same name,
/// its contract holds here too.
pub trait DeviceKernels: Sync {
    /// Numbers of rows, `most` at most, whose passes run kernels that no smaller number runs: what to
    /// try before the first request, because kernels are compiled and measured when they first run.
    fn new_kernels_at(&self, most: usize) -> Vec<usize>;

    /// LayerNorm or RMSNorm, by row.
    fn normalise(&self, x: Tensor<2>, normal: Normal<'_>, eps: f64) -> Tensor<2>;

    /// Projections of one input, `x [rows, in]` to `[rows, out]` each.
    fn linears(&self, x: Tensor<2>, layers: &[DeviceLinear<'_>]) -> Vec<Tensor<2>>;

    /// Turns the heads of queries and keys, and writes keys and values of rows that are to be written
    /// into `pool`, in place. Returns queries, and keys and values of the rows as
    /// [`attention`](Self::attention) takes them: in the dtype of the pool if some row attends to them
    /// ([`KeyLayout::has_own_keys`](super::KeyLayout)), else anything.
    fn rotate_and_store(
        &self,
        query: Tensor<2>,
        own: [Tensor<2>; 2],
        turn: (RopeShape, &RopeAngles),
        tables: &KeyTables,
        pool: [&mut Tensor<2>; 2],
    ) -> (Tensor<2>, [Tensor<2>; 2]);

    /// Attention of turned queries over pages and own rows. A row that sees no key gets zeros.
    fn attention(
        &self,
        query: Tensor<2>,
        own: [Tensor<2>; 2],
        pool: [&Tensor<2>; 2],
        tables: &KeyTables,
        heads: AttentionHeads,
    ) -> Tensor<2>;

    /// Copies `count` rows of `x` from row `from` to row `to`, in place; the two do not overlap.
    fn copy_rows(&self, x: &mut Tensor<2>, from: usize, to: usize, count: usize);

    /// Writes over the first elements of `x`, where they are.
    fn overwrite_ints(&self, x: &Tensor<1, Int>, values: &[i32]);

    /// Writes over all of `x`, where it is; `data` has its dtype and number of elements.
    fn overwrite(&self, x: &Tensor<3>, data: TensorData);

    /// Whether the device takes a recording as one launch, so that replaying is cheaper than launching.
    fn has_graphs(&self, device: &Device) -> bool;

    /// Records the launches of `pass`, after running it a few times.
    ///
    /// # Errors
    /// Why that does not work, in the device's own words. What `pass` writes is then in no known state.
    fn record(
        &self,
        device: &Device,
        pass: &mut dyn FnMut() -> Tensor<2>,
    ) -> Result<Box<dyn RecordedPass>, String>;

    /// Scores of rows of logits, all of them [reducible](RowParams::is_reducible).
    fn score_rows(&self, logits: Tensor<2>, params: &[RowParams]) -> Vec<RowScore>;
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
