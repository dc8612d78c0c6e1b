//! Why a model could not be fetched: one line with repository, file, cause and what helps.

use std::io;
use std::path::{Path, PathBuf};

use dfastllm_models::LoadError;

/// A model could not be fetched.
#[derive(Debug, thiserror::Error)]
#[error("{model}{}: {cause}", file.as_ref().map(|f| format!(": {f}")).unwrap_or_default())]
pub(crate) struct HubError {
    /// What was asked for.
    pub(crate) model: String,
    /// The file concerned, if it is one.
    pub(crate) file: Option<String>,
    /// What went wrong.
    pub(crate) cause: Cause,
}

/// What went wrong, and what helps.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    /// 404 for a repository or revision.
    #[error(
        "no such repository or revision on {endpoint}; check the spelling, or set HF_TOKEN if it \
         is private"
    )]
    NoRepository {
        /// Where it was looked for.
        endpoint: String,
    },
    /// 404 for a file.
    #[error("the repository has no such file")]
    NoFile,
    /// 401 or 403.
    #[error("access is restricted ({status}); {}", match with_token {
        true => "ask for access on the model's page, and check that HF_TOKEN may read it",
        false => "ask for access on the model's page, and set HF_TOKEN",
    })]
    Restricted {
        /// The status.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// 429.
    #[error("the hub answers 429, too many requests; try again {}", match after_seconds {
        Some(seconds) => format!("in {seconds} seconds"),
        None => "later, or set HF_TOKEN".to_owned(),
    })]
    TooMany {
        /// What the hub asks for.
        after_seconds: Option<u64>,
    },
    /// Any other status.
    #[error("the hub answers {0}; try again later")]
    Status(u16),
    /// No answer.
    #[error(
        "cannot reach {endpoint}: {reason}; check the network, HTTPS_PROXY and HF_ENDPOINT, or \
         give a folder"
    )]
    Unreachable {
        /// Where it was looked for.
        endpoint: String,
        /// What the connection says.
        reason: String,
    },
    /// An answer that makes no sense.
    #[error("{0}; is HF_ENDPOINT a model hub?")]
    Answer(String),
    /// A transfer broke off.
    #[error(
        "the transfer broke off after {have} of {size} bytes: {reason}; run the command again to \
         resume"
    )]
    Interrupted {
        /// Bytes on disk.
        have: u64,
        /// Bytes of the file.
        size: u64,
        /// What the connection says.
        reason: String,
    },
    /// More or fewer bytes than announced.
    #[error("{found} bytes arrived, expected {expected}; they were deleted, run the command again")]
    Size {
        /// Bytes that arrived.
        found: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// Other bytes than announced.
    #[error("its SHA-256 is {found}, expected {expected}; it was deleted, run the command again")]
    Digest {
        /// Of the bytes that arrived.
        found: String,
        /// Announced.
        expected: String,
    },
    /// The disk is full.
    #[error("{path}: the disk is full; free some space, or set HF_HUB_CACHE to another disk")]
    DiskFull {
        /// What was written.
        path: PathBuf,
    },
    /// The disk fails otherwise.
    #[error("{path}: {source}")]
    Disk {
        /// What was written or read.
        path: PathBuf,
        /// The operating system's word.
        source: io::Error,
    },
    /// `HF_HUB_OFFLINE`, and something is not there.
    #[error(
        "HF_HUB_OFFLINE is set and {cache} does not hold {missing}; unset it, or run `dfastllm \
         pull` with a network"
    )]
    Offline {
        /// The cache's folder.
        cache: PathBuf,
        /// What is missing.
        missing: String,
    },
    /// Without weights or tokenizer nothing can be served.
    #[error("the repository has no {0}")]
    Lacks(&'static str),
    /// A checkpoint of another kind, or a damaged one.
    #[error("{0}")]
    Checkpoint(#[from] LoadError),
}

impl Cause {
    /// Whether it says nothing of the repository and may be over soon.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TooMany { .. } => true,
            Self::Status(status) => *status >= 500,
            _ => false,
        }
    }

    /// What the operating system says about a file of the cache.
    pub(crate) fn disk(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Disk { path, source },
        }
    }

    /// With the names it concerns.
    pub(crate) fn of(self, model: &impl ToString, file: Option<&str>) -> HubError {
        HubError { model: model.to_string(), file: file.map(str::to_owned), cause: self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named_with_what_helps() {
        let path = Path::new("/cache/blobs/x");
        // ENOSPC, as every write to /dev/full answers.
        let error = Cause::disk(path, io::Error::from_raw_os_error(28)).of(&"a/b", Some("c"));
        let wanted = "a/b: c: /cache/blobs/x: the disk is full; free some space, or set \
                      HF_HUB_CACHE to another disk";
        assert_eq!(error.to_string(), wanted);
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = Cause::disk(path, denied).of(&"a/b", None);
        assert_eq!(error.to_string(), "a/b: /cache/blobs/x: permission denied");
    }
}
