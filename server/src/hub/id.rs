//! `ORG/NAME[@REVISION]`

use std::fmt;

/// What a revision is unless one is named.
const MAIN: &str = "main";
const MAX_PART: usize = 96;
const MAX_REVISION: usize = 128;

/// A repository on the hub and which state of it. Its parts are safe in paths and addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelId {
    /// `ORG/NAME`.
    pub(crate) repository: String,
    /// A branch, a tag or a commit.
    pub(crate) revision: String,
}

impl ModelId {
    /// Reads `ORG/NAME[@REVISION]`; `None` if the text is anything else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (repository, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (org, name) = repository.split_once('/')?;
        let is_whole = is_part(org) && is_part(name) && is_revision(revision);
        is_whole.then(|| Self { repository: repository.to_owned(), revision: revision.to_owned() })
    }

    /// Whether the revision is a full commit, which never changes.
    pub(crate) fn is_pinned(&self) -> bool {
        is_commit(&self.revision)
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            MAIN => f.write_str(&self.repository),
            revision => write!(f, "{}@{revision}", self.repository),
        }
    }
}

/// Names as the hub allows them. Its cache folders join them by `--`, so that is not one's own.
fn is_part(part: &str) -> bool {
    (1..=MAX_PART).contains(&part.len())
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !part.starts_with(['.', '-'])
        && !part.ends_with('.')
        && !part.contains("..")
        && !part.contains("--")
}

fn is_revision(revision: &str) -> bool {
    let is_word = |word: &str| {
        word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b))
            && !word.is_empty()
            && !word.starts_with('.')
            && !word.contains("..")
    };
    revision.len() <= MAX_REVISION && revision.split('/').all(is_word)
}

/// Whether a text is a full commit id of git.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths_and_cannot_leave_the_cache() {
        let id = ModelId::parse("GSAI-ML/LLaDA-8B-Instruct").unwrap();
        assert_eq!((id.repository.as_str(), id.revision.as_str()), (id.to_string().as_str(), MAIN));
        let id = ModelId::parse("a/b.c@refs/pr/3").unwrap();
        assert_eq!((id.repository.as_str(), id.revision.as_str()), ("a/b.c", "refs/pr/3"));
        assert_eq!(id.to_string(), "a/b.c@refs/pr/3");
        assert!(!id.is_pinned());
        assert!(ModelId::parse(&format!("a/b@{}", "0a".repeat(20))).unwrap().is_pinned());
        let long = format!("a/{}", "b".repeat(97));
        for text in [
            "model", "", "/", "/a/b", "./a", "../a", "a/..", "a/b/c", "a/", "a//b", "~/a", "a b/c",
            "a/b@", "a/b@../c", "a/b@/c", "a/b@c//d", "a/b@.git", "a\\b/c", "a/b%2f", "a--b/c",
            "a/b@c@d", "a/.b", "é/b", &long,
        ] {
            assert_eq!(ModelId::parse(text), None, "{text}");
        }
    }
}
