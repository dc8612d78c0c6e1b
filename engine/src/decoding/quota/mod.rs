//! Which of the ranked positions a pass commits: one rule a file.

mod entropy_bound;
mod even_split;
mod factor;
mod hierarchical;
mod one;
mod stable;
mod threshold;
mod timesteps;

use entropy_bound::EntropyBound;
use even_split::EvenSplit;
use factor::Factor;
use hierarchical::Hierarchical;
use one::One;
use stable::Stable;
use threshold::Threshold;
use timesteps::Timesteps;

use super::{Candidate, DecodingConfig, Quota, Revise};

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

/// Which positions a pass may commit.
pub trait QuotaRule: Send {
    /// Indices of the chosen among all candidates, which are ranked best first.
    fn choose(&mut self, ranked: &[Candidate], state: &BlockState) -> Vec<usize>;

    /// How many it chooses, best first, where that does not depend on the candidates.
    fn planned(&self, _: &BlockState) -> Option<usize> {
        None
    }

    /// Whether the block's turn is over.
    fn is_finished(&self, state: &BlockState) -> bool {
        state.open == 0
    }

    /// Whether it looks at [`Candidate::divergence`].
    fn needs_divergence(&self) -> bool {
        false
    }
}

/// The first `n` of `ranked`, at least one: every pass makes progress.
fn best(n: usize, ranked: &[Candidate]) -> Vec<usize> {
    (0..n.max(1).min(ranked.len())).collect()
}

/// The rule of a configuration.
#[must_use]
pub fn quota_rule(config: &DecodingConfig) -> Box<dyn QuotaRule> {
    match config.quota {
        Quota::EvenSplit { .. } => Box::new(EvenSplit),
        Quota::Timesteps { eps, .. } => Box::new(Timesteps { eps, bernoulli: false }),
        Quota::Bernoulli { eps, .. } => Box::new(Timesteps { eps, bernoulli: true }),
        Quota::Threshold(threshold) => {
            let is_capped = matches!(config.revise, Revise::Wino(_));
            Box::new(Threshold { threshold, is_capped })
        }
        Quota::Factor(factor) => Box::new(Factor(factor)),
        Quota::EntropyBound(bound) => Box::new(EntropyBound(bound)),
        Quota::Hierarchical { low, high } => Box::new(Hierarchical { low, high }),
        Quota::Stable { threshold, divergence, passes } => {
            Box::new(Stable::new(threshold, divergence, passes))
        }
        // Adaptive decoding has a loop of its own, which asks no rule.
        Quota::One | Quota::Adaptive { .. } => Box::new(One),
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// Candidates at positions 0, 1, … with these confidences, ranked.
    pub(in crate::decoding) fn ranked(confidences: &[f64]) -> Vec<Candidate> {
        let make = |(position, &confidence): (usize, &f64)| Candidate {
            position,
            id: 0,
            confidence,
            entropy: 0.0,
            margin: 0.0,
            divergence: None,
            score: confidence,
        };
        let mut all: Vec<_> = confidences.iter().enumerate().map(make).collect();
        all.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.position.cmp(&b.position)));
        all
    }

    pub(in crate::decoding) const STATE: BlockState =
        BlockState { step: 0, steps: 0, open: 9, open_at_start: 9 };

    /// Positions a rule chooses, in order.
    pub(in crate::decoding) fn chosen(
        rule: &mut dyn QuotaRule,
        ranked: &[Candidate],
    ) -> Vec<usize> {
        let mut positions: Vec<usize> =
            rule.choose(ranked, &STATE).into_iter().map(|i| ranked[i].position).collect();
        positions.sort_unstable();
        positions
    }
}
