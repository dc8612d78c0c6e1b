//! Clients that are slow, silent, greedy or malformed, and a server that stays well.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a suite that meets something unforeseen has failed"
)]

use std::convert::Infallible;
use std::io::ErrorKind;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use dfastllm_server::{Access, Connections, serve_connections};
use dfastllm_tests::http::{
    CAPITAL, CHAT, COMPLETIONS, Server, chat_body, options, serve_builtin, serve_with, text,
};
use dfastllm_tests::raw::{answer, begin, connect, error, exchange, post, rest};
use futures_util::future::join_all;
use futures_util::stream;
use serde_json::json;
use tokio::io::{AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

const MODEL: &str = "tiny-phi";
const SOON: Duration = Duration::from_millis(200);
const HEALTH: &str = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";

/// A server without patience.
async fn impatient() -> Server {
    let access = Access { body_timeout: SOON, ..Access::default() };
    let connections = Connections { header_timeout: SOON, ..Connections::default() };
    serve_with(options(MODEL), access, connections).await
}

async fn assert_answers(server: &Server) {
    let (status, body) = server.post(CHAT, &chat_body(MODEL)).await;
    assert_eq!((status, text(&body)), (200, "The capital of France is Paris."));
}

// Time

#[tokio::test]
async fn connections_that_do_not_finish_their_headers_are_closed() {
    let server = impatient().await;
    let slow = ["", "GET", "GET /health HTTP/1.1\r\nhost: x\r\nx-a: b\r\n"];
    let mut open = join_all((0..300).map(|i| begin(&server, slow[i % slow.len()]))).await;
    server.assert_well().await;
    let answers = join_all(open.iter_mut().map(rest)).await;
    assert!(answers.iter().all(String::is_empty), "{answers:?}");
    let mut idle = connect(&server.url).await;
    idle.write_all(HEALTH.as_bytes()).await.unwrap();
    let closed = rest(&mut idle).await;
    assert_eq!(closed.matches("HTTP/1.1 200 OK").count(), 1, "answered, then closed: {closed}");
    assert_answers(&server).await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_a_408() {
    let server = impatient().await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    for start in [
        format!("{head}content-length: 100\r\n\r\n{{"),
        format!("{head}transfer-encoding: chunked\r\n\r\n1\r\n{{\r\n"),
    ] {
        let closed = exchange(&server, start).await;
        let (status, error) = error(&closed);
        assert_eq!((status, &error["type"]), (408, &json!("invalid_request_error")));
        assert!(closed.contains("connection: close"), "{closed}");
    }
    // One byte after the other is no better: the time is for the whole body.
    let (mut read, mut write) = split(connect(&server.url).await);
    write.write_all(format!("{head}content-length: 4000000\r\n\r\n").as_bytes()).await.unwrap();
    let drip = tokio::spawn(async move { while write.write_all(b" ").await.is_ok() {} });
    assert_eq!(error(&rest(&mut read).await).0, 408);
    drip.abort();
    assert_answers(&server).await;
}

/// Tells when it is dropped.
struct Dropped(Option<oneshot::Sender<()>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.take().unwrap().send(());
    }
}

/// Serves a router until told to stop.
async fn serve_router(
    router: Router,
    connections: Connections,
) -> (String, oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (stop, stopped) = oneshot::channel();
    let shutdown = async { stopped.await.unwrap() };
    (url, stop, tokio::spawn(serve_connections(listener, router, connections, shutdown)))
}

#[tokio::test]
async fn a_client_that_reads_nothing_loses_its_stream() {
    let (dropped, seen) = oneshot::channel();
    let guard = std::sync::Mutex::new(Some(Dropped(Some(dropped))));
    let endless = move || {
        let guard = guard.lock().unwrap().take();
        let chunks = stream::repeat_with(move || {
            assert!(guard.is_some());
            Ok::<_, Infallible>(vec![b'x'; 64 << 10])
        });
        async { Body::from_stream(chunks) }
    };
    let endless = std::sync::Arc::new(endless);
    let router = Router::new()
        .route("/endless", get(move || endless()))
        .route("/health", get(|| async { "well" }));
    let connections = Connections { write_timeout: SOON, ..Connections::default() };
    let (url, _stop, _task) = serve_router(router, connections).await;
    let mut deaf = connect(&url).await;
    deaf.write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), seen).await.unwrap().unwrap();
    let mut other = connect(&url).await;
    other.write_all(HEALTH.as_bytes()).await.unwrap();
    assert!(answer(&mut other).await.ends_with("well"));
}

#[tokio::test]
async fn shutting_down_closes_idle_connections_and_finishes_answers() {
    let (release, released) = oneshot::channel::<()>();
    let released = std::sync::Arc::new(tokio::sync::Mutex::new(Some(released)));
    let (started, running) = oneshot::channel();
    let started = std::sync::Arc::new(std::sync::Mutex::new(Some(started)));
    let slow = move || {
        let (released, started) = (released.clone(), started.clone());
        async move {
            started.lock().unwrap().take().unwrap().send(()).unwrap();
            released.lock().await.take().unwrap().await.unwrap();
            "done"
        }
    };
    let router = Router::new().route("/health", get(|| async { "well" })).route("/slow", get(slow));
    let (url, stop, task) = serve_router(router, Connections::default()).await;
    let (mut idle, mut silent, mut busy) =
        (connect(&url).await, connect(&url).await, connect(&url).await);
    idle.write_all(HEALTH.as_bytes()).await.unwrap();
    assert!(answer(&mut idle).await.ends_with("well"));
    busy.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    running.await.unwrap();
    stop.send(()).unwrap();
    assert_eq!((rest(&mut idle).await, rest(&mut silent).await), (String::new(), String::new()));
    // Whoever may have the port by now, it is not this server.
    if let Ok(mut late) = TcpStream::connect(url.trim_start_matches("http://")).await {
        late.write_all(HEALTH.as_bytes()).await.unwrap_or_default();
        assert!(!rest(&mut late).await.ends_with("well"));
    }
    assert!(!task.is_finished());
    release.send(()).unwrap();
    assert!(rest(&mut busy).await.ends_with("done"));
    tokio::time::timeout(Duration::from_secs(30), task).await.unwrap().unwrap();
}

#[tokio::test]
async fn one_connection_too_many_waits_for_another_to_end() {
    let connections = Connections { max_connections: 1, ..Connections::default() };
    let server = serve_with(options(MODEL), Access::default(), connections).await;
    let (mut first, mut second) = (connect(&server.url).await, connect(&server.url).await);
    second.write_all(HEALTH.as_bytes()).await.unwrap();
    for _ in 0..20 {
        first.write_all(HEALTH.as_bytes()).await.unwrap();
        assert!(answer(&mut first).await.starts_with("HTTP/1.1 200 OK"));
    }
    let early = second.try_read(&mut [0; 1]).unwrap_err();
    assert_eq!(early.kind(), ErrorKind::WouldBlock);
    drop(first);
    assert!(answer(&mut second).await.starts_with("HTTP/1.1 200 OK"));
}

// Size

#[tokio::test]
async fn bodies_that_are_too_large_are_not_read() {
    let server = serve_builtin(MODEL).await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    for expect in ["", "expect: 100-continue\r\n"] {
        let start = format!("{head}{expect}content-length: {}\r\n\r\n", 1 << 30);
        let closed = exchange(&server, start).await;
        assert_eq!(error(&closed).0, 413);
        assert!(closed.contains("connection: close"), "{closed}");
    }
    let (mut read, mut write) = split(connect(&server.url).await);
    let sending = tokio::spawn(async move {
        write
            .write_all(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
        let mut sent = 0;
        while sent < 1 << 30 && write.write_all(&chunk).await.is_ok() {
            sent += 0x10000;
        }
        sent
    });
    let (status, error) = error(&rest(&mut read).await);
    assert_eq!((status, &error["type"]), (413, &json!("invalid_request_error")));
    let sent = sending.await.unwrap();
    assert!(sent < 64 << 20, "{sent} bytes were taken");
    assert_answers(&server).await;
}

#[tokio::test]
async fn compressed_and_mislabelled_bodies_are_a_415() {
    let server = serve_builtin(MODEL).await;
    for headers in [
        "content-encoding: gzip\r\n",
        "content-encoding: zstd\r\n",
        "content-encoding: identity, br\r\n",
    ] {
        let (status, error) =
            error(&exchange(&server, post(CHAT, headers, b"\x1f\x8b bomb")).await);
        assert_eq!((status, &error["type"]), (415, &json!("invalid_request_error")));
    }
    let identity =
        post(CHAT, "content-encoding: identity\r\n", chat_body(MODEL).to_string().as_bytes());
    assert!(exchange(&server, identity).await.starts_with("HTTP/1.1 200 OK"));
    let url = format!("{}{CHAT}", server.url);
    for (kind, status) in
        [("text/plain", 415), ("application/jsonl", 415), ("Application/JSON; charset=utf-8", 200)]
    {
        let request = server.client.post(&url).header("content-type", kind);
        let response = request.body(chat_body(MODEL).to_string()).send().await.unwrap();
        assert_eq!(response.status(), status, "{kind}");
    }
    assert_answers(&server).await;
}

#[tokio::test]
async fn headers_that_are_too_large_are_a_431_and_strange_ids_are_replaced() {
    let server = serve_builtin(MODEL).await;
    let get = |header: &[u8]| {
        let head = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
        [head, header, b"\r\n\r\n"].concat()
    };
    for length in [40 << 10, 64 << 10, 1 << 20] {
        let id = [b"x-request-id: ".as_slice(), &vec![b'a'; length]].concat();
        let refused = exchange(&server, get(&id)).await;
        assert!(refused.starts_with("HTTP/1.1 431 "), "{length}: {refused:.200}");
    }
    for id in [b"a\xffb".as_slice(), "\u{fc}\u{2028}".as_bytes(), b"a\tb", b"a b", b""] {
        let answer = exchange(&server, get(&[b"x-request-id: ".as_slice(), id].concat())).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        let echoed = answer.lines().find_map(|l| l.strip_prefix("x-request-id: ")).unwrap();
        assert_eq!(echoed.len(), 36, "{echoed}");
    }
    let split = exchange(&server, get(b"x-request-id: a\r\nset-cookie: b")).await;
    assert!(split.contains("x-request-id: a\r\n") && !split.contains("set-cookie"), "{split}");
    let bare = exchange(&server, get(b"x-request-id: a\rset-cookie: b")).await;
    assert!(bare.starts_with("HTTP/1.1 400 "), "{bare}");
    let name = "m".repeat(1 << 20);
    let long =
        exchange(&server, format!("GET /v1/models/{name} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
    assert!(long.starts_with("HTTP/1.1 4"), "{long:.200}");
    assert_answers(&server).await;
}

// Form

#[tokio::test]
async fn json_that_is_none_is_a_400_that_says_where() {
    let server = serve_builtin(MODEL).await;
    for (body, said) in [
        (b"{\"model\": \"\xff\xfe\"}".as_slice(), "line 1 column"),
        (b"\xef\xbb\xbf{}", "line 1 column 1"),
        (b"{\"a\": \"\0\"}", "line 1 column"),
        (b"\0", "line 1 column 1"),
        (b"{\n\"a\": 1}}", "line 2 column"),
        (b"{\"model\": \"a\", \"model\": \"b\"}", "'model' is there twice"),
        (b"{\"diffusion\": {\"steps\": 1, \"steps\": 2}}", "'steps' is there twice"),
    ] {
        let (status, error) = error(&exchange(&server, post(CHAT, "", body)).await);
        assert_eq!((status, &error["type"]), (400, &json!("invalid_request_error")), "{body:?}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(said) && message.len() < 400, "{message}");
    }
    let deep = format!(
        "{{\"metadata\": {}{}}}",
        "{\"a\":".repeat(10_000),
        "1".to_owned() + &"}".repeat(10_000)
    );
    assert_eq!(error(&exchange(&server, post(CHAT, "", deep.as_bytes())).await).0, 400);
    let nul = json!({"model": MODEL, "prompt": "a\u{0}b", "max_tokens": 2});
    let status = server.post(COMPLETIONS, &nul).await.0;
    assert!([200, 400].contains(&status), "{status}");
    assert_answers(&server).await;
}

#[tokio::test]
async fn wrong_methods_and_routes_have_the_error_shape() {
    let server = serve_builtin(MODEL).await;
    for (path, allow) in [(COMPLETIONS, "POST"), ("/v1/requests/x", "DELETE")] {
        let close = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = exchange(&server, close).await;
        assert_eq!(error(&answer).0, 405);
        assert!(answer.contains(&format!("allow: {allow}\r\n")), "{answer}");
    }
    for path in ["/", "/v1", "/v1/chat", "/../../etc/passwd", "/%00", "//health"] {
        let close = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert_eq!(error(&exchange(&server, close).await).0, 404, "{path}");
    }
}

#[tokio::test]
async fn other_versions_and_framings_are_served_or_refused() {
    let server = serve_builtin(MODEL).await;
    let old = exchange(&server, "GET /health HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 OK"), "{old}");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    assert!(!exchange(&server, preface).await.contains("200 OK"), "not spoken");
    for garbage in
        ["\x16\x03\x01 hello\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\r\n\0\0\r\n\r\n"]
    {
        let refused = exchange(&server, garbage).await;
        assert!(refused.starts_with("HTTP/1.1 400 "), "{garbage:?}: {refused}");
    }
    let close = "GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let both = exchange(&server, format!("{HEALTH}{close}")).await;
    assert_eq!(both.matches("HTTP/1.1 200 OK").count(), 2, "pipelined: {both}");

    let body = chat_body(MODEL).to_string();
    let mut waiting = connect(&server.url).await;
    let head = post(CHAT, "expect: 100-continue\r\n", body.as_bytes());
    waiting.write_all(&head[..head.len() - body.len()]).await.unwrap();
    assert_eq!(answer(&mut waiting).await, "HTTP/1.1 100 Continue\r\n\r\n");
    waiting.write_all(body.as_bytes()).await.unwrap();
    assert!(
        rest(&mut waiting)
            .await
            .contains(CAPITAL.trim_start_matches("What is the ").trim_end_matches(" of France?"))
    );

    // Two lengths: the second request inside the first is never taken for one.
    let smuggled = "GET /version HTTP/1.1\r\nhost: x\r\n\r\n";
    for headers in [
        "content-length: 6\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 6\r\n",
        "content-length: 6\r\ncontent-length: 5\r\n",
        "transfer-encoding: gzip\r\n",
    ] {
        let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n");
        let answers = exchange(&server, format!("{head}{headers}\r\n0\r\n\r\n{smuggled}")).await;
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{headers}: {answers}");
        assert!(answers.starts_with("HTTP/1.1 400 "), "{headers}: {answers}");
    }
    assert_answers(&server).await;
}
