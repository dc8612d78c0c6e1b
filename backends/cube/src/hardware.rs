//! Finding devices and opening them without ever panicking over an absent driver.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cubecl::Device as CubeDevice;
use cubecl::device::{CudaDevice, WgpuBackend, WgpuDevice, WgpuDeviceKind};
use dfastllm_backends::{DType, Device, DeviceError, DeviceInfo, DeviceSpec, OpenDevice, Tensor};

use crate::monitor::CubeMonitor;
use crate::{CubeProvider, runtime};

/// The devices of one kind, software adapters left out.
pub(crate) fn list(kind: DeviceSpec) -> Vec<DeviceInfo> {
    present(kind)
        .into_iter()
        .enumerate()
        .filter(|(_, device)| !is_software(device))
        .filter_map(|(index, device)| {
            let spec = with_index(kind, index);
            // One that cannot even be described is not worth listing; `open` says why.
            guarded(spec, || Ok(describe(spec, &device))).ok()
        })
        .collect()
}

/// Opens a device after it added two numbers correctly.
pub(crate) fn open(spec: DeviceSpec) -> Result<OpenDevice, DeviceError> {
    runtime::keep_kernels().map_err(|reason| DeviceError::Unavailable { spec, reason })?;
    let mut found = present(spec);
    if index(spec) >= found.len() {
        return Err(DeviceError::Unavailable { spec, reason: absent(spec, found.len()) });
    }
    let cube = found.swap_remove(index(spec));
    #[cfg(feature = "cuda")]
    if matches!(spec, DeviceSpec::Cuda(_)) {
        find_cuda_headers().map_err(|reason| DeviceError::Unavailable { spec, reason })?;
    }
    CubeProvider.install_kernels();
    guarded(spec, || {
        let info = describe(spec, &cube);
        let monitor = CubeMonitor::new(cube.clone());
        let device = Device::from(cube);
        smoke_check(&device)?;
        Ok(OpenDevice { spec, device, info, monitor: Some(Arc::new(monitor)) })
    })
}

/// The devices of a kind in the order of its index: discrete, integrated and virtual GPUs, others,
/// and a software adapter last. Empty where the driver is missing.
fn present(kind: DeviceSpec) -> Vec<CubeDevice> {
    runtime::configure();
    match kind {
        DeviceSpec::Cuda(_) => like(CubeDevice::Cuda(CudaDevice::new(0))),
        DeviceSpec::Vulkan(_) => adapters(WgpuBackend::Vulkan),
        DeviceSpec::Metal => adapters(WgpuBackend::Metal),
        DeviceSpec::Wgpu(_) => adapters(WgpuBackend::Auto),
        DeviceSpec::Auto | DeviceSpec::Cpu | DeviceSpec::NdArray => Vec::new(),
    }
}

fn adapters(api: WgpuBackend) -> Vec<CubeDevice> {
    [
        WgpuDeviceKind::DiscreteGpu(0),
        WgpuDeviceKind::IntegratedGpu(0),
        WgpuDeviceKind::VirtualGpu(0),
        WgpuDeviceKind::Other(0),
        WgpuDeviceKind::Cpu,
    ]
    .into_iter()
    .flat_map(|kind| like(CubeDevice::Wgpu(WgpuDevice::new(kind).on(api))))
    .collect()
}

/// Every device of the runtime, API and kind of `device`, whether or not that one exists.
fn like(device: CubeDevice) -> Vec<CubeDevice> {
    CubeDevice::enumerate(device.to_id()).into_iter().map(CubeDevice::from_id).collect()
}

fn is_software(device: &CubeDevice) -> bool {
    matches!(device, CubeDevice::Wgpu(device) if device.kind == WgpuDeviceKind::Cpu)
}

fn index(spec: DeviceSpec) -> usize {
    match spec {
        DeviceSpec::Cuda(n) | DeviceSpec::Vulkan(n) | DeviceSpec::Wgpu(n) => n,
        DeviceSpec::Auto | DeviceSpec::Cpu | DeviceSpec::NdArray | DeviceSpec::Metal => 0,
    }
}

fn with_index(kind: DeviceSpec, index: usize) -> DeviceSpec {
    match kind {
        DeviceSpec::Cuda(_) => DeviceSpec::Cuda(index),
        DeviceSpec::Vulkan(_) => DeviceSpec::Vulkan(index),
        DeviceSpec::Wgpu(_) => DeviceSpec::Wgpu(index),
        other => other,
    }
}

fn absent(spec: DeviceSpec, found: usize) -> String {
    if found > 0 {
        return format!("found {found} of its kind, numbered from 0");
    }
    let hint = match spec {
        DeviceSpec::Cuda(_) => {
            "no NVIDIA GPU was found: is the driver installed, and in a container is the GPU \
             passed in (`docker run --gpus all`)?"
        }
        DeviceSpec::Vulkan(_) => {
            "no Vulkan adapter was found: is the Vulkan driver of the GPU installed \
             (`vulkaninfo --summary` lists what there is)?"
        }
        DeviceSpec::Metal => "no Metal GPU was found",
        _ => "no adapter was found on any graphics API of this machine",
    };
    hint.to_owned()
}

/// CubeCL compiles kernels at run time against the CUDA headers and panics where it finds none, so
/// they are looked for first.
#[cfg(feature = "cuda")]
fn find_cuda_headers() -> Result<(), String> {
    let place = cubecl::cuda::install::cuda_path();
    if place.as_ref().is_some_and(|path| path.join("include/cuda_fp16.h").is_file()) {
        return Ok(());
    }
    let place = place.map_or_else(|| "the usual places".to_owned(), |p| p.display().to_string());
    Err(format!(
        "no CUDA headers in {place}: set CUDA_PATH to a directory that has include/cuda_fp16.h, a \
         CUDA toolkit or the unpacked nvidia-cuda-runtime package"
    ))
}

fn describe(spec: DeviceSpec, cube: &CubeDevice) -> DeviceInfo {
    let client = cube.client();
    let properties = client.properties();
    let device = Device::from(cube.clone());
    let memory = CubeMonitor::new(cube.clone()).memory();
    let name = &properties.identity.name;
    DeviceInfo {
        spec,
        name: if is_software(cube) { format!("{name} (software)") } else { name.clone() },
        total_memory_bytes: memory.map(|(_, all)| all).or(properties.memory.max_memory()),
        // Only CUDA tells what other programs left.
        free_memory_bytes: memory.map(|(used, all)| all - used),
        // Arithmetic counts, not storage: Vulkan adapters may hold bf16 but cannot add it.
        dtypes: [DType::F32, DType::BF16, DType::F16]
            .into_iter()
            .filter(|&dtype| device.supports_dtype(dtype))
            .collect(),
    }
}

/// Compiles and runs the smallest kernel, so that a broken driver or a missing compiler library
/// shows when the device is opened and not inside a request.
fn smoke_check(device: &Device) -> Result<(), String> {
    let x = Tensor::<1>::from_data([1.0f32, 2.5], (device, DType::F32));
    let sum = (x.clone() + x).try_into_data().map_err(|error| error.to_string())?;
    if sum.iter::<f32>().eq([2.0, 5.0]) {
        return Ok(());
    }
    Err(format!("it adds wrongly: twice [1, 2.5] gave {sum}"))
}

/// Runs what may panic inside a driver's runtime and turns that into an error.
fn guarded<T>(
    spec: DeviceSpec,
    action: impl FnOnce() -> Result<T, String>,
) -> Result<T, DeviceError> {
    // Nothing of ours is shared with `action`: it either hands over a device or is dropped.
    let result = catch_unwind(AssertUnwindSafe(action)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("its runtime failed to start: {}", message.unwrap_or("no reason given")))
    });
    result.map_err(|reason| DeviceError::Unavailable { spec, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panicking_runtime_becomes_an_error_with_its_message() {
        let spec = DeviceSpec::Cuda(1);
        let error = guarded::<()>(spec, || panic!("no {}", "NVRTC")).unwrap_err().to_string();
        assert!(error.starts_with("device 'cuda:1' is not available"), "{error}");
        assert!(error.ends_with("failed to start: no NVRTC"), "{error}");
        let refused = guarded::<()>(spec, || Err("busy".to_owned())).unwrap_err().to_string();
        assert!(refused.ends_with("busy"), "{refused}");
    }

    #[test]
    fn indices_go_round() {
        for spec in [DeviceSpec::Cuda(3), DeviceSpec::Vulkan(1), DeviceSpec::Wgpu(2)] {
            assert_eq!(with_index(spec, index(spec)), spec);
        }
    }
}
