//! Filters and draws on one row of logits, on the host.

use super::philox::{Counter, Purpose, uniform};
use super::row_params::{FilterOrder, Filters};
use crate::cpu::softmax_sums;

/// Divides by the temperature and removes what the filters exclude, by setting it to `-inf`.
pub(super) fn apply_filters(row: &mut [f32], filters: &Filters) {
    if filters.temperature > 0.0 {
        let scale = filters.temperature as f32;
        row.iter_mut().for_each(|x| *x /= scale);
    }
    match filters.order {
        FilterOrder::TopKFirst => {
            keep_top_k(row, filters.top_k);
            keep_top_p(row, filters.top_p);
        }
        FilterOrder::TopPFirst => {
            keep_top_p(row, filters.top_p);
            keep_top_k(row, filters.top_k);
        }
    }
    keep_min_p(row, filters.min_p);
}

/// Keeps the `k` largest logits and whatever ties with the smallest of them.
fn keep_top_k(row: &mut [f32], k: Option<usize>) {
    let Some(k) = k.filter(|&k| k < row.len()) else { return };
    let mut sorted = row.to_vec();
    let (_, &mut threshold, _) = sorted.select_nth_unstable_by(k.max(1) - 1, |a, b| b.total_cmp(a));
    remove_if(row, |x| x < threshold);
}

/// Keeps the smallest set of most probable tokens whose probability exceeds `p`: the token that
/// crosses it stays.
fn keep_top_p(row: &mut [f32], p: Option<f64>) {
    let Some(p) = p.filter(|&p| p < 1.0) else { return };
    let sums = softmax_sums(row);
    let mut order: Vec<usize> = (0..row.len()).filter(|&i| row[i] > f32::NEG_INFINITY).collect();
    order.sort_unstable_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
    let mut cumulative = 0.0;
    let mut keep = 0;
    while keep < order.len() && (keep == 0 || cumulative <= p) {
        cumulative += f64::from(row[order[keep]] - sums.max).exp() / sums.sum;
        keep += 1;
    }
    for &i in &order[keep..] {
        row[i] = f32::NEG_INFINITY;
    }
}

/// Keeps tokens at least `min_p` times as probable as the most probable one.
fn keep_min_p(row: &mut [f32], min_p: Option<f64>) {
    let Some(min_p) = min_p.filter(|&p| p > 0.0) else { return };
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let threshold = max + min_p.ln() as f32;
    remove_if(row, |x| x < threshold);
}

fn remove_if(row: &mut [f32], remove: impl Fn(f32) -> bool) {
    row.iter_mut().filter(|x| remove(**x)).for_each(|x| *x = f32::NEG_INFINITY);
}

/// Key and place of a draw: seed, position, step.
pub(super) type Place = (u64, u32, u32);

/// The largest `logit / temperature + noise` in f64 among tokens that `filtered` leaves.
pub(super) fn gumbel(row: &[f32], filtered: &[f32], temperature: f64, place: Place) -> usize {
    let noise = |token: usize| -(-draw(place, token as u32).ln()).ln();
    (0..row.len())
        .filter(|&token| filtered[token] > f32::NEG_INFINITY)
        .map(|token| (token, f64::from(row[token]) / temperature + noise(token)))
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map_or(0, |(token, _)| token)
}

/// A draw from the softmax of a row.
pub(super) fn categorical(row: &[f32], place: Place) -> usize {
    inverse_cdf(row, draw(place, 0))
}

fn draw((seed, position, step): Place, draw: u32) -> f64 {
    uniform(seed, Counter { position, step, purpose: Purpose::Token, draw })
}

/// The token at which the cumulative probability, in order of ids, passes `u`.
fn inverse_cdf(row: &[f32], u: f64) -> usize {
    let sums = softmax_sums(row);
    let weight = |x: f32| f64::from(x - sums.max).exp();
    let target = u * row.iter().map(|&x| weight(x)).sum::<f64>();
    let mut cumulative = 0.0;
    for (token, &x) in row.iter().enumerate() {
        cumulative += weight(x);
        if cumulative > target && x > f32::NEG_INFINITY {
            return token;
        }
    }
    sums.argmax
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(row: &[f32], filters: Filters) -> Vec<usize> {
        let mut row = row.to_vec();
        apply_filters(&mut row, &filters);
        (0..row.len()).filter(|&i| row[i] > f32::NEG_INFINITY).collect()
    }

    fn logs(p: &[f32]) -> Vec<f32> {
        p.iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn filters_keep_what_their_definitions_say() {
        let row = logs(&[0.1, 0.4, 0.2, 0.3]);
        let plain = Filters::default();
        assert_eq!(kept(&row, Filters { top_k: Some(2), ..plain }), [1, 3]);
        assert_eq!(kept(&row, Filters { top_k: Some(9), ..plain }), [0, 1, 2, 3]);
        assert_eq!(kept(&[1.0, 2.0, 1.0], Filters { top_k: Some(2), ..plain }), [0, 1, 2]);
        // 0.4 + 0.3 = 0.7 exceeds 0.6; the crossing token stays.
        assert_eq!(kept(&row, Filters { top_p: Some(0.6), ..plain }), [1, 3]);
        assert_eq!(kept(&row, Filters { top_p: Some(0.0), ..plain }), [1]);
        assert_eq!(kept(&row, Filters { top_p: Some(1.0), ..plain }), [0, 1, 2, 3]);
        assert_eq!(kept(&row, Filters { min_p: Some(0.6), ..plain }), [1, 3]);
    }

    #[test]
    fn the_order_of_top_k_and_top_p_matters() {
        // After top-k 2 the best token alone holds 0.4 / 0.7 > 0.5; before, it does not.
        let row = logs(&[0.1, 0.4, 0.2, 0.3]);
        let both = Filters { top_k: Some(2), top_p: Some(0.5), ..Filters::default() };
        assert_eq!(kept(&row, both), [1]);
        assert_eq!(kept(&row, Filters { order: FilterOrder::TopPFirst, ..both }), [1, 3]);
    }

    /// Pearson's statistic of 20 000 draws against the softmax of `scaled`.
    fn chi_square(scaled: &[f32], draw: impl Fn(u32) -> usize) -> f64 {
        let weights: Vec<f64> = scaled.iter().map(|&x| f64::from(x).exp()).collect();
        let total: f64 = weights.iter().sum();
        let (n, mut counts) = (20_000u32, [0u32; 5]);
        for position in 0..n {
            counts[draw(position)] += 1;
        }
        weights
            .iter()
            .zip(counts)
            .map(|(w, c)| {
                let expected = w / total * f64::from(n);
                (f64::from(c) - expected).powi(2) / expected
            })
            .sum()
    }

    #[test]
    fn draws_follow_the_softmax_at_their_temperature() {
        let row = [0.5f32, -1.0, 2.0, 1.0, -3.0];
        let scaled = row.map(|x| x / 0.7);
        // 4 degrees of freedom: 18.5 is exceeded once in a thousand; the seed is fixed.
        let with_gumbel = chi_square(&scaled, |p| gumbel(&row, &scaled, 0.7, (1, p, 0)));
        let by_cdf = chi_square(&scaled, |p| categorical(&scaled, (1, p, 0)));
        assert!(with_gumbel < 18.5, "{with_gumbel}");
        assert!(by_cdf < 18.5, "{by_cdf}");
    }

    #[test]
    fn removed_tokens_are_never_drawn() {
        let row = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
        for u in [0.0, 0.5, 1.0 - f64::EPSILON] {
            assert_eq!(inverse_cdf(&row, u), 1);
        }
        assert_eq!(gumbel(&[9.0, 0.0, 9.0], &row, 1.0, (1, 1, 1)), 1);
    }
}
