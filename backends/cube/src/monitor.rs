//! How a device is while it works.

#[cfg(feature = "cuda")]
use std::sync::Arc;

use cubecl::Device as CubeDevice;
#[cfg(feature = "cuda")]
use cudarc::driver::CudaContext;
use dfastllm_backends::{DeviceLoad, DeviceMonitor};

/// Asks the driver. Memory is CUDA's to tell, because only it knows the slice of a card that a process
/// may use; how busy a card is comes from its counters.
pub(crate) struct CubeMonitor {
    device: CubeDevice,
    #[cfg(feature = "cuda")]
    context: Option<Arc<CudaContext>>,
}

impl CubeMonitor {
    pub(crate) fn new(device: CubeDevice) -> Self {
        Self {
            #[cfg(feature = "cuda")]
            context: match &device {
                // The context that CubeCL has retained already.
                CubeDevice::Cuda(cuda) => CudaContext::new(cuda.index).ok(),
                _ => None,
            },
            device,
        }
    }

    /// Bytes in use and in all.
    pub(crate) fn memory(&self) -> Option<(u64, u64)> {
        #[cfg(feature = "cuda")]
        if let Some((free, total)) = self.context.as_ref().and_then(|c| c.mem_get_info().ok()) {
            return Some((total.saturating_sub(free) as u64, total as u64));
        }
        None
    }
}

impl std::fmt::Debug for CubeMonitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CubeMonitor").field(&self.device).finish()
    }
}

impl DeviceMonitor for CubeMonitor {
    fn load(&self) -> DeviceLoad {
        let busy = self.device.utilization().ok();
        DeviceLoad {
            memory: self.memory(),
            busy: busy.map(|busy| f64::from(busy.busy_percent) / 100.0),
        }
    }
}
