//! Ranking of candidates.

use dfastllm_models::ops::philox::{Counter, Purpose};

use super::{Candidate, Score, Uniforms};

/// The rank value of a candidate. `u` is asked only by [`Score::Random`].
fn score_of(score: Score, candidate: &Candidate, u: impl FnOnce() -> f64) -> f64 {
    match score {
        Score::Probability => candidate.confidence,
        Score::Margin => candidate.margin,
        Score::Entropy => -candidate.entropy,
        Score::LeftToRight => -(candidate.position as f64),
        // Lowest draw first, so that "draw below p" is a prefix of the ranking.
        Score::Random => -u(),
    }
}

/// Scores candidates (given in order of positions) and sorts them best first; the leftmost wins a
/// tie.
///
/// A positive `order_temperature` adds Gumbel noise to `score / order_temperature`: the first `n`
/// are then `n` draws without replacement from the softmax of the scores, as `torch.multinomial`
/// makes them in Dream's loop.
pub fn rank(
    candidates: &mut [Candidate],
    score: Score,
    order_temperature: f64,
    step: u32,
    uniforms: &mut dyn Uniforms,
) {
    for candidate in candidates.iter_mut() {
        let position = candidate.position as u32;
        let mut draw = |purpose| uniforms.draw(Counter { position, step, purpose, draw: 0 });
        candidate.score = score_of(score, candidate, || draw(Purpose::Reveal));
        if order_temperature > 0.0 {
            let gumbel = -(-draw(Purpose::Order).ln()).ln();
            candidate.score = candidate.score / order_temperature + gumbel;
        }
    }
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.position.cmp(&b.position)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoding::Seeded;

    fn candidates() -> Vec<Candidate> {
        let make = |position, confidence, margin, entropy| Candidate {
            position,
            id: 7,
            confidence,
            margin,
            entropy,
            divergence: None,
            score: 0.0,
        };
        vec![make(2, 0.5, 0.4, 1.0), make(3, 0.9, 0.1, 2.0), make(5, 0.5, 0.3, 0.5)]
    }

    fn order(score: Score, temperature: f64, seed: u64) -> Vec<usize> {
        let mut all = candidates();
        rank(&mut all, score, temperature, 0, &mut Seeded(seed));
        all.iter().map(|c| c.position).collect()
    }

    #[test]
    fn each_score_ranks_by_its_number_and_ties_go_left() {
        assert_eq!(order(Score::Probability, 0.0, 1), [3, 2, 5]);
        assert_eq!(order(Score::Margin, 0.0, 1), [2, 5, 3]);
        assert_eq!(order(Score::Entropy, 0.0, 1), [5, 2, 3]);
        assert_eq!(order(Score::LeftToRight, 0.0, 1), [2, 3, 5]);
    }

    #[test]
    fn random_order_and_order_temperature_depend_on_the_seed() {
        for (score, temperature) in [(Score::Random, 0.0), (Score::Probability, 5.0)] {
            let orders: Vec<_> = (0..40).map(|seed| order(score, temperature, seed)).collect();
            assert!(orders.iter().any(|o| *o != orders[0]));
            assert_eq!(orders[0], order(score, temperature, 0));
        }
        assert_eq!(order(Score::Probability, 1e-6, 3)[0], 3, "a low temperature keeps the order");
    }
}
