//! API keys.

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use crate::{ApiError, AppState};

/// Where Anthropic's clients put their key.
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Lets a request pass that brings one of the keys, or any if there are none.
pub(crate) async fn require_key(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    if state.api_keys().is_empty() || brings_key(request.headers(), state.api_keys()) {
        return next.run(request).await;
    }
    ApiError::Unauthorized.into_response()
}

fn brings_key(headers: &HeaderMap, keys: &[String]) -> bool {
    let text = |name| headers.get(name).and_then(|h| h.to_str().ok());
    let given = [text(AUTHORIZATION).map(bearer), text(X_API_KEY)];
    given.into_iter().flatten().any(|key| is_known(key, keys))
}

/// The key of an `Authorization` header; the scheme's case does not matter.
fn bearer(header: &str) -> &str {
    match header.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => key.trim(),
        _ => "",
    }
}

/// Compares with every key in time that depends on lengths only.
fn is_known(given: &str, keys: &[String]) -> bool {
    keys.iter().fold(false, |known, key| known | bool::from(key.as_bytes().ct_eq(given.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheme_is_case_insensitive_and_the_key_exact() {
        let keys = ["one".to_owned(), "two".to_owned()];
        assert!(is_known(bearer("Bearer two"), &keys));
        assert!(is_known(bearer("bEARER one"), &keys));
        for wrong in ["Bearer One", "Bearer", "Basic one", "one", "Bearer on", "Bearer "] {
            assert!(!is_known(bearer(wrong), &keys), "{wrong}");
        }
    }
}
