//! Clients of a server on this machine: streams, and someone who asks for its health.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::cli::Failure;

/// Time between two questions for health.
const PROBE_EVERY: Duration = Duration::from_millis(5);
/// Bytes at the end of a stream that are looked at.
const TAIL: usize = 16 << 10;

/// One stream as its reader saw it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streamed {
    pub(super) tokens: u64,
    /// Seconds to the first bytes of the answer.
    pub(super) first: f64,
}

/// A keep-alive connection.
async fn connect(address: SocketAddr) -> Result<SendRequest<Body>, Failure> {
    let stream = TcpStream::connect(address).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // Ends with its sender; what went wrong shows there.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// Sends bodies of completions over `connections`, each one after the other.
pub(super) async fn stream_all(
    address: SocketAddr,
    bodies: Vec<String>,
    connections: usize,
) -> Result<Vec<Streamed>, Failure> {
    let bodies = Arc::new(Mutex::new(VecDeque::from(bodies)));
    let client = async |_| {
        let (mut sender, mut done) = (connect(address).await?, Vec::new());
        loop {
            let body = bodies.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(body) = body else { return Ok::<_, Failure>(done) };
            done.push(stream_one(&mut sender, body).await?);
        }
    };
    let done = try_join_all((0..connections).map(client)).await?;
    Ok(done.into_iter().flatten().collect())
}

async fn stream_one(sender: &mut SendRequest<Body>, body: String) -> Result<Streamed, Failure> {
    let sent = Instant::now();
    let request = Request::post("/v1/completions")
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Body::from(body))
        .map_err(failed)?;
    sender.ready().await.map_err(failed)?;
    let response = sender.send_request(request).await.map_err(failed)?;
    let status = response.status();
    let mut data = Body::new(response.into_body()).into_data_stream();
    let (mut first, mut tail) = (None, Vec::new());
    while let Some(bytes) = data.next().await {
        first.get_or_insert_with(|| sent.elapsed().as_secs_f64());
        tail.extend_from_slice(&bytes.map_err(failed)?);
        if tail.len() > 2 * TAIL {
            tail.drain(..tail.len() - TAIL);
        }
    }
    let text = String::from_utf8_lossy(&tail);
    let tokens = generated(&text).filter(|_| status == StatusCode::OK).ok_or_else(|| {
        let end: String = text.chars().rev().take(300).collect();
        Failure::failed(format!("{status}: {}", end.chars().rev().collect::<String>()))
    })?;
    Ok(Streamed { tokens, first: first.unwrap_or_default() })
}

/// Tokens that the last chunk of a whole stream counts.
fn generated(text: &str) -> Option<u64> {
    let events = text.strip_suffix("data: [DONE]\n\n")?.trim_end();
    let (_, last) = events.rsplit_once("data: ")?;
    let chunk: Value = serde_json::from_str(last).ok()?;
    chunk["usage"]["completion_tokens"].as_u64()
}

/// Asks for health on a thread of its own until told to stop.
pub(super) struct Prober {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<Vec<f64>, Failure>>,
}

impl Prober {
    pub(super) fn start(address: SocketAddr) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let probe = move || client_runtime()?.block_on(probe(address, &stopped));
        let thread =
            std::thread::Builder::new().name("health".to_owned()).spawn(probe).map_err(failed)?;
        Ok(Self { stop, thread })
    }

    /// Seconds each answer took.
    pub(super) fn finish(self) -> Result<Vec<f64>, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| Err(Failure::failed("asking for health failed")))
    }
}

async fn probe(address: SocketAddr, stop: &AtomicBool) -> Result<Vec<f64>, Failure> {
    let (mut sender, mut times) = (connect(address).await?, Vec::new());
    let mut ticks = tokio::time::interval(PROBE_EVERY);
    // Once at least, however short the round.
    while times.is_empty() || !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let asked = Instant::now();
        let request = Request::get("/health").header("host", "localhost");
        let request = request.body(Body::empty()).map_err(failed)?;
        sender.ready().await.map_err(failed)?;
        let response = sender.send_request(request).await.map_err(failed)?;
        let mut data = Body::new(response.into_body()).into_data_stream();
        while let Some(bytes) = data.next().await {
            bytes.map_err(failed)?;
        }
        times.push(asked.elapsed().as_secs_f64());
    }
    Ok(times)
}

/// One thread: clients are to take little from what they measure.
pub(super) fn client_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)
}

fn failed(error: impl ToString) -> Failure {
    Failure::failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_chunk_counts_the_tokens_of_a_whole_stream() {
        let chunk = "data: {\"choices\":[],\"usage\":{\"completion_tokens\":7}}\n\n";
        assert_eq!(generated(&format!("data: {{}}\n\n{chunk}data: [DONE]\n\n")), Some(7));
        assert_eq!(generated(chunk), None, "a stream that broke off");
        assert_eq!(generated("data: {\"error\":{}}\n\ndata: [DONE]\n\n"), None);
    }
}
