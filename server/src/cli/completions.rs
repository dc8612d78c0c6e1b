//! `dfastllm completions`

use clap::{Args, Command};
use clap_complete::Shell;

use super::{Failure, print};

/// Which shell.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell; its documentation says where the text belongs
    shell: Shell,
}

pub(crate) fn run(args: &CompletionsArgs, mut command: Command) -> Result<(), Failure> {
    let name = command.get_name().to_owned();
    // Into memory first: writing to a closed pipe would panic.
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut text);
    print(&String::from_utf8_lossy(&text))
}
