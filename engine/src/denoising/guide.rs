//! Answers that have to have a structure, on a canvas.
//!
//! What a structure allows at a position depends on everything before it, so the answer settles
//! from the left: a pass commits what has to come next, the token behind it, chosen among those
//! allowed, and of the positions that the rule chose as well those that follow without a gap and
//! continue the structure. The model reads open positions to the right all the same.

use dfastllm_models::ops::TokenSet;

use super::Denoising;
use crate::decoding::Candidate;

impl Denoising {
    /// What an open position may hold, where that is known.
    pub(super) fn allowed_at(&self, position: usize) -> Option<TokenSet> {
        let Some(guided) = &self.guided else { return self.request.allowed.clone() };
        let ahead = position.checked_sub(self.open().next()?)?;
        guided.allowed(ahead).cloned()
    }

    /// Whether the answer has all of its structure.
    pub(super) fn is_complete(&mut self) -> bool {
        self.guided.as_mut().is_some_and(|guided| guided.has_ended())
    }

    /// Whether the block's turn is over. A structure may take more steps than a schedule has.
    pub(super) fn is_block_over(&self) -> bool {
        match self.guided {
            Some(_) => self.block.state.open == 0,
            None => self.quota.is_finished(&self.block.state),
        }
    }

    /// Changes what a rule chose to what the structure admits.
    pub(super) fn follow_structure(&mut self, ranked: &[Candidate], is_chosen: &mut [bool]) {
        let Some(guided) = &mut self.guided else { return };
        let mut from_left: Vec<usize> = (0..ranked.len()).collect();
        from_left.sort_unstable_by_key(|&index| ranked[index].position);
        let mut goes_on = true;
        for (ahead, index) in from_left.into_iter().enumerate() {
            let id = ranked[index].id;
            goes_on = goes_on
                && match guided.allowed(ahead) {
                    Some(_) => guided.follow(id),
                    None => is_chosen[index] && guided.take(id),
                };
            is_chosen[index] = goes_on;
        }
        guided.look_ahead();
    }
}
