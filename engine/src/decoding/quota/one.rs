use super::{BlockState, QuotaRule, best};
use crate::decoding::Candidate;

/// The best position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct One;

impl QuotaRule for One {
    fn choose(&mut self, ranked: &[Candidate], _: &BlockState) -> Vec<usize> {
        best(1, ranked)
    }

    fn planned(&self, state: &BlockState) -> Option<usize> {
        Some(state.open.min(1))
    }
}
