//! Combinations of knobs that are accepted end well, and in mixed company as alone.

use std::collections::{HashMap, HashSet};

use dfastllm_engine::decoding::{HeadRows, IdleSteps};

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

/// Every so many of them are tried: a prime, so that all values of all knobs meet. All of them, with
/// 1, take a minute.
const STRIDE: usize = 7;

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
/// committed after each pass. DAEDAL looks at its first canvas once more.
fn most_passes(config: &DecodingConfig) -> usize {
    let blocks = config.blocks(SHORT);
    let scheduled = config.quota.steps().map(|steps| blocks * steps.div_ceil(blocks));
    scheduled.unwrap_or(SHORT) + usize::from(config.canvas == Canvas::Daedal)
}

/// Follows the trace on a canvas of its own.
fn check(name: &str, config: &DecodingConfig, mask_id: u32, answer: &Answer) {
    let is_sized = config.canvas == Canvas::Daedal;
    let mut canvas = [None; SHORT];
    for step in &answer.trace {
        for &(position, id) in &step.committed {
            assert!(canvas[position].replace(id).is_none(), "{name}: {position} was committed");
            assert_ne!(id, mask_id, "{name}: {position}");
        }
        for &position in &step.remasked {
            assert!(canvas[position].take().is_some(), "{name}: {position} was open");
        }
    }
    let ended = answer.tokens.last().is_some_and(|token| token.is_end);
    assert!(is_sized || !ended, "{name}");
    assert!(ended || canvas.iter().all(Option::is_some), "{name}: {canvas:?}");
    assert!(ended || answer.tokens.len() == SHORT, "{name}: {}", answer.tokens.len());
    for (token, committed) in answer.tokens.iter().zip(canvas) {
        assert_eq!(Some(token.id), committed, "{name}");
    }
    let forwards = answer.usage.forwards;
    assert!(forwards <= most_passes(config), "{name}: {forwards} passes");
    let may_idle = matches!(config.quota, Quota::Bernoulli { .. })
        || (config.quota.steps().is_some() && config.idle == IdleSteps::Run);
    let commits = answer.trace.iter().filter(|step| !step.committed.is_empty()).count();
    assert!(may_idle || commits + usize::from(is_sized) == forwards, "{name}: {answer:?}");
}

/// Valid requests of a model, with the number of their combination.
fn requests(served: &Served, prompt: &[u32]) -> Vec<(usize, DecodingConfig, GenerationRequest)> {
    let valid = |number: usize| {
        let (config, temperature) = combination(number);
        let params = RequestParams {
            sampling: Sampling { temperature, ..Sampling::default() },
            seed: (number % PLAIN) as u64,
            ignore_eos: config.canvas != Canvas::Daedal,
            ..greedy(prompt, SHORT, Some(config.clone()))
        };
        let request = GenerationRequest::new(params, &served.limits).ok()?;
        Some((number, config, request))
    };
    let speculated = |plain| (0..SPECULATIONS.len()).map(move |turn| turn * PLAIN + plain);
    (0..PLAIN).step_by(STRIDE).flat_map(speculated).filter_map(valid).collect()
}

#[test]
fn every_accepted_combination_ends_well() {
    for (family, file) in FAMILIES {
        let served = serve(parity(family), CONFIG);
        let mask_id = served.limits.mask_id.unwrap();
        let prompt = &prompts(file, 1)[0][..5];
        let mut requests = requests(&served, prompt);
        println!("{family}: {} combinations", requests.len());
        assert!(requests.len() > 300, "{}", requests.len());
        let mut plain: HashMap<usize, Vec<SettledToken>> = HashMap::new();
        while !requests.is_empty() {
            let rest = requests.split_off(requests.len().min(200));
            let running: Vec<(usize, DecodingConfig, Running)> =
                std::mem::replace(&mut requests, rest)
                    .into_iter()
                    .map(|(number, config, r)| (number, config, served.handle.submit(r).unwrap()))
                    .collect();
            for (number, config, running) in running {
                let name = format!("{family} {number} {config:?}");
                let answer = answer(&running).unwrap_or_else(|e| panic!("{name}: {e}"));
                check(&name, &config, mask_id, &answer);
                let tokens = plain.entry(number % PLAIN).or_insert_with(|| answer.tokens.clone());
                assert!(*tokens == answer.tokens, "{name}: {:?}", config.speculate);
            }
        }
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
    for (family, file) in FAMILIES {
        let loaded = parity(family);
        let published = loaded.reference.unwrap();
        let served = serve(loaded, CONFIG);
        let prompts = prompts(file, 7);
        let params = |index| mixed(published, &prompts, index);
        let together = essences(&served, (0..64).map(params));
        let distinct: HashSet<Vec<u32>> =
            together.iter().map(|(tokens, ..)| tokens.iter().map(|t| t.id).collect()).collect();
        assert!(distinct.len() > 40, "{family}: {}", distinct.len());
        for (index, expected) in together.iter().enumerate() {
            let [alone] = served.answers([params(index)]).try_into().unwrap();
            assert!(essence(alone) == *expected, "{family} request {index}");
        }
    }
}
