//! HTTP by hand, for what no client would send.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http::Server;

/// A read that takes this long is stuck.
const STUCK: Duration = Duration::from_secs(30);

/// A connection to an address like `http://127.0.0.1:80`.
pub async fn connect(url: &str) -> TcpStream {
    TcpStream::connect(url.split_once("://").unwrap().1).await.unwrap()
}

/// Everything until the other side closes the connection.
pub async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    // A connection may also end in a reset; what was read before counts.
    let _ = tokio::time::timeout(STUCK, stream.read_to_end(&mut bytes)).await.unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The next answer on a connection that stays open: its head and what came with it.
pub async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = vec![0; 64 << 10];
    let read = tokio::time::timeout(STUCK, stream.read(&mut bytes)).await.unwrap().unwrap();
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

/// Sends bytes on a connection of their own and reads until it is closed.
pub async fn exchange(server: &Server, bytes: impl AsRef<[u8]>) -> String {
    rest(&mut begin(server, bytes).await).await
}

/// A connection with the beginning of what a client says.
pub async fn begin(server: &Server, bytes: impl AsRef<[u8]>) -> TcpStream {
    let mut stream = connect(&server.url).await;
    stream.write_all(bytes.as_ref()).await.unwrap();
    stream
}

/// A POST of JSON that asks for the connection to be closed, with more header lines.
#[must_use]
pub fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Status and error object of an answer.
#[must_use]
pub fn error(answer: &str) -> (u16, Value) {
    let status = answer.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let body: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {answer}"));
    for key in ["message", "type", "param", "code"] {
        assert!(body["error"].get(key).is_some(), "{key}: {answer}");
    }
    (status.parse().unwrap(), body["error"].clone())
}

impl Server {
    /// Whether the server is as well as before.
    pub async fn assert_well(&self) {
        assert_eq!(self.get("/health").await.0, 200);
    }
}
