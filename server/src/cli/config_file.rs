//! `--config FILE.toml`: its keys are flags and take the place of their defaults.

use std::ffi::OsString;

use clap::{Arg, Command};

use super::Failure;

/// A command whose defaults are what the file named in `args` (or `DFASTLLM_CONFIG`) says.
pub(crate) fn apply(command: Command, args: &[OsString]) -> Result<Command, Failure> {
    let Some(path) = path(args) else { return Ok(command) };
    let text = std::fs::read_to_string(&path)
        .map_err(|e| Failure::usage(format!("--config {path}: {e}")))?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        Failure::usage(format!("--config {path}: {}", e.message()))
    })?;
    let mut settings = Vec::new();
    for (key, value) in table {
        let flag = key.replace('_', "-");
        let known = |c: &Command| c.get_arguments().any(|a| a.get_long() == Some(&flag));
        if flag == "config" || !command.get_subcommands().any(known) {
            return Err(Failure::usage(format!("--config {path}: unknown setting '{key}'")));
        }
        let values = values(value)
            .ok_or_else(|| Failure::usage(format!("--config {path}: '{key}' is not a value")))?;
        settings.push((flag, values));
    }
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    Ok(names.into_iter().fold(command, |command, name| {
        command.mut_subcommand(name, |sub| {
            sub.mut_args(|arg| match settings.iter().find(|(f, _)| arg.get_long() == Some(f)) {
                Some((_, values)) => with_default(arg, values),
                None => arg,
            })
        })
    }))
}

fn with_default(arg: Arg, values: &[String]) -> Arg {
    // A default is not something the user repeated by hand: it may stand beside nothing.
    arg.required(false).default_values(values.to_vec())
}

fn path(args: &[OsString]) -> Option<String> {
    let mut args = args.iter().filter_map(|a| a.to_str());
    while let Some(arg) = args.next() {
        if arg == "--config" {
            return args.next().map(str::to_owned);
        }
        if let Some(path) = arg.strip_prefix("--config=") {
            return Some(path.to_owned());
        }
    }
    std::env::var("DFASTLLM_CONFIG").ok()
}

fn values(value: toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::String(text) => Some(vec![text]),
        toml::Value::Integer(n) => Some(vec![n.to_string()]),
        toml::Value::Float(n) => Some(vec![n.to_string()]),
        toml::Value::Boolean(b) => Some(vec![b.to_string()]),
        toml::Value::Array(items) => {
            items.into_iter().map(|i| values(i)?.into_iter().next()).collect()
        }
        _ => None,
    }
}
