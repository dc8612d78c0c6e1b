use super::{BlockState, QuotaRule};
use crate::decoding::Candidate;

/// Every position at least this confident, and always the best one, so that each pass makes
/// progress (Fast-dLLM, arXiv 2505.22618, section 3.3).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Threshold(pub(crate) f64);

impl QuotaRule for Threshold {
    /// Candidates may be ranked by another score than confidence, so confident ones need not be a
    /// prefix: those before the first that is not confident enough are taken.
    fn take(&self, ranked: &[Candidate], _: &BlockState) -> usize {
        let confident = ranked.iter().take_while(|c| c.confidence >= self.0).count();
        confident.max(1).min(ranked.len())
    }

    fn planned(&self, _: &BlockState) -> Option<usize> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(confidences: &[f64], threshold: f64) -> usize {
        let ranked: Vec<_> = confidences
            .iter()
            .map(|&confidence| Candidate {
                position: 0,
                id: 0,
                confidence,
                entropy: 0.0,
                margin: 0.0,
                score: confidence,
            })
            .collect();
        let state = BlockState { step: 0, steps: 0, open: 3, open_at_start: 3 };
        Threshold(threshold).take(&ranked, &state)
    }

    #[test]
    fn the_confident_and_always_the_best() {
        assert_eq!(take(&[0.99, 0.9, 0.89], 0.9), 2);
        assert_eq!(take(&[0.5, 0.4], 0.9), 1);
        assert_eq!(take(&[0.99, 0.98], 1.1), 1);
        assert_eq!(take(&[0.5, 0.4], 0.0), 2);
        assert_eq!(take(&[], 0.9), 0);
    }
}
