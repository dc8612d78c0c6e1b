//! Flags about who may connect, and for how long.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use clap::Args;

use super::Failure;
use crate::access::{Access, origin};
use crate::{Connections, Tls};

/// Who may connect, and for how long.
#[derive(Debug, Args)]
pub(crate) struct AccessArgs {
    /// Origin whose pages may use the API from a browser, or *; repeat for more
    #[arg(long, env = "DFASTLLM_CORS_ORIGIN", value_delimiter = ',', value_parser = origin)]
    cors_origin: Vec<HeaderValue>,

    /// PEM file with the certificate chain for https
    #[arg(long, env = "DFASTLLM_TLS_CERT", alias = "ssl-certfile")]
    tls_cert: Option<PathBuf>,

    /// PEM file with its private key
    #[arg(long, env = "DFASTLLM_TLS_KEY", alias = "ssl-keyfile")]
    tls_key: Option<PathBuf>,

    /// Requests a minute for each API key, or each address if there are no keys [default: any]
    #[arg(long, env = "DFASTLLM_RATE_LIMIT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate_limit: Option<u32>,

    /// Connections at the same time
    #[arg(long, env = "DFASTLLM_MAX_CONNECTIONS", default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_connections: u32,

    /// Seconds a client has for a request's headers, and a connection may be idle
    #[arg(long, env = "DFASTLLM_HEADER_TIMEOUT", default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    header_timeout: u64,

    /// Seconds a client has for a request's body
    #[arg(long, env = "DFASTLLM_BODY_TIMEOUT", default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    body_timeout: u64,

    /// Seconds a client may read nothing of its answer
    #[arg(long, env = "DFASTLLM_WRITE_TIMEOUT", default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    write_timeout: u64,
}

impl AccessArgs {
    /// What the API asks of its clients.
    pub(crate) fn access(&self, api_keys: Vec<String>) -> Access {
        Access {
            api_keys,
            cors_origins: self.cors_origin.clone(),
            rate_limit: self.rate_limit.and_then(NonZeroU32::new),
            body_timeout: Duration::from_secs(self.body_timeout),
        }
    }

    /// What connections are allowed; reads certificate and key.
    pub(crate) fn connections(&self) -> Result<Connections, Failure> {
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some(
                Tls::load(cert.clone(), key.clone()).map_err(|e| Failure::failed(e.to_string()))?,
            ),
            (None, None) => None,
            (Some(_), None) => return Err(Failure::usage("--tls-cert needs --tls-key")),
            (None, Some(_)) => return Err(Failure::usage("--tls-key needs --tls-cert")),
        };
        Ok(Connections {
            max_connections: usize::try_from(self.max_connections).unwrap_or(usize::MAX),
            header_timeout: Duration::from_secs(self.header_timeout),
            write_timeout: Duration::from_secs(self.write_timeout),
            tls: tls.map(Arc::new),
        })
    }

    /// The resolved flags.
    pub(crate) fn print(&self) {
        tracing::info!(
            cors_origins = ?self.cors_origin,
            tls = self.tls_cert.is_some(),
            rate_limit_per_minute = self.rate_limit,
            max_connections = self.max_connections,
            header_timeout_seconds = self.header_timeout,
            body_timeout_seconds = self.body_timeout,
            write_timeout_seconds = self.write_timeout,
            "access"
        );
    }
}
