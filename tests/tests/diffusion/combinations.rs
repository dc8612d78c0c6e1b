//! Combinations of knobs that are accepted end well, and in mixed company as alone.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use dfastllm_engine::decoding::{HeadRows, IdleSteps};
use dfastllm_models::ops::ConfidenceOf;
use dfastllm_tests::tape::{self, Tape};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;

const SHORT: usize = 12;
const CANVASES: [Canvas; 3] = [Canvas::Fixed, Canvas::Grow, Canvas::Daedal];
const REGIONS: [Region; 4] =
    [Region::Canvas, Region::Blocks(4), Region::Blocks(5), Region::Window(3)];
const QUOTAS: [Quota; 12] = [
    Quota::EvenSplit { steps: 12 },
    Quota::EvenSplit { steps: 5 },
    Quota::EvenSplit { steps: 20 },
    Quota::Timesteps { steps: 8, eps: 1e-3 },
    Quota::Timesteps { steps: 20, eps: 1e-3 },
    Quota::Bernoulli { steps: 8, eps: 1e-3 },
    Quota::Threshold(0.6),
    Quota::Factor(1.0),
    Quota::EntropyBound(0.5),
    Quota::Hierarchical { low: 0.3, high: 0.8 },
    Quota::Stable { threshold: 0.5, divergence: 0.1, passes: 1 },
    Quota::One,
];
const CACHES: [Cache; 5] = [
    Cache::None,
    Cache::Prefix,
    Cache::Dual,
    Cache::Vicinity { left: 2, right: 3 },
    Cache::Interval,
];
const REVISIONS: [Revise; 3] = [Revise::None, Revise::Below(0.5), Revise::Wino(0.7)];
const REFRESHES: [Option<usize>; 3] = [None, Some(1), Some(3)];
const SPECULATIONS: [usize; 3] = [0, 2, 5];
/// Combinations that differ in more than speculation.
const PLAIN: usize = 3 * 4 * 12 * 5 * 3 * 3 * 2;

const COMBINATIONS: usize = PLAIN * SPECULATIONS.len();

/// The combination of this number, with settings that always fit taken in turn.
fn combination(number: usize) -> (DecodingConfig, f64) {
    let mut rest = number;
    let mut pick = |choices: usize| {
        let choice = rest % choices;
        rest /= choices;
        choice
    };
    let config = DecodingConfig {
        canvas: CANVASES[pick(3)],
        region: REGIONS[pick(4)],
        quota: QUOTAS[pick(12)],
        cache: CACHES[pick(5)],
        revise: REVISIONS[pick(3)],
        refresh_every: REFRESHES[pick(3)],
        credit: pick(2) == 1,
        speculate: SPECULATIONS[pick(3)],
        ..one()
    };
    let mut turns = (number % PLAIN).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let mut turn = |choices: usize| {
        let choice = turns % choices;
        turns /= choices;
        choice
    };
    let scores = [Score::Probability, Score::Margin, Score::Entropy, Score::LeftToRight];
    let is_drawn = matches!(config.quota, Quota::Bernoulli { .. });
    let is_wino = matches!(config.revise, Revise::Wino(_));
    let config = DecodingConfig {
        score: if is_drawn { Score::Random } else { scores[turn(4)] },
        idle: [IdleSteps::Skip, IdleSteps::Run][turn(2)],
        heads: [HeadRows::Wanted, HeadRows::Every][turn(2)],
        noise: [TokenNoise::Gumbel, TokenNoise::Categorical][turn(2)],
        cfg_scale: if turn(4) == 0 && !is_wino { 0.5 } else { 0.0 },
        order_temperature: if turn(4) == 0 && !is_drawn { 0.3 } else { 0.0 },
        ..config
    };
    (config, [0.0, 0.8][turn(2)])
}

/// Passes that cannot be exceeded: a schedule has so many, any other rule leaves one position more
/// committed after each pass.
fn most_passes(config: &DecodingConfig, length: usize) -> usize {
    let blocks = config.blocks(length);
    let scheduled = config.quota.steps().map(|steps| blocks * steps.div_ceil(blocks));
    scheduled.unwrap_or(length)
}

/// Passes that commit nothing: DAEDAL looks at its canvas of 64, or of one block if that is longer,
/// and adds eight positions while the end is not in sight.
fn sizing_passes(config: &DecodingConfig, length: usize) -> RangeInclusive<usize> {
    let Region::Blocks(size) = config.region else { return 0..=0 };
    let left = length.saturating_sub(size.max(64));
    if config.canvas == Canvas::Daedal && left > 0 { 1..=1 + left.div_ceil(8) } else { 0..=0 }
}

/// Follows the trace on a canvas of its own.
fn check(params: &RequestParams, mask_id: u32, answer: &Answer) {
    let (config, length) = (params.decoding.as_ref().unwrap(), params.max_tokens);
    let is_sized = config.canvas == Canvas::Daedal;
    let mut canvas = vec![None; length];
    for step in &answer.trace {
        for &(position, id) in &step.committed {
            assert!(canvas[position].replace(id).is_none(), "{position} was committed");
            assert_ne!(id, mask_id, "{position}");
        }
        for &position in &step.remasked {
            assert!(canvas[position].take().is_some(), "{position} was open");
        }
    }
    let ended = answer.tokens.last().is_some_and(|token| token.is_end);
    assert!(is_sized || !ended);
    assert!(ended || canvas.iter().all(Option::is_some), "{canvas:?}");
    assert!(ended || answer.tokens.len() == length, "{}", answer.tokens.len());
    for (token, committed) in answer.tokens.iter().zip(canvas) {
        assert_eq!(Some(token.id), committed);
    }
    let (forwards, sizing) = (answer.usage.forwards, sizing_passes(config, length));
    assert!(forwards <= most_passes(config, length) + sizing.end(), "{forwards} passes");
    let may_idle = matches!(config.quota, Quota::Bernoulli { .. })
        || (config.quota.steps().is_some() && config.idle == IdleSteps::Run);
    let commits = answer.trace.iter().filter(|step| !step.committed.is_empty()).count();
    assert!(may_idle || sizing.contains(&(forwards - commits)), "{answer:?}");
}

/// Whether a request that would be accepted ends well, and as it would without drafts.
fn ends_well(served: &Served, requests: &[RequestParams]) {
    let mask_id = served.limits.mask_id.unwrap();
    let undrafted = |params: &RequestParams| {
        let config = params.decoding.clone().unwrap();
        let is_drafted = config.speculate > 0;
        let config = DecodingConfig { speculate: 0, ..config };
        is_drafted.then(|| RequestParams { decoding: Some(config), ..params.clone() })
    };
    let submitted: Vec<(&RequestParams, Running, Option<Running>)> = requests
        .iter()
        .map(|r| (r, served.submit(r.clone()), undrafted(r).map(|plain| served.submit(plain))))
        .collect();
    for (params, running, plain) in submitted {
        let context = format!("{:?} {:?}", params.prompt, params.decoding);
        let answer = answer(&running).unwrap_or_else(|e| panic!("{context}: {e}"));
        println!("{context}");
        check(params, mask_id, &answer);
        if let Some(plain) = plain {
            assert!(super::answer(&plain).unwrap().tokens == answer.tokens, "{context}");
        }
    }
}

#[test]
fn every_accepted_combination_ends_well() {
    for Subject { name, served, .. } in tapes() {
        let prompts = Tape::prompts(64);
        let request = |number: usize| {
            let (config, temperature) = combination(number);
            let params = RequestParams {
                sampling: Sampling { temperature, ..Sampling::default() },
                seed: number as u64,
                ignore_eos: config.canvas != Canvas::Daedal,
                ..greedy(&prompts[number % 64], SHORT, Some(config))
            };
            is_accepted(&params, &served.limits).then_some(params)
        };
        let accepted: Vec<RequestParams> = (0..COMBINATIONS).filter_map(request).collect();
        println!("{name}: {} combinations", accepted.len());
        assert!(accepted.len() > 2500, "{}", accepted.len());
        accepted.chunks(100).for_each(|some| ends_well(&served, some));
    }
}

fn is_accepted(params: &RequestParams, limits: &ModelLimits) -> bool {
    GenerationRequest::new(params.clone(), limits).is_ok()
}

fn any_region() -> impl Strategy<Value = Region> {
    prop_oneof![
        Just(Region::Canvas),
        (1..24usize).prop_map(Region::Blocks),
        (1..24usize).prop_map(Region::Window),
    ]
}

fn any_quota() -> impl Strategy<Value = Quota> {
    let steps = || (1..40usize, 1e-4..0.9);
    prop_oneof![
        (1..40usize).prop_map(|steps| Quota::EvenSplit { steps }),
        steps().prop_map(|(steps, eps)| Quota::Timesteps { steps, eps }),
        steps().prop_map(|(steps, eps)| Quota::Bernoulli { steps, eps }),
        (0.0..1.2).prop_map(Quota::Threshold),
        (0.0..8.0).prop_map(Quota::Factor),
        (0.0..8.0).prop_map(Quota::EntropyBound),
        (0.0..1.0, 0.0..0.5).prop_map(|(low, more)| Quota::Hierarchical { low, high: low + more }),
        (0.0..1.0, 0.0..1.0, 1..4usize).prop_map(|(threshold, divergence, passes)| {
            Quota::Stable { threshold, divergence, passes }
        }),
        Just(Quota::One),
    ]
}

fn any_cache() -> impl Strategy<Value = (Cache, Option<usize>)> {
    let cache = prop_oneof![
        Just(Cache::Prefix),
        Just(Cache::Dual),
        (0..20usize, 0..20usize).prop_map(|(left, right)| Cache::Vicinity { left, right }),
        Just(Cache::Interval),
    ];
    prop_oneof![Just((Cache::None, None)), (cache, prop::option::of(1..9usize)),]
}

fn any_revision() -> impl Strategy<Value = Revise> {
    prop_oneof![
        2 => Just(Revise::None),
        1 => (0.0..=1.0).prop_map(Revise::Below),
        1 => (0.0..=1.0).prop_map(Revise::Wino),
    ]
}

/// 0 as often as not.
fn sometimes(most: f64) -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), 0.0..most]
}

/// All knobs, whether they go together or not.
fn any_config() -> impl Strategy<Value = DecodingConfig> {
    let canvas = prop::sample::select(CANVASES.as_slice());
    let score = prop::sample::select(
        &[Score::Probability, Score::Margin, Score::Entropy, Score::Random, Score::LeftToRight][..],
    );
    let main = (canvas, any_region(), score, any_quota(), any_cache(), any_revision());
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let numbers = (sometimes(2.0), sometimes(2.0), prop_oneof![Just(0), 1..7usize]);
    (main, flags, numbers).prop_map(|(main, flags, numbers)| {
        let (canvas, region, score, quota, (cache, refresh_every), revise) = main;
        let (is_gumbel, is_raw, skips, is_wanted, credit) = flags;
        let (order_temperature, cfg_scale, speculate) = numbers;
        DecodingConfig {
            canvas,
            region,
            score,
            quota,
            noise: if is_gumbel { TokenNoise::Gumbel } else { TokenNoise::Categorical },
            confidence_of: if is_raw { ConfidenceOf::Raw } else { ConfidenceOf::Filtered },
            order_temperature,
            cache,
            refresh_every,
            revise,
            stop: Stop::Never,
            idle: if skips { IdleSteps::Skip } else { IdleSteps::Run },
            heads: if is_wanted { HeadRows::Wanted } else { HeadRows::Every },
            cfg_scale,
            credit,
            speculate,
        }
    })
}

/// Requests that a server would accept.
fn any_request(limits: &ModelLimits) -> impl Strategy<Value = RequestParams> {
    let prompt = prop::collection::vec(0..tape::END, 1..20);
    let sampling = (sometimes(2.0), prop::option::of(1..20usize), prop::option::of(0.1..1.0));
    (any_config(), prompt, 1..40usize, any::<u64>(), sampling).prop_filter_map(
        "refused",
        |(config, prompt, length, seed, (temperature, top_k, top_p))| {
            let sizes_itself = config.canvas == Canvas::Daedal;
            let params = RequestParams {
                sampling: Sampling { temperature, top_k, top_p, ..Sampling::default() },
                seed,
                ignore_eos: !sizes_itself,
                ..greedy(&prompt, if sizes_itself { 3 * length } else { length }, Some(config))
            };
            is_accepted(&params, limits).then_some(params)
        },
    )
}

#[test]
fn accepted_requests_of_any_numbers_end_well() {
    for Subject { served, .. } in tapes() {
        let config = ProptestConfig {
            cases: 20,
            max_local_rejects: u32::MAX,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let requests = prop::collection::vec(any_request(&served.limits), 50);
        let ends_well = |requests: Vec<RequestParams>| {
            ends_well(&served, &requests);
            Ok(())
        };
        TestRunner::new(config).run(&requests, ends_well).unwrap();
    }
}

/// Requests that have little in common.
fn mixed(published: ReferenceLoop, prompts: &[Vec<u32>], index: usize) -> RequestParams {
    let presets = [Preset::Reference, Preset::Exact, Preset::Fast, Preset::Turbo];
    let length = 12 + index * 7 % 20;
    let base = preset(presets[index % 4], published, length);
    let cache = if index.is_multiple_of(4) { Cache::None } else { caches()[index / 4 % 4] };
    let refresh_every = (cache != Cache::None && index.is_multiple_of(5)).then_some(4);
    let is_planned = matches!(base.quota, Quota::EvenSplit { .. });
    let can_speculate = is_planned && cache != Cache::Interval && refresh_every.is_none();
    let config = DecodingConfig {
        cache,
        refresh_every,
        revise: if index % 8 == 2 { Revise::Below(0.6) } else { Revise::None },
        cfg_scale: if index % 16 == 3 { 0.7 } else { 0.0 },
        speculate: if can_speculate && index % 8 == 1 { 3 } else { 0 },
        credit: index % 16 == 7,
        ..base
    };
    let temperature = [0.0, 0.0, 0.7, 1.2][index / 2 % 4];
    let top_p = index.is_multiple_of(3).then_some(0.9);
    let sampling = Sampling { temperature, top_p, top_logprobs: index % 3, ..Sampling::default() };
    RequestParams {
        sampling,
        seed: index as u64,
        priority: index as i64 % 3,
        audit: index % 8 == 6,
        ..greedy(&prompts[index % prompts.len()], length, Some(config))
    }
}

#[test]
fn mixed_company_changes_nothing() {
    for subject in subjects() {
        let Subject { name, served, .. } = &subject;
        let published = served.limits.reference.unwrap();
        let prompts = subject.prompts(7);
        let params = |index| mixed(published, prompts, index);
        let together = essences(served, (0..64).map(params));
        let distinct: HashSet<Vec<u32>> =
            together.iter().map(|(tokens, ..)| tokens.iter().map(|t| t.id).collect()).collect();
        assert!(distinct.len() > 40, "{name}: {}", distinct.len());
        for (index, expected) in together.iter().enumerate() {
            let [alone] = served.answers([params(index)]).try_into().unwrap();
            assert!(essence(alone) == *expected, "{name} request {index}");
        }
    }
}
