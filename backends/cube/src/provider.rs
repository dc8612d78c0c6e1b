//! The provider: which kinds of device this build has, and what it says of them.

use dfastllm_backends::{DeviceError, DeviceInfo, DeviceProvider, DeviceSpec, OpenDevice};

/// The GPUs of this build, one kind per cargo feature.
///
/// [`list`](DeviceProvider::list) leaves software adapters out, so that `auto` prefers the CPU
/// kernels to an emulated GPU; they open when named, as the last of their kind (`vulkan:0` where
/// there is nothing else). A card that several features reach is listed once per feature, best
/// first, but generic `wgpu` adapters only where neither Vulkan nor Metal found one: they would
/// be the same cards again.
///
/// Listing opens every device it lists, because only an opened one tells its memory and dtypes.
#[derive(Debug, Default, Clone, Copy)]
pub struct CubeProvider;

impl CubeProvider {
    /// Hands the kernels of this package over to the operations; opening a device does so too.
    #[cfg(feature = "cube")]
    pub fn install_kernels(self) {
        crate::runtime::configure();
        dfastllm_backends::ops::install_kernels(&crate::kernels::CubeKernels);
    }

    /// Whether the cargo feature for a kind of device is on.
    fn is_built(spec: DeviceSpec) -> bool {
        match spec {
            DeviceSpec::Cuda(_) => cfg!(feature = "cuda"),
            DeviceSpec::Vulkan(_) => cfg!(feature = "vulkan"),
            DeviceSpec::Metal => cfg!(feature = "metal"),
            DeviceSpec::Wgpu(_) => cfg!(feature = "wgpu"),
            DeviceSpec::Auto | DeviceSpec::Cpu | DeviceSpec::NdArray => false,
        }
    }

    /// One spec for each kind in this build, best first.
    fn kinds() -> impl Iterator<Item = DeviceSpec> {
        [DeviceSpec::Cuda(0), DeviceSpec::Metal, DeviceSpec::Vulkan(0), DeviceSpec::Wgpu(0)]
            .into_iter()
            .filter(|&spec| Self::is_built(spec))
    }
}

impl DeviceProvider for CubeProvider {
    fn features(&self) -> Vec<&'static str> {
        Self::kinds().map(DeviceSpec::feature).collect()
    }

    #[cfg(feature = "cube")]
    fn list(&self) -> Vec<DeviceInfo> {
        let mut found: Vec<DeviceInfo> = Vec::new();
        for kind in Self::kinds() {
            let is_listed =
                |info: &DeviceInfo| matches!(info.spec, DeviceSpec::Vulkan(_) | DeviceSpec::Metal);
            if matches!(kind, DeviceSpec::Wgpu(_)) && found.iter().any(is_listed) {
                continue;
            }
            found.extend(crate::hardware::list(kind));
        }
        found
    }

    #[cfg(feature = "cube")]
    fn open(&self, spec: DeviceSpec) -> Option<Result<OpenDevice, DeviceError>> {
        Self::is_built(spec).then(|| crate::hardware::open(spec))
    }

    #[cfg(not(feature = "cube"))]
    fn list(&self) -> Vec<DeviceInfo> {
        Vec::new()
    }

    #[cfg(not(feature = "cube"))]
    fn open(&self, _spec: DeviceSpec) -> Option<Result<OpenDevice, DeviceError>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kinds_of_this_build_are_known() {
        let provider = CubeProvider;
        for spec in [DeviceSpec::Auto, DeviceSpec::Cpu, DeviceSpec::NdArray] {
            assert!(provider.open(spec).is_none(), "{spec}");
        }
        assert_eq!(provider.features().contains(&"cuda"), cfg!(feature = "cuda"));
        assert_eq!(provider.features().contains(&"vulkan"), cfg!(feature = "vulkan"));
    }

    #[test]
    fn what_is_listed_is_of_this_build_and_computes_in_f32() {
        let provider = CubeProvider;
        for info in provider.list() {
            assert!(provider.features().contains(&info.spec.feature()), "{info:?}");
            assert!(info.dtypes.contains(&dfastllm_backends::DType::F32), "{info:?}");
        }
    }

    #[cfg(feature = "cube")]
    #[test]
    fn an_absent_device_is_an_error_that_says_what_is_there() {
        for kind in CubeProvider::kinds().filter(|&kind| kind != DeviceSpec::Metal) {
            let spec: DeviceSpec = format!("{}:4000", kind.kind()).parse().unwrap();
            let message = CubeProvider.open(spec).unwrap().unwrap_err().to_string();
            assert!(message.contains(&format!("device '{spec}' is not available")), "{message}");
            assert!(message.contains("found"), "{message}");
        }
    }
}
