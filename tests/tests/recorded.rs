//! Answers are the same whether steps are launched kernel by kernel or replayed, on the device named by
//! `DFASTLLM_TEST_DEVICE`. In a program of its own: while a pass is recorded, nothing else may be launched.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a suite that meets something unforeseen has failed"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dfastllm_backends::ops::records;
use dfastllm_backends::{Attend, GraphChoice, KernelOptions, KvPool, RaggedRows, configure_kernels};
use dfastllm_engine::decoding::{Cache, DecodingConfig, Preset, Region, Revise, preset};
use dfastllm_engine::{EngineConfig, RequestParams, Usage};
use dfastllm_models::{
    Alignment, BUILTIN_MODELS, Halves, LanguageModel, ModelShape, Probe, ReferenceLoop,
    SpecialTokens, Tensor,
};
use dfastllm_tests::engine::{CONFIG, greedy, serve};
use dfastllm_tests::fixtures::{builtin, device};

const LENGTH: usize = 64;

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
/// written, shadows beside a block, the same twice with and without a prompt, drafted steps, short
/// sequences without a cache.
fn ways(published: ReferenceLoop) -> Vec<DecodingConfig> {
    let fast = preset(Preset::Fast, published, LENGTH);
    let short = DecodingConfig { region: Region::Blocks(16), ..fast.clone() };
    vec![
        DecodingConfig { cache: Cache::Interval, refresh_every: Some(6), ..short.clone() },
        DecodingConfig { revise: Revise::Wino(0.2), ..short.clone() },
        DecodingConfig { cfg_scale: 0.5, ..short.clone() },
        DecodingConfig { cache: Cache::Vicinity { left: 4, right: 7 }, ..short },
        fast,
    ]
}

/// Answers of a model and what they took, and the passes that were not replayed.
fn answers(name: &str, warm_up: bool) -> (Vec<(Vec<u32>, Usage)>, usize) {
    let mut loaded = builtin(name);
    let asked = [
        "What is the capital of France?",
        "Name a colour.",
        "What is the capital of Italy? And of Spain?",
    ];
    let prompts: Vec<Vec<u32>> = asked
        .iter()
        .map(|text| loaded.tokenizer.encode(text, SpecialTokens::Include).unwrap())
        .collect();
    let is_causal = loaded.model.attend() == Attend::Causal;
    let ways: Vec<Option<DecodingConfig>> = match is_causal {
        true => vec![None],
        false => ways(loaded.reference.unwrap()).into_iter().map(Some).collect(),
    };
    let passes = Arc::new(AtomicUsize::new(0));
    loaded.model = Box::new(Counted { model: loaded.model, passes: passes.clone() });
    let served = serve(loaded, EngineConfig { warm_up, ..CONFIG });
    let before = passes.load(Ordering::Relaxed);
    let mut answers = Vec::new();
    for way in ways {
        // One after the other, then together.
        let params = |prompt: &Vec<u32>| RequestParams {
            ignore_eos: true,
            ..greedy(prompt, LENGTH, way.clone())
        };
        let alone = served.answers(prompts[..1].iter().map(params));
        let together = served.answers(prompts.iter().map(params));
        answers.extend(alone.iter().chain(&together).map(|a| (a.ids(), a.usage)));
    }
    let launched = passes.load(Ordering::Relaxed) - before;
    served.engine.shut_down();
    (answers, launched)
}

#[test]
fn answers_are_the_same_with_recorded_steps() {
    if std::env::var_os("DFASTLLM_TEST_DEVICE").is_none() {
        return;
    }
    configure_kernels(KernelOptions { graphs: GraphChoice::On, ..KernelOptions::default() });
    if !records(&device().device) {
        return;
    }
    for name in BUILTIN_MODELS {
        let (expected, all) = answers(name, false);
        let (replayed, launched) = answers(name, true);
        println!("{name}: {launched} of {all} passes are not replayed");
        assert!(replayed == expected, "{name}: {replayed:?} instead of {expected:?}");
        assert!(2 * launched < all, "{name}: {launched} of {all} passes are not replayed");
    }
}
