use super::{BlockState, QuotaRule};
use crate::decoding::Candidate;

/// The best position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct One;

impl QuotaRule for One {
    fn take(&self, ranked: &[Candidate], _: &BlockState) -> usize {
        ranked.len().min(1)
    }

    fn planned(&self, state: &BlockState) -> Option<usize> {
        Some(state.open.min(1))
    }
}
