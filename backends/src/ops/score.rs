//! Row scoring: from a row of logits to the few numbers decoding rules see.

use std::borrow::Cow;
use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData};
use rayon::prelude::*;

use super::sample::{apply_filters, categorical, gumbel};
use crate::cpu::{self, softmax_sums};

/// Order of the two probability filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FilterOrder {
    /// As transformers and vLLM do.
    #[default]
    TopKFirst,
    /// As Dream's `sample_tokens` does.
    TopPFirst,
}

/// Temperature and filters of a draw.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Filters {
    /// Divides the logits; 0 leaves them as they are.
    pub temperature: f64,
    /// Keep this many tokens.
    pub top_k: Option<usize>,
    /// Keep the most probable tokens up to this probability.
    pub top_p: Option<f64>,
    /// Keep tokens at least this probable relative to the best.
    pub min_p: Option<f64>,
    /// Which of top-k and top-p comes first.
    pub order: FilterOrder,
}

impl Filters {
    fn is_neutral(&self) -> bool {
        let scaled = self.temperature > 0.0 && self.temperature != 1.0;
        !scaled && self.top_k.is_none() && self.top_p.is_none() && self.min_p.is_none()
    }
}

/// How the token of a row is chosen. Draws are keyed by seed, position and step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// The largest logit, lowest id at a tie.
    Greedy,
    /// The largest `logit / T + Gumbel noise` in f64 among what the filters leave (LLaDA).
    Gumbel {
        /// Key of the request's random numbers.
        seed: u64,
        /// Position in the sequence.
        position: u32,
        /// Step of the reference algorithm.
        step: u32,
    },
    /// From the softmax of the filtered row.
    Categorical {
        /// Key of the request's random numbers.
        seed: u64,
        /// Position in the sequence.
        position: u32,
        /// Step of the reference algorithm; 0 for autoregressive draws.
        step: u32,
    },
}

/// Which row confidence, entropy and margin are measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConfidenceOf {
    /// The row before temperature and filters (LLaDA).
    #[default]
    Raw,
    /// The row the token was chosen from (Dream).
    Filtered,
}

/// A second row to mix in: `u + (scale + 1) (c - u)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    /// Row of the unconditional logits.
    pub row: usize,
    /// `cfg_scale`.
    pub scale: f32,
}

/// What is wanted of one row.
#[derive(Debug, Clone)]
pub struct RowParams {
    /// Row of the logits.
    pub row: usize,
    /// Classifier-free guidance.
    pub guidance: Option<Guidance>,
    /// Added to single logits; `-inf` bans a token.
    pub bias: Arc<[(u32, f32)]>,
    /// Temperature and filters.
    pub filters: Filters,
    /// How to choose the token.
    pub draw: Draw,
    /// What to measure confidence on.
    pub confidence_of: ConfidenceOf,
    /// How many most probable tokens to report.
    pub top_logprobs: usize,
}

impl RowParams {
    /// The most probable token of a row and its plain softmax probability.
    #[must_use]
    pub fn greedy(row: usize) -> Self {
        Self {
            row,
            guidance: None,
            bias: Arc::new([]),
            filters: Filters::default(),
            draw: Draw::Greedy,
            confidence_of: ConfidenceOf::Raw,
            top_logprobs: 0,
        }
    }

    fn is_plain(&self) -> bool {
        self.guidance.is_none()
            && self.bias.is_empty()
            && self.filters.is_neutral()
            && self.draw == Draw::Greedy
            && self.top_logprobs == 0
    }
}

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
    /// False if the row holds NaN or infinity: nothing above means anything then.
    pub finite: bool,
}

/// Scores rows of logits.
///
/// # Shapes
/// - `logits`: `[rows, vocab]`, any float type; returns one score per entry of `params`
#[must_use]
pub fn score_rows(logits: Tensor<2>, params: &[RowParams]) -> Vec<RowScore> {
    if !cpu::is_host(&logits.device()) && params.iter().all(RowParams::is_plain) {
        let scores = portable_scores(logits);
        return params.iter().map(|p| scores[p.row].clone()).collect();
    }
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
    let biased = biased_row(&raw, &params.bias);
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
        Draw::Gumbel { seed, position, step } => {
            gumbel(&biased, &filtered, params.filters.temperature, (seed, position, step))
        }
        Draw::Categorical { seed, position, step } => {
            categorical(&filtered, (seed, position, step))
        }
    };
    let logprob = |id: usize| f64::from(raw[id] - raw_sums.max) - raw_sums.sum.ln();
    RowScore {
        id: id as u32,
        confidence: f64::from(measured[id] - sums.max).exp() / sums.sum,
        entropy: entropy(sums.sum, sums.weighted),
        margin: (1.0 - f64::from(sums.second - sums.max).exp()) / sums.sum,
        logprob: logprob(id),
        top: most_probable(&raw, params.top_logprobs)
            .into_iter()
            .map(|id| (id as u32, logprob(id)))
            .collect(),
        finite: raw_sums.sum.is_finite() && sums.sum.is_finite(),
    }
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

fn biased_row<'a>(row: &'a [f32], bias: &[(u32, f32)]) -> Cow<'a, [f32]> {
    if bias.is_empty() {
        return row.into();
    }
    let mut row = row.to_vec();
    for &(id, bias) in bias {
        if let Some(logit) = row.get_mut(id as usize) {
            *logit += bias;
        }
    }
    row.into()
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

/// The portable default for rows without bias, filters or draws: reduced on the device, so that
/// five numbers a row come back instead of the vocabulary.
///
/// # Shapes
/// - `logits`: `[rows, vocab]`; returns one score per row
#[must_use]
pub fn portable_scores(logits: Tensor<2>) -> Vec<RowScore> {
    let logits = logits.cast(DType::F32);
    let (best, ids) = logits.clone().topk_with_indices(2.min(logits.dims()[1]), 1); // [rows, 2]
    let shifted = logits - best.clone().narrow(1, 0, 1);
    let exponentials = shifted.clone().exp();
    let sums = exponentials.clone().sum_dim(1); // [rows, 1]
    let weighted = (exponentials * shifted.clamp_min(-88.0)).sum_dim(1);
    let [best, sums, weighted] =
        [best, sums, weighted].map(|t| t.into_data().iter::<f64>().collect::<Vec<_>>());
    // CubeCL devices give -1 for a place no finite logit takes.
    let ids: Vec<u32> =
        ids.into_data().iter::<i64>().map(|id| u32::try_from(id).unwrap_or(0)).collect();
    let width = best.len() / sums.len();
    (0..sums.len())
        .map(|row| {
            let (sum, top) = (sums[row], &best[row * width..(row + 1) * width]);
            let gap = top.get(1).map_or(f64::NEG_INFINITY, |second| second - top[0]);
            RowScore {
                id: ids[row * width],
                confidence: 1.0 / sum,
                entropy: entropy(sum, weighted[row]),
                margin: (1.0 - gap.exp()) / sum,
                logprob: -sum.ln(),
                top: Vec::new(),
                finite: sum.is_finite(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

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
    fn the_portable_default_agrees_with_the_host() {
        let (_, tensor) = logits();
        let params: Vec<_> = (0..5).map(RowParams::greedy).collect();
        let host = score_rows(tensor.clone(), &params);
        for (a, b) in portable_scores(tensor).iter().zip(&host) {
            assert_eq!(a.id, b.id);
            for (a, b) in [
                (a.confidence, b.confidence),
                (a.entropy, b.entropy),
                (a.margin, b.margin),
                (a.logprob, b.logprob),
            ] {
                assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
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
    fn a_row_with_nan_or_infinity_says_so() {
        let device = Device::flex();
        for bad in [f32::NAN, f32::INFINITY] {
            let tensor = Tensor::<2>::from_data([[1.0f32, bad, 0.0]], (&device, DType::F32));
            assert!(!score_rows(tensor, &[RowParams::greedy(0)])[0].finite, "{bad}");
        }
    }
}
