//! `dfastllm pull`

use std::path::Path;

use clap::Args;
use indicatif::HumanBytes;
use serde_json::json;

use super::{Failure, print};
use crate::hub::{self, ModelId, WithoutTerminal};

/// Flags of a download.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// ORG/NAME[@REVISION]
    model: String,

    /// Print one JSON object with the folder and its files
    #[arg(long, env = "DFASTLLM_JSON")]
    json: bool,
}

pub(crate) fn run(args: &PullArgs) -> Result<(), Failure> {
    let Some(id) = ModelId::parse(&args.model) else {
        let here = args.model.starts_with("builtin:") || Path::new(&args.model).is_dir();
        let expected = if here { "it is here already; expected" } else { "expected" };
        let message = format!("{}: {expected} ORG/NAME[@REVISION] on the hub", args.model);
        return Err(Failure::usage(message));
    };
    let settings = hub::Settings::from_env().map_err(Failure::failed)?;
    let snapshot = hub::fetch(&id, &settings, WithoutTerminal::Quiet)
        .map_err(|e| Failure::failed(e.to_string()))?;
    let files = hub::files(&snapshot.folder);
    let folder = snapshot.folder.display().to_string();
    if !args.json {
        let bytes = files.iter().map(|(_, data)| data.len()).sum();
        return print(&format!("{folder}: {} files, {}\n", files.len(), HumanBytes(bytes)));
    }
    let file =
        |(name, data): &(String, std::fs::Metadata)| json!({"name": name, "bytes": data.len()});
    let object = json!({
        "model": id.repository,
        "revision": id.revision,
        "commit": snapshot.commit,
        "folder": folder,
        "files": files.iter().map(file).collect::<Vec<_>>(),
    });
    print(&format!("{object}\n"))
}
