//! Who may ask, from which pages, how often; and what every answer says about it.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::anthropic::ANTHROPIC_ID;
use crate::app::REQUEST_ID;
use crate::rate;

/// How long OpenAI's servers, and this one, took for an answer; for a stream, until it began.
const PROCESSING: HeaderName = HeaderName::from_static("openai-processing-ms");
/// How long browsers may remember what a preflight said.
const PREFLIGHT_AGE: Duration = Duration::from_secs(600);

/// Who may use the API, and how.
#[derive(Debug, Clone)]
pub struct Access {
    /// Keys clients must send; without any, none is asked for.
    pub api_keys: Vec<String>,
    /// Origins whose pages may use the API from a browser; `*` is any.
    pub cors_origins: Vec<HeaderValue>,
    /// Requests a minute for each key, or for each address where there are no keys.
    pub rate_limit: Option<NonZeroU32>,
    /// How long a client may take to send a request's body.
    pub body_timeout: Duration,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            api_keys: Vec::new(),
            cors_origins: Vec::new(),
            rate_limit: None,
            body_timeout: Duration::from_secs(30),
        }
    }
}

impl Access {
    /// What browsers are told, if any page may use the API at all.
    ///
    /// Any header may be sent: clients send one for each thing they know about their platform. No
    /// cookies are involved, so this gives nothing away.
    pub(crate) fn cors(&self) -> Option<CorsLayer> {
        let any = self.cors_origins.iter().any(|origin| origin == "*");
        let origins = match any {
            true => AllowOrigin::any(),
            false if self.cors_origins.is_empty() => return None,
            false => AllowOrigin::list(self.cors_origins.iter().cloned()),
        };
        let exposed = [REQUEST_ID, ANTHROPIC_ID, PROCESSING, header::RETRY_AFTER];
        let layer = CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(exposed.into_iter().chain(rate::HEADERS).collect::<Vec<_>>())
            .max_age(PREFLIGHT_AGE);
        Some(layer)
    }
}

/// An origin as browsers send it: `*`, `null` or `SCHEME://HOST[:PORT]`.
///
/// # Errors
/// What is expected instead.
pub(crate) fn origin(text: &str) -> Result<HeaderValue, String> {
    let wrong = || format!("'{text}' is no origin, expected * or SCHEME://HOST[:PORT]");
    let is_origin = text.split_once("://").is_some_and(|(scheme, host)| {
        let name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        !scheme.is_empty()
            && scheme.chars().all(|c| name(c) || "+-.".contains(c))
            && !host.is_empty()
            && host.chars().all(|c| name(c) || "-._:[]".contains(c))
    });
    if !is_origin && text != "*" && text != "null" {
        return Err(wrong());
    }
    HeaderValue::from_str(text).map_err(|_| wrong())
}

/// Says in every answer how long it took to make.
pub(crate) async fn processing_time(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let mut response = next.run(request).await;
    let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    response.headers_mut().insert(PROCESSING, ms.into());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_what_browsers_send() {
        for right in ["*", "null", "https://a.example", "http://localhost:3000", "http://[::1]:80"]
        {
            assert_eq!(origin(right).unwrap(), right);
        }
        for wrong in ["", "a.example", "https://", "https://a.example/", "https://A.example", "a b"]
        {
            assert!(origin(wrong).unwrap_err().contains("no origin"), "{wrong}");
        }
    }
}
