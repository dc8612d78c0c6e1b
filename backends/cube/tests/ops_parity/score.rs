//! Row scoring: reduced on the device for plain rows, on the host for the others.

use std::sync::Arc;

use dfastllm_backends::Tensor;
use dfastllm_backends::ops::{self, ConfidenceOf, Draw, Filters, Guidance, RowParams, RowScore};

use crate::lane::{Lane, lanes, noise};

/// Scores of both sides, compared; both are reduced in f32 from equal logits, whatever their dtype.
fn check(lane: &Lane, what: &str, values: &[f32], vocab: usize, params: &[RowParams]) {
    let logits = lane.pair(values, [values.len() / vocab, vocab]);
    let score = |logits: Tensor<2>| ops::score_rows(logits, params);
    let (tested, reference) = (score(logits.tested), score(logits.reference));
    assert_eq!(tested.len(), reference.len(), "{what}");
    for (row, (t, r)) in tested.iter().zip(&reference).enumerate() {
        same(&format!("{what} in {:?}, row {row}", lane.dtype), t, r);
    }
}

fn same(what: &str, t: &RowScore, r: &RowScore) {
    assert_eq!((t.id, t.finite), (r.id, r.finite), "{what}: {t:?} {r:?}");
    for (name, t, r) in [
        ("confidence", t.confidence, r.confidence),
        ("entropy", t.entropy, r.entropy),
        ("margin", t.margin, r.margin),
        ("logprob", t.logprob, r.logprob),
    ] {
        // Sums of up to a thousand exponentials in f32.
        assert!((t - r).abs() <= 2e-5 * (1.0 + r.abs()), "{what}: {name} {t}, expected {r}");
    }
    let ids = |score: &RowScore| score.top.iter().map(|&(id, _)| id).collect::<Vec<_>>();
    assert_eq!(ids(t), ids(r), "{what}");
}

fn logits(rows: usize, vocab: usize) -> Vec<f32> {
    noise(rows, rows * vocab).iter().map(|x| 8.0 * x).collect()
}

#[test]
fn plain_rows_are_reduced_on_the_device() {
    for lane in lanes("score_rows, plain") {
        for (rows, vocab) in [(1, 2), (1, 40), (5, 129), (3, 1003)] {
            let params: Vec<_> = (0..rows).rev().map(RowParams::greedy).collect();
            let what = format!("scores {rows}x{vocab}");
            check(&lane, &what, &logits(rows, vocab), vocab, &params);
        }
    }
}

#[test]
fn ties_take_the_lowest_id_and_masked_tokens_do_not_count() {
    for lane in lanes("score_rows, ties and masks") {
        let plain = [RowParams::greedy(0), RowParams::greedy(1)];
        check(&lane, "ties", &[1.0, 3.0, 3.0, 0.0, 2.0, 2.0, 2.0, 2.0], 4, &plain);
        let inf = f32::NEG_INFINITY;
        let masked = [1.0, inf, 2.0, inf, inf, inf, inf, -1.0];
        check(&lane, "masked tokens", &masked, 4, &plain);
    }
}

#[test]
fn a_row_that_is_not_finite_says_so() {
    for lane in lanes("score_rows, NaN and infinity") {
        for bad in [f32::NAN, f32::INFINITY] {
            let logits = lane.pair(&[0.5, bad, 1.5, 0.5, 1.0, 1.5], [2, 3]);
            let params = [RowParams::greedy(0), RowParams::greedy(1)];
            let finite: Vec<bool> =
                ops::score_rows(logits.tested, &params).iter().map(|score| score.finite).collect();
            assert_eq!(finite, [false, true], "{bad} in {:?}", lane.dtype);
        }
    }
}

#[test]
fn other_rows_come_to_the_host_unchanged() {
    for lane in lanes("score_rows, filtered and drawn") {
        let plain = RowParams::greedy(0);
        let filters = Filters { temperature: 0.8, top_k: Some(9), ..Filters::default() };
        let draw = Draw::Categorical { seed: 11, position: 4, step: 2 };
        let params = [
            RowParams { guidance: Some(Guidance { row: 2, scale: 0.5 }), ..plain.clone() },
            RowParams { bias: Arc::new([(3, f32::NEG_INFINITY), (7, 2.5)]), ..plain.clone() },
            RowParams { filters, draw, confidence_of: ConfidenceOf::Filtered, ..plain.clone() },
            RowParams { row: 1, top_logprobs: 4, ..plain },
        ];
        check(&lane, "options", &logits(3, 65), 65, &params);
    }
}
