//! How many of the ranked positions a pass commits: one rule a file.

mod even_split;
mod one;
mod threshold;
mod timesteps;

use even_split::EvenSplit;
use one::One;
use threshold::Threshold;
use timesteps::Timesteps;

use super::{Candidate, Quota};

/// What a rule may know about the block being decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockState {
    /// Steps taken in this block.
    pub step: usize,
    /// Steps this block has, for rules with a schedule.
    pub steps: usize,
    /// Open positions of the block now.
    pub open: usize,
    /// Open positions of the block when it was begun.
    pub open_at_start: usize,
}

impl BlockState {
    /// Whether this is the schedule's last step.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.step + 1 >= self.steps
    }
}

/// How many positions, best first, a pass may commit.
pub trait QuotaRule: Send {
    /// The number, given all candidates ranked best first.
    fn take(&self, ranked: &[Candidate], state: &BlockState) -> usize;

    /// The number, where it does not depend on the candidates.
    fn planned(&self, state: &BlockState) -> Option<usize>;

    /// Whether the block's turn is over.
    fn is_finished(&self, state: &BlockState) -> bool {
        state.open == 0
    }
}

/// The rule of a knob value.
#[must_use]
pub fn quota_rule(quota: Quota) -> Box<dyn QuotaRule> {
    match quota {
        Quota::EvenSplit { .. } => Box::new(EvenSplit),
        Quota::Timesteps { eps, .. } => Box::new(Timesteps { eps, bernoulli: false }),
        Quota::Bernoulli { eps, .. } => Box::new(Timesteps { eps, bernoulli: true }),
        Quota::Threshold(threshold) => Box::new(Threshold(threshold)),
        Quota::One => Box::new(One),
    }
}
