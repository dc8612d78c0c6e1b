//! How likely a given text is: against the originals, and the ways of asking against each other.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a suite that meets something unforeseen has failed"
)]

use dfastllm_engine::decoding::{DecodingConfig, Preset, preset};
use dfastllm_engine::{GenerationRequest, Patterns, RequestParams, Sampling, Task};
use dfastllm_models::ReferenceLoop;
use dfastllm_tests::engine::{CONFIG, greedy, serve};
use dfastllm_tests::fixtures::parity;
use dfastllm_tests::golden::{ids, numbers, records};
use dfastllm_tests::scores::{likelihoods, tokens};
use serde_json::Value;

/// What the suites ask of a log-probability in f32.
const TOLERANCE: f64 = 1e-3;

fn settings(cfg_scale: f64) -> DecodingConfig {
    DecodingConfig { cfg_scale, ..preset(Preset::Reference, ReferenceLoop::EvenSplit, 1) }
}

/// The likelihood of a record's answer.
fn asked(record: &Value, patterns: Patterns) -> RequestParams {
    let (prompt, answer) = (ids(&record["prompt_ids"]), ids(&record["answer_ids"]));
    let task = Task::Likelihood { answer_start: prompt.len(), patterns };
    let config = settings(record["cfg_scale"].as_f64().unwrap());
    RequestParams { task, ..greedy(&[prompt, answer].concat(), 0, Some(config)) }
}

fn of_kind(kind: &str) -> Vec<Value> {
    let records = records("likelihood/llada.jsonl").into_iter();
    records.filter(|record| record["kind"] == kind).collect()
}

fn masked(value: &Value) -> Vec<usize> {
    ids(value).into_iter().map(|position| position as usize).collect()
}

#[test]
fn samples_equal_get_log_likelihood() {
    let served = serve(parity("llada"), CONFIG);
    let records = of_kind("patterns");
    let patterns = |record: &Value| {
        record["samples"].as_array().unwrap().iter().map(|s| masked(&s["masked"])).collect()
    };
    let answers =
        likelihoods(&served, records.iter().map(|r| asked(r, Patterns::Given(patterns(r)))));
    let mut worst = 0.0f64;
    for (record, got) in records.iter().zip(&answers) {
        let name = format!("{} {}", record["name"], record["cfg_scale"]);
        let length = ids(&record["answer_ids"]).len() as f64;
        let samples = record["samples"].as_array().unwrap();
        assert_eq!(got.samples.len(), samples.len(), "{name}");
        for (sample, want) in got.samples.iter().zip(samples) {
            assert_eq!(sample.masked, masked(&want["masked"]), "{name}");
            let nll = numbers(&want["token_nll"]);
            assert_eq!(sample.token_nll.len(), nll.len(), "{name}");
            for (got, want) in sample.token_nll.iter().zip(&nll) {
                worst = worst.max((got - want).abs());
            }
            // Errors of `n` tokens over a share of `n / length`.
            let loss = want["loss"].as_f64().unwrap();
            assert!((sample.loss - loss).abs() < TOLERANCE * length, "{name}: {loss} {sample:?}");
        }
        let total = record["log_likelihood_of_these_samples"].as_f64().unwrap();
        assert!((got.total - total).abs() < TOLERANCE * length, "{name}: {total} {}", got.total);
        assert!(got.standard_error > 0.0, "{name}");
    }
    println!("largest difference of a token: {worst:.2e}");
    assert!(worst < TOLERANCE, "{worst}");
    assert_eq!(records.len(), 12);
}

/// The mean over the sizes of the mean over the subsets of a size.
fn expected_over_subsets(length: usize, losses: &[(usize, f64)]) -> f64 {
    let of_size = |size: usize| {
        let of_size: Vec<f64> =
            losses.iter().filter(|(n, _)| *n == size).map(|(_, loss)| *loss).collect();
        of_size.iter().sum::<f64>() / of_size.len() as f64
    };
    (1..=length).map(of_size).sum::<f64>() / length as f64
}

#[test]
fn an_estimate_comes_near_what_all_subsets_say() {
    let served = serve(parity("llada"), CONFIG);
    let records = of_kind("all_subsets");
    for record in &records {
        let name = &record["name"];
        let length = ids(&record["answer_ids"]).len();
        let subsets = record["loss_of_each_subset"].as_array().unwrap();
        let patterns: Vec<Vec<usize>> = subsets.iter().map(|s| masked(&s[0])).collect();
        let exact = record["exact_log_likelihood"].as_f64().unwrap();
        let drawn = RequestParams { seed: 7, ..asked(record, Patterns::Drawn(128)) };
        let asked = [asked(record, Patterns::Given(patterns)), drawn.clone(), drawn];
        let [all, drawn, again] = likelihoods(&served, asked).try_into().unwrap();
        for (sample, want) in all.samples.iter().zip(subsets) {
            let loss = want[1].as_f64().unwrap();
            let difference = (sample.loss - loss).abs();
            assert!(difference < TOLERANCE * length as f64, "{name}: {want} {sample:?}");
        }
        let losses: Vec<(usize, f64)> =
            all.samples.iter().map(|s| (s.masked.len(), s.loss)).collect();
        let mean = -expected_over_subsets(length, &losses);
        assert!((mean - exact).abs() < TOLERANCE * length as f64, "{name}: {mean} {exact}");
        let errors = (drawn.total - exact).abs() / drawn.standard_error;
        println!("{name}: {:.3} ± {:.3}, {exact:.3}", drawn.total, drawn.standard_error);
        assert!(errors < 4.0, "{name}: {} is {errors} errors from {exact}", drawn.total);
        assert_eq!((drawn.samples.len(), drawn), (128, again), "a seed draws the same subsets");
    }
    assert_eq!(records.len(), 5);
}

/// From left to right, the position in question and all behind it are masked.
#[test]
fn scores_of_a_prompt_are_those_of_its_masked_suffixes() {
    for family in ["llada", "dream"] {
        let served = serve(parity(family), CONFIG);
        for record in &of_kind("all_subsets") {
            let text = [ids(&record["prompt_ids"]), ids(&record["answer_ids"])].concat();
            let suffixes = (0..text.len() - 1).map(|i| (i..text.len() - 1).collect()).collect();
            let asked = |task| RequestParams { task, ..greedy(&text, 0, Some(settings(0.0))) };
            let patterns = Patterns::Given(suffixes);
            let masked = asked(Task::Likelihood { answer_start: 1, patterns });
            let [masked] = likelihoods(&served, [masked]).try_into().unwrap();
            let [scores] = tokens(&served, [asked(Task::ScorePrompt)]).try_into().unwrap();
            let first: Vec<f64> = masked.samples.iter().map(|s| -s.token_nll[0]).collect();
            let got: Vec<f64> = scores.iter().map(|token| token.logprob).collect();
            assert_eq!(got, first, "{family} {}", record["name"]);
            let got: Vec<u32> = scores.iter().map(|token| token.id).collect();
            assert_eq!(got, text[1..], "{family} {}", record["name"]);
        }
    }
}

#[test]
fn scores_of_a_causal_prompt_equal_the_original() {
    let served = serve(parity("phi"), CONFIG);
    let records = records("autoregressive/phi_loglikelihood.jsonl");
    let text = |r: &Value| [ids(&r["prompt_ids"]), ids(&r["continuation_ids"])].concat();
    let scores = tokens(
        &served,
        records.iter().map(|record| {
            let params = greedy(&text(record), 0, None);
            let sampling = Sampling { top_logprobs: 5, ..params.sampling.clone() };
            RequestParams { task: Task::ScorePrompt, sampling, ..params }
        }),
    );
    for (record, scores) in records.iter().zip(&scores) {
        let name = &record["name"];
        let want = record["token_logprobs"].as_array().unwrap();
        assert!(want[0].is_null() && want.len() == scores.len() + 1, "{name}");
        for (index, (token, want)) in scores.iter().zip(&want[1..]).enumerate() {
            let want = want.as_f64().unwrap();
            assert!((token.logprob - want).abs() < TOLERANCE, "{name} {index}: {token:?} {want}");
            let top: Vec<u32> = token.top.iter().map(|(id, _)| *id).collect();
            assert_eq!(top, ids(&record["top5_ids"][index + 1]), "{name} {index}");
        }
        // Nothing comes before the first token of a text without a prompt.
        let continuation = &scores[ids(&record["prompt_ids"]).len().saturating_sub(1)..];
        let sum: f64 = continuation.iter().map(|token| token.logprob).sum();
        let want = record["continuation_logprob"].as_f64().unwrap();
        let tolerance = TOLERANCE * continuation.len() as f64;
        assert!((sum - want).abs() < tolerance, "{name}: {sum} {want}");
        let is_greedy = continuation.iter().all(|token| token.top[0].0 == token.id);
        assert_eq!(record["continuation_is_greedy"], is_greedy, "{name}");
    }
    assert_eq!(records.len(), 23);
}

#[test]
fn subsets_that_name_a_position_twice_or_outside_the_answer_are_refused() {
    let served = serve(parity("llada"), CONFIG);
    let refused = |pattern: Vec<usize>| {
        let task = Task::Likelihood { answer_start: 2, patterns: Patterns::Given(vec![pattern]) };
        let params = RequestParams { task, ..greedy(&[5, 6, 7, 8, 9], 0, Some(settings(0.0))) };
        GenerationRequest::new(params, &served.limits).is_err()
    };
    assert!(!refused(vec![0, 2]));
    assert!([vec![], vec![1, 1], vec![2, 0], vec![3]].into_iter().all(refused));
}
