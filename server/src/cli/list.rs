//! `dfastllm list`

use clap::Args;
use dfastllm_models::{BUILTIN_MODELS, ModelFiles, builtin_files, family_name};
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::{Failure, print};
use crate::hub::{self, Cached};

/// Flags of the list.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// One JSON object a line
    #[arg(long, env = "DFASTLLM_JSON")]
    json: bool,
}

pub(crate) fn run(args: &ListArgs) -> Result<(), Failure> {
    let settings = hub::Settings::from_env().map_err(Failure::failed)?;
    let cache = settings.cache.path();
    let cached = hub::cached_models(cache)
        .map_err(|e| Failure::failed(format!("{}: {e}", cache.display())))?;
    let models: Vec<Value> =
        BUILTIN_MODELS.iter().filter_map(builtin).chain(cached.iter().map(downloaded)).collect();
    let lines: Vec<String> = match args.json {
        true => models.iter().map(Value::to_string).collect(),
        false => table(&models),
    };
    print(&(lines.join("\n") + "\n"))
}

fn builtin(name: &&str) -> Option<Value> {
    let files = builtin_files(name)?;
    let family = family_name(&files).ok()?;
    let ModelFiles::Builtin { files, .. } = files else { return None };
    let bytes: usize = files.iter().map(|(_, content)| content.len()).sum();
    Some(json!({
        "model": format!("builtin:{name}"),
        "family": family,
        "bytes": bytes,
        "revision": null,
        "commit": null,
        "modified": null,
        "complete": true,
        "folder": null,
    }))
}

fn downloaded(model: &Cached) -> Value {
    let modified = model.modified.and_then(|time| jiff::Timestamp::try_from(time).ok());
    json!({
        "model": model.id.to_string(),
        "family": model.family,
        "bytes": model.bytes,
        "revision": model.id.revision,
        "commit": model.commit,
        "modified": modified.map(|time| format!("{time:.0}")),
        "complete": model.complete,
        "folder": model.folder.display().to_string(),
    })
}

fn table(models: &[Value]) -> Vec<String> {
    let text = |model: &Value, field: &str| model[field].as_str().unwrap_or("-").to_owned();
    let row = |model: &Value| {
        let bytes = HumanBytes(model["bytes"].as_u64().unwrap_or(0)).to_string();
        let note = if model["complete"] == true { "" } else { "  incomplete: pull it again" };
        let commit: String = text(model, "commit").chars().take(12).collect();
        [text(model, "model"), bytes, text(model, "family"), commit, text(model, "modified") + note]
    };
    let head = ["model", "size", "family", "commit", "modified"].map(str::to_owned);
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(models.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (name, size, family) = (width(0), width(1), width(2));
    let line = |[model, bytes, kind, commit, modified]: &[String; 5]| {
        format!("{model:<name$}  {bytes:>size$}  {kind:<family$}  {commit:<12}  {modified}")
    };
    rows.iter().map(line).collect()
}
