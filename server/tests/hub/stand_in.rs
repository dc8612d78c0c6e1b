//! A hub on this machine: one repository with the files of a built-in model.

use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use sha2::{Digest, Sha256};

/// The commit of every revision.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The one repository.
pub(crate) const REPOSITORY: &str = "tiny/phi";

/// What goes wrong.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    None,
    /// Every listing.
    Listing(u16),
    /// Every file.
    File(u16),
    /// The weights, after so many bytes of them altogether.
    Cut(usize),
    /// The weights are not what they are said to be.
    OtherBytes,
    /// The weights are longer than they are said to be.
    MoreBytes,
    /// `etag` of the config.
    Etag(&'static str),
    /// The config names another family.
    Family,
    /// The index names this file.
    Shard(&'static str),
    /// The listing is no listing.
    Nonsense,
}

#[derive(Debug)]
struct Shared {
    fault: Mutex<Fault>,
    /// Requests: method, path, range, whether with authorization.
    log: Mutex<Vec<String>>,
    address: String,
}

/// A running stand-in.
pub(crate) struct StandIn {
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

impl StandIn {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let shared =
            Arc::new(Shared { fault: Mutex::new(Fault::None), log: Mutex::default(), address });
        let app = Router::new().fallback(answer).with_state(shared.clone());
        runtime.spawn(async { axum::serve(listener, app).await });
        Self { shared, _runtime: runtime }
    }

    pub(crate) fn address(&self) -> &str {
        &self.shared.address
    }

    pub(crate) fn set(&self, fault: Fault) {
        *self.shared.fault.lock().unwrap() = fault;
    }

    /// Requests since the last call.
    pub(crate) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.log.lock().unwrap())
    }
}

/// Bytes of a file of the repository.
pub(crate) fn contents(file: &str) -> Option<Vec<u8>> {
    let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/builtin");
    let folder = if file.starts_with("tokenizer") { builtin } else { builtin.join("tiny-phi") };
    std::fs::read(folder.join(file)).ok()
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let range = request.headers().get(header::RANGE).map_or("-", |r| r.to_str().unwrap());
    let with = if request.headers().contains_key(header::AUTHORIZATION) { "token" } else { "-" };
    shared.log.lock().unwrap().push(format!("{} {path} {range} {with}", request.method()));
    let fault = shared.fault.lock().unwrap().clone();
    if let Some(revision) = path.strip_prefix(&format!("/api/models/{REPOSITORY}/revision/")) {
        return listing(revision, &fault);
    }
    let resolve = format!("/{REPOSITORY}/resolve/{COMMIT}/");
    if let Some(file) = path.strip_prefix(&resolve) {
        return resolved(file, &request, (&fault, &shared.address));
    }
    // Where small files lie on the hub itself, and large ones elsewhere.
    for prefix in ["/api/resolve-cache/", "/cdn/"] {
        if let Some(file) = path.strip_prefix(prefix) {
            return bytes(file, &request, &shared, &fault);
        }
    }
    StatusCode::NOT_FOUND.into_response()
}

fn listing(revision: &str, fault: &Fault) -> Response {
    if !["main", "v1%2Fx"].contains(&revision) {
        return StatusCode::NOT_FOUND.into_response();
    }
    match fault {
        Fault::Listing(429) => {
            return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "17")]).into_response();
        }
        Fault::Listing(status) => return StatusCode::from_u16(*status).unwrap().into_response(),
        Fault::Nonsense => return "<html>hello</html>".into_response(),
        _ => {}
    }
    let mut files = vec![
        ".gitattributes",
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    if matches!(fault, Fault::Shard(_)) {
        files.push("model.safetensors.index.json");
    }
    let siblings: Vec<_> = files.iter().map(|file| json!({"rfilename": file})).collect();
    json!({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).to_string().into_response()
}

fn resolved(file: &str, request: &Request, (fault, address): (&Fault, &str)) -> Response {
    if let Fault::File(status) = fault {
        return StatusCode::from_u16(*status).unwrap().into_response();
    }
    let Some(content) = content(file, fault) else { return StatusCode::NOT_FOUND.into_response() };
    if file != "model.safetensors" {
        let to = format!("/api/resolve-cache/{file}");
        return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response();
    }
    let digest: String = Sha256::digest(&content).iter().map(|b| format!("{b:02x}")).collect();
    // The same machine by another name.
    let elsewhere = address.replace("127.0.0.1", "localhost");
    let mut response = StatusCode::FOUND.into_response();
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, format!("{elsewhere}/cdn/{file}").parse().unwrap());
    headers.insert("x-repo-commit", COMMIT.parse().unwrap());
    headers.insert("x-linked-etag", format!("\"{digest}\"").parse().unwrap());
    headers.insert("x-linked-size", content.len().to_string().parse().unwrap());
    headers.insert(header::ETAG, "\"of-the-redirect\"".parse().unwrap());
    assert!([Method::GET, Method::HEAD].contains(request.method()));
    response
}

fn content(file: &str, fault: &Fault) -> Option<Vec<u8>> {
    let content = contents(file);
    match (file, fault) {
        ("model.safetensors.index.json", Fault::Shard(name)) => {
            Some(json!({"weight_map": {"a": name}}).to_string().into_bytes())
        }
        ("config.json", Fault::Family) => Some(br#"{"model_type": "gpt2"}"#.to_vec()),
        _ => content,
    }
}

fn bytes(file: &str, request: &Request, shared: &Shared, fault: &Fault) -> Response {
    let mut content = content(file, fault).unwrap();
    let mut etag = format!("W/\"{}\"", file.replace('.', "-"));
    let is_weights = file == "model.safetensors";
    match fault {
        Fault::Etag(other) if file == "config.json" => etag = format!("\"{other}\""),
        Fault::OtherBytes if is_weights => content[1000] ^= 1,
        Fault::MoreBytes if is_weights => content.push(0),
        _ => {}
    }
    let from = first_byte(request.headers());
    if from.is_some_and(|from| from >= content.len()) {
        return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    }
    let whole = content.len();
    let rest = content.split_off(from.unwrap_or(0));
    let length = rest.len();
    let mut chunks = vec![Ok(Bytes::from(rest))];
    if let (Fault::Cut(left), true) = (fault, is_weights && request.method() == Method::GET) {
        let Ok(rest) = chunks.remove(0) else { unreachable!() };
        let now = rest.slice(..(*left).min(length));
        *shared.fault.lock().unwrap() = Fault::Cut(left - now.len());
        chunks = vec![Ok(now), Err(std::io::Error::other("cut"))];
    }
    let body = Body::from_stream(futures_util::stream::iter(chunks));
    let status = from.map_or(StatusCode::OK, |_| StatusCode::PARTIAL_CONTENT);
    let range = format!("bytes {}-{}/{whole}", from.unwrap_or(0), whole - 1);
    let headers = [
        (header::ETAG, etag),
        (header::CONTENT_LENGTH, length.to_string()),
        (header::CONTENT_RANGE, range),
    ];
    (status, headers, body).into_response()
}

fn first_byte(headers: &HeaderMap) -> Option<usize> {
    let range = headers.get(header::RANGE)?.to_str().unwrap();
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}
