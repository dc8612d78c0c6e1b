//! Which errors a route may answer with. A handler's `responses(…)` names one of these types.

use std::collections::BTreeMap;

use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::{Content, Ref, RefOr};
use utoipa::{IntoResponses, PartialSchema, ToSchema};

use super::answers::ErrorBody;

type Responses = BTreeMap<String, RefOr<Response>>;

/// Errors of routes that read a body and run the model.
pub(crate) struct RunErrors;

impl IntoResponses for RunErrors {
    fn responses() -> Responses {
        errors(&[400, 404, 413, 415, 429, 499, 503, 504])
    }
}

/// Errors of routes that need the model and a name of it.
pub(crate) struct ModelErrors;

impl IntoResponses for ModelErrors {
    fn responses() -> Responses {
        errors(&[400, 404, 503])
    }
}

/// Errors of routes that need the model.
pub(crate) struct LoadingErrors;

impl IntoResponses for LoadingErrors {
    fn responses() -> Responses {
        errors(&[503])
    }
}

/// Errors of routes that name a running request.
pub(crate) struct RequestErrors;

impl IntoResponses for RequestErrors {
    fn responses() -> Responses {
        errors(&[400, 404])
    }
}

fn errors(statuses: &[u16]) -> Responses {
    statuses.iter().map(|&status| (status.to_string(), error(status).into())).collect()
}

/// The answer to a refused or broken request.
pub(super) fn error(status: u16) -> Response {
    let schema = Ref::from_schema_name(ErrorBody::name());
    let content = Content::builder().schema(Some(schema)).build();
    let response =
        ResponseBuilder::new().description(meaning(status)).content("application/json", content);
    match status {
        429 | 503 => {
            let header = HeaderBuilder::new()
                .schema(Some(u32::schema()))
                .description(Some("Seconds after which to try again"));
            response.header("Retry-After", header.build()).build()
        }
        _ => response.build(),
    }
}

fn meaning(status: u16) -> &'static str {
    match status {
        400 => "A field is wrong; `param` names it",
        401 => "No or a wrong API key",
        404 => "No such model or request",
        413 => "The body is too large",
        415 => "The body's content type is not `application/json`",
        429 => "The queue is full",
        499 => "The request was cancelled",
        503 => "The model is loading, or the server is stopping",
        504 => "The request ran out of time",
        _ => "Something here is broken",
    }
}
