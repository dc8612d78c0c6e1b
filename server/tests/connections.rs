//! Flags about who may connect, and connections to the program itself.
#![expect(clippy::unwrap_used, reason = "a test that cannot start its program has failed")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const PROGRAM: &str = env!("CARGO_BIN_EXE_dfastllm");
const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

fn run(args: &[&str]) -> Output {
    Command::new(PROGRAM).arg("serve").args(args).stdin(Stdio::null()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn mistakes_exit_2_and_files_that_cannot_be_used_exit_1() {
    for (args, said) in [
        (["--tls-cert", "x.pem"], "--tls-key"),
        (["--ssl-keyfile", "x.pem"], "--tls-cert"),
        (["--cors-origin", "a.example"], "SCHEME://HOST"),
        (["--cors-origin", "https://a.example,https://b.example/"], "https://b.example/"),
        (["--rate-limit", "0"], "--rate-limit"),
        (["--max-connections", "0"], "--max-connections"),
        (["--header-timeout", "0"], "--header-timeout"),
        (["--body-timeout", "99999"], "--body-timeout"),
        (["--write-timeout", "x"], "--write-timeout"),
    ] {
        let output = run(&args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert_eq!((text.lines().count(), text.contains(said)), (1, true), "{args:?}: {text}");
    }
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let pair = || rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let refused = |named: &str| {
        let output = run(&["--ssl-certfile", cert, "--ssl-keyfile", key]);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert_eq!((text.lines().count(), text.contains(named)), (1, true), "{named}: {text}");
    };
    refused(cert);
    std::fs::write(cert, pair().cert.pem()).unwrap();
    refused(key);
    std::fs::write(key, pair().signing_key.serialize_pem()).unwrap();
    refused(&format!("{key}: not the key of the certificate in {cert}"));
}

struct Served {
    child: Child,
    address: String,
    log: Receiver<String>,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a server and waits until it is ready; what it logs afterwards can be read.
fn serve(mut command: Command) -> Served {
    command.env("DFASTLLM_LOG", "info").stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.by_ref().find(|l| l.contains("listening on")).unwrap();
    let address = line.rsplit("://").next().unwrap().trim().to_owned();
    assert!(lines.by_ref().any(|l| l.contains("ready")));
    let (log, received) = channel();
    std::thread::spawn(move || lines.for_each(|line| drop(log.send(line))));
    Served { child, address, log: received }
}

/// `GET /health` on a connection of its own; empty if it is not answered.
fn health(address: &str) -> String {
    let mut answer = String::new();
    let Ok(mut stream) = TcpStream::connect(address) else { return answer };
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    if stream.write_all(HEALTH).is_ok() {
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}

#[cfg(unix)]
#[test]
fn a_server_without_files_left_goes_on_when_there_are_some_again() {
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "ulimit -n 64; exec \"$0\" serve --port 0 --model builtin:tiny-phi",
        PROGRAM,
    ]);
    let served = serve(command);
    let idle: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(&served.address).unwrap()).collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = served.log.recv_timeout(left).unwrap();
        if line.contains("cannot accept a connection") {
            break;
        }
    }
    drop(idle);
    assert!(health(&served.address).starts_with("HTTP/1.1 200 OK"));
}

#[test]
fn a_server_with_a_certificate_speaks_tls_only() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(&cert, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--port", "0", "--model", "builtin:tiny-phi"]);
    command.env("DFASTLLM_TLS_CERT", &cert).env("DFASTLLM_TLS_KEY", &key);
    let served = serve(command);
    assert!(!health(&served.address).contains("200 OK"), "plain HTTP is not answered");
    let mut roots = RootCertStore::empty();
    roots.add(pair.cert.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(client, TcpStream::connect(&served.address).unwrap());
    stream.write_all(HEALTH).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}
