//! What is asked of the hub, over HTTP.
//!
//! The transfer is not `hf-hub`'s own: that has no time limits, checks neither size nor digest, and
//! takes paths and assertions from what the server says.

use std::time::Duration;

use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::{Agent, Body};

use super::error::Cause;
use super::id::{ModelId, is_commit};
use super::settings::Settings;

/// Silence after which a connection counts as gone.
const SILENCE: Duration = Duration::from_secs(30);
/// A listing of this many bytes is no model's.
const MAX_LISTING_BYTES: u64 = 32 << 20;
/// Time a listing or description has in all.
const SHORT: Duration = Duration::from_secs(120);
const MAX_REDIRECTS: usize = 5;
const MAX_ETAG: usize = 128;

/// A hub.
pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    authorization: Option<String>,
}

/// A repository at one commit.
#[derive(Debug, Deserialize)]
pub(crate) struct Listing {
    /// The commit.
    pub(crate) sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Listing {
    /// Whether the repository has a file of that name.
    pub(crate) fn has(&self, file: &str) -> bool {
        self.siblings.iter().any(|s| s.rfilename == file)
    }
}

/// What a file is before it is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    /// Its name in the cache: a digest of its contents, safe as a file name.
    pub(crate) etag: String,
    /// Bytes.
    pub(crate) size: u64,
}

impl RemoteFile {
    /// Its SHA-256, where the hub knows it: of large files.
    pub(crate) fn sha256(&self) -> Option<&str> {
        let is_digest = self.etag.len() == 64 && self.etag.bytes().all(|b| b.is_ascii_hexdigit());
        is_digest.then_some(self.etag.as_str())
    }
}

impl Client {
    pub(crate) fn new(settings: &Settings) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // A token is for the hub, not for whoever holds its files.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("dfastllm/", env!("CARGO_PKG_VERSION")))
            // Sizes and ranges are of the file, not of a compressed form.
            .accept_encoding("identity")
            .timeout_resolve(Some(SILENCE))
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .build();
        Self {
            agent: agent.into(),
            endpoint: settings.endpoint.clone(),
            authorization: settings.token.as_ref().map(|token| format!("Bearer {token}")),
        }
    }

    /// What a repository holds.
    ///
    /// # Errors
    /// When it does not answer, or with something else.
    pub(crate) fn listing(&self, id: &ModelId) -> Result<Listing, Cause> {
        let revision = id.revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}", self.endpoint, id.repository);
        let response = self.get(&url, 0, Some(SHORT))?;
        let missing = Cause::NoRepository { endpoint: self.endpoint.clone() };
        let body = self
            .checked(response, missing)?
            .into_body()
            .into_with_config()
            .limit(MAX_LISTING_BYTES)
            .read_to_vec()
            .map_err(|e| self.unreachable(&e))?;
        let listing: Listing = serde_json::from_slice(&body)
            .map_err(|e| Cause::Answer(format!("{url} answers no listing: {e}")))?;
        if !is_commit(&listing.sha) {
            let sha: String = listing.sha.chars().take(64).collect();
            return Err(Cause::Answer(format!("{url} names no commit but '{sha}'")));
        }
        Ok(listing)
    }

    /// What a file is.
    ///
    /// # Errors
    /// When the hub does not answer, or with something else.
    pub(crate) fn describe(
        &self,
        repository: &str,
        commit: &str,
        file: &str,
    ) -> Result<RemoteFile, Cause> {
        let mut url = self.url(repository, commit, file);
        // Within the hub redirects are followed; one that leads elsewhere tells all that is needed.
        for _ in 0..MAX_REDIRECTS {
            let request = self.agent.head(&url).config().max_redirects(0);
            let mut request = request.timeout_global(Some(SHORT)).build();
            if let Some(token) = &self.authorization {
                request = request.header(header::AUTHORIZATION, token);
            }
            let response = request.call().map_err(|e| self.unreachable(&e))?;
            let to = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
            match to.filter(|to| response.status().is_redirection() && to.starts_with('/')) {
                Some(path) => url = format!("{}{path}", origin(&self.endpoint)),
                None if response.status().is_redirection() => {
                    return remote_file(response.headers(), file);
                }
                None => {
                    let response = self.checked(response, Cause::NoFile)?;
                    return remote_file(response.headers(), file);
                }
            }
        }
        Err(Cause::Answer(format!("{file} is redirected more than {MAX_REDIRECTS} times")))
    }

    /// The bytes of a file from a position on, if the hub grants that (206), else all (200).
    ///
    /// # Errors
    /// When the hub does not answer, or with something else; 416 is an answer.
    pub(crate) fn bytes(
        &self,
        repository: &str,
        (commit, file): (&str, &str),
        from: u64,
    ) -> Result<Response<Body>, Cause> {
        let response = self.get(&self.url(repository, commit, file), from, None)?;
        match response.status() {
            StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
            _ => self.checked(response, Cause::NoFile),
        }
    }

    fn url(&self, repository: &str, commit: &str, file: &str) -> String {
        format!("{}/{repository}/resolve/{commit}/{file}", self.endpoint)
    }

    fn get(&self, url: &str, from: u64, limit: Option<Duration>) -> Result<Response<Body>, Cause> {
        let mut request = self.agent.get(url).config().timeout_global(limit).build();
        if let Some(token) = &self.authorization {
            request = request.header(header::AUTHORIZATION, token);
        }
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        request.call().map_err(|e| self.unreachable(&e))
    }

    fn checked(&self, response: Response<Body>, missing: Cause) -> Result<Response<Body>, Cause> {
        let with_token = self.authorization.is_some();
        match response.status().as_u16() {
            200 | 206 => Ok(response),
            status @ (401 | 403) => Err(Cause::Restricted { status, with_token }),
            404 => Err(missing),
            429 => {
                let after = response.headers().get(header::RETRY_AFTER);
                let after_seconds = after.and_then(|s| s.to_str().ok()?.trim().parse().ok());
                Err(Cause::TooMany { after_seconds })
            }
            status => Err(Cause::Status(status)),
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> Cause {
        // An error's text may hold what the server sent.
        let reason: String = error.to_string().chars().filter(|c| !c.is_control()).collect();
        Cause::Unreachable { endpoint: self.endpoint.clone(), reason }
    }
}

/// `http://host` of an address.
fn origin(endpoint: &str) -> &str {
    let host = endpoint.find("://").map_or(0, |at| at + 3);
    endpoint[host..].find('/').map_or(endpoint, |slash| &endpoint[..host + slash])
}

fn remote_file(headers: &HeaderMap, file: &str) -> Result<RemoteFile, Cause> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    // `x-linked-…` speak of a large file that is kept elsewhere.
    let etag = text("x-linked-etag").or(text("etag")).unwrap_or_default();
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    let is_name = (1..=MAX_ETAG).contains(&etag.len())
        && etag.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if !is_name {
        let etag: String = etag.chars().take(64).collect();
        return Err(Cause::Answer(format!("the etag of {file} is '{etag}'")));
    }
    let size = text("x-linked-size").or(text("content-length")).and_then(|n| n.parse().ok());
    let size = size.ok_or_else(|| Cause::Answer(format!("{file} has no size")))?;
    Ok(RemoteFile { etag: etag.to_owned(), size })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn what_a_file_is_comes_from_its_own_headers_and_never_leaves_the_folder() {
        let large = "ab".repeat(32);
        let linked: &'static str = format!("\"{large}\"").leak();
        let found = remote_file(
            &headers(&[
                ("etag", "\"cdn\""),
                ("content-length", "10"),
                ("x-linked-etag", linked),
                ("x-linked-size", "4000"),
            ]),
            "model.safetensors",
        )
        .unwrap();
        assert_eq!(found, RemoteFile { etag: large.clone(), size: 4000 });
        assert_eq!(found.sha256(), Some(large.as_str()));
        let small = remote_file(&headers(&[("etag", "W/\"0a1b\""), ("content-length", "7")]), "x");
        assert_eq!(small.as_ref().unwrap(), &RemoteFile { etag: "0a1b".to_owned(), size: 7 });
        assert_eq!(small.unwrap().sha256(), None);
        for etag in ["\"../../x\"", "\"\"", "a/b", ".."] {
            let error = remote_file(&headers(&[("etag", etag), ("content-length", "7")]), "x");
            assert!(matches!(error, Err(Cause::Answer(_))), "{etag}");
        }
        assert!(remote_file(&headers(&[("etag", "\"a\"")]), "x").is_err());
    }

    #[test]
    fn redirects_within_the_hub_stay_there() {
        assert_eq!(origin("https://a.b"), "https://a.b");
        assert_eq!(origin("http://127.0.0.1:80/mirror/x"), "http://127.0.0.1:80");
    }
}
