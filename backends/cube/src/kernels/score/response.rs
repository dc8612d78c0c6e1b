//! From the words of an answer to the numbers of a row.

use dfastllm_backends::ops::philox::{Counter, Purpose, uniform};
use dfastllm_backends::ops::{Draw, RowParams, RowScore};

use super::layout::{
    ANSWER, ASKED_MASS, BEST, CANDIDATE, FINITE, RAW_BEST, RAW_REST, REST, WEIGHTED,
};
use super::values::{LEAST, NONE, ZERO};

/// The value of a key.
fn value(key: u32) -> f32 {
    if key <= LEAST {
        f32::NEG_INFINITY
    } else {
        f32::from_bits(if key < ZERO { !key } else { key ^ ZERO })
    }
}

/// The score of a row from its answer.
pub(super) fn row_score(answer: &[u32], params: &RowParams) -> RowScore {
    let word = |at: u32| answer[at as usize];
    let number = |at: u32| f64::from(f32::from_bits(word(at)));
    let &[id, raw, _, measured] = chosen(answer, params);
    let (max, sum) = (value(word(BEST)), 1.0 + number(REST));
    let (raw_max, raw_sum) = (value(word(RAW_BEST)), 1.0 + number(RAW_REST));
    let logprob = |key: u32| f64::from(value(key) - raw_max) - raw_sum.ln();
    let probability = |key: u32| f64::from(value(key) - max).exp() / sum;
    let top = answer[ANSWER as usize..].chunks_exact(2).take(params.top_logprobs);
    RowScore {
        id,
        confidence: probability(measured),
        entropy: sum.ln() - number(WEIGHTED) / sum,
        margin: (1.0 - f64::from(value(word(BEST + 1)) - max).exp()) / sum,
        logprob: logprob(raw),
        top: top.filter(|best| best[0] > 0).map(|best| (best[1], logprob(best[0]))).collect(),
        mass: number(ASKED_MASS) / sum,
        divergence: None,
        earned: None,
        row: None,
        finite: word(FINITE) == 1,
    }
}

/// The candidate that is chosen: token and its raw, adjusted and measured key. Of two that Gumbel
/// noise left close together the host says which, in f64.
fn chosen<'a>(answer: &'a [u32], params: &RowParams) -> &'a [u32; CANDIDATE as usize] {
    let (candidates, _) = answer.as_chunks::<{ CANDIDATE as usize }>();
    let (first, second) = (&candidates[0], &candidates[1]);
    let Draw::Gumbel { seed, position, step } = params.draw else { return first };
    if second[0] == NONE {
        return first;
    }
    let noisy = |&[id, _, adjusted, _]: &[u32; CANDIDATE as usize]| {
        let counter = Counter { position, step, purpose: Purpose::Token, draw: id };
        let noise = -(-uniform(seed, counter).ln()).ln();
        f64::from(value(adjusted)) / params.filters.temperature + noise
    };
    if noisy(second) > noisy(first) { second } else { first }
}
