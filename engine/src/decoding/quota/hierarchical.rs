use super::{BlockState, QuotaRule};
use crate::decoding::Candidate;

/// In every run of neighbouring open positions the most confident one, if it is more confident than
/// `low`; everything more confident than `high`; and always the best (dInfer's hierarchical
/// decoder, arXiv 2510.08666). Committing inside a run halves it, so that few passes are needed and
/// positions committed together stand apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hierarchical {
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl QuotaRule for Hierarchical {
    fn choose(&mut self, ranked: &[Candidate], _: &BlockState) -> Vec<usize> {
        let mut by_position: Vec<usize> = (0..ranked.len()).collect();
        by_position.sort_unstable_by_key(|&i| ranked[i].position);
        let runs = by_position.chunk_by(|&a, &b| ranked[a].position + 1 == ranked[b].position);
        let best_of_runs = runs.filter_map(|run| {
            // The ranking settles ties.
            let best = *run.iter().min()?;
            (ranked[best].confidence > self.low).then_some(best)
        });
        let mut chosen: Vec<usize> = best_of_runs.collect();
        chosen.extend((0..ranked.len()).filter(|&i| ranked[i].confidence >= self.high));
        chosen.extend((!ranked.is_empty()).then_some(0));
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{chosen, ranked};
    use super::*;

    #[test]
    fn one_of_every_run_and_all_the_confident() {
        let mut candidates = ranked(&[0.5, 0.7, 0.6, 0.95, 0.3, 0.2]);
        // Positions 0 1 2 | 4 5 | 7: the third committed one splits them.
        for c in &mut candidates {
            c.position += c.position / 3 + c.position / 5;
        }
        let mut rule = Hierarchical { low: 0.4, high: 0.9 };
        assert_eq!(chosen(&mut rule, &candidates), [1, 4]);
        let mut rule = Hierarchical { low: 0.1, high: 0.6 };
        assert_eq!(chosen(&mut rule, &candidates), [1, 2, 4, 7]);
        let mut rule = Hierarchical { low: 1.0, high: 1.1 };
        assert_eq!(chosen(&mut rule, &candidates), [4], "always the best");
        assert_eq!(chosen(&mut rule, &[]), [0; 0]);
    }
}
