//! Stub of `cubecl-llvm`, patched in by the workspace.
//!
//! `cubecl-cuda` compiles kernels either to CUDA C++ or through LLVM, and always depends on both
//! code generators; the LLVM one downloads a prebuilt LLVM when it is built. Builds here select
//! CUDA C++ (the `cuda-cpp` feature of `cubecl`), so only the names `cubecl-cuda` mentions are
//! needed. Should a build select LLVM after all, every kernel fails with the reason.
//!
//! Written against `cubecl-cuda` 0.11.3: another version that uses more names does not compile.

use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_environment::backtrace::BackTrace;
use cubecl_server::{compiler::CompilationError, kernel::BufferIOAttr};

use nvptx::ptx_version::PtxVersion;

/// What code is generated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LlvmTarget {
    /// NVIDIA's PTX.
    Nvptx,
}

/// The compiler that is not there.
#[derive(Clone, Debug)]
pub struct PlironCompiler {
    /// What it would generate code for.
    pub target: LlvmTarget,
}

/// Options nothing reads.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// AMD architecture.
    pub arch: Option<()>,
    /// NVIDIA architecture.
    pub sm_arch: Option<SmArch>,
    /// Newest PTX version the driver loads.
    pub ptx_version: Option<PtxVersion>,
    /// Whether parameters may be grid constants.
    pub grid_constants: bool,
    /// Stands for the fields `cubecl-cuda` leaves at their defaults.
    pub other: (),
}

/// A compiled kernel; never constructed.
#[derive(Debug, Clone)]
pub struct NvptxModule {
    /// Its intermediate representation.
    pub ir: String,
    /// Its machine code.
    pub ptx: Vec<core::ffi::c_char>,
    /// Shared memory it needs.
    pub shared_memory_size: usize,
    /// How it uses its buffers.
    pub io: Vec<BufferIOAttr>,
}

/// What a compilation yields; never constructed.
#[derive(Debug)]
pub enum PlironArtifact {
    /// PTX.
    NvptxCode(NvptxModule),
    /// Anything else.
    Other,
}

impl PlironCompiler {
    /// Refuses.
    pub fn compile(
        &mut self,
        _kernel: KernelDefinition,
        _options: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: "built without LLVM: enable the `cuda-cpp` feature of cubecl".into(),
            backtrace: BackTrace::capture(),
        })
    }

    /// The language of the intermediate representation.
    pub fn lang_tag(&self) -> &'static str {
        "ll"
    }
}

/// NVIDIA's PTX.
pub mod nvptx {
    /// Versions of PTX.
    pub mod ptx_version {
        /// A version; here the driver's own, which is enough to tell cached kernels apart.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct PtxVersion(u32);

        impl PtxVersion {
            /// The newest version a driver loads.
            pub fn for_driver(driver: i32) -> Option<Self> {
                u32::try_from(driver).ok().map(Self)
            }
        }

        impl core::fmt::Display for PtxVersion {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "driver-{}", self.0)
            }
        }
    }
}

/// What the code generators have in common.
pub mod shared {
    /// Features the LLVM path cannot lower.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// What code is generated for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA's PTX.
            Nvptx,
        }

        /// Removes features the LLVM path cannot lower: nothing is lowered, nothing removed.
        pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
    }
}
