use std::collections::HashMap;

use super::{BlockState, QuotaRule, best};
use crate::decoding::Candidate;

/// Positions that are confident and whose distribution has stood still: its divergence from the
/// pass before stayed below a bound for some passes; the best one if there are none (KLASS,
/// arXiv 2511.05664).
#[derive(Debug)]
pub(crate) struct Stable {
    threshold: f64,
    divergence: f64,
    passes: usize,
    /// Passes for which a position has stood still.
    still_for: HashMap<usize, usize>,
}

impl Stable {
    pub(crate) fn new(threshold: f64, divergence: f64, passes: usize) -> Self {
        Self { threshold, divergence, passes, still_for: HashMap::new() }
    }
}

impl QuotaRule for Stable {
    fn choose(&mut self, ranked: &[Candidate], _: &BlockState) -> Vec<usize> {
        let mut still_for = HashMap::with_capacity(ranked.len());
        for c in ranked {
            let still = c.divergence.is_some_and(|d| d < self.divergence);
            let before = self.still_for.get(&c.position).copied().unwrap_or(0);
            still_for.insert(c.position, if still { before + 1 } else { 0 });
        }
        self.still_for = still_for;
        let is_stable = |&i: &usize| {
            let c = &ranked[i];
            c.confidence >= self.threshold && self.still_for[&c.position] >= self.passes
        };
        let stable: Vec<usize> = (0..ranked.len()).filter(is_stable).collect();
        if stable.is_empty() { best(1, ranked) } else { stable }
    }

    fn needs_divergence(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{chosen, ranked};
    use super::*;

    #[test]
    fn confident_positions_wait_until_they_have_stood_still() {
        let mut rule = Stable::new(0.8, 0.01, 2);
        let mut pass = |divergences: [Option<f64>; 3]| {
            let mut candidates = ranked(&[0.9, 0.95, 0.5]);
            for c in &mut candidates {
                c.divergence = divergences[c.position];
            }
            chosen(&mut rule, &candidates)
        };
        assert_eq!(pass([None; 3]), [1], "no history: the best");
        assert_eq!(pass([Some(0.001); 3]), [1], "one pass is not enough");
        assert_eq!(pass([Some(0.001); 3]), [0, 1], "2 is not confident");
        assert_eq!(pass([Some(0.5), Some(0.001), Some(0.001)]), [1], "0 has moved");
    }
}
