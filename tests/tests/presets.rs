//! `exact` says what `reference` says, with less work.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a suite that meets something unforeseen has failed"
)]

use dfastllm_engine::decoding::{Preset, preset};
use dfastllm_engine::{RequestParams, Totals};
use dfastllm_models::{ReferenceLoop, SpecialTokens};
use dfastllm_tests::engine::{Answer, CONFIG, serve};
use dfastllm_tests::fixtures::{builtin, tasks};
use serde_json::{Value, json};

/// Every how many tasks one is asked.
const STRIDE: usize = 3;
const CANVAS: usize = 64;

fn prompts() -> impl Iterator<Item = String> {
    let prompt = |task: Value| task["prompt"].as_str().unwrap().to_owned();
    tasks().into_iter().map(prompt).step_by(STRIDE)
}

fn run(model: &str, published: ReferenceLoop, name: Preset) -> (Vec<Answer>, Totals) {
    let loaded = builtin(model);
    let (chat, tokenizer) = (loaded.chat.clone().unwrap(), loaded.tokenizer.clone());
    let served = serve(loaded, CONFIG);
    let params = prompts().map(|prompt| {
        let messages = json!([{"role": "user", "content": prompt}]);
        let text = chat.render(&messages, None, true).unwrap();
        let ids = tokenizer.encode(&text, SpecialTokens::Skip).unwrap();
        let decoding = Some(preset(name, published, CANVAS));
        RequestParams { decoding, seed: 5, ..RequestParams::new(ids, CANVAS) }
    });
    (served.answers(params), served.handle.stats().snapshot().totals)
}

/// The same tokens, at most 0.6 times the rows through the head, and no pass more.
fn compare(model: &str, published: ReferenceLoop) {
    let (reference, full) = run(model, published, Preset::Reference);
    let (exact, less) = run(model, published, Preset::Exact);
    assert_eq!(reference.len(), 86_usize.div_ceil(STRIDE));
    for (a, b) in reference.iter().zip(&exact) {
        assert!(a.tokens == b.tokens && a.reason == b.reason, "{model}: {a:?} {b:?}");
        assert!(b.usage.forwards <= a.usage.forwards, "{model}");
    }
    let ratio = less.head_rows as f64 / full.head_rows as f64;
    println!(
        "{model}: head rows {ratio:.3}, passes {:.3}",
        less.denoising_passes as f64 / full.denoising_passes as f64
    );
    assert!(ratio <= 0.6, "{model}: {ratio}");
}

#[test]
fn exact_llada_equals_its_published_loop() {
    compare("tiny-llada", ReferenceLoop::EvenSplit);
}

#[test]
fn exact_dream_equals_its_published_loop() {
    compare("tiny-dream", ReferenceLoop::Timesteps);
}
