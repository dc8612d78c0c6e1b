//! Passes recorded once and replayed: CUDA graphs, and recorded dispatches through wgpu.

use std::sync::{Mutex, PoisonError};

use cubecl::client::{Client, Graph};
use dfastllm_backends::ops::RecordedPass;
use dfastllm_backends::{DType, Device, Int, Tensor, TensorData};

use super::buffers::{buffer, buffer_in_place, int_buffer};

/// Runs before a recording, so that all kernels are compiled and all memory is there: nothing can be
/// allocated while recording.
const WARM_UPS: usize = 3;

/// Whether replaying is one launch.
pub(super) fn has_graphs(device: &Device) -> bool {
    matches!(any_buffer(device).device, cubecl::Device::Cuda(_))
}

fn any_buffer(device: &Device) -> burn_cubecl::tensor::CubeTensor {
    buffer(Tensor::<1>::empty([1], (device, DType::F32)))
}

/// A stream between the preparation of a recording and its end, which comes whatever happens: a stream
/// left recording would execute nothing any more.
struct Window<'a> {
    client: &'a Client,
    is_open: bool,
}

impl<'a> Window<'a> {
    fn prepare(client: &'a Client) -> Result<Self, String> {
        client.graph_prepare().map_err(|e| e.to_string())?;
        Ok(Self { client, is_open: true })
    }

    fn close(mut self) -> Result<Graph, String> {
        self.is_open = false;
        self.client.stop_capture().map_err(|e| e.to_string())
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        if self.is_open {
            // What it says is of a recording that nobody wants.
            drop(self.client.stop_capture());
        }
    }
}

/// Records the launches of `pass`.
pub(super) fn record(
    device: &Device,
    pass: &mut dyn FnMut() -> Tensor<2>,
) -> Result<Box<dyn RecordedPass>, String> {
    // All threads have one stream: two recordings would end up in each other.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let client = any_buffer(device).client;
    let window = Window::prepare(&client)?;
    for _ in 0..WARM_UPS {
        // Kept until all ran, so that the recorded run finds as much memory.
        let result = pass();
        device.sync().map_err(|e| e.to_string())?;
        drop(result);
    }
    client.start_capture().map_err(|e| e.to_string())?;
    let result = pass();
    let graph = window.close()?;
    Ok(Box::new(Recording { graph, result }))
}

#[derive(Debug)]
struct Recording {
    graph: Graph,
    /// What the recorded run returned. As it is never dropped before the graph, no operation takes its
    /// buffer for its own result.
    result: Tensor<2>,
}

impl RecordedPass for Recording {
    #[expect(unsafe_code, reason = "a replay names buffers by their addresses")]
    fn replay(&mut self) -> Result<Tensor<2>, String> {
        // SAFETY: the recorded launches read and write buffers by address, so these have to be there, to
        // be used by nobody else meanwhile, and to be filled and read in order with the replay.
        // They are there: a graph of CubeCL 0.11.3, the version that is pinned, guards every page of
        // memory that its launches were given, and a guarded page is neither freed, moved nor handed
        // out again while the graph exists, also where the tensors on it were dropped.
        // Nobody else uses them meanwhile, and all is in order: the whole process has one stream
        // (`StreamPolicy::Single`, set before the first look at a device), so that launches, replays,
        // writes and reads of all threads come one after the other.
        unsafe { self.graph.replay() }.map_err(|e| e.to_string())?;
        Ok(self.result.clone())
    }
}

/// Writes over the first elements, in order with launches.
pub(super) fn overwrite_ints(x: &Tensor<1, Int>, values: &[i32]) {
    assert!(values.len() <= x.dims()[0], "{} numbers for {:?}", values.len(), x.dims());
    let data = TensorData::new(values.to_vec(), [values.len()]);
    let x = int_buffer(x.clone());
    x.client.write(&x.handle, data.into_bytes());
}

/// Writes over all elements, in order with launches.
pub(super) fn overwrite(x: &Tensor<3>, data: TensorData) {
    assert_eq!(x.dims().iter().product::<usize>(), data.num_elements(), "as much as there is");
    let x = buffer_in_place(x);
    x.client.write(&x.handle, data.into_bytes());
}
