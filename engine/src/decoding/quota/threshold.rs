use super::{BlockState, QuotaRule, best};
use crate::decoding::Candidate;

/// Bounds on what a pass of WINO commits (its published code).
const CAP: (usize, usize) = (5, 20);

/// Every position at least this confident, and always the best one, so that each pass makes
/// progress (Fast-dLLM, arXiv 2505.22618, section 3.3).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Threshold {
    pub(crate) threshold: f64,
    /// At most seven tenths of what is open, between 5 and 20: what WINO drafts may be wrong.
    pub(crate) is_capped: bool,
}

impl QuotaRule for Threshold {
    /// Candidates may be ranked by another score than confidence, so confident ones need not be a
    /// prefix: those before the first that is not confident enough are taken.
    fn choose(&mut self, ranked: &[Candidate], state: &BlockState) -> Vec<usize> {
        let confident = ranked.iter().take_while(|c| c.confidence >= self.threshold).count();
        let cap = match self.is_capped {
            true => (state.open * 7 / 10).clamp(CAP.0, CAP.1),
            false => usize::MAX,
        };
        best(confident.min(cap), ranked)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{chosen, ranked};
    use super::*;

    #[test]
    fn the_confident_and_always_the_best() {
        for (confidences, threshold, want) in [
            (vec![0.99, 0.9, 0.89], 0.9, vec![0, 1]),
            (vec![0.4, 0.5], 0.9, vec![1]),
            (vec![0.99, 0.98], 1.1, vec![0]),
            (vec![0.5, 0.4], 0.0, vec![0, 1]),
            (vec![], 0.9, vec![]),
        ] {
            let mut rule = Threshold { threshold, is_capped: false };
            assert_eq!(chosen(&mut rule, &ranked(&confidences)), want);
        }
        // Seven tenths of nine open positions.
        let mut capped = Threshold { threshold: 0.5, is_capped: true };
        assert_eq!(chosen(&mut capped, &ranked(&[0.9; 9])).len(), 6);
    }
}
