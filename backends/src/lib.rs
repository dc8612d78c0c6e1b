//! Where a model runs and how fast: devices, dtypes and the inference operations.
//!
//! - [`DeviceSpec`] turns `"cuda:0"` into a value and back; [`DeviceProvider`] opens it.
//! - [`Precision`] says which dtype weights, activations and cached keys/values have on a device.
//! - [`ops`] is the seam that keeps models portable and fast: every operation a decoder needs on
//!   ragged rows, with a portable default in Burn tensor ops and fast paths behind it.
//! - [`RaggedRows`] and [`KvPool`] are the data those operations work on.
//!
//! Absent on purpose: model families, sampling rules, requests. GPU backends live in their own
//! package (`backends/cube`) so that a plain build never compiles them.

mod cpu;
mod dtype;
mod error;
mod kernel_options;
mod kv;
mod mapping;
pub mod ops;
mod provider;
mod rows;
mod spec;
mod upload;

pub use burn::tensor::{DType, Device, Int, Tensor, TensorData};
pub use bytes::Bytes;
pub use cpu::{
    CpuPath, PackedMatrix, ReadTest, WeightFormat, active_path, configure_threads, multiply_rate,
    physical_cores, run_on,
};
pub use dtype::{DTypeChoice, Precision, Quantize, WeightChoice};
pub use error::DeviceError;
pub use kernel_options::{KernelChoice, KernelOptions, Switch, configure_kernels, kernel_options};
pub use kv::{KvPool, KvShape};
pub use mapping::{map_file, tensor_data};
pub use provider::{
    CpuProvider, DeviceInfo, DeviceLoad, DeviceMonitor, DeviceProvider, OpenDevice, list_devices,
    open_device,
};
pub use rows::{Attend, KeyRun, KeySource, PAGE_SIZE, RaggedRows, RowsError, Span, SpanRequest};
pub use spec::DeviceSpec;
pub use upload::{upload, upload_ints};
