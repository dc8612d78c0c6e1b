//! Connections: how many there are, how long they may take, and how they end.
//!
//! A loop of our own, because `axum::serve` gives hyper no timer and so no limit on the time a client
//! takes for its headers. HTTP/1.1 only, on TLS too: it is what the clients of this API speak, and
//! its limits are those that are enforced here.

mod stream;
mod tls;

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::Request;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::sync::Semaphore;
use tower_service::Service;

pub(crate) use stream::Unread;
use stream::Watched;
pub use tls::{Tls, TlsError};

/// Largest head of a request in bytes, request line included; more is a 431.
const MAX_HEADER_BYTES: usize = 32 << 10;
/// What is buffered for a connection in each direction, in bytes; a head that has not ended by then
/// is a 431.
const MAX_BUFFER_BYTES: usize = 64 << 10;
/// Connections the system keeps until they are accepted; with the usual 128 a burst of clients waits
/// seconds for the next try.
const BACKLOG: u32 = 1024;
/// How long to wait after the system refused a connection, for instance because files have run out.
const BACKOFF: Duration = Duration::from_millis(250);

/// What connections are allowed.
#[derive(Debug, Clone)]
pub struct Connections {
    /// How many may be open; others wait to be accepted.
    pub max_connections: usize,
    /// From the start of a connection, or the end of its last answer, to the end of a request's
    /// headers. Idle connections end with it.
    pub header_timeout: Duration,
    /// How long a client may accept nothing of what is written to it.
    pub write_timeout: Duration,
    /// Certificate and key, if connections are encrypted.
    pub tls: Option<Arc<Tls>>,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            header_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(60),
            tls: None,
        }
    }
}

/// Listens on the first address of a host that can be had; port 0 takes a free one.
///
/// # Errors
/// The system's, of the last address tried.
pub async fn bind(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut failed = io::Error::new(ErrorKind::NotFound, "the host has no address");
    for address in lookup_host((host, port)).await? {
        match listen(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // On Windows it would let two servers have one port.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until `shutdown` resolves, then closes idle connections and waits until the others have
/// their answers.
pub async fn serve_connections(
    listener: TcpListener,
    router: Router,
    connections: Connections,
    shutdown: impl Future<Output = ()>,
) {
    let seats = Arc::new(Semaphore::new(connections.max_connections));
    let connections = Arc::new(connections);
    let graceful = GracefulShutdown::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let seat = seats.clone().acquire_owned().await.ok();
            let (socket, peer) = accept(&listener).await;
            (seat, socket, peer)
        };
        let (seat, socket, peer) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut shutdown => break,
        };
        let (router, connections) = (router.clone(), connections.clone());
        let watcher = graceful.watcher();
        tokio::spawn(async move {
            serve_one(socket, Client { peer, router, watcher }, &connections).await;
            drop(seat);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// The next connection. What goes wrong with one of them, or for want of files, does not end the
/// server.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(BACKOFF).await;
            }
        }
    }
}

fn is_the_clients(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionRefused | ConnectionAborted | ConnectionReset)
}

/// Who a connection belongs to and who answers it.
struct Client {
    peer: SocketAddr,
    router: Router,
    watcher: Watcher,
}

async fn serve_one(socket: TcpStream, client: Client, connections: &Connections) {
    // Events of a stream are small and must not wait for each other.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let unread = Unread::default();
    let stream = Watched::new(socket, connections.write_timeout, unread.clone());
    let Some(tls) = &connections.tls else {
        return serve_http(stream, client, unread, connections.header_timeout).await;
    };
    let handshake = async { tls.acceptor().await.accept(stream).await };
    match tokio::time::timeout(connections.header_timeout, handshake).await {
        Ok(Ok(stream)) => serve_http(stream, client, unread, connections.header_timeout).await,
        Ok(Err(error)) => tracing::debug!(peer = %client.peer, %error, "no TLS connection"),
        Err(_) => tracing::debug!(peer = %client.peer, "the TLS handshake took too long"),
    }
}

async fn serve_http<S>(stream: S, client: Client, unread: Unread, header_timeout: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Client { peer, router, watcher } = client;
    let service = service_fn(move |mut request: Request<Incoming>| {
        unread.set(!request.body().is_end_stream());
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(unread.clone());
        // A router is always ready.
        router.clone().call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(MAX_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%peer, %error, "a connection ended early");
    }
}
