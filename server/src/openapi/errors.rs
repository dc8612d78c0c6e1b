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
        errors(&[400, 404, 408, 413, 415, 429, 499, 503, 504])
    }
}

/// Errors of routes that read a body and do not run the model.
pub(crate) struct ReadErrors;

impl IntoResponses for ReadErrors {
    fn responses() -> Responses {
        errors(&[400, 404, 408, 413, 415, 503])
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
    statuses.iter().map(|&status| (status.to_string(), error::<ErrorBody>(status).into())).collect()
}

/// The answer to a refused or broken request, with a body of this type.
pub(super) fn error<B: ToSchema>(status: u16) -> Response {
    let schema = Ref::from_schema_name(B::name());
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
        408 => "The body did not arrive in time",
        413 => "The body is too large",
        415 => "The body's content type is not `application/json`",
        429 => "The queue is full, or a client asks too often",
        499 => "The request was cancelled",
        503 => "The model is loading, or the server is stopping",
        504 => "The request ran out of time",
        _ => "Something here is broken",
    }
}
