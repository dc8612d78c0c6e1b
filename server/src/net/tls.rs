//! Certificate and key, read again when their files change.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{Error, ServerConfig, crypto};

/// Largest certificate or key file in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// How often new connections look whether the files have changed.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Why a certificate or its key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsError {
    /// The file to blame.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}

impl std::error::Error for TlsError {}

/// A certificate chain and its private key, as files (PEM).
#[derive(Debug)]
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    check_every: Duration,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    /// The files this was read from, or failed to be.
    seen: [Option<Stamp>; 2],
    checked: Instant,
}

/// When a file was written, and its length.
type Stamp = (SystemTime, u64);

impl Tls {
    /// Reads both files.
    ///
    /// # Errors
    /// The file that cannot be read, or does not fit the other.
    pub fn load(cert: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        let seen = [stamp(&cert), stamp(&key)];
        let config = config(&cert, &key)?;
        let current = Mutex::new(Current { config, seen, checked: Instant::now() });
        Ok(Self { cert, key, check_every: CHECK_EVERY, current })
    }

    /// Looks at the files at most once in this time instead of once a second.
    #[must_use]
    pub fn check_every(self, time: Duration) -> Self {
        Self { check_every: time, ..self }
    }

    /// What a new connection is answered with: the files' content, or what they last held that could
    /// be used.
    pub(super) async fn acceptor(self: &Arc<Self>) -> TlsAcceptor {
        if self.is_due() {
            let this = self.clone();
            // Files may lie on a disk that takes its time. A panic leaves the old certificate.
            let _ = tokio::task::spawn_blocking(move || this.look()).await;
        }
        TlsAcceptor::from(self.current().config.clone())
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        // Whole after any panic: its fields are replaced one by one, each with something that works.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is this caller's turn to look at the files.
    fn is_due(&self) -> bool {
        let mut current = self.current();
        let is_due = current.checked.elapsed() >= self.check_every;
        if is_due {
            current.checked = Instant::now();
        }
        is_due
    }

    /// Reads the files again if they have changed.
    fn look(&self) {
        let found = [stamp(&self.cert), stamp(&self.key)];
        if found == self.current().seen {
            return;
        }
        let read = config(&self.cert, &self.key);
        let mut current = self.current();
        current.seen = found;
        match read {
            Ok(config) => {
                current.config = config;
                tracing::info!("certificate and key were read again");
            }
            Err(error) => tracing::warn!("{error}; the certificate from before stays in use"),
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn config(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let blame = |path: &Path, reason: String| TlsError { path: path.to_owned(), reason };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(cert)?)
        .collect::<Result<_, _>>()
        .map_err(|e| blame(cert, format!("not a PEM certificate: {e}")))?;
    if chain.is_empty() {
        return Err(blame(cert, "holds no PEM certificate".to_owned()));
    }
    let secret = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|e| blame(key, format!("not a PEM private key: {e}")))?;
    let provider = Arc::new(crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| blame(cert, e.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|e| match e {
            Error::InconsistentKeys(_) => {
                blame(key, format!("not the key of the certificate in {}", cert.display()))
            }
            Error::InvalidCertificate(_) => blame(cert, e.to_string()),
            _ => blame(key, e.to_string()),
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A regular file's content.
fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let blame = |reason: String| TlsError { path: path.to_owned(), reason };
    let metadata = std::fs::metadata(path).map_err(|e| blame(e.to_string()))?;
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        return Err(blame(format!("not a file of at most {MAX_FILE_BYTES} bytes")));
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut bytes))
        .map_err(|e| blame(e.to_string()))?;
    Ok(bytes)
}
