//! Filters and draws on one row of logits, on the host.

use super::philox::{Counter, Purpose, uniform};
use super::score::{Draw, FilterOrder, Filters};
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

/// The drawn token. `row` is the row before filters for [`Draw::Gumbel`], which brings its own
/// temperature, and the filtered row otherwise.
pub(super) fn draw_token(row: &[f32], temperature: f64, draw: Draw) -> usize {
    match draw {
        Draw::Greedy => softmax_sums(row).argmax,
        Draw::Gumbel { seed, position, step } => {
            let noise = |token: usize| {
                let counter = token_counter(position, step, token as u32);
                -(-uniform(seed, counter).ln()).ln()
            };
            // `max_by` keeps the last of equals; noise makes equality a null event.
            (0..row.len())
                .map(|token| (token, f64::from(row[token]) / temperature + noise(token)))
                .max_by(|a, b| a.1.total_cmp(&b.1))
                .map_or(0, |(token, _)| token)
        }
        Draw::Categorical { seed, position, step } => {
            let u = uniform(seed, token_counter(position, step, 0));
            categorical(row, u)
        }
    }
}

fn token_counter(position: u32, step: u32, draw: u32) -> Counter {
    Counter { position, step, purpose: Purpose::Token, draw }
}

/// The token at which the cumulative probability, in order of ids, passes `u`.
fn categorical(row: &[f32], u: f64) -> usize {
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

    /// Pearson's statistic of 20 000 draws against the softmax at temperature 0.7.
    fn chi_square(draw: impl Fn(u32) -> Draw, gumbel: bool) -> f64 {
        let (row, t) = (vec![0.5f32, -1.0, 2.0, 1.0, -3.0], 0.7f64);
        let scaled: Vec<f32> = row.iter().map(|x| x / t as f32).collect();
        let weights: Vec<f64> = scaled.iter().map(|&x| f64::from(x).exp()).collect();
        let total: f64 = weights.iter().sum();
        let (n, mut counts) = (20_000u32, [0u32; 5]);
        for position in 0..n {
            counts[draw_token(if gumbel { &row } else { &scaled }, t, draw(position))] += 1;
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
        // 4 degrees of freedom: 18.5 is exceeded once in a thousand; the seed is fixed.
        let gumbel = chi_square(|position| Draw::Gumbel { seed: 1, position, step: 0 }, true);
        let categorical =
            chi_square(|position| Draw::Categorical { seed: 1, position, step: 0 }, false);
        assert!(gumbel < 18.5, "{gumbel}");
        assert!(categorical < 18.5, "{categorical}");
    }

    #[test]
    fn removed_tokens_are_never_drawn() {
        let row = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
        for u in [0.0, 0.5, 1.0 - f64::EPSILON] {
            assert_eq!(categorical(&row, u), 1);
        }
    }
}
