//! Where the hub and its cache are: the environment that its other programs read too.

use std::ffi::OsString;
use std::path::PathBuf;

use hf_hub::Cache;

const ENDPOINT: &str = "https://huggingface.co";

/// `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE`, settled.
pub(crate) struct Settings {
    /// Where the hub answers, without a slash at the end.
    pub(crate) endpoint: String,
    /// The folder with a folder for every repository.
    pub(crate) cache: Cache,
    /// What restricted repositories ask for.
    pub(crate) token: Option<String>,
    /// Whether the network is not to be used.
    pub(crate) offline: bool,
}

impl Settings {
    /// What the environment says.
    ///
    /// # Errors
    /// When it says nothing and there is no home folder either.
    pub(crate) fn from_env() -> Result<Self, String> {
        Self::read(&|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn read(get: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, String> {
        let text = |name| get(name).map(|value| value.to_string_lossy().trim().to_owned());
        let path = |name| get(name).map(PathBuf::from);
        let home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface")));
        let folder = path("HF_HUB_CACHE")
            .or_else(|| Some(home.as_ref()?.join("hub")))
            .ok_or("there is no home folder to keep models in; set HF_HOME")?;
        // `huggingface-cli login` writes the token beside the cache.
        let file = home.map(|home| Cache::new(home.join("hub")));
        let token = text("HF_TOKEN").or_else(|| file?.token());
        let on = |value: String| {
            matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
        };
        Ok(Self {
            endpoint: text("HF_ENDPOINT")
                .map_or(ENDPOINT.to_owned(), |url| url.trim_end_matches('/').to_owned()),
            cache: Cache::new(std::path::absolute(&folder).unwrap_or(folder)),
            token: token.filter(|t| !t.is_empty()),
            offline: text("HF_HUB_OFFLINE").is_some_and(on),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(env: &[(&str, &str)]) -> Settings {
        let get = |name: &str| Some(OsString::from(env.iter().find(|(n, _)| *n == name)?.1));
        Settings::read(&get).unwrap()
    }

    #[test]
    fn every_variable_counts() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), " from-file\n").unwrap();
        let home = home.path().to_str().unwrap();
        let settings = read(&[("HF_HOME", home)]);
        assert_eq!(settings.endpoint, ENDPOINT);
        assert_eq!(*settings.cache.path(), PathBuf::from(home).join("hub"));
        assert_eq!(settings.token.as_deref(), Some("from-file"));
        assert!(!settings.offline);
        let settings = read(&[
            ("HF_HOME", home),
            ("HF_HUB_CACHE", "/elsewhere"),
            ("HF_TOKEN", "mine\n"),
            ("HF_ENDPOINT", "http://127.0.0.1:1/"),
            ("HF_HUB_OFFLINE", "True"),
        ]);
        assert_eq!(settings.endpoint, "http://127.0.0.1:1");
        assert_eq!(*settings.cache.path(), PathBuf::from("/elsewhere"));
        assert_eq!(settings.token.as_deref(), Some("mine"));
        assert!(settings.offline);
        assert!(!read(&[("HF_HUB_OFFLINE", "0")]).offline);
        let settings = read(&[("XDG_CACHE_HOME", "/x")]);
        assert_eq!(*settings.cache.path(), PathBuf::from("/x/huggingface/hub"));
    }
}
