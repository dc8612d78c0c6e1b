//! Row scoring: reduced on the device, except for rows that are wanted whole, beside the host.

use std::sync::Arc;

use dfastllm_backends::Tensor;
use dfastllm_backends::ops::philox::{Counter, Purpose, uniform};
use dfastllm_backends::ops::{
    self, ConfidenceOf, Credit, Draw, FilterOrder, Filters, Guidance, Mix, Penalties, RowParams,
    RowScore,
};

use crate::lane::{Lane, lanes, noise};

/// Logits on both sides, equal and in f32 on the host, whatever the lane's dtype.
struct Rows {
    lane: Lane,
    what: String,
    tested: Tensor<2>,
    reference: Tensor<2>,
}

impl Rows {
    fn new(lane: &Lane, what: &str, values: &[f32], vocab: usize) -> Self {
        let pair = lane.pair(values, [values.len() / vocab, vocab]);
        let what = format!("{what} of {vocab} in {:?}", lane.dtype);
        Self { lane: lane.clone(), what, tested: pair.tested, reference: pair.reference }
    }

    fn random(lane: &Lane, what: &str, rows: usize, vocab: usize) -> Self {
        let values: Vec<f32> = noise(rows, rows * vocab).iter().map(|x| 8.0 * x).collect();
        Self::new(lane, what, &values, vocab)
    }

    /// Scores both sides and fails unless they agree.
    fn check(&self, params: &[RowParams]) {
        let tested = ops::score_rows(self.tested.clone(), params);
        let reference = ops::score_rows(self.reference.clone(), params);
        assert_eq!(tested.len(), reference.len(), "{}", self.what);
        if self.lane.only_compiles {
            return;
        }
        let mut near = 0;
        for (i, (t, r)) in tested.iter().zip(&reference).enumerate() {
            let what = || format!("{}, row {i}: {:?}: {t:?}, expected {r:?}", self.what, params[i]);
            if r.finite && t.id != r.id && self.is_near(&params[i], t.id, r.id) {
                near += 1;
                continue;
            }
            assert_eq!(same(t, r), Ok(()), "{}", what());
        }
        assert!(near <= params.len() / 50, "{}: {near} draws of {}", self.what, params.len());
    }

    /// Whether a categorical draw falls between both tokens within rounding.
    fn is_near(&self, params: &RowParams, one: u32, other: u32) -> bool {
        let Draw::Categorical { seed, position, step } = params.draw else { return false };
        let whole =
            RowParams { keep_row: true, confidence_of: ConfidenceOf::Filtered, ..params.clone() };
        let row = ops::score_rows(self.reference.clone(), &[whole]).remove(0).row.unwrap();
        let until: f64 = row[..one.max(other) as usize].iter().map(|&x| f64::from(x).exp()).sum();
        let u = uniform(seed, Counter { position, step, purpose: Purpose::Token, draw: 0 });
        (until - u).abs() < 1e-6
    }
}

/// Compares two scores; what differs, if something does.
fn same(t: &RowScore, r: &RowScore) -> Result<(), &'static str> {
    // Sums of up to fifty thousand exponentials in f32.
    let close = |t: f64, r: f64| t == r || (t - r).abs() <= 2e-5 * (1.0 + r.abs());
    let numbers = [
        ("confidence", t.confidence, r.confidence),
        ("entropy", t.entropy, r.entropy),
        ("margin", t.margin, r.margin),
        ("logprob", t.logprob, r.logprob),
        ("mass", t.mass, r.mass),
        ("divergence", t.divergence.unwrap_or(0.0), r.divergence.unwrap_or(0.0)),
    ];
    let ids = |score: &RowScore| score.top.iter().map(|&(id, _)| id).collect::<Vec<_>>();
    let extras = |score: &RowScore| (score.row.is_some(), score.earned.map(|(id, _)| id));
    if t.finite != r.finite {
        return Err("finite");
    }
    // Nothing means anything then.
    if !r.finite {
        return Ok(());
    }
    if t.id != r.id {
        return Err("id");
    }
    if ids(t) != ids(r) || t.top.iter().zip(&r.top).any(|(t, r)| !close(t.1, r.1)) {
        return Err("top");
    }
    if extras(t) != extras(r) {
        return Err("row or credit");
    }
    numbers.iter().find(|(_, t, r)| !close(*t, *r)).map_or(Ok(()), |(name, ..)| Err(name))
}

const SIZES: [(usize, usize); 6] = [(2, 1), (4, 3), (5, 65), (3, 1000), (3, 4096), (1, 50257)];

/// Repeatable choices.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn unit(&mut self) -> f64 {
        self.below(1 << 20) as f64 / f64::from(1 << 20)
    }

    fn maybe<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.below(2) == 0).then(|| value(self))
    }

    fn ids(&mut self, most: usize, vocab: usize) -> Vec<u32> {
        // One beyond the vocabulary now and then.
        (0..self.below(most)).map(|_| self.below(vocab + 1) as u32).collect()
    }

    fn penalties(&mut self, vocab: usize) -> Arc<Penalties> {
        let mut ids = self.ids(90, vocab);
        ids.sort_unstable();
        ids.dedup();
        Arc::new(Penalties {
            generated: ids.iter().step_by(2).map(|&id| (id, 1 + id % 5)).collect(),
            seen: ids,
            presence: self.unit() as f32,
            frequency: self.unit() as f32 - 0.5,
            repetition: 0.75 + self.unit() as f32,
        })
    }

    fn bias(&mut self, vocab: usize) -> Arc<[(u32, f32)]> {
        let ids = self.ids(40, vocab);
        ids.into_iter()
            .map(|id| (id, if id % 3 == 0 { f32::NEG_INFINITY } else { 6.0 * self.unit() as f32 }))
            .collect()
    }

    fn filters(&mut self, vocab: usize) -> Filters {
        Filters {
            temperature: self.maybe(|d| 0.25 + 2.0 * d.unit()).unwrap_or(1.0),
            top_k: self.maybe(|d| d.below(vocab + 2)),
            top_p: self.maybe(Self::unit),
            min_p: self.maybe(|d| 0.3 * d.unit()),
            order: if self.below(2) == 0 { FilterOrder::TopKFirst } else { FilterOrder::TopPFirst },
        }
    }

    fn draw(&mut self, vocab: usize) -> Draw {
        let (seed, position) = (self.0, self.below(5000) as u32);
        let step = self.below(70) as u32;
        match self.below(4) {
            0 => Draw::Greedy,
            1 => Draw::Given(self.below(vocab + 1) as u32),
            2 => Draw::Gumbel { seed, position, step },
            _ => Draw::Categorical { seed, position, step },
        }
    }

    fn params(&mut self, rows: usize, vocab: usize) -> RowParams {
        // What is left has to have something that can be chosen.
        let allowed =
            |d: &mut Self| (0..1 + vocab as u32 / 2).map(|_| d.below(vocab) as u32).collect();
        let of = [ConfidenceOf::Raw, ConfidenceOf::Filtered];
        RowParams {
            guidance: self.maybe(|d| Guidance { row: d.below(rows), scale: 3.0 * d.unit() as f32 }),
            penalties: self.maybe(|d| d.penalties(vocab)),
            bias: self.maybe(|d| d.bias(vocab)).unwrap_or_default(),
            allowed: self.maybe(allowed),
            filters: self.filters(vocab),
            draw: self.draw(vocab),
            confidence_of: of[self.below(2)],
            top_logprobs: self.maybe(|d| d.below(21)).unwrap_or(0),
            mass_of: self.ids(5, vocab).into(),
            ..RowParams::greedy(self.below(rows))
        }
    }
}

/// Something of everything, alone, on row 0 of at least two.
fn options() -> Vec<RowParams> {
    let plain = RowParams::greedy(0);
    let place = (11, 4, 2);
    let draw = Draw::Categorical { seed: place.0, position: place.1, step: place.2 };
    let gumbel = Draw::Gumbel { seed: 1 << 40 | 5, position: 9, step: 1 };
    let warm = Filters { temperature: 0.8, ..Filters::default() };
    let drawn = |filters: Filters| {
        let plain = plain.clone();
        RowParams { filters, draw, confidence_of: ConfidenceOf::Filtered, ..plain }
    };
    let ban: Arc<[(u32, f32)]> = Arc::new([(2, f32::NEG_INFINITY), (0, 2.5), (0, 1.5)]);
    let mut dice = Dice(3);
    vec![
        RowParams { guidance: Some(Guidance { row: 1, scale: 0.5 }), ..plain.clone() },
        RowParams { bias: ban, ..plain.clone() },
        RowParams { penalties: Some(dice.penalties(64)), ..plain.clone() },
        RowParams { allowed: Some([0, 2, 40, 64, 900].into_iter().collect()), ..plain.clone() },
        RowParams { draw: Draw::Given(1), mass_of: Arc::new([0, 2, 2, 70]), ..plain.clone() },
        RowParams { top_logprobs: 20, ..plain.clone() },
        RowParams { filters: warm, draw: gumbel, ..plain.clone() },
        RowParams { filters: warm, ..plain.clone() },
        RowParams { draw: gumbel, ..drawn(warm) },
        drawn(warm),
        drawn(Filters::default()),
        drawn(Filters { top_k: Some(9), ..warm }),
        drawn(Filters { top_k: Some(1), ..warm }),
        drawn(Filters { top_p: Some(0.7), ..warm }),
        drawn(Filters { top_p: Some(0.0), ..warm }),
        drawn(Filters { top_p: Some(1.0), ..warm }),
        drawn(Filters { min_p: Some(0.1), ..warm }),
        drawn(Filters { top_k: Some(9), top_p: Some(0.6), min_p: Some(0.05), ..warm }),
        RowParams { draw: Draw::Greedy, ..drawn(Filters { top_p: Some(0.7), ..warm }) },
    ]
}

#[test]
fn every_option_alone_is_the_hosts() {
    for lane in lanes("score_rows, options") {
        for (rows, vocab) in SIZES {
            let rows = Rows::random(&lane, "options", rows.max(2), vocab);
            let mut params = options();
            params.extend((0..2).rev().map(RowParams::greedy));
            rows.check(&params);
            // Kernels are compiled for what a call holds.
            for alone in params {
                if vocab == 65 {
                    rows.check(&[alone]);
                }
            }
        }
    }
}

#[test]
fn options_at_random_are_the_hosts() {
    for lane in lanes("score_rows, random") {
        let mut dice = Dice(7);
        for ((rows, vocab), calls) in SIZES.into_iter().zip([40, 100, 150, 60, 30, 8]) {
            let params: Vec<_> = (0..calls).map(|_| dice.params(rows, vocab)).collect();
            Rows::random(&lane, "random", rows, vocab).check(&params);
        }
    }
}

#[test]
fn a_score_does_not_depend_on_other_rows() {
    for lane in lanes("score_rows, neighbours") {
        let mut dice = Dice(5);
        let rows = Rows::random(&lane, "neighbours", 3, 2500);
        let params: Vec<_> = (0..12).map(|_| dice.params(3, 2500)).collect();
        let together = ops::score_rows(rows.tested.clone(), &params);
        for (score, alone) in together.iter().zip(params) {
            let alone = ops::score_rows(rows.tested.clone(), &[alone]).remove(0);
            let is_same = !score.finite || *score == alone;
            lane.assert_eq(&is_same, &true, || format!("{score:?} {alone:?}"));
        }
    }
}

#[test]
fn more_rows_than_are_kept_at_a_time() {
    for lane in lanes("score_rows, many rows").into_iter().take(1) {
        let filters = Filters { temperature: 0.1, top_k: Some(40), ..Filters::default() };
        let drawn = |position| RowParams {
            filters,
            draw: Draw::Categorical { seed: 1, position, step: 0 },
            top_logprobs: if position > 160 { 2 } else { 0 },
            ..RowParams::greedy(0)
        };
        let params: Vec<_> = (0..170).map(drawn).collect();
        Rows::random(&lane, "many rows", 1, 50257).check(&params);
    }
}

#[test]
fn plain_rows_are_reduced_in_any_order_and_twice() {
    for lane in lanes("score_rows, plain") {
        for (rows, vocab) in [(1, 2), (1, 40), (5, 129), (3, 1003), (2, 2049)] {
            let order = (0..rows).rev().chain([0, 0]);
            let params: Vec<_> = order.map(RowParams::greedy).collect();
            Rows::random(&lane, "plain", rows, vocab).check(&params);
        }
        let none = ops::score_rows(Rows::random(&lane, "none", 1, 3).tested, &[]);
        assert!(none.is_empty());
    }
}

#[test]
fn ties_take_the_lowest_id_and_masked_tokens_do_not_count() {
    for lane in lanes("score_rows, ties and masks") {
        let draw = Draw::Categorical { seed: 2, position: 3, step: 4 };
        let filters = |top_k, top_p| Filters { top_k, top_p, ..Filters::default() };
        let filtered = |top_k, top_p| RowParams {
            filters: filters(top_k, top_p),
            confidence_of: ConfidenceOf::Filtered,
            draw,
            top_logprobs: 3,
            ..RowParams::greedy(1)
        };
        let params = [
            RowParams::greedy(0),
            RowParams::greedy(1),
            filtered(Some(2), None),
            filtered(None, Some(0.3)),
            filtered(None, Some(0.6)),
            filtered(Some(3), Some(0.4)),
        ];
        let ties = [1.0, 3.0, 3.0, 0.0, -0.0, 2.0, 2.0, 2.0, 2.0, 0.0];
        Rows::new(&lane, "ties", &ties, 5).check(&params);
        let inf = f32::NEG_INFINITY;
        let masked = [1.0, inf, 2.0, inf, inf, inf, inf, -1.0];
        Rows::new(&lane, "masked tokens", &masked, 4).check(&params);
        // Thousands that tie, and one alone in the last slice.
        let mut row = vec![0.25f32; 3000];
        row.extend(vec![inf; 3000]);
        row[5998] = -3.0;
        Rows::new(&lane, "long ties", &row, 3000).check(&params);
    }
}

#[test]
fn a_row_that_is_not_finite_says_so() {
    for lane in lanes("score_rows, NaN and infinity") {
        for bad in [f32::NAN, f32::INFINITY] {
            let rows = Rows::new(&lane, "bad", &[0.5, bad, 1.5, 0.5, 1.0, 1.5], 3);
            let check = |params: &[RowParams], expected: &[bool]| {
                let scores = ops::score_rows(rows.tested.clone(), params);
                let finite: Vec<bool> = scores.iter().map(|score| score.finite).collect();
                lane.assert_eq(&finite[..], expected, || format!("{bad} in {:?}", lane.dtype));
                lane.assert_eq(&scores.iter().all(|score| score.id < 3), &true, || bad.to_string());
            };
            check(&[RowParams::greedy(0), RowParams::greedy(1)], &[false, true]);
            let on_bad = options();
            check(&on_bad, &vec![false; on_bad.len()]);
            let guided = Some(Guidance { row: 0, scale: 1.0 });
            check(&[RowParams { guidance: guided, ..RowParams::greedy(1) }], &[false]);
        }
        let inf = f32::NEG_INFINITY;
        let rows = Rows::new(&lane, "nothing left", &[inf, inf, inf, 0.5, 1.0, 1.5], 3);
        let banned = [0, 1, 2].map(|id| (id, inf)).into();
        let params = [RowParams::greedy(0), RowParams { bias: banned, ..RowParams::greedy(1) }];
        let is_finite = ops::score_rows(rows.tested, &params).iter().any(|score| score.finite);
        lane.assert_eq(&is_finite, &false, String::new);
    }
}

#[test]
fn draws_are_the_hosts_and_follow_the_softmax() {
    for lane in lanes("score_rows, draws") {
        let filters = Filters { temperature: 0.7, ..Filters::default() };
        let at = |position, gumbel| {
            let (seed, step) = (0x1234_5678_9abc_def0, position % 7);
            let draw = match gumbel {
                true => Draw::Gumbel { seed, position, step },
                false => Draw::Categorical { seed, position, step },
            };
            RowParams { filters, draw, ..RowParams::greedy(0) }
        };
        let flat: Vec<f32> = noise(4, 5000).iter().map(|x| 0.1 * x).collect();
        for gumbel in [true, false] {
            let params: Vec<_> = (0..300).map(|position| at(position, gumbel)).collect();
            Rows::random(&lane, "draws", 1, 300).check(&params);
            Rows::new(&lane, "flat draws", &flat, 5000).check(&params);
            let row = [0.5f32, -1.0, 2.0, 1.0, -3.0];
            let params: Vec<_> = (0..4000).map(|position| at(position, gumbel)).collect();
            let rows = Rows::new(&lane, "five tokens", &row, 5);
            if lane.only_compiles {
                // Nothing was drawn.
                drop(ops::score_rows(rows.tested, &params));
                continue;
            }
            let mut counts = [0u32; 5];
            for score in ops::score_rows(rows.tested, &params) {
                counts[score.id as usize] += 1;
            }
            let weights = row.map(|x| f64::from(x / 0.7).exp());
            let total: f64 = weights.iter().sum();
            let square = |(weight, &count): (f64, &u32)| {
                let expected = weight / total * 4000.0;
                (f64::from(count) - expected).powi(2) / expected
            };
            let chi: f64 = weights.into_iter().zip(&counts).map(square).sum();
            // 4 degrees of freedom: exceeded once in a thousand; the seed is fixed.
            lane.assert_eq(&(chi < 18.5), &true, || format!("{chi}: {counts:?}"));
        }
    }
}

#[test]
fn whole_rows_come_to_the_host_beside_reduced_ones() {
    for lane in lanes("score_rows, whole rows") {
        let uniform: Arc<[f32]> = vec![(1f32 / 65.0).ln(); 65].into();
        let credit = Credit { earned: vec![(3, 2.0), (7, 1.0)], alpha: 0.7, gamma: 0.2 };
        let of = |row, guide: Option<usize>| RowParams {
            guidance: guide.map(|row| Guidance { row, scale: 1.0 }),
            ..RowParams::greedy(row)
        };
        let params = [
            RowParams::greedy(4),
            RowParams { keep_row: true, ..of(3, Some(1)) },
            of(2, Some(0)),
            RowParams { previous: Some(uniform.clone()), ..of(4, None) },
            RowParams { credit: Some(credit), ..of(3, None) },
            RowParams { mix: Some(Mix { other: uniform, weight: 0.5 }), ..of(0, None) },
            RowParams { top_logprobs: 40, ..of(1, None) },
            RowParams { draw: Draw::Given(64), ..of(0, None) },
        ];
        Rows::random(&lane, "whole rows", 5, 65).check(&params);
    }
}
