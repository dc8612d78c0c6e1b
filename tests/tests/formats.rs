//! What smaller weights cost: loss of given answers and greedy tokens, against f32.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a suite that meets something unforeseen has failed"
)]

use dfastllm_backends::{DTypeChoice, Quantize, WeightChoice};
use dfastllm_engine::decoding::{Preset, preset};
use dfastllm_engine::{Patterns, RequestParams, Task};
use dfastllm_models::{SpecialTokens, Tokenizer};
use dfastllm_tests::engine::{CONFIG, Served, greedy, serve};
use dfastllm_tests::fixtures::{builtin_as, is_right, tasks};
use dfastllm_tests::scores::{likelihoods, tokens};
use serde_json::{Value, json};

/// Tokens of a greedy answer at most, as in the tasks' table.
const LENGTH: usize = 128;
/// Random subsets of an answer that a diffusion model's loss is the mean over.
const SAMPLES: usize = 16;

/// A task's prompt and the prompt with its expected answer, as ids.
type Texts = Vec<(Vec<u32>, Vec<u32>)>;

struct Quality {
    /// Nats a token of the expected answers; for diffusion models those of the Monte-Carlo bound.
    loss: f64,
    /// Greedy answers.
    answers: Vec<Vec<u32>>,
    /// Percent of the tasks they solve.
    accuracy: f64,
}

fn texts(model: &str, weights: WeightChoice) -> (Served, Tokenizer, Texts) {
    let loaded = builtin_as(model, weights);
    let (chat, tokenizer) = (loaded.chat.clone().unwrap(), loaded.tokenizer.clone());
    let texts = tasks()
        .iter()
        .map(|task| {
            let messages = json!([{"role": "user", "content": task["prompt"]}]);
            let prompt = chat.render(&messages, None, true).unwrap();
            let whole = format!("{prompt}{}<|end|>", task["expected"].as_str().unwrap());
            let ids = |text: &str| tokenizer.encode(text, SpecialTokens::Skip).unwrap();
            (ids(&prompt), ids(&whole))
        })
        .collect();
    (serve(loaded, CONFIG), tokenizer, texts)
}

fn measure(model: &str, weights: WeightChoice) -> Quality {
    let (served, tokenizer, texts) = texts(model, weights);
    let published = served.limits.reference;
    let config = published.map(|published| preset(Preset::Exact, published, LENGTH));
    let greedily = published.map(|published| preset(Preset::Fast, published, LENGTH));
    let answered = texts.iter().map(|(prompt, _)| greedy(prompt, LENGTH, greedily.clone()));
    let answers: Vec<Vec<u32>> = served.answers(answered).iter().map(|a| a.ids()).collect();
    let solves = |(task, ids): &(&Value, &Vec<u32>)| {
        is_right(task, &tokenizer.decode(ids, SpecialTokens::Skip))
    };
    let right = tasks().iter().zip(&answers).filter(solves).count();
    let accuracy = 100.0 * right as f64 / answers.len() as f64;
    let count: usize = texts.iter().map(|(prompt, whole)| whole.len() - prompt.len()).sum();
    let asked = |task: &dyn Fn(usize) -> Task| -> Vec<RequestParams> {
        let ask = |(prompt, whole): &(Vec<u32>, Vec<u32>)| RequestParams {
            task: task(prompt.len()),
            ..greedy(whole, 0, config.clone())
        };
        texts.iter().map(ask).collect()
    };
    let total: f64 = if published.is_some() {
        let patterns = Patterns::Drawn(SAMPLES);
        let task = |answer_start| Task::Likelihood { answer_start, patterns: patterns.clone() };
        likelihoods(&served, asked(&task)).iter().map(|found| -found.total).sum()
    } else {
        let scored = tokens(&served, asked(&|_| Task::ScorePrompt));
        let of_answer =
            scored.iter().zip(&texts).flat_map(|(s, (prompt, _))| &s[prompt.len() - 1..]);
        of_answer.map(|token| -token.logprob).sum()
    };
    Quality { loss: total / count as f64, answers, accuracy }
}

/// Share of tokens up to the first that differs.
fn agreement(a: &Quality, b: &Quality) -> f64 {
    let (mut same, mut all) = (0, 0);
    for (a, b) in a.answers.iter().zip(&b.answers) {
        same += a.iter().zip(b).take_while(|(a, b)| a == b).count();
        all += a.len().max(b.len());
    }
    f64::from(same as u32) / f64::from(all as u32)
}

/// How many shares of the loss may be lost, and how many of the greedy tokens have to stay.
const BOUNDS: [(DTypeChoice, Quantize, f64, f64); 4] = [
    (DTypeChoice::F16, Quantize::None, 0.003, 0.95),
    (DTypeChoice::Bf16, Quantize::None, 0.003, 0.85),
    (DTypeChoice::F32, Quantize::Int8, 0.003, 0.65),
    (DTypeChoice::F32, Quantize::Int4, 0.02, 0.4),
];
/// Points of accuracy that may be lost: two tasks of 86.
const POINTS: f64 = 2.4;

fn check(model: &str) {
    let exact = measure(model, DTypeChoice::F32.into());
    println!("{model} f32: {:.4} nats, {:.1} % right", exact.loss, exact.accuracy);
    for (dtype, quantize, worse, alike) in BOUNDS {
        let found = measure(model, WeightChoice { dtype, quantize });
        let (more, same) = (found.loss / exact.loss - 1.0, agreement(&exact, &found));
        let name = format!("{model} {dtype} {quantize}");
        let (loss, right) = (found.loss, found.accuracy);
        println!(
            "{name}: {loss:.4} nats ({:+.2} %), {same:.3} alike, {right:.1} % right",
            100.0 * more
        );
        assert!(right >= exact.accuracy - POINTS, "{name}: {right} % right");
        assert!(more < worse, "{name}: {more}");
        assert!(same > alike, "{name}: {same}");
        assert!(found.loss != exact.loss, "{name} is not f32");
    }
}

#[test]
fn smaller_weights_of_phi_cost_little() {
    check("tiny-phi");
}

#[test]
fn smaller_weights_of_llada_cost_little() {
    check("tiny-llada");
}

#[test]
fn smaller_weights_of_dream_cost_little() {
    check("tiny-dream");
}
