use crate::DeviceSpec;

/// Why a device could not be named, opened or used in the requested precision.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The text is not a device specification.
    #[error(
        "unknown device '{found}': expected auto, cpu, ndarray, cuda[:n], vulkan[:n], metal or wgpu[:n]"
    )]
    UnknownSpec {
        /// What was given.
        found: String,
    },
    /// The program was built without the backend.
    #[error(
        "device '{spec}' is not part of this build: rebuild with `--features {feature}` (built with: {built})"
    )]
    NotBuilt {
        /// The device asked for.
        spec: DeviceSpec,
        /// The cargo feature that adds it.
        feature: &'static str,
        /// What this build can open.
        built: String,
    },
    /// The backend is there but the hardware or driver is not.
    #[error("device '{spec}' is not available: {reason}")]
    Unavailable {
        /// The device asked for.
        spec: DeviceSpec,
        /// What was found instead.
        reason: String,
    },
    /// The device cannot compute in the dtype.
    #[error("device '{spec}' cannot compute in {dtype}: it supports {supported}")]
    UnsupportedDType {
        /// The device.
        spec: DeviceSpec,
        /// The dtype asked for.
        dtype: String,
        /// What it can do.
        supported: String,
    },
    /// The text is not a dtype.
    #[error("unknown dtype '{found}': expected auto, f32, bf16 or f16")]
    UnknownDType {
        /// What was given.
        found: String,
    },
    /// The device has no kernels for quantised weights.
    #[error("device '{spec}' has no {quantize} weights: cpu and GPUs have")]
    UnsupportedQuantize {
        /// The device.
        spec: DeviceSpec,
        /// What was asked for.
        quantize: String,
    },
    /// The text is not a quantisation.
    #[error("unknown quantisation '{found}': expected none, int8 or int4")]
    UnknownQuantize {
        /// What was given.
        found: String,
    },
    /// The text is not a choice of kernels.
    #[error("unknown choice of kernels '{found}': expected tuned or pinned")]
    UnknownKernels {
        /// What was given.
        found: String,
    },
    /// The text does not say where something is done.
    #[error("unknown choice '{found}': expected auto, on or off")]
    UnknownSwitch {
        /// What was given.
        found: String,
    },
    /// The worker threads could not be set up.
    #[error("cannot start {threads} CPU threads: {reason}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// The pool's own message.
        reason: String,
    },
}
