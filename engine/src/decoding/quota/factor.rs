use super::{BlockState, QuotaRule, best};
use crate::decoding::Candidate;

/// The longest beginning of the ranking whose last confidence `c` keeps `(n + 1)(1 - c) < factor`:
/// at factor 1 the tokens chosen together are those chosen one after the other (Fast-dLLM,
/// arXiv 2505.22618, theorem 1).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Factor(pub(crate) f64);

impl QuotaRule for Factor {
    fn choose(&mut self, ranked: &[Candidate], _: &BlockState) -> Vec<usize> {
        let fits = |(i, c): &(usize, &Candidate)| (i + 2) as f64 * (1.0 - c.confidence) < self.0;
        best(ranked.iter().enumerate().take_while(fits).count(), ranked)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{chosen, ranked};
    use super::*;

    #[test]
    fn more_positions_need_more_confidence() {
        // 2 * 0.3 and 3 * 0.3 are below 1, 4 * 0.3 is not.
        assert_eq!(chosen(&mut Factor(1.0), &ranked(&[0.7; 5])), [0, 1]);
        assert_eq!(chosen(&mut Factor(1.3), &ranked(&[0.7; 5])), [0, 1, 2]);
        assert_eq!(chosen(&mut Factor(0.0), &ranked(&[1.0, 0.2])), [0]);
        assert_eq!(chosen(&mut Factor(1.0), &ranked(&[0.1, 0.2])), [1]);
    }
}
