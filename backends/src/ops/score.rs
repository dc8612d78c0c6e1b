//! Row scoring: from a row of logits to the few numbers decoding rules see.

use std::borrow::Cow;
use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData};
use rayon::prelude::*;

use super::adjust::{apply_credit, apply_mix, apply_penalties, forbid_others};
use super::embed::select_rows;
use super::kernels::{DeviceKernels, kernels};
use super::row_params::{ConfidenceOf, Draw, Filters, Guidance, RowParams};
use super::sample::{apply_filters, categorical, gumbel};
use crate::cpu::{SoftmaxSums, softmax_sums};

/// The numbers of one row. Entropies are in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct RowScore {
    /// The chosen token.
    pub id: u32,
    /// Its probability.
    pub confidence: f64,
    /// Entropy of the row.
    pub entropy: f64,
    /// Best minus second probability.
    pub margin: f64,
    /// Natural log-probability of the token before bias, temperature and filters.
    pub logprob: f64,
    /// Most probable tokens and their log-probabilities, best first.
    pub top: Vec<(u32, f64)>,
    /// Probability of the tokens it was asked for, together.
    pub mass: f64,
    /// Kullback-Leibler divergence of this row from an earlier one, in nats, if there was one.
    pub divergence: Option<f64>,
    /// The token that gained credit, and how much.
    pub earned: Option<(u32, f32)>,
    /// The row's log-probabilities, if wanted.
    pub row: Option<Arc<[f32]>>,
    /// False if the row holds NaN or infinity: nothing above means anything then.
    pub finite: bool,
}

/// Scores rows of logits.
///
/// # Shapes
/// - `logits`: `[rows, vocab]`, any float type; returns one score per entry of `params`
#[must_use]
pub fn score_rows(logits: Tensor<2>, params: &[RowParams]) -> Vec<RowScore> {
    if params.is_empty() {
        return Vec::new();
    }
    if let Some(kernels) = kernels(&logits.device()) {
        return reduced_scores(kernels, &logits, params);
    }
    host_scores(logits, params)
}

/// Scores by a device's kernels where they can; the logits of other rows, and only those, come to
/// the host.
fn reduced_scores(
    kernels: &dyn DeviceKernels,
    logits: &Tensor<2>,
    params: &[RowParams],
) -> Vec<RowScore> {
    let (reducible, others): (Vec<_>, Vec<_>) =
        params.iter().cloned().partition(RowParams::is_reducible);
    let mut reduced = Vec::new().into_iter();
    if !reducible.is_empty() {
        reduced = kernels.score_rows(logits.clone(), &reducible).into_iter();
    }
    let mut others = selected_scores(logits, others).into_iter();
    let score = |p: &RowParams| if p.is_reducible() { reduced.next() } else { others.next() };
    params.iter().filter_map(score).collect()
}

/// Scores on the host, of the rows that are asked for.
fn selected_scores(logits: &Tensor<2>, mut params: Vec<RowParams>) -> Vec<RowScore> {
    if params.is_empty() {
        return Vec::new();
    }
    let rows_of = |p: &RowParams| std::iter::once(p.row).chain(p.guidance.map(|g| g.row));
    let mut rows: Vec<usize> = params.iter().flat_map(rows_of).collect();
    rows.sort_unstable();
    rows.dedup();
    let place = |row: usize| rows.partition_point(|&other| other < row);
    for p in &mut params {
        p.row = place(p.row);
        p.guidance = p.guidance.map(|g| Guidance { row: place(g.row), ..g });
    }
    host_scores(select_rows(logits.clone(), &rows), &params)
}

fn host_scores(logits: Tensor<2>, params: &[RowParams]) -> Vec<RowScore> {
    let vocab = logits.dims()[1];
    let data = logits.cast(DType::F32).into_data();
    let values = f32_values(&data);
    params.par_iter().map(|p| score_row(&values, vocab, p)).collect()
}

/// The values of f32 tensor data, borrowed where their memory allows it.
fn f32_values(data: &TensorData) -> Cow<'_, [f32]> {
    match data.as_slice::<f32>() {
        Ok(values) => values.into(),
        Err(_) => data.iter::<f32>().collect(),
    }
}

fn score_row(values: &[f32], vocab: usize, params: &RowParams) -> RowScore {
    let raw = guided_row(values, vocab, params);
    let (biased, earned) = adjusted_row(&raw, params);
    let filtered = filtered_row(&biased, &params.filters);
    let measured = match params.confidence_of {
        ConfidenceOf::Raw => &biased,
        ConfidenceOf::Filtered => &filtered,
    };
    let sums = softmax_sums(measured);
    let raw_sums = if std::ptr::eq(&**measured, &*raw) { sums } else { softmax_sums(&raw) };
    let id = match params.draw {
        // Neither temperature nor filters change which token is best.
        Draw::Greedy => sums.argmax,
        Draw::Given(id) => (id as usize).min(vocab - 1),
        Draw::Gumbel { seed, position, step } => {
            gumbel(&biased, &filtered, params.filters.temperature, (seed, position, step))
        }
        Draw::Categorical { seed, position, step } => {
            categorical(&filtered, (seed, position, step))
        }
    };
    let logprob = |id: usize| f64::from(raw[id] - raw_sums.max) - raw_sums.sum.ln();
    let probability = |id: usize| f64::from(measured[id] - sums.max).exp() / sums.sum;
    let asked = params.mass_of.iter().filter(|&&id| (id as usize) < vocab);
    RowScore {
        id: id as u32,
        confidence: probability(id),
        entropy: entropy(sums.sum, sums.weighted),
        margin: (1.0 - f64::from(sums.second - sums.max).exp()) / sums.sum,
        logprob: logprob(id),
        top: most_probable(&raw, params.top_logprobs)
            .into_iter()
            .map(|id| (id as u32, logprob(id)))
            .collect(),
        mass: asked.map(|&id| probability(id as usize)).sum(),
        divergence: params
            .previous
            .as_deref()
            .map(|previous| divergence(measured, &sums, previous)),
        earned,
        row: params.keep_row.then(|| log_probabilities(measured, &sums)),
        finite: raw_sums.sum.is_finite() && sums.sum.is_finite(),
    }
}

fn log_probabilities(row: &[f32], sums: &SoftmaxSums) -> Arc<[f32]> {
    let log_sum = sums.max + sums.sum.ln() as f32;
    row.iter().map(|x| x - log_sum).collect()
}

/// `Σ p (ln p - ln q)`, where `q` is given by its log-probabilities.
fn divergence(row: &[f32], sums: &SoftmaxSums, previous: &[f32]) -> f64 {
    let log_sum = f64::from(sums.max) + sums.sum.ln();
    row.iter()
        .zip(previous)
        .filter(|(x, _)| **x > f32::NEG_INFINITY)
        .map(|(&x, &q)| {
            let p = f64::from(x) - log_sum;
            p.exp() * (p - f64::from(q))
        })
        .sum()
}

/// The row after everything that changes logits before temperature and filters, and the token that
/// gained credit.
fn adjusted_row<'a>(row: &'a [f32], params: &RowParams) -> (Cow<'a, [f32]>, Option<(u32, f32)>) {
    if params.mix.is_none()
        && params.penalties.is_none()
        && params.bias.is_empty()
        && params.allowed.is_none()
        && params.credit.is_none()
    {
        return (row.into(), None);
    }
    let mut row = row.to_vec();
    if let Some(penalties) = params.penalties.as_deref() {
        apply_penalties(&mut row, penalties);
    }
    for &(id, bias) in params.bias.iter() {
        if let Some(logit) = row.get_mut(id as usize) {
            *logit += bias;
        }
    }
    if let Some(allowed) = &params.allowed {
        forbid_others(&mut row, allowed);
    }
    if let Some(mix) = &params.mix {
        apply_mix(&mut row, mix);
    }
    let earned = params.credit.as_ref().map(|credit| apply_credit(&mut row, credit));
    (row.into(), earned)
}

/// `-Σ p ln p` from the sums of `e = exp(x - max)` and of `e (x - max)`.
fn entropy(sum: f64, weighted: f64) -> f64 {
    sum.ln() - weighted / sum
}

fn guided_row<'a>(values: &'a [f32], vocab: usize, params: &RowParams) -> Cow<'a, [f32]> {
    let logits = |row: usize| &values[row * vocab..(row + 1) * vocab];
    match params.guidance {
        None => logits(params.row).into(),
        Some(Guidance { row: other, scale }) => logits(params.row)
            .iter()
            .zip(logits(other))
            .map(|(&c, &u)| u + (scale + 1.0) * (c - u))
            .collect(),
    }
}

fn filtered_row<'a>(row: &'a [f32], filters: &Filters) -> Cow<'a, [f32]> {
    if filters.is_neutral() {
        return row.into();
    }
    let mut row = row.to_vec();
    apply_filters(&mut row, filters);
    row.into()
}

/// Indices of the `n` largest logits, best first, lowest index first at a tie.
fn most_probable(row: &[f32], n: usize) -> Vec<usize> {
    let best_first = |a: &usize, b: &usize| row[*b].total_cmp(&row[*a]).then(a.cmp(b));
    let mut order: Vec<usize> = (0..row.len()).collect();
    if n > 0 && n < order.len() {
        order.select_nth_unstable_by(n - 1, best_first);
    }
    order.truncate(n);
    order.sort_unstable_by(best_first);
    order
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::super::TokenSet;
    use super::super::row_params::{Credit, Mix, Penalties};
    use super::*;

    fn logits() -> (Vec<f32>, Tensor<2>) {
        let values: Vec<f32> =
            (0..5 * 40).map(|i| ((i * 7919 % 997) as f32 - 498.0) / 60.0).collect();
        let tensor = Tensor::from_data(
            TensorData::new(values.clone(), [5, 40]),
            (&Device::flex(), DType::F32),
        );
        (values, tensor)
    }

    #[test]
    fn scores_match_their_definitions_in_f64() {
        let (values, tensor) = logits();
        let params: Vec<_> = (0..5)
            .rev()
            .map(|row| RowParams { top_logprobs: 3, ..RowParams::greedy(row) })
            .collect();
        for (score, row) in score_rows(tensor, &params).iter().zip((0..5).rev()) {
            let row: Vec<f64> =
                values[row * 40..(row + 1) * 40].iter().map(|&x| f64::from(x)).collect();
            let sum: f64 = row.iter().map(|x| x.exp()).sum();
            let mut p: Vec<f64> = row.iter().map(|x| x.exp() / sum).collect();
            let entropy: f64 = -p.iter().map(|p| p * p.ln()).sum::<f64>();
            assert!((score.confidence - p[score.id as usize]).abs() < 1e-6);
            assert!((score.logprob - p[score.id as usize].ln()).abs() < 1e-5);
            p.sort_by(|a, b| b.total_cmp(a));
            assert!((score.margin - (p[0] - p[1])).abs() < 1e-6);
            assert!((score.entropy - entropy).abs() < 1e-5);
            assert!((score.top[2].1 - p[2].ln()).abs() < 1e-5);
            assert!(score.finite);
        }
    }

    #[test]
    fn guidance_bias_and_filters_act_on_their_rows() {
        let device = Device::flex();
        let tensor =
            Tensor::<2>::from_data([[1.0f32, 2.0, 0.0], [2.0, 0.5, 0.0]], (&device, DType::F32));
        let plain = RowParams::greedy(0);
        let one = |p: RowParams| score_rows(tensor.clone(), &[p]).remove(0);
        assert_eq!(one(plain.clone()).id, 1);
        // u + 2 (c - u) = [0, 3.5, 0] keeps 1; a ban takes it away.
        let guided = RowParams { guidance: Some(Guidance { row: 1, scale: 1.0 }), ..plain.clone() };
        let score = one(guided);
        assert!((score.confidence - 3.5f64.exp() / (3.5f64.exp() + 2.0)).abs() < 1e-6);
        let banned = one(RowParams { bias: Arc::new([(1, f32::NEG_INFINITY)]), ..plain.clone() });
        let only = one(RowParams { allowed: Some([2, 9].into_iter().collect()), ..plain.clone() });
        assert_eq!((only.id, only.confidence, only.finite), (2, 1.0, true));
        assert_eq!(banned.id, 0);
        assert!((banned.confidence - 1.0f64.exp() / (1.0f64.exp() + 1.0)).abs() < 1e-6);
        // Its log-probability stays that of the model's own row.
        let all = 1f64.exp() + 2f64.exp() + 1.0;
        assert!((banned.logprob - (1.0 - all.ln())).abs() < 1e-6);
        let filters = Filters { top_k: Some(1), ..Filters::default() };
        let filtered = RowParams { filters, confidence_of: ConfidenceOf::Filtered, ..plain };
        let score = one(filtered);
        assert_eq!((score.confidence, score.entropy, score.margin), (1.0, 0.0, 1.0));
    }

    #[test]
    fn tokens_outside_a_set_are_never_chosen() {
        let mut logits = vec![0.0f32; 70];
        (logits[3], logits[40], logits[69]) = (5.0, 2.0, 1.0);
        let tensor =
            Tensor::<2>::from_data(TensorData::new(logits, [1, 70]), (&Device::flex(), DType::F32));
        // 40 and 69; the last word has fewer bits than 32.
        let allowed = Some(TokenSet::new(vec![0, 1 << 8, 1 << 5]));
        let params = RowParams { allowed, ..RowParams::greedy(0) };
        let score = score_rows(tensor.clone(), &[params]).remove(0);
        assert_eq!(score.id, 40);
        assert!((score.confidence - 2f64.exp() / (2f64.exp() + 1f64.exp())).abs() < 1e-6);
        // Its log-probability stays that of the model's own row.
        let all = 67.0 + 5f64.exp() + 2f64.exp() + 1f64.exp();
        assert!((score.logprob - (2.0 - all.ln())).abs() < 1e-5);
        // Tokens a short set says nothing of are not in it.
        let allowed = Some(TokenSet::new(vec![1]));
        let params = RowParams { allowed, ..RowParams::greedy(0) };
        let score = score_rows(tensor, &[params]).remove(0);
        assert_eq!((score.id, score.confidence), (0, 1.0));
    }

    #[test]
    fn what_is_asked_of_a_row_is_measured_on_it() {
        let probabilities = [0.2f32, 0.5, 0.3];
        let tensor =
            Tensor::<2>::from_data([probabilities.map(f32::ln)], (&Device::flex(), DType::F32));
        let one = |p: RowParams| score_rows(tensor.clone(), &[p]).remove(0);
        let plain = RowParams::greedy(0);
        let given =
            one(RowParams { draw: Draw::Given(2), mass_of: Arc::new([0, 1]), ..plain.clone() });
        assert_eq!(given.id, 2);
        assert!((given.confidence - 0.3).abs() < 1e-6 && (given.mass - 0.7).abs() < 1e-6);
        let kept = one(RowParams { keep_row: true, ..plain.clone() }).row.unwrap();
        assert!((kept[0] - 0.2f32.ln()).abs() < 1e-6);
        let same = one(RowParams { previous: Some(kept), ..plain.clone() });
        assert!(same.divergence.unwrap().abs() < 1e-6);
        let uniform: Arc<[f32]> = Arc::new([(1f32 / 3.0).ln(); 3]);
        let other = one(RowParams { previous: Some(uniform.clone()), ..plain.clone() });
        let want: f64 = [0.2f64, 0.5, 0.3].iter().map(|p| p * (p * 3.0).ln()).sum();
        assert!((other.divergence.unwrap() - want).abs() < 1e-6);
        let mixed = one(RowParams { mix: Some(Mix { other: uniform, weight: 1.0 }), ..plain });
        assert!((mixed.confidence - 1.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn a_mixture_of_a_row_with_itself_is_the_row_bias_and_penalties_included() {
        let tensor = Tensor::<2>::from_data([[1.0f32, 2.0, -1.0]], (&Device::flex(), DType::F32));
        let one = |p: RowParams| score_rows(tensor.clone(), &[p]).remove(0);
        let penalties = Penalties {
            generated: vec![(1, 1)],
            seen: vec![1],
            presence: 0.5,
            frequency: 0.25,
            repetition: 2.0,
        };
        let adjusted = RowParams {
            bias: Arc::new([(2, 1.5)]),
            penalties: Some(Arc::new(penalties)),
            keep_row: true,
            ..RowParams::greedy(0)
        };
        let other = one(adjusted.clone()).row.unwrap();
        for weight in [0.3, 1.0] {
            let mix = Some(Mix { other: other.clone(), weight });
            let mixed = one(RowParams { mix, ..adjusted.clone() }).row.unwrap();
            let far = mixed.iter().zip(&*other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 1e-6, "{weight}: {mixed:?} {other:?}");
        }
    }

    #[test]
    fn penalties_and_credit_move_the_tokens_they_name() {
        let tensor = Tensor::<2>::from_data([[1.0f32, 2.0, -1.0]], (&Device::flex(), DType::F32));
        let one = |p: RowParams| score_rows(tensor.clone(), &[p]).remove(0);
        let plain = RowParams::greedy(0);
        let penalties = Penalties {
            generated: vec![(1, 3)],
            seen: vec![1, 2],
            presence: 0.25,
            frequency: 0.5,
            repetition: 2.0,
        };
        // 2 / 2 - 0.25 - 3 * 0.5 = -0.75 and -1 * 2 = -2 beside 1.
        let score = one(RowParams { penalties: Some(Arc::new(penalties)), ..plain.clone() });
        let want = 1f64.exp() / (1f64.exp() + (-0.75f64).exp() + (-2f64).exp());
        assert_eq!(score.id, 0);
        assert!((score.confidence - want).abs() < 1e-6);
        // The best token earns p^gamma before the credit counts; alpha 0 changes nothing.
        let credit = |alpha| Some(Credit { earned: vec![(0, 3.0), (1, 1.0)], alpha, gamma: 0.2 });
        let without = one(plain.clone());
        let score = one(RowParams { credit: credit(0.7), ..plain.clone() });
        let gain = without.confidence.powf(0.2);
        let (id, earned) = score.earned.unwrap();
        assert!(id == 1 && (f64::from(earned) - gain).abs() < 1e-6);
        let logits = [1.0 + 0.7 * 4f64.ln(), 2.0 + 0.7 * (2.0 + gain).ln(), -1.0];
        let total: f64 = logits.iter().map(|x| x.exp()).sum();
        assert!((score.confidence - logits[1].exp() / total).abs() < 1e-6);
        let neutral = one(RowParams { credit: credit(0.0), ..plain });
        assert_eq!((neutral.id, neutral.confidence), (without.id, without.confidence));
    }

    #[test]
    fn a_row_with_nan_or_infinity_says_so() {
        let device = Device::flex();
        for bad in [f32::NAN, f32::INFINITY] {
            let tensor = Tensor::<2>::from_data([[1.0f32, bad, 0.0]], (&device, DType::F32));
            assert!(!score_rows(tensor, &[RowParams::greedy(0)])[0].finite, "{bad}");
        }
    }
}
