//! Who is let in: keys, pages of other origins, rates, certificates.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a suite that meets something unforeseen has failed"
)]

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dfastllm_server::{Access, Connections, Tls};
use dfastllm_tests::http::{
    CHAT, Server, chat_body, options, serve, serve_builtin, serve_with, with,
};
use dfastllm_tests::raw;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

const MODEL: &str = "tiny-phi";
const OURS: &str = "https://a.example";

async fn open_to(access: Access) -> Server {
    serve_with(options(MODEL), access, Connections::default()).await
}

fn request(server: &Server, method: Method, path: &str) -> RequestBuilder {
    server.client.request(method, format!("{}{path}", server.url))
}

async fn error_of(response: Response) -> Value {
    response.json::<Value>().await.unwrap()["error"].clone()
}

fn lists(headers: &HeaderMap, name: &str, wanted: &str) -> bool {
    let lines = headers.get_all(name).iter().map(|v| v.to_str().unwrap());
    lines.flat_map(|l| l.split(',')).any(|item| item.trim().eq_ignore_ascii_case(wanted))
}

// Keys

#[tokio::test]
async fn a_key_is_exact_and_only_its_scheme_is_free() {
    let server = serve(options(MODEL), vec!["Secret-1".to_owned(), "two".to_owned()]).await;
    let models =
        |auth: &str| request(&server, Method::GET, "/v1/models").header("authorization", auth);
    for auth in ["Bearer Secret-1", "bearer two", "BEARER two"] {
        assert_eq!(models(auth).send().await.unwrap().status(), 200, "{auth}");
    }
    for auth in ["Bearer secret-1", "Bearer Secret-1x", "Bearer ", "Basic two", "two"] {
        let refused = models(auth).send().await.unwrap();
        assert_eq!(refused.status(), 401, "{auth}");
        assert_eq!(refused.headers()["www-authenticate"], "Bearer");
        let error = error_of(refused).await;
        assert_eq!(error["type"], "authentication_error");
        assert_eq!((&error["param"], &error["code"]), (&Value::Null, &json!("invalid_api_key")));
    }
    let query = request(&server, Method::GET, "/v1/models?api_key=two&key=two");
    assert_eq!(query.send().await.unwrap().status(), 401);
    let options = request(&server, Method::OPTIONS, CHAT).send().await.unwrap();
    assert_eq!(
        (options.status().as_u16(), &options.headers()["allow"]),
        (405, &"POST".parse().unwrap())
    );
    server.assert_well().await;
}

// Pages of other origins

#[tokio::test]
async fn pages_of_a_listed_origin_may_ask_and_read_every_answer() {
    let access = Access {
        api_keys: vec!["one".to_owned()],
        cors_origins: vec![OURS.parse().unwrap(), "http://localhost:3000".parse().unwrap()],
        ..Access::default()
    };
    let server = open_to(access).await;
    let stainless = "authorization,content-type,x-request-id,x-stainless-lang,x-stainless-os";
    let preflight = |origin: &str| {
        request(&server, Method::OPTIONS, CHAT)
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", stainless)
    };
    let allowed = preflight(OURS).send().await.unwrap();
    assert_eq!(allowed.status(), 200, "a preflight brings no key");
    let headers = allowed.headers();
    assert_eq!(headers["access-control-allow-origin"], OURS);
    assert!(lists(headers, "vary", "origin"), "{headers:?}");
    for method in ["GET", "POST", "DELETE"] {
        assert!(lists(headers, "access-control-allow-methods", method), "{headers:?}");
    }
    for name in stainless.split(',') {
        assert!(lists(headers, "access-control-allow-headers", name), "{name}: {headers:?}");
    }
    let other = preflight("https://b.example").send().await.unwrap();
    assert!(!other.headers().contains_key("access-control-allow-origin"));
    assert!(lists(other.headers(), "vary", "origin"));

    let stream = with(chat_body(MODEL), json!({"stream": true}));
    let ask = |path: &str, key: &str| {
        request(&server, Method::POST, path).header("origin", OURS).bearer_auth(key).json(&stream)
    };
    for (path, key, status) in [(CHAT, "one", 200), (CHAT, "two", 401), ("/nowhere", "one", 404)] {
        let response = ask(path, key).send().await.unwrap();
        assert_eq!(response.status(), status);
        let headers = response.headers();
        assert_eq!(headers["access-control-allow-origin"], OURS, "{path} {status}");
        for name in
            ["x-request-id", "retry-after", "openai-processing-ms", "x-ratelimit-limit-requests"]
        {
            assert!(lists(headers, "access-control-expose-headers", name), "{name}");
        }
    }
    let text = ask(CHAT, "one").send().await.unwrap().text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn any_origin_may_be_allowed_and_none_is_unless_said() {
    let access = Access { cors_origins: vec!["*".parse().unwrap()], ..Access::default() };
    for (server, found) in [(open_to(access).await, true), (serve_builtin(MODEL).await, false)] {
        let get = request(&server, Method::GET, "/v1/models").header("origin", "https://b.example");
        let response = get.send().await.unwrap();
        let allowed = response.headers().get("access-control-allow-origin");
        assert_eq!(allowed.map(|v| v.to_str().unwrap()), found.then_some("*"));
    }
}

// Rates

#[tokio::test]
async fn a_key_that_asks_too_often_waits_and_others_do_not() {
    let access = Access {
        api_keys: vec!["one".to_owned(), "two".to_owned()],
        rate_limit: NonZeroU32::new(2),
        ..Access::default()
    };
    let server = open_to(access).await;
    let ask = |key: &str| {
        request(&server, Method::POST, CHAT).bearer_auth(key).json(&chat_body(MODEL)).send()
    };
    for left in ["1", "0"] {
        let response = ask("one").await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["x-ratelimit-limit-requests"], "2");
        assert_eq!(response.headers()["x-ratelimit-remaining-requests"], left);
    }
    let refused = ask("one").await.unwrap();
    assert_eq!(refused.status(), 429);
    let headers = refused.headers();
    let seconds: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=30).contains(&seconds), "{seconds}");
    assert_eq!(headers["x-ratelimit-remaining-requests"], "0");
    let reset = headers["x-ratelimit-reset-requests"].to_str().unwrap();
    assert!(reset.ends_with('s'), "{reset}");
    let error = error_of(refused).await;
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("requests"), &json!("rate_limit_exceeded"))
    );
    assert_eq!(ask("two").await.unwrap().status(), 200);
    assert_eq!(ask("three").await.unwrap().status(), 401, "a wrong key has no allowance");
    let models =
        request(&server, Method::GET, "/v1/models").bearer_auth("one").send().await.unwrap();
    assert_eq!(models.status(), 200, "only requests that start work count");
    server.assert_well().await;
}

#[tokio::test]
async fn without_keys_an_address_has_an_allowance() {
    let server = open_to(Access { rate_limit: NonZeroU32::new(1), ..Access::default() }).await;
    let body = chat_body(MODEL);
    assert_eq!(server.send(CHAT, &body).await.status(), 200);
    assert_eq!(server.send(CHAT, &body).await.status(), 429);
    let unlimited = serve_builtin(MODEL).await;
    let headers = unlimited.send(CHAT, &body).await.headers().clone();
    assert!(!headers.contains_key("x-ratelimit-limit-requests"));
    let ms = headers["openai-processing-ms"].to_str().unwrap();
    assert!(ms.parse::<u64>().is_ok(), "{ms}");
}

// Certificates

struct Files {
    _folder: tempfile::TempDir,
    cert: PathBuf,
    key: PathBuf,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        Self { _folder: folder, cert, key }
    }

    /// Writes a new pair and gives its certificate.
    fn renew(&self) -> CertificateDer<'static> {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(&self.cert, cert.pem()).unwrap();
        std::fs::write(&self.key, signing_key.serialize_pem()).unwrap();
        cert.der().clone()
    }

    fn load(&self) -> Result<Tls, String> {
        Tls::load(self.cert.clone(), self.key.clone()).map_err(|e| e.to_string())
    }
}

/// `GET /health` over TLS by a client that trusts one certificate.
async fn health(server: &Server, trusted: &CertificateDer<'static>) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let socket = raw::connect(&server.url).await;
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    Ok(raw::rest(&mut stream).await)
}

#[tokio::test]
async fn a_new_certificate_is_used_without_a_restart_and_a_broken_one_is_not() {
    let files = Files::new();
    let first = files.renew();
    let tls = files.load().unwrap().check_every(Duration::ZERO);
    let connections = Connections { tls: Some(Arc::new(tls)), ..Connections::default() };
    let server = serve_with(options(MODEL), Access::default(), connections).await;
    let ok = |answer: std::io::Result<String>| answer.unwrap().starts_with("HTTP/1.1 200 OK");
    assert!(ok(health(&server, &first).await));
    let plain = raw::exchange(&server, "GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(!plain.contains("200 OK"), "{plain}");

    let second = files.renew();
    assert!(ok(health(&server, &second).await));
    assert!(health(&server, &first).await.is_err(), "the old one is gone");

    std::fs::write(&files.key, "no key").unwrap();
    assert!(ok(health(&server, &second).await), "what could be used stays in use");
    let third = files.renew();
    assert!(ok(health(&server, &third).await));
}

#[test]
fn files_that_do_not_fit_are_named() {
    let (files, other) = (Files::new(), Files::new());
    let name = |path: &PathBuf| path.display().to_string();
    assert!(files.load().unwrap_err().contains(&name(&files.cert)), "missing");
    files.renew();
    other.renew();
    let mixed = Tls::load(files.cert.clone(), other.key.clone()).unwrap_err();
    assert_eq!(mixed.path, other.key);
    assert!(mixed.to_string().contains(&name(&files.cert)), "{mixed}");
    let swapped = Tls::load(files.key.clone(), files.cert.clone()).unwrap_err();
    assert_eq!((&swapped.path, swapped.reason.contains("no PEM certificate")), (&files.key, true));
    std::fs::write(&files.cert, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .unwrap();
    assert!(files.load().is_err());
    let folder = files.cert.parent().unwrap().to_owned();
    let folder = Tls::load(folder.clone(), files.key.clone()).unwrap_err();
    assert!(folder.reason.contains("not a file"), "{folder}");
}
