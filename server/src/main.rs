//! The program: puts together the backends of this build and runs a command.

use std::process::ExitCode;

use dfastllm_backends::{CpuProvider, DeviceProvider};

fn main() -> ExitCode {
    let providers: Vec<Box<dyn DeviceProvider>> = vec![Box::new(CpuProvider)];
    dfastllm_server::cli::run(std::env::args_os(), providers)
}
