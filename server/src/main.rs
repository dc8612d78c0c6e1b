//! The program: puts together the backends of this build and runs a command.

use std::process::ExitCode;

use dfastllm_backends::{CpuProvider, DeviceProvider};
use mimalloc::MiMalloc;

/// A step makes about a hundred small allocations a layer, most of them for tensors' handles: here they cost less
/// than in the system's allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let providers: Vec<Box<dyn DeviceProvider>> = vec![
        #[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal", feature = "wgpu"))]
        Box::new(dfastllm_cube::CubeProvider),
        Box::new(CpuProvider),
    ];
    dfastllm_server::cli::run(std::env::args_os(), providers)
}
