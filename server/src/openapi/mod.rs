//! `GET /openapi.json` and `GET /docs`: the API, described by its types and handlers.
//!
//! A route is described where its handler is (`#[utoipa::path(…)]`, path included) and served by
//! `.routes(routes!(handler))` in `app.rs`: there is no list of routes to keep beside the router.
//! Whatever wants a key gets its 401 and its security requirement here.

pub(crate) mod answers;
pub(crate) mod errors;
pub(crate) mod requests;

use std::sync::LazyLock;

use axum::http::header;
use axum::response::{Html, IntoResponse};
use utoipa::ToSchema;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, InfoBuilder, LicenseBuilder, OpenApi, PathItem};

use crate::{ApiError, anthropic, app};
use answers::{ErrorBody, MessagesError};

const KEY: &str = "api_key";
const ABOUT: &str = "Phi, LLaDA and Dream behind OpenAI's API. Unknown and unsupported fields are \
    refused with a 400 that names them; `null` is the same as absent. What OpenAI's clients send \
    for bookkeeping (`user`, `metadata`, `store`, …) changes nothing. Every answer echoes \
    `x-request-id` or makes one.";

/// All it needs comes with it: it works without a network.
const PAGE: &str = include_str!("docs.html");
/// The page runs its own script and talks to this server only.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; \
    style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

static DOCUMENT: LazyLock<Result<String, String>> =
    LazyLock::new(|| app::document().to_json().map_err(|e| e.to_string()));

/// This document: OpenAPI 3.1.
#[utoipa::path(get, path = "/openapi.json", tag = "About", operation_id = "openapi",
    responses((status = 200, description = "The document", body = serde_json::Value)))]
pub(crate) async fn document() -> Result<impl IntoResponse, ApiError> {
    match &*DOCUMENT {
        Ok(text) => Ok(([(header::CONTENT_TYPE, "application/json")], text.as_str())),
        Err(message) => {
            Err(ApiError::Internal { code: "internal_error", message: message.clone() })
        }
    }
}

/// A page to read it and try it.
#[utoipa::path(get, path = "/docs", tag = "About", operation_id = "docs",
    responses((status = 200, description = "The page", body = String, content_type = "text/html")))]
pub(crate) async fn docs() -> impl IntoResponse {
    ([(header::CONTENT_SECURITY_POLICY, PAGE_POLICY)], Html(PAGE))
}

/// The whole document, from those of routes that want a key and of routes that do not.
pub(crate) fn describe(mut guarded: OpenApi, open: OpenApi) -> OpenApi {
    for (_, operation) in operations(&mut guarded) {
        operation.security = Some(vec![SecurityRequirement::new(KEY, Vec::<String>::new())]);
        respond_with(operation, 401);
    }
    // `--rate-limit` counts what starts work.
    for item in guarded.paths.paths.values_mut() {
        item.post.iter_mut().for_each(|operation| respond_with(operation, 429));
    }
    guarded.merge(open);
    let mut document = guarded;
    for (path, operation) in operations(&mut document) {
        // A handler that panics is answered, whichever it is.
        respond_with(operation, 500);
        if anthropic::is_below(path) {
            in_anthropics_shape(operation);
        }
    }
    // What the router calls `{*id}` is `{id}` to everybody else.
    document.paths.paths =
        document.paths.paths.into_iter().map(|(path, i)| (path.replace("{*", "{"), i)).collect();
    document.info = InfoBuilder::new()
        .title("dfastllm")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(ABOUT))
        .license(Some(
            LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build(),
        ))
        .build();
    let components = document.components.get_or_insert_default();
    add::<ErrorBody>(components);
    add::<MessagesError>(components);
    components.add_security_scheme(KEY, SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    document
}

/// Adds a type that only responses made here refer to.
fn add<T: ToSchema>(components: &mut Components) {
    components.schemas.insert(T::name().into_owned(), T::schema());
    let mut nested = Vec::new();
    T::schemas(&mut nested);
    components.schemas.extend(nested);
}

/// Operations with their paths.
fn operations(document: &mut OpenApi) -> impl Iterator<Item = (&str, &mut Operation)> {
    document.paths.paths.iter_mut().flat_map(|(path, item)| {
        let PathItem { get, put, post, delete, patch, .. } = item;
        let operations = [get, put, post, delete, patch].into_iter().flatten();
        operations.map(|operation| (path.as_str(), operation))
    })
}

fn respond_with(operation: &mut Operation, status: u16) {
    let responses = &mut operation.responses.responses;
    responses
        .entry(status.to_string())
        .or_insert_with(|| errors::error::<ErrorBody>(status).into());
}

/// Errors as `anthropic/errors.rs` says them.
fn in_anthropics_shape(operation: &mut Operation) {
    for (status, response) in &mut operation.responses.responses {
        if let Some(status) = status.parse().ok().filter(|status| *status >= 400) {
            *response = errors::error::<MessagesError>(status).into();
        }
    }
}
