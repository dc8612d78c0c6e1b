use super::{BlockState, QuotaRule};
use crate::decoding::Candidate;

/// The block's positions divided by its steps, the remainder to the first steps
/// (`get_num_transfer_tokens` of ML-GSAI/LLaDA `generate.py`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct EvenSplit;

impl QuotaRule for EvenSplit {
    fn choose(&mut self, ranked: &[Candidate], state: &BlockState) -> Vec<usize> {
        (0..self.planned(state).unwrap_or(0).min(ranked.len())).collect()
    }

    fn planned(&self, state: &BlockState) -> Option<usize> {
        let (each, rest) = (state.open_at_start / state.steps, state.open_at_start % state.steps);
        Some(each + usize::from(state.step < rest))
    }

    /// The published loop runs all steps of a block, whether anything is open or not.
    fn is_finished(&self, state: &BlockState) -> bool {
        state.step >= state.steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_gets_its_step_and_the_first_steps_the_remainder() {
        for (open, steps, want) in [
            (32, 16, vec![2; 16]),
            (7, 3, vec![3, 2, 2]),
            (3, 5, vec![1, 1, 1, 0, 0]),
            (1, 1, vec![1]),
        ] {
            let quotas: Vec<usize> = (0..steps)
                .map(|step| {
                    let state = BlockState { step, steps, open, open_at_start: open };
                    EvenSplit.planned(&state).unwrap()
                })
                .collect();
            assert_eq!(quotas, want);
        }
    }
}
