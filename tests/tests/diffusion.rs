//! What the decoding knobs promise of each other, over the parity checkpoints and random logits.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a suite that meets something unforeseen has failed"
)]

#[path = "diffusion/adaptive.rs"]
mod adaptive;
#[path = "diffusion/combinations.rs"]
mod combinations;
#[path = "diffusion/subjects.rs"]
mod subjects;

use std::collections::BTreeMap;

use dfastllm_engine::decoding::{
    BlockState, Cache, Candidate, Canvas, DecodingConfig, Preset, Quota, QuotaRule, Region, Revise,
    Rules, Score, Stop, TokenNoise, cache_rule, preset, quota_rule,
};
use dfastllm_engine::{
    FinishReason, GenerationRequest, InfillPart, ModelLimits, RequestParams, Running, Sampling,
    SettledToken, TraceStep,
};
use dfastllm_models::{Alignment, ReferenceLoop};
use dfastllm_tests::engine::{Answer, CONFIG, Served, answer, greedy, serve};
use dfastllm_tests::golden::{ids, records};
use dfastllm_tests::tape::END;

use self::subjects::{Subject, families, subjects, tapes};

const LENGTH: usize = 48;
const BLOCK: usize = 16;

/// One position of a block at a time, until the canvas is full.
fn one() -> DecodingConfig {
    DecodingConfig {
        region: Region::Blocks(BLOCK),
        quota: Quota::One,
        stop: Stop::Never,
        ..preset(Preset::Exact, ReferenceLoop::EvenSplit, LENGTH)
    }
}

fn by(quota: Quota) -> DecodingConfig {
    DecodingConfig { quota, ..one() }
}

/// Every position, end tokens included.
fn whole(prompt: &[u32], config: DecodingConfig) -> RequestParams {
    RequestParams { ignore_eos: true, ..greedy(prompt, LENGTH, Some(config)) }
}

/// Everything of an answer but what a cache says about itself.
type Essence = (Vec<SettledToken>, Vec<TraceStep>, FinishReason, usize);

fn essence(answer: Answer) -> Essence {
    (answer.tokens, answer.trace, answer.reason, answer.usage.forwards)
}

fn essences(served: &Served, params: impl IntoIterator<Item = RequestParams>) -> Vec<Essence> {
    served.answers(params).into_iter().map(essence).collect()
}

/// What was committed, in order, in whatever passes.
fn order(trace: &[TraceStep]) -> Vec<(usize, u32)> {
    trace.iter().flat_map(|step| step.committed.iter().copied()).collect()
}

/// Configurations that give the same tokens in the same passes as another, for models of both
/// alignments.
fn assert_alike(configs: &[DecodingConfig], expected: &DecodingConfig) {
    for subject in subjects() {
        let Subject { name, served, .. } = &subject;
        let prompts = subject.prompts(2);
        let answers = |config: &DecodingConfig| {
            essences(served, prompts.iter().map(|prompt| whole(prompt, config.clone())))
        };
        let expected = answers(expected);
        for config in configs {
            for (index, (got, want)) in answers(config).iter().zip(&expected).enumerate() {
                assert_eq!(got.1, want.1, "{name} prompt {index}: {config:?}");
                assert!(got == want, "{name} prompt {index}: {config:?}");
                assert_eq!(got.0.len(), LENGTH);
            }
        }
    }
}

#[test]
fn rules_that_allow_one_position_are_one() {
    let rules = [
        Quota::EvenSplit { steps: LENGTH },
        Quota::Threshold(1.5),
        Quota::Factor(0.0),
        Quota::EntropyBound(0.0),
        Quota::Hierarchical { low: 2.0, high: 2.0 },
        Quota::Stable { threshold: 1.5, divergence: 1e308, passes: 1 },
        Quota::Stable { threshold: 0.0, divergence: 1e308, passes: BLOCK + 1 },
    ];
    assert_alike(&rules.map(by), &one());
}

/// The best of a run is confident enough for `high` if it is more confident than `low = high`.
#[test]
fn runs_add_nothing_where_both_thresholds_are_one() {
    for threshold in [0.5, 0.9] {
        let runs = Quota::Hierarchical { low: threshold, high: threshold };
        assert_alike(&[by(runs)], &by(Quota::Threshold(threshold)));
    }
}

#[test]
fn one_block_is_the_canvas() {
    for cache in [Cache::None, Cache::Dual] {
        for quota in [Quota::Threshold(0.9), Quota::Timesteps { steps: 20, eps: 1e-3 }] {
            let canvas = DecodingConfig { region: Region::Canvas, cache, ..by(quota) };
            let block = DecodingConfig { region: Region::Blocks(LENGTH), ..canvas.clone() };
            let grown = DecodingConfig { canvas: Canvas::Grow, ..block.clone() };
            assert_alike(&[block, grown], &canvas);
        }
    }
}

#[test]
fn a_low_order_temperature_keeps_the_order() {
    assert_alike(&[DecodingConfig { order_temperature: 1e-12, ..one() }], &one());
}

#[test]
fn a_low_temperature_is_greedy() {
    for subject in subjects() {
        let Subject { name, served, .. } = &subject;
        let prompts = subject.prompts(3);
        let answers = |temperature| {
            let sampling = Sampling { temperature, ..Sampling::default() };
            let config = DecodingConfig { noise: TokenNoise::Gumbel, ..by(Quota::Threshold(0.9)) };
            let params = |prompt: &Vec<u32>| RequestParams {
                sampling: sampling.clone(),
                ..whole(prompt, config.clone())
            };
            essences(served, prompts.iter().map(params))
        };
        let greedy = answers(0.0);
        assert_eq!(answers(1e-4), greedy, "{name}");
        assert_ne!(answers(1.0), greedy, "{name}");
    }
}

/// The best position in a block's first pass, what another rule says in the others.
struct FirstBest(Box<dyn QuotaRule>);

impl QuotaRule for FirstBest {
    fn choose(&mut self, ranked: &[Candidate], state: &BlockState) -> Vec<usize> {
        if state.step == 0 { vec![0] } else { self.0.choose(ranked, state) }
    }
}

/// With no bound on the divergence, positions have to have been seen once: the first pass of a
/// block commits its best position, the others every confident one.
#[test]
fn stability_without_a_bound_is_a_threshold_from_the_second_pass_of_a_block_on() {
    for subject in subjects() {
        let Subject { name, served, .. } = &subject;
        for prompt in subject.prompts(3) {
            let stable = Quota::Stable { threshold: 0.8, divergence: 1e308, passes: 1 };
            let threshold = by(Quota::Threshold(0.8));
            let rules = Rules {
                quota: Box::new(FirstBest(quota_rule(&threshold))),
                cache: cache_rule(Cache::None),
            };
            let request = GenerationRequest::new(whole(prompt, threshold), &served.limits);
            let request = request.unwrap().with_rules(rules);
            let expected = answer(&served.handle.submit(request).unwrap()).unwrap();
            let [stable] = served.answers([whole(prompt, by(stable))]).try_into().unwrap();
            assert_eq!(stable.trace, expected.trace, "{name}");
            assert_eq!(essence(stable), essence(expected), "{name}");
        }
    }
}

/// The published bound on what a pass of WINO commits, stated anew.
struct Capped(Box<dyn QuotaRule>);

impl QuotaRule for Capped {
    fn choose(&mut self, ranked: &[Candidate], state: &BlockState) -> Vec<usize> {
        let mut chosen = self.0.choose(ranked, state);
        chosen.truncate((state.open as f64 * 0.7).floor().clamp(5.0, 20.0) as usize);
        chosen
    }
}

#[test]
fn revision_that_doubts_nothing_only_bounds_what_a_pass_commits() {
    let revised = |revise| DecodingConfig { revise, ..by(Quota::Threshold(0.4)) };
    assert_alike(&[revised(Revise::Below(0.0))], &by(Quota::Threshold(0.4)));
    let is_own = |subject: &Subject| subject.served.limits.alignment == Alignment::Same;
    for subject in subjects().filter(is_own) {
        let Subject { name, served, .. } = &subject;
        for prompt in subject.prompts(3) {
            let config = revised(Revise::None);
            let rules = Rules {
                quota: Box::new(Capped(quota_rule(&config))),
                cache: cache_rule(Cache::None),
            };
            let request = GenerationRequest::new(whole(prompt, config), &served.limits);
            let request = request.unwrap().with_rules(rules);
            let expected = answer(&served.handle.submit(request).unwrap()).unwrap();
            let wino = whole(prompt, revised(Revise::Wino(0.0)));
            let [wino] = served.answers([wino]).try_into().unwrap();
            assert_eq!(essence(wino), essence(expected), "{name}");
        }
    }
}

fn caches() -> [Cache; 4] {
    [Cache::Prefix, Cache::Dual, Cache::Vicinity { left: 4, right: 8 }, Cache::Interval]
}

#[test]
fn computing_everything_anew_in_every_pass_is_exact() {
    let anew = |plain: &DecodingConfig| {
        let plain = plain.clone();
        let anew = move |cache| DecodingConfig { cache, refresh_every: Some(1), ..plain.clone() };
        caches().map(anew)
    };
    let guided = DecodingConfig { cfg_scale: 1.0, ..by(Quota::Threshold(0.9)) };
    for plain in [one(), by(Quota::Threshold(0.9))] {
        assert_alike(&anew(&plain), &plain);
    }
    assert_alike(&anew(&guided)[1..2], &guided);
}

#[test]
fn caches_fill_the_canvas_and_are_refreshed_where_they_say() {
    for subject in subjects() {
        let Subject { name, served, .. } = &subject;
        for cache in caches() {
            for (region, refresh_every) in
                [(Region::Blocks(BLOCK), None), (Region::Window(BLOCK), Some(5))]
            {
                let config = DecodingConfig { region, cache, refresh_every, ..one() };
                let answers =
                    served.answers(subject.prompts(3).iter().map(|p| whole(p, config.clone())));
                for answer in answers {
                    assert_eq!((answer.tokens.len(), answer.usage.forwards), (LENGTH, LENGTH));
                    let expected = match (refresh_every, cache) {
                        (Some(every), _) => LENGTH.div_ceil(every),
                        // It has no blocks: what it misses is refreshed by number alone.
                        (None, Cache::Interval) => 1,
                        (None, _) => LENGTH / BLOCK,
                    };
                    assert_eq!(answer.usage.refreshes, expected, "{name} {config:?}");
                }
            }
        }
    }
}

/// Requests one after the other, each with the answer of the one before in its prompt.
fn chained(served: &Served, prompt: &[u32], config: &DecodingConfig) -> Vec<SettledToken> {
    let (mut prompt, mut tokens) = (prompt.to_vec(), Vec::new());
    for _ in 0..LENGTH / BLOCK {
        let params = greedy(&prompt, BLOCK, Some(config.clone()));
        let params = RequestParams { ignore_eos: true, ..params };
        let [answer] = served.answers([params]).try_into().unwrap();
        prompt.extend(answer.ids());
        tokens.extend(answer.tokens);
    }
    tokens
}

#[test]
fn a_canvas_that_grows_is_a_chain_of_short_ones() {
    for subject in subjects() {
        let Subject { name, served, .. } = &subject;
        let fixed = by(Quota::Threshold(0.9));
        let grown = DecodingConfig { canvas: Canvas::Grow, ..fixed.clone() };
        for prompt in subject.prompts(3) {
            let [answer] = served.answers([whole(prompt, grown.clone())]).try_into().unwrap();
            assert_eq!(answer.tokens, chained(served, prompt, &fixed), "{name}");
        }
    }
}

/// Settings of the speculation suite; temperatures next to them.
fn speculated() -> Vec<(DecodingConfig, f64)> {
    let mut all = Vec::new();
    for quota in [Quota::One, Quota::EvenSplit { steps: LENGTH / 2 }] {
        for cache in [Cache::None, Cache::Prefix, Cache::Dual] {
            for temperature in [0.0, 0.7] {
                all.push((DecodingConfig { cache, ..by(quota) }, temperature));
            }
        }
    }
    all.push((DecodingConfig { cfg_scale: 1.0, ..one() }, 0.0));
    all.push((DecodingConfig { region: Region::Canvas, score: Score::Margin, ..one() }, 0.0));
    all
}

#[test]
fn speculation_changes_nothing_and_saves_passes() {
    // Passes without drafts and with them, by temperature and length of drafts.
    let mut passes: BTreeMap<(bool, usize), [usize; 2]> = BTreeMap::new();
    for subject in subjects() {
        let Subject { name, served, .. } = &subject;
        let prompts = subject.prompts(if subject.is_tape { 1 } else { 2 });
        for (config, temperature) in speculated() {
            let sampling = Sampling { temperature, top_logprobs: 2, ..Sampling::default() };
            let prompts = if config.cache == Cache::None { prompts } else { &prompts[..1] };
            let answers = |speculate| {
                let config = DecodingConfig { speculate, ..config.clone() };
                let params = |prompt: &Vec<u32>| RequestParams {
                    sampling: sampling.clone(),
                    seed: 3,
                    ..whole(prompt, config.clone())
                };
                let answers = served.answers(prompts.iter().map(params));
                let forwards: usize = answers.iter().map(|a| a.usage.forwards).sum();
                let told = answers.into_iter().map(|a| (order(&a.trace), a.tokens, a.reason));
                (forwards, told.collect::<Vec<_>>())
            };
            let (plain_passes, plain) = answers(0);
            let is_plain = (config.quota, config.cache) == (Quota::One, Cache::None);
            let lengths = if is_plain { &[1, 3, 8][..] } else { &[3] };
            for &speculate in lengths {
                let (forwards, told) = answers(speculate);
                assert!(told == plain, "{name} {temperature} {speculate} {config:?}");
                assert!(forwards <= plain_passes, "{name} {temperature} {config:?}");
                // Random logits leave nothing to foresee.
                if subject.is_tape {
                    continue;
                }
                let sums = passes.entry((temperature > 0.0, speculate)).or_default();
                *sums = [sums[0] + plain_passes, sums[1] + forwards];
            }
        }
    }
    for ((is_drawn, speculate), [plain, drafted]) in passes {
        let saving = plain as f64 / drafted as f64;
        println!("drawn: {is_drawn}, drafts of {speculate}: {saving:.2} times fewer passes");
        assert!(saving > if is_drawn { 1.15 } else { 1.3 }, "{plain} {drafted}");
    }
}

#[test]
fn an_audit_changes_nothing_and_finds_caches_close() {
    for subject in families() {
        let Subject { name, served, .. } = &subject;
        let config = DecodingConfig { cache: Cache::Dual, ..by(Quota::Threshold(0.9)) };
        let anew = DecodingConfig { refresh_every: Some(1), ..config.clone() };
        for prompt in subject.prompts(3) {
            let plain = whole(prompt, config.clone());
            let audited = RequestParams { audit: true, ..plain.clone() };
            let exact = RequestParams { audit: true, ..whole(prompt, anew.clone()) };
            let [plain, audited, exact] =
                served.answers([plain, audited, exact]).try_into().unwrap();
            assert!(exact.usage.audit.is_none());
            assert!(exact.trace.iter().all(|step| step.audit.is_none()));
            assert!(plain.usage.audit.is_none());
            let found = audited.usage.audit.unwrap();
            println!("{name}: {:.3}, drift {:.4}", found.agreement(), found.mean_drift());
            assert!(found.agreement() > 0.5 && found.agreement() <= 1.0, "{found:?}");
            assert!((0.0..=1.0).contains(&found.max_drift), "{found:?}");
            let steps = audited.trace.iter().filter_map(|step| step.audit);
            assert_eq!(steps.clone().map(|a| a.positions).sum::<usize>(), found.positions);
            let passes = audited.usage.forwards - audited.usage.refreshes;
            assert_eq!(steps.count(), passes, "every pass that is not whole");
            let bare: Vec<TraceStep> =
                audited.trace.iter().map(|s| TraceStep { audit: None, ..s.clone() }).collect();
            assert_eq!((audited.tokens, bare), (plain.tokens, plain.trace));
        }
    }
}

#[test]
fn gaps_are_filled_around_the_text_between_them() {
    for subject in families() {
        let Subject { name, served, .. } = &subject;
        let given = ids(&records("likelihood/llada.jsonl")[0]["answer_ids"]);
        let between = 12..12 + given.len();
        for cache in [Cache::None, Cache::Prefix, Cache::Dual, Cache::Interval] {
            for is_free in [true, false] {
                let gap = |len| InfillPart::Gap { len, is_free };
                let infill = vec![gap(12), InfillPart::Given(given.clone()), gap(20)];
                let config = DecodingConfig { cache, ..by(Quota::Threshold(0.9)) };
                let params = |p: &Vec<u32>| RequestParams {
                    infill: infill.clone(),
                    ..greedy(p, 32, Some(config.clone()))
                };
                for answer in served.answers(subject.prompts(3).iter().map(params)) {
                    let mut positions: Vec<usize> =
                        order(&answer.trace).iter().map(|c| c.0).collect();
                    positions.sort_unstable();
                    let around = (0..between.start).chain(between.end..between.end + 20);
                    assert_eq!(positions, around.collect::<Vec<_>>(), "{name} {config:?}");
                    let of_gap =
                        [0, 1].map(|gap| answer.tokens.iter().filter(|t| t.gap == gap).count());
                    assert!(answer.tokens.is_sorted_by_key(|token| token.gap));
                    assert!(of_gap[0] <= 12 && of_gap[1] <= 20 && of_gap.iter().all(|n| *n > 0));
                    if !is_free {
                        assert_eq!(of_gap, [12, 20], "{name}");
                        assert!(answer.tokens.iter().all(|token| !token.is_end));
                    }
                }
            }
        }
    }
}

#[test]
fn what_lies_behind_the_end_of_a_gap_costs_no_pass() {
    for Subject { name, served, .. } in tapes() {
        let gap = |len| InfillPart::Gap { len, is_free: true };
        let bias: Vec<(u32, f32)> =
            (0..=END).map(|id| (id, if id == END { 100.0 } else { -100.0 })).collect();
        for quota in [Quota::One, Quota::EvenSplit { steps: 20 }] {
            let config = DecodingConfig {
                region: Region::Blocks(4),
                score: Score::LeftToRight,
                stop: Stop::EndInSettledPrefix,
                ..by(quota)
            };
            let sampling = Sampling { logit_bias: bias.clone(), ..Sampling::default() };
            let [answer] = served
                .answers([RequestParams {
                    infill: vec![gap(12), InfillPart::Given(vec![1, 2, 3]), gap(8)],
                    sampling,
                    ..greedy(&[5], 20, Some(config))
                }])
                .try_into()
                .unwrap();
            assert_eq!((answer.ids(), answer.usage.forwards), (vec![END; 2], 2), "{name}");
        }
    }
}

#[test]
fn a_canvas_that_sizes_itself_ends() {
    for subject in subjects() {
        let Subject { name, served, .. } = &subject;
        for (quota, cache, most) in [
            (Quota::Threshold(0.9), Cache::None, 150),
            (Quota::One, Cache::Prefix, 100),
            (Quota::Threshold(0.9), Cache::Prefix, 20),
        ] {
            let region = Region::Blocks(32);
            let config = DecodingConfig { canvas: Canvas::Daedal, region, cache, ..by(quota) };
            let asked = subject.prompts(3).iter().map(|p| greedy(p, most, Some(config.clone())));
            for answer in served.answers(asked) {
                assert!((1..=most).contains(&answer.tokens.len()), "{name} {config:?}");
                assert!(answer.usage.forwards <= most + most / 8 + 1, "{}", answer.usage.forwards);
                let ended = answer.tokens.last().is_some_and(|token| token.is_end);
                assert_eq!(ended, answer.reason == FinishReason::Stop, "{name}");
            }
        }
    }
}
