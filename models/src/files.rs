//! Where a checkpoint's files come from: a folder, or the program itself.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::LoadError;

/// Most bytes of a JSON file or template; the largest real one is a tokenizer of about 20 MB.
const MAX_TEXT_BYTES: u64 = 256 << 20;

/// The files of one checkpoint.
#[derive(Debug, Clone)]
pub enum ModelFiles {
    /// A folder on disk.
    Folder(PathBuf),
    /// Files inside the program.
    Builtin {
        /// Name after `builtin:`.
        name: &'static str,
        /// File names and contents.
        files: &'static [(&'static str, &'static [u8])],
    },
}

impl ModelFiles {
    /// How messages call the checkpoint.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Folder(path) => path.display().to_string(),
            Self::Builtin { name, .. } => format!("builtin:{name}"),
        }
    }

    /// The contents of a small file, or `None` if there is none of that name.
    pub(crate) fn read(&self, file: &str) -> Result<Option<Cow<'static, [u8]>>, LoadError> {
        match self {
            Self::Folder(folder) => read_file(&folder.join(file)).map(|c| c.map(Cow::Owned)),
            Self::Builtin { .. } => Ok(self.builtin(file).map(Cow::Borrowed)),
        }
    }

    /// A file inside the program.
    pub(crate) fn builtin(&self, file: &str) -> Option<&'static [u8]> {
        match self {
            Self::Folder(_) => None,
            Self::Builtin { files, .. } => {
                files.iter().find(|(name, _)| *name == file).map(|(_, content)| *content)
            }
        }
    }

    /// A JSON file, or `None` if there is none of that name.
    pub(crate) fn json<T: DeserializeOwned>(&self, file: &str) -> Result<Option<T>, LoadError> {
        let Some(content) = self.read(file)? else { return Ok(None) };
        serde_json::from_slice(&content)
            .map(Some)
            .map_err(|e| LoadError::Json { file: self.path_of(file), reason: e.to_string() })
    }

    /// A JSON file that has to be there.
    pub(crate) fn required_json<T: DeserializeOwned>(&self, file: &str) -> Result<T, LoadError> {
        self.json(file)?.ok_or_else(|| self.missing(file, ""))
    }

    pub(crate) fn missing(&self, file: &str, hint: &str) -> LoadError {
        LoadError::Missing { folder: self.name(), file: file.to_owned(), hint: hint.to_owned() }
    }

    pub(crate) fn path_of(&self, file: &str) -> String {
        format!("{}/{file}", self.name())
    }
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    let io = |source| LoadError::Io { file: path.display().to_string(), source };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
    };
    let bytes = file.metadata().map_err(io)?.len();
    if bytes > MAX_TEXT_BYTES {
        let file = path.display().to_string();
        return Err(LoadError::TooLarge { file, bytes, limit: MAX_TEXT_BYTES });
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(io)?;
    Ok(Some(content))
}
