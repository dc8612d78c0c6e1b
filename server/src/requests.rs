//! Running requests by name, to cancel them from elsewhere: `DELETE /v1/requests/{id}`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::extract::State;
use dfastllm_engine::Cancel;
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::PathId;
use crate::openapi::errors::RequestErrors;
use crate::{ApiError, AppState};

/// What ends the choices of one request.
type Cancels = Arc<[Cancel]>;

/// Running requests under the id of their answer and under their `x-request-id`. As large as what
/// runs and waits: entries leave with their request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Requests(Arc<Mutex<HashMap<String, Vec<Cancels>>>>);

/// A request's entries; dropping it takes them out.
#[derive(Debug)]
pub(crate) struct Registered {
    requests: Requests,
    names: Vec<String>,
    cancels: Cancels,
}

impl Requests {
    /// Makes a request known. Clients may use a name more than once.
    pub(crate) fn register(&self, names: Vec<String>, cancels: Vec<Cancel>) -> Registered {
        let cancels: Cancels = cancels.into();
        for name in &names {
            self.lock().entry(name.clone()).or_default().push(cancels.clone());
        }
        Registered { requests: self.clone(), names, cancels }
    }

    /// Cancels all requests of a name; how many those are.
    pub(crate) fn cancel(&self, name: &str) -> usize {
        let found = self.lock().get(name).cloned().unwrap_or_default();
        found.iter().flat_map(|cancels| cancels.iter()).for_each(Cancel::request);
        found.len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Cancels>>> {
        // The map is whole after any panic: every change is one call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut requests = self.requests.lock();
        for name in &self.names {
            let Some(entries) = requests.get_mut(name) else { continue };
            entries.retain(|cancels| !Arc::ptr_eq(cancels, &self.cancels));
            if entries.is_empty() {
                requests.remove(name);
            }
        }
    }
}

/// A request that was ended.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CancelledRequest {
    /// The name it was found by.
    id: String,
    /// `request`
    object: &'static str,
    /// Always true.
    cancelled: bool,
}

/// Ends a queued or running request; whoever waits for it is told.
#[utoipa::path(delete, path = "/v1/requests/{id}", tag = "Generation", operation_id = "cancel",
    params(("id" = String, Path, description = "Its `x-request-id`, or the id of its answer")),
    responses((status = 200, description = "It ends", body = CancelledRequest), RequestErrors))]
pub(crate) async fn cancel(
    State(state): State<AppState>,
    PathId(id): PathId,
) -> Result<Json<CancelledRequest>, ApiError> {
    match state.requests().cancel(&id) {
        0 => Err(ApiError::RequestNotFound { id }),
        _ => Ok(Json(CancelledRequest { id, object: "request", cancelled: true })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_known_by_all_its_names_until_it_ends() {
        let requests = Requests::default();
        let first = requests.register(vec!["a".into(), "mine".into()], vec![Cancel::default()]);
        let second = requests.register(vec!["b".into(), "mine".into()], vec![Cancel::default()]);
        assert_eq!(
            (requests.cancel("a"), requests.cancel("mine"), requests.cancel("c")),
            (1, 2, 0)
        );
        drop(first);
        assert_eq!((requests.cancel("a"), requests.cancel("mine")), (0, 1));
        drop(second);
        assert!(requests.lock().is_empty());
    }
}
