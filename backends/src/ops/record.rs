//! Passes recorded once and replayed: launches cost more than what small passes compute.

use burn::tensor::{Device, Tensor};

use super::kernels::kernels;
use crate::{Switch, kernel_options};

/// A pass whose launches are recorded, with the buffers that they read and write.
pub trait RecordedPass: std::fmt::Debug + Send {
    /// Runs the pass again, over what its inputs hold now. The result is overwritten by the next
    /// replay.
    ///
    /// # Errors
    /// What the device says. What the pass writes is then in no known state.
    fn replay(&mut self) -> Result<Tensor<2>, String>;
}

/// Whether passes are to be recorded on a device: never on the CPU, else as
/// [`KernelOptions::graphs`](crate::KernelOptions) says.
#[must_use]
pub fn records(device: &Device) -> bool {
    kernels(device).is_some_and(|kernels| match kernel_options().graphs {
        Switch::Auto => kernels.has_graphs(device),
        Switch::On => true,
        Switch::Off => false,
    })
}

/// Records a pass. Numbers of the host and sizes stay what they are now, and nothing may be uploaded or
/// read within: what is to change has to be in tensors that are there before, and overwritten in place.
/// No other thread may use the device meanwhile: what it launched would be recorded too.
///
/// # Errors
/// Why that does not work. What `pass` writes is then in no known state.
pub fn record(
    device: &Device,
    pass: &mut dyn FnMut() -> Tensor<2>,
) -> Result<Box<dyn RecordedPass>, String> {
    match kernels(device) {
        Some(kernels) => kernels.record(device, pass),
        None => Err("the device has no kernels".to_owned()),
    }
}
