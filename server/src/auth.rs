//! API keys.

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use crate::rate::Client;
use crate::{ApiError, AppState};

/// Lets a request pass that brings one of the keys, or any if there are none.
pub(crate) async fn require_key(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    let given = request.headers().get(AUTHORIZATION).and_then(|h| h.to_str().ok());
    let known = given.and_then(|header| known(bearer(header), state.api_keys()));
    if let Some(index) = known {
        request.extensions_mut().insert(Client::Key(index));
    } else if !state.api_keys().is_empty() {
        return ApiError::Unauthorized.into_response();
    }
    next.run(request).await
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
