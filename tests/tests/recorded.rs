//! Answers are the same whether steps are launched kernel by kernel or replayed, on the device named by
//! `DFASTLLM_TEST_DEVICE`. In a program of its own: while a pass is recorded, nothing else may be launched.
#![cfg(any(feature = "cuda", feature = "vulkan"))]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a suite that meets something unforeseen has failed"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dfastllm_backends::ops::records;
use dfastllm_backends::{Attend, KernelOptions, KvPool, RaggedRows, Switch, configure_kernels};
use dfastllm_engine::decoding::{Cache, DecodingConfig, Preset, Quota, Region, Revise, preset};
use dfastllm_engine::{EngineConfig, RequestParams, Usage};
use dfastllm_models::{
    Alignment, BUILTIN_MODELS, Halves, LanguageModel, ModelShape, Probe, ReferenceLoop,
    SpecialTokens, Tensor,
};
use dfastllm_tests::engine::{CONFIG, greedy, serve};
use dfastllm_tests::fixtures::{builtin, device, kernels};
use serde_json::json;

const LENGTH: usize = 32;

/// A model that counts the passes that are launched kernel by kernel.
struct Counted {
    model: Box<dyn LanguageModel>,
    passes: Arc<AtomicUsize>,
}

impl LanguageModel for Counted {
    fn shape(&self) -> ModelShape {
        self.model.shape()
    }

    fn alignment(&self) -> Alignment {
        self.model.alignment()
    }

    fn attend(&self) -> Attend {
        self.model.attend()
    }

    fn forward(&self, rows: &RaggedRows, cache: &mut KvPool, probe: &mut Probe<'_>) -> Tensor<2> {
        self.passes.fetch_add(1, Ordering::Relaxed);
        self.model.forward(rows, cache, probe)
    }

    fn halves(&self) -> Option<&dyn Halves> {
        self.model.halves()
    }

    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.model.logits(hidden)
    }
}

/// Ways to denoise whose passes differ in their spans: a block amid its cache, open positions that are
/// written, shadows beside a block, several drafts of it, the same with and without a prompt, neighbours.
fn ways(published: ReferenceLoop) -> Vec<DecodingConfig> {
    let fast = preset(Preset::Fast, published, LENGTH);
    let quota = Quota::EvenSplit { steps: LENGTH / 4 };
    let short = DecodingConfig { region: Region::Blocks(16), quota, ..fast.clone() };
    let revise = match published {
        ReferenceLoop::EvenSplit => Revise::Wino(0.2),
        // Its rows predict the positions behind them, which shadows would not hide.
        ReferenceLoop::Timesteps => Revise::Below(0.2),
    };
    vec![
        DecodingConfig { cache: Cache::Interval, refresh_every: Some(6), ..short.clone() },
        DecodingConfig { quota: Quota::Threshold(0.6), revise, ..short.clone() },
        DecodingConfig { speculate: 2, ..short.clone() },
        // Four spans a step, which have more rows together than any recording if blocks are longer.
        DecodingConfig {
            region: Region::Blocks(8),
            quota: Quota::EvenSplit { steps: LENGTH / 2 },
            cfg_scale: 0.5,
            ..short.clone()
        },
        DecodingConfig { cache: Cache::Vicinity { left: 4, right: 7 }, ..short },
        DecodingConfig { quota, ..fast },
    ]
}

/// How it went one way.
#[derive(Debug)]
struct Outcome {
    answers: Vec<(Vec<u32>, Usage)>,
    /// Passes that were not replayed.
    launched: usize,
}

/// An answer alone and two at once, in every way of a model.
fn outcomes(name: &str, warm_up: bool) -> Vec<Outcome> {
    let mut loaded = builtin(name);
    let asked = ["What is the capital of France?", "What is the capital of Italy?"];
    let encode = |text: &&str| {
        let messages = json!([{"role": "user", "content": text}]);
        let text = loaded.chat.as_ref().unwrap().render(&messages, None, true).unwrap();
        loaded.tokenizer.encode(&text, SpecialTokens::Skip).unwrap()
    };
    let prompts: Vec<Vec<u32>> = asked.iter().map(encode).collect();
    let ways = loaded
        .reference
        .map_or(vec![None], |published| ways(published).into_iter().map(Some).collect());
    let passes = Arc::new(AtomicUsize::new(0));
    loaded.model = Box::new(Counted { model: loaded.model, passes: passes.clone() });
    let served = serve(loaded, EngineConfig { warm_up, ..CONFIG });
    let outcomes = ways.into_iter().map(|way| {
        let before = passes.load(Ordering::Relaxed);
        let params = |prompt: &Vec<u32>| RequestParams {
            ignore_eos: true,
            ..greedy(prompt, LENGTH, way.clone())
        };
        let mut answers = served.answers(prompts[..1].iter().map(params));
        answers.extend(served.answers(prompts.iter().map(params)));
        let answers = answers.iter().map(|a| (a.ids(), a.usage)).collect();
        Outcome { answers, launched: passes.load(Ordering::Relaxed) - before }
    });
    let outcomes = outcomes.collect();
    served.engine.shut_down();
    outcomes
}

#[test]
fn answers_are_the_same_with_recorded_steps() {
    if std::env::var_os("DFASTLLM_TEST_DEVICE").is_none() {
        return;
    }
    configure_kernels(KernelOptions { graphs: Switch::On, ..kernels() });
    let open = device();
    if !open.spec.compiles_kernels() {
        return;
    }
    assert!(records(&open.device), "{} records nothing", open.spec);
    for name in BUILTIN_MODELS {
        let launched = outcomes(name, false);
        let replayed = outcomes(name, true);
        for (replayed, launched) in replayed.iter().zip(&launched) {
            let passes = (replayed.launched, launched.launched);
            println!("{name}: {} of {} passes are not replayed", passes.0, passes.1);
            assert!(replayed.answers == launched.answers, "{name}: {replayed:?}, {launched:?}");
            // Half, and what it costs where the two requests do not begin in one step.
            assert!(2 * passes.0 <= passes.1 + 4, "{name}: {replayed:?}");
        }
    }
}
