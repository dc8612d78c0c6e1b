//! The command line: one file a subcommand over shared flags.
//!
//! A mistake exits 2 with one line; a failed load exits 1 with one line naming file and cause.

mod access;
mod answer;
mod bench;
mod chat;
mod completions;
mod config_file;
mod devices;
mod flags;
mod generate;
mod legacy;
mod list;
mod pull;
mod quantize;
mod run_batch;
mod serve;
mod synth;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use dfastllm_backends::DeviceProvider;
use tracing_subscriber::EnvFilter;

/// Serves Phi, LLaDA and Dream language models over the OpenAI API.
#[derive(Debug, Parser)]
#[command(name = "dfastllm", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// HTTP server
    Serve(serve::ServeArgs),
    /// One completion to stdout
    Generate(generate::GenerateArgs),
    /// A conversation in the terminal
    Chat(chat::ChatArgs),
    /// The requests of a file, in the form of OpenAI's batches
    RunBatch(run_batch::RunBatchArgs),
    /// Download a model from the hub
    Pull(pull::PullArgs),
    /// Models that need no download
    List(list::ListArgs),
    /// Where models can run
    Devices(devices::DevicesArgs),
    /// Speed on this machine, without a network
    Bench(bench::BenchArgs),
    /// Write a copy of a checkpoint that is mapped into memory instead of converted at load
    Quantize(quantize::QuantizeArgs),
    /// Write a random checkpoint of a given shape
    Synth(synth::SynthArgs),
    /// Completions of the command line for a shell
    Completions(completions::CompletionsArgs),
}

/// Why a command failed, and with which exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// A mistake on the command line.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// Something that could not be done.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }
}

/// Runs the program.
pub fn run(
    args: impl IntoIterator<Item = OsString>,
    providers: Vec<Box<dyn DeviceProvider>>,
) -> ExitCode {
    let outcome = parse(args).and_then(|(cli, warnings)| {
        start_logging();
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        match cli.command {
            Command::Serve(args) => serve::run(args, &providers),
            Command::Generate(args) => generate::run(args, &providers),
            Command::Chat(args) => chat::run(args, &providers),
            Command::RunBatch(args) => run_batch::run(args, &providers),
            Command::Pull(args) => pull::run(&args),
            Command::List(args) => list::run(&args),
            Command::Devices(args) => devices::run(&args, &providers),
            Command::Bench(args) => bench::run(&args, &providers),
            Command::Quantize(args) => quantize::run(&args),
            Command::Synth(args) => synth::run(&args),
            Command::Completions(args) => completions::run(&args, Cli::command()),
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            // Nothing is left to do if stderr is closed.
            let _ = writeln!(std::io::stderr(), "error: {message}");
            ExitCode::from(code)
        }
    }
}

/// Flags before environment before file before defaults. Help and version end the process.
fn parse(args: impl IntoIterator<Item = OsString>) -> Result<(Cli, Vec<String>), Failure> {
    let (args, warnings) = legacy::translate(args.into_iter().collect());
    let command = config_file::apply(Cli::command(), &args)?;
    let matches = command.try_get_matches_from(args).map_err(|error| {
        let is_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
        if error.use_stderr() && !is_help {
            let text = error.to_string();
            let first = text.lines().find(|l| !l.is_empty()).unwrap_or("wrong arguments");
            let detail = text.lines().nth(1).map(str::trim).filter(|l| l.starts_with("--"));
            let first = first.trim_start_matches("error: ");
            Failure::usage(detail.map_or(first.to_owned(), |d| format!("{first} {d}")))
        } else {
            error.exit()
        }
    })?;
    let cli = Cli::from_arg_matches(&matches).map_err(|e| Failure::usage(e.to_string()))?;
    Ok((cli, warnings))
}

/// Logs go to stderr; `DFASTLLM_LOG` chooses the level.
fn start_logging() {
    let filter = EnvFilter::try_from_env("DFASTLLM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Already set in tests that run several commands.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .try_init();
}

/// Writes to stdout; a closed pipe is the reader's choice, not an error.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write to stdout: {e}")))
        }
        _ => Ok(()),
    }
}
