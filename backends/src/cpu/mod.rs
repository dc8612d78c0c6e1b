//! Kernels for Burn's flex backend, chosen at run time by CPU feature.
//!
//! Kernels are safe Rust over slices, written so that the compiler vectorises them, and compiled
//! once per instruction set (`isa/`). Every output element has one accumulation order that
//! does not depend on how many rows are computed with it or on the number of threads: a row's
//! result is bitwise the same alone and in any batch.

mod attention;
mod awake;
mod buffers;
mod elementwise;
mod flex;
mod isa;
mod packed;
mod roofline;
mod share;
mod softmax;
#[cfg(test)]
mod testing;
mod vector;

pub(crate) use attention::AttentionPlan;
pub(crate) use flex::{
    copy_rows, is_flex, is_flex_f32, is_host, normalise, packed_linears, paged_attention, rotate,
    store_rows,
};
pub use isa::{CpuPath, active_path};
pub(crate) use packed::{BlockRows, PackedLinear};
pub use packed::{PackedMatrix, WeightFormat};
pub use roofline::{ReadTest, multiply_rate};
pub(crate) use share::Few;
pub(crate) use softmax::{SoftmaxSums, softmax_sums};
pub(crate) use vector::Stored;

use burn::tensor::Device;

use crate::DeviceError;

/// Bytes of a line of the cache.
const CACHE_LINE: usize = 64;

/// Sets the number of CPU worker threads. To be called once, before any model runs.
///
/// # Errors
/// When the threads cannot be started or were already.
pub fn configure_threads(threads: usize) -> Result<(), DeviceError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("cpu-{i}"))
        .build_global()
        .map_err(|e| DeviceError::Threads { threads, reason: e.to_string() })
}

/// Runs a computation where its kernels run: for the CPU on one of the worker threads, which then
/// computes a share of every operation instead of waking others and waiting for them, while the others
/// look for theirs; for any other device on the calling thread.
pub fn run_on<R: Send>(device: &Device, compute: impl FnOnce() -> R + Send) -> R {
    if is_flex(device) { awake::run(compute) } else { compute() }
}

/// Physical cores of this machine: the default number of threads.
#[must_use]
pub fn physical_cores() -> usize {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    sysinfo::System::physical_core_count().map_or(available, |cores| cores.min(available)).max(1)
}
