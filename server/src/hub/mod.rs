//! Models of a hub, in the cache that all its programs share.
//!
//! The layout is that of `huggingface_hub`: `blobs` by digest, `snapshots` of links by commit,
//! `refs` from revisions to commits. Only what this program reads is fetched.

mod cached;
mod client;
mod error;
mod id;
mod progress;
mod settings;
mod transfer;

use std::path::{Path, PathBuf};

use dfastllm_models::{ModelFiles, family_name, shard_names};
use hf_hub::{CacheRepo, Repo, RepoType};

pub(crate) use self::cached::{Cached, cached_models, files};
use self::cached::{INDEX, missing};
use self::client::{Client, Listing};
pub(crate) use self::error::{Cause, HubError};
pub(crate) use self::id::ModelId;
pub(crate) use self::progress::WithoutTerminal;
pub(crate) use self::settings::Settings;
use self::transfer::{Wanted, download};

/// Files that are fetched where they exist, beside tokenizer and weights.
const TEXTS: [&str; 3] = ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"];

/// A fetched model.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// The commit it is of.
    pub(crate) commit: String,
}

/// Fetches what is missing of a model, and says where it lies.
///
/// # Errors
/// One line with repository, file, cause and what helps.
pub(crate) fn fetch(
    id: &ModelId,
    settings: &Settings,
    progress: WithoutTerminal,
) -> Result<Snapshot, HubError> {
    let here = Here::new(id, settings);
    let known = here.known();
    if settings.offline {
        return known.map_err(|missing| {
            let cache = settings.cache.path().clone();
            Cause::Offline { cache, missing }.of(id, None)
        });
    }
    // A commit never changes: nothing to ask.
    if let Some(snapshot) = known.as_ref().ok().filter(|_| id.is_pinned()) {
        return Ok(snapshot.clone());
    }
    let client = Client::new(settings);
    let listing = match (client.listing(id), known) {
        (Ok(listing), _) => listing,
        (Err(cause), Ok(snapshot)) if cause.is_passing() => {
            tracing::warn!("{}; using what is cached", cause.of(id, None));
            return Ok(snapshot);
        }
        (Err(cause), _) => return Err(cause.of(id, None)),
    };
    let fetching = Fetching { id, client: &client, listing: &listing, here: &here, progress };
    let snapshot = fetching.all()?;
    if !id.is_pinned() {
        let refs = here.folder.join("refs");
        let written = here.repo.create_ref(&listing.sha);
        written.map_err(|e| Cause::disk(&refs, e).of(id, None))?;
    }
    Ok(snapshot)
}

/// A repository's place in the cache.
struct Here {
    repo: CacheRepo,
    folder: PathBuf,
    locks: PathBuf,
    commit: Option<String>,
}

impl Here {
    fn new(id: &ModelId, settings: &Settings) -> Self {
        let repo = Repo::with_revision(id.repository.clone(), RepoType::Model, id.revision.clone());
        let folder = settings.cache.path().join(repo.folder_name());
        let locks = settings.cache.path().join(".locks").join(repo.folder_name());
        let commit = match id.is_pinned() {
            true => Some(id.revision.clone()),
            false => cached::commit_of(&folder.join("refs").join(&id.revision)),
        };
        Self { repo: settings.cache.repo(repo), folder, locks, commit }
    }

    /// The snapshot that is here, or what is missing of it.
    fn known(&self) -> Result<Snapshot, String> {
        let commit = self.commit.clone().ok_or("the model")?;
        let folder = self.repo.pointer_path(&commit);
        match missing(&folder) {
            None => Ok(Snapshot { folder, commit }),
            Some(file) => Err(format!("its {file}")),
        }
    }
}

/// A download as it goes on.
struct Fetching<'a> {
    id: &'a ModelId,
    client: &'a Client,
    listing: &'a Listing,
    here: &'a Here,
    progress: WithoutTerminal,
}

impl Fetching<'_> {
    /// Config first: a model of a family not served here is refused before gigabytes are fetched.
    fn all(&self) -> Result<Snapshot, HubError> {
        let folder = self.here.repo.pointer_path(&self.listing.sha);
        let files = ModelFiles::Folder(folder.clone());
        let lacks = |what| Cause::Lacks(what).of(self.id, None);
        if !self.listing.has("config.json") {
            return Err(lacks("config.json"));
        }
        self.file("config.json", &folder)?;
        family_name(&files).map_err(|e| Cause::from(e).of(self.id, None))?;
        let tokenizer: &[&str] = match self.listing.has("tokenizer.json") {
            true => &["tokenizer.json"],
            false => &["vocab.json", "merges.txt"],
        };
        if !tokenizer.iter().all(|file| self.listing.has(file)) {
            return Err(lacks("tokenizer.json, and no vocab.json with merges.txt"));
        }
        let texts = TEXTS.iter().filter(|file| self.listing.has(file));
        for file in texts.chain(tokenizer) {
            self.file(file, &folder)?;
        }
        if self.listing.has(INDEX) {
            self.file(INDEX, &folder)?;
        } else if !self.listing.has("model.safetensors") {
            return Err(lacks("model.safetensors, and no index of shards"));
        }
        // Names of an index are checked to stay inside the folder.
        let shards = shard_names(&files).map_err(|e| Cause::from(e).of(self.id, Some(INDEX)))?;
        for shard in shards {
            self.file(&shard, &folder)?;
        }
        Ok(Snapshot { folder, commit: self.listing.sha.clone() })
    }

    fn file(&self, file: &str, folder: &Path) -> Result<(), HubError> {
        self.fetched(file, folder).map_err(|cause| cause.of(self.id, Some(file)))
    }

    fn fetched(&self, file: &str, folder: &Path) -> Result<(), Cause> {
        let link = folder.join(file);
        if link.exists() {
            return Ok(());
        }
        let (repository, commit) = (self.id.repository.as_str(), self.listing.sha.as_str());
        let remote = self.client.describe(repository, commit, file)?;
        let blobs = self.here.folder.join("blobs");
        for folder in [&blobs, &self.here.locks, &folder.to_owned()] {
            std::fs::create_dir_all(folder).map_err(|e| Cause::disk(folder, e))?;
        }
        let blob = blobs.join(&remote.etag);
        let lock = self.here.locks.join(format!("{}.lock", remote.etag));
        if !blob.exists() {
            let bar = self.progress.bar(file, remote.size);
            let wanted = Wanted { repository, commit, file, remote: &remote };
            let outcome = download(self.client, &wanted, (&blob, &lock), &bar);
            // What broke off stays on the screen as it is.
            if outcome.is_ok() {
                bar.finish()
            } else {
                bar.abandon()
            }
            outcome?;
        }
        cached::link(&blob, &link).map_err(|e| Cause::disk(&link, e))
    }
}
