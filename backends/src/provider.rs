//! Opening devices and listing what this build can reach.

use std::sync::Arc;

use burn::tensor::{DType, Device};

use crate::{DeviceError, DeviceSpec};

/// An opened device.
#[derive(Debug, Clone)]
pub struct OpenDevice {
    /// Its name, never `auto`.
    pub spec: DeviceSpec,
    /// The Burn handle.
    pub device: Device,
    /// What is known about it.
    pub info: DeviceInfo,
    /// What it says of itself while it works, if it says anything.
    pub monitor: Option<Arc<dyn DeviceMonitor>>,
}

/// A device that tells how it is, from any thread and without waiting for its work.
pub trait DeviceMonitor: std::fmt::Debug + Send + Sync {
    /// How it is now.
    fn load(&self) -> DeviceLoad;
}

/// How a device is; what cannot be read is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DeviceLoad {
    /// Bytes in use by any program, and all there are.
    pub memory: Option<(u64, u64)>,
    /// Share of the time it was busy lately, 0 to 1.
    pub busy: Option<f64>,
}

/// What is known about one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// How to ask for it.
    pub spec: DeviceSpec,
    /// The hardware's own name.
    pub name: String,
    /// Memory it can allocate from, where that is known.
    pub total_memory_bytes: Option<u64>,
    /// Memory free now, where that is known.
    pub free_memory_bytes: Option<u64>,
    /// Float types it computes in.
    pub dtypes: Vec<DType>,
}

impl DeviceInfo {
    /// `f32, bf16`.
    #[must_use]
    pub fn dtype_names(&self) -> String {
        crate::dtype::names(&self.dtypes)
    }
}

/// One family of backends compiled into the program.
///
/// `main` puts the providers of a build together; nothing else knows which there are.
pub trait DeviceProvider: Send + Sync {
    /// Cargo features this provider stands for, for error messages.
    fn features(&self) -> Vec<&'static str>;

    /// The devices present, best first.
    fn list(&self) -> Vec<DeviceInfo>;

    /// Opens a device, or `None` if this provider does not know its kind.
    ///
    /// # Errors
    /// When the kind is known but the device is absent.
    fn open(&self, spec: DeviceSpec) -> Option<Result<OpenDevice, DeviceError>>;
}

/// The devices of a plain build: flex, and ndarray if compiled in.
#[derive(Debug, Default, Clone, Copy)]
pub struct CpuProvider;

impl CpuProvider {
    fn info(spec: DeviceSpec) -> DeviceInfo {
        // Without the operating system's figures the device still works; they are left out.
        let mut system = sysinfo::System::new().ok();
        if let Some(system) = &mut system {
            system.refresh_memory();
            system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
        }
        let brand = system.as_ref().and_then(|s| s.cpus().first()).map(|c| c.brand().trim());
        let dtypes = match spec {
            DeviceSpec::NdArray => vec![DType::F32],
            _ => vec![DType::F32, DType::BF16, DType::F16],
        };
        DeviceInfo {
            spec,
            name: format!("{} ({} kernels)", brand.unwrap_or("CPU"), crate::active_path()),
            total_memory_bytes: system.as_ref().map(sysinfo::System::total_memory),
            free_memory_bytes: system.as_ref().map(sysinfo::System::available_memory),
            dtypes,
        }
    }
}

impl DeviceProvider for CpuProvider {
    fn features(&self) -> Vec<&'static str> {
        if cfg!(feature = "ndarray") { vec!["flex", "ndarray"] } else { vec!["flex"] }
    }

    fn list(&self) -> Vec<DeviceInfo> {
        let mut found = vec![Self::info(DeviceSpec::Cpu)];
        if cfg!(feature = "ndarray") {
            found.push(Self::info(DeviceSpec::NdArray));
        }
        found
    }

    fn open(&self, spec: DeviceSpec) -> Option<Result<OpenDevice, DeviceError>> {
        let device = match spec {
            DeviceSpec::Cpu => Device::flex(),
            #[cfg(feature = "ndarray")]
            #[expect(deprecated, reason = "kept selectable for comparison until Burn removes it")]
            DeviceSpec::NdArray => Device::ndarray(),
            _ => return None,
        };
        Some(Ok(OpenDevice { spec, device, info: Self::info(spec), monitor: None }))
    }
}

/// Every device the providers reach, best first.
#[must_use]
pub fn list_devices(providers: &[Box<dyn DeviceProvider>]) -> Vec<DeviceInfo> {
    providers.iter().flat_map(|p| p.list()).collect()
}

/// Opens a device by name; `auto` takes the first listed one that opens.
///
/// # Errors
/// [`DeviceError::NotBuilt`] if no provider knows the kind, else the provider's own error.
pub fn open_device(
    spec: DeviceSpec,
    providers: &[Box<dyn DeviceProvider>],
) -> Result<OpenDevice, DeviceError> {
    if spec == DeviceSpec::Auto {
        return list_devices(providers)
            .into_iter()
            .find_map(|info| open_device(info.spec, providers).ok())
            .ok_or_else(|| DeviceError::Unavailable {
                spec,
                reason: "no device was found".to_owned(),
            });
    }
    providers.iter().find_map(|p| p.open(spec)).unwrap_or_else(|| {
        let built: Vec<_> = providers.iter().flat_map(|p| p.features()).collect();
        Err(DeviceError::NotBuilt { spec, feature: spec.feature(), built: built.join(", ") })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Vec<Box<dyn DeviceProvider>> {
        vec![Box::new(CpuProvider)]
    }

    #[test]
    fn auto_opens_the_cpu_in_a_plain_build() {
        let open = open_device(DeviceSpec::Auto, &plain()).unwrap();
        assert_eq!(open.spec, DeviceSpec::Cpu);
        assert_eq!(open.info.dtype_names(), "f32, bf16, f16");
        assert!(open.info.total_memory_bytes.unwrap() > 0);
    }

    #[test]
    fn a_device_left_out_of_the_build_names_its_feature() {
        let error = open_device(DeviceSpec::Cuda(0), &plain()).unwrap_err().to_string();
        assert!(error.contains("`--features cuda`"), "{error}");
    }
}
