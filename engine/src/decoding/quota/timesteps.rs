use super::{BlockState, QuotaRule};
use crate::decoding::Candidate;

/// Time runs from 1 to `eps`; the step from `t` to `s` reveals the share `1 - s/t` of what is open,
/// the last step everything (`generation_utils.py` of Dream).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timesteps {
    /// Last time.
    pub(crate) eps: f64,
    /// Whether each position is revealed independently with that probability (`origin`) instead of
    /// that share of them, cut to a whole number.
    pub(crate) bernoulli: bool,
}

impl Timesteps {
    /// The share revealed at a step, in f32 as the original computes it.
    fn share(&self, state: &BlockState) -> f32 {
        if state.is_last() {
            return 1.0;
        }
        1.0 - self.time(state.step + 1, state.steps) / self.time(state.step, state.steps)
    }

    /// `torch.linspace(1, eps, steps + 1)`: from its nearer end.
    fn time(&self, index: usize, steps: usize) -> f32 {
        let eps = self.eps as f32;
        let width = (eps - 1.0) / steps as f32;
        if index < steps.div_ceil(2) {
            1.0 + width * index as f32
        } else {
            eps - width * (steps - index) as f32
        }
    }
}

impl QuotaRule for Timesteps {
    fn choose(&mut self, ranked: &[Candidate], state: &BlockState) -> Vec<usize> {
        let count = if self.bernoulli && !state.is_last() {
            // Scores are negative draws, best first.
            let share = f64::from(self.share(state));
            ranked.partition_point(|c| -c.score < share)
        } else {
            self.planned(state).unwrap_or(ranked.len()).min(ranked.len())
        };
        (0..count).collect()
    }

    fn planned(&self, state: &BlockState) -> Option<usize> {
        if state.is_last() || state.open == 0 {
            return Some(state.open);
        }
        (!self.bernoulli).then(|| (state.open as f32 * self.share(state)) as usize)
    }

    /// The published loop runs all its steps, whether anything is open or not.
    fn is_finished(&self, state: &BlockState) -> bool {
        state.step >= state.steps
    }
}
