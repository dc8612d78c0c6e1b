//! Which committed positions are opened again.

use super::Revise;

/// What WINO's published code starts from: the first revision is bounded by no earlier pass.
const FIRST_ALLOWANCE: usize = 30;

/// What a pass says about a committed position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Doubt {
    pub(crate) position: usize,
    /// Probability of its token now.
    pub(crate) probability: f64,
}

/// Picks positions to open again, never so many that passes go round in circles.
#[derive(Debug)]
pub(crate) struct Reviser {
    revise: Revise,
    /// Positions the pass before committed.
    committed_before: usize,
}

impl Reviser {
    pub(crate) fn new(revise: Revise) -> Self {
        Self { revise, committed_before: FIRST_ALLOWANCE }
    }

    /// Positions to open after a pass that commits `committed`, least probable first.
    ///
    /// [`Revise::Below`] opens fewer than the pass commits. [`Revise::Wino`] opens fewer than the
    /// pass before committed, and none after a pass that commits one. Either way `n` passes leave at
    /// least `n` positions committed.
    pub(crate) fn reopen(&mut self, mut doubts: Vec<Doubt>, committed: usize) -> Vec<usize> {
        let before = std::mem::replace(&mut self.committed_before, committed);
        let (threshold, most) = match self.revise {
            Revise::None => return Vec::new(),
            Revise::Below(threshold) => (threshold, committed.saturating_sub(1)),
            Revise::Wino(_) if committed <= 1 => return Vec::new(),
            Revise::Wino(threshold) => (threshold, before.saturating_sub(1)),
        };
        doubts.retain(|d| d.probability < threshold);
        doubts.sort_by(|a, b| {
            a.probability.total_cmp(&b.probability).then(a.position.cmp(&b.position))
        });
        doubts.truncate(most);
        doubts.into_iter().map(|d| d.position).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doubts(probabilities: &[f64]) -> Vec<Doubt> {
        let make = |(position, &probability)| Doubt { position, probability };
        probabilities.iter().enumerate().map(make).collect()
    }

    #[test]
    fn the_least_probable_open_again_but_fewer_than_are_committed() {
        let mut below = Reviser::new(Revise::Below(0.5));
        assert_eq!(below.reopen(doubts(&[0.4, 0.6, 0.2, 0.3]), 3), [2, 3]);
        assert_eq!(below.reopen(doubts(&[0.4]), 1), [0; 0]);
        let mut wino = Reviser::new(Revise::Wino(0.9));
        assert_eq!(wino.reopen(doubts(&[0.5, 0.95]), 3), [0]);
        assert_eq!(
            wino.reopen(doubts(&[0.5, 0.4, 0.3]), 1),
            [0; 0],
            "a single commit revises nothing"
        );
        assert_eq!(wino.reopen(doubts(&[0.5, 0.4, 0.3]), 4), [0; 0], "fewer than the one before");
        assert_eq!(wino.reopen(doubts(&[0.5, 0.4, 0.3]), 2), [2, 1, 0]);
        assert_eq!(Reviser::new(Revise::None).reopen(doubts(&[0.0]), 9), [0; 0]);
    }
}
