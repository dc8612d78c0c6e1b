use super::{BlockState, QuotaRule, best};
use crate::decoding::Candidate;

/// The longest beginning of the ranking whose entropies, without the largest, sum to at most this:
/// a bound on what the positions chosen together could tell about each other (EB-sampler,
/// arXiv 2505.24857).
#[derive(Debug, Clone, Copy)]
pub(crate) struct EntropyBound(pub(crate) f64);

impl QuotaRule for EntropyBound {
    fn choose(&mut self, ranked: &[Candidate], _: &BlockState) -> Vec<usize> {
        let (mut sum, mut largest) = (0.0, 0.0f64);
        let fits = |c: &&Candidate| {
            sum += c.entropy;
            largest = largest.max(c.entropy);
            sum - largest <= self.0
        };
        best(ranked.iter().take_while(fits).count(), ranked)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{chosen, ranked};
    use super::*;

    #[test]
    fn the_largest_entropy_is_free() {
        let mut candidates = ranked(&[0.9, 0.8, 0.7, 0.6]);
        for (c, entropy) in candidates.iter_mut().zip([0.125, 0.25, 0.5, 1.0]) {
            c.entropy = entropy;
        }
        // 0, 0.125, 0.375, 0.875 without the largest.
        assert_eq!(chosen(&mut EntropyBound(0.0), &candidates), [0]);
        assert_eq!(chosen(&mut EntropyBound(0.125), &candidates), [0, 1]);
        assert_eq!(chosen(&mut EntropyBound(0.874), &candidates), [0, 1, 2]);
        assert_eq!(chosen(&mut EntropyBound(0.875), &candidates), [0, 1, 2, 3]);
        candidates[0].entropy = 0.0;
        candidates[1].entropy = 0.0;
        assert_eq!(
            chosen(&mut EntropyBound(0.0), &candidates),
            [0, 1, 2],
            "certainty costs nothing"
        );
    }
}
