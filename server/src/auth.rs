//! API keys.

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use crate::rate::Client;
use crate::{ApiError, AppState};

/// Where Anthropic's clients put their key.
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Lets a request pass that brings one of the keys, or any if there are none.
pub(crate) async fn require_key(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    if let Some(index) = key_of(request.headers(), state.api_keys()) {
        request.extensions_mut().insert(Client::Key(index));
    } else if !state.api_keys().is_empty() {
        return ApiError::Unauthorized.into_response();
    }
    next.run(request).await
}

/// Which of the keys a request brings.
fn key_of(headers: &HeaderMap, keys: &[String]) -> Option<usize> {
    let text = |name| headers.get(name).and_then(|h| h.to_str().ok());
    let given = [text(AUTHORIZATION).map(bearer), text(X_API_KEY)];
    given.into_iter().flatten().find_map(|key| known(key, keys))
}

/// The key of an `Authorization` header; the scheme's case does not matter.
fn bearer(header: &str) -> &str {
    match header.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => key.trim(),
        _ => "",
    }
}

/// Which key it is; compares with every one in time that depends on lengths only.
fn known(given: &str, keys: &[String]) -> Option<usize> {
    keys.iter().enumerate().fold(None, |known, (index, key)| {
        if bool::from(key.as_bytes().ct_eq(given.as_bytes())) { Some(index) } else { known }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheme_is_case_insensitive_and_the_key_exact() {
        let keys = ["one".to_owned(), "two".to_owned()];
        assert_eq!(known(bearer("Bearer two"), &keys), Some(1));
        assert_eq!(known(bearer("bEARER one"), &keys), Some(0));
        for wrong in ["Bearer One", "Bearer", "Basic one", "one", "Bearer on", "Bearer "] {
            assert_eq!(known(bearer(wrong), &keys), None, "{wrong}");
        }
    }
}
