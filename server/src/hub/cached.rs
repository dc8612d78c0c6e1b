//! What the cache holds.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use dfastllm_models::{ModelFiles, family_name, shard_names};

use super::ModelId;
use super::id::is_commit;

/// Names the shards of large checkpoints.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Entries of a folder that are looked at.
const MAX_ENTRIES: usize = 10_000;
/// Folders that names of branches may be made of.
const MAX_DEPTH: usize = 8;

/// A model in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Cached {
    /// What `--model` takes.
    pub(crate) id: ModelId,
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// The commit it is of.
    pub(crate) commit: String,
    /// `model_type`.
    pub(crate) family: &'static str,
    /// Bytes of its files.
    pub(crate) bytes: u64,
    /// When the last of its files came.
    pub(crate) modified: Option<SystemTime>,
    /// Whether nothing is missing.
    pub(crate) complete: bool,
}

/// Models of families served here, by name.
///
/// # Errors
/// When the cache is there and cannot be read.
pub(crate) fn cached_models(cache: &Path) -> io::Result<Vec<Cached>> {
    let mut found = Vec::new();
    for name in names(cache)? {
        let Some(repository) = name.strip_prefix("models--") else { continue };
        let repository = repository.replace("--", "/");
        let folder = cache.join(&name);
        let mut named = Vec::new();
        revisions(&folder.join("refs"), "", &mut named, MAX_DEPTH);
        let mut of_commits: Vec<(String, String)> = Vec::new();
        for commit in names(&folder.join("snapshots")).unwrap_or_default() {
            let before = of_commits.len();
            of_commits.extend(named.iter().filter(|(_, c)| *c == commit).cloned());
            if of_commits.len() == before && is_commit(&commit) {
                of_commits.push((commit.clone(), commit));
            }
        }
        found.extend(of_commits.into_iter().filter_map(|(revision, commit)| {
            let id = ModelId::parse(&format!("{repository}@{revision}"))?;
            model(id, folder.join("snapshots").join(&commit), commit)
        }));
    }
    found.sort_by_key(|model| model.id.to_string());
    Ok(found)
}

fn model(id: ModelId, folder: PathBuf, commit: String) -> Option<Cached> {
    let family = family_name(&ModelFiles::Folder(folder.clone())).ok()?;
    let files: Vec<fs::Metadata> = files(&folder).into_iter().map(|(_, data)| data).collect();
    Some(Cached {
        id,
        commit,
        family,
        bytes: files.iter().map(fs::Metadata::len).sum(),
        modified: files.iter().filter_map(|data| data.modified().ok()).max(),
        complete: missing(&folder).is_none(),
        folder,
    })
}

/// Files of a folder with what lies behind them, by name.
pub(crate) fn files(folder: &Path) -> Vec<(String, fs::Metadata)> {
    let names = names(folder).unwrap_or_default().into_iter();
    let data = |name: String| Some((name.clone(), fs::metadata(folder.join(name)).ok()?));
    names.filter_map(data).filter(|(_, data)| data.is_file()).collect()
}

/// The first file that a checkpoint needs and a folder does not have.
pub(super) fn missing(folder: &Path) -> Option<String> {
    let lacks = |file: &str| !folder.join(file).is_file();
    if lacks("config.json") {
        return Some("config.json".to_owned());
    }
    if lacks("tokenizer.json") && (lacks("vocab.json") || lacks("merges.txt")) {
        return Some("tokenizer.json".to_owned());
    }
    match shard_names(&ModelFiles::Folder(folder.to_owned())) {
        Ok(shards) => shards.into_iter().find(|shard| lacks(shard)),
        Err(_) => Some(INDEX.to_owned()),
    }
}

/// The commit that a file of `refs` holds.
pub(super) fn commit_of(path: &Path) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(64).read_to_string(&mut text).ok()?;
    let commit = text.trim();
    is_commit(commit).then(|| commit.to_owned())
}

/// Revisions and their commits; a branch's name may be a path.
fn revisions(folder: &Path, above: &str, found: &mut Vec<(String, String)>, depth: usize) {
    for name in names(folder).unwrap_or_default() {
        let path = folder.join(&name);
        let revision = format!("{above}{name}");
        if path.is_dir() && depth > 0 {
            revisions(&path, &format!("{revision}/"), found, depth - 1);
        } else if let Some(commit) = commit_of(&path) {
            found.push((revision, commit));
        }
    }
}

/// Names in a folder, sorted; none if there is no such folder.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    let mut names: Vec<String> = entries.take(MAX_ENTRIES).filter_map(name).collect();
    names.sort();
    Ok(names)
}

/// Puts a blob into a snapshot, as a relative link: the cache may be moved.
pub(super) fn link(blob: &Path, to: &Path) -> io::Result<()> {
    // A link that leads nowhere: its blob was deleted by hand.
    if to.symlink_metadata().is_ok() && !to.exists() {
        fs::remove_file(to)?;
    }
    let made = make_link(blob, to);
    match made {
        // Another process was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && to.exists() => Ok(()),
        other => other,
    }
}

#[cfg(unix)]
fn make_link(blob: &Path, to: &Path) -> io::Result<()> {
    let name = blob.file_name().unwrap_or_default();
    std::os::unix::fs::symlink(Path::new("../../blobs").join(name), to)
}

#[cfg(not(unix))]
fn make_link(blob: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(blob, to)
}
