//! `"cpu"`, `"cuda:0"`, `"vulkan"` to a value and back.

use std::fmt;
use std::str::FromStr;

use crate::DeviceError;

/// A device as a user names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceSpec {
    /// The best device that works.
    Auto,
    /// Burn's flex backend with this crate's kernels.
    Cpu,
    /// Burn's deprecated ndarray backend.
    NdArray,
    /// An NVIDIA GPU by index.
    Cuda(usize),
    /// A Vulkan adapter by index.
    Vulkan(usize),
    /// The Metal device.
    Metal,
    /// A WebGPU adapter by index, over whatever graphics API the machine has.
    Wgpu(usize),
}

impl DeviceSpec {
    /// Whether its kernels are compiled at run time; of `auto`, whether they may be.
    #[must_use]
    pub fn compiles_kernels(self) -> bool {
        !matches!(self, Self::Cpu | Self::NdArray)
    }

    /// The cargo feature that adds this device to a build.
    #[must_use]
    pub fn feature(self) -> &'static str {
        match self {
            Self::Auto | Self::Cpu => "flex",
            Self::NdArray => "ndarray",
            Self::Cuda(_) => "cuda",
            Self::Vulkan(_) => "vulkan",
            Self::Metal => "metal",
            Self::Wgpu(_) => "wgpu",
        }
    }

    /// The kind without an index, as `/health` reports it: `cuda` for any CUDA device.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::NdArray => "ndarray",
            Self::Cuda(_) => "cuda",
            Self::Vulkan(_) => "vulkan",
            Self::Metal => "metal",
            Self::Wgpu(_) => "wgpu",
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cuda(n) | Self::Vulkan(n) | Self::Wgpu(n) => write!(f, "{}:{n}", self.kind()),
            _ => f.write_str(self.kind()),
        }
    }
}

impl FromStr for DeviceSpec {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::UnknownSpec { found: text.chars().take(64).collect() };
        let (kind, index) = match text.split_once(':') {
            Some((kind, index)) => (kind, Some(index.parse::<u16>().map_err(|_| unknown())?)),
            None => (text, None),
        };
        let n = usize::from(index.unwrap_or(0));
        match (kind, index) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("ndarray", None) => Ok(Self::NdArray),
            ("metal", None) => Ok(Self::Metal),
            ("cuda", _) => Ok(Self::Cuda(n)),
            ("vulkan", _) => Ok(Self::Vulkan(n)),
            ("wgpu", _) => Ok(Self::Wgpu(n)),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for text in ["auto", "cpu", "ndarray", "cuda:0", "cuda:3", "vulkan:1", "metal", "wgpu:0"] {
            assert_eq!(text.parse::<DeviceSpec>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse::<DeviceSpec>().unwrap(), DeviceSpec::Cuda(0));
    }

    #[test]
    fn nonsense_is_refused_with_the_choices() {
        for text in ["", "gpu", "cpu:1", "cuda:", "cuda:-1", "cuda:99999", "metal:0", "CUDA"] {
            let message = text.parse::<DeviceSpec>().unwrap_err().to_string();
            assert!(message.contains("expected auto, cpu"), "{message}");
        }
    }
}
