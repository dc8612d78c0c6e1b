//! Drafts that a causal model verifies.

use dfastllm_engine::{Engine, Verifier};
use dfastllm_models::DType;
use dfastllm_tests::fixtures::{cpu, parity};

use super::*;

/// The diffusion model with the causal one beside it.
fn with_verifier() -> Served {
    let (main, phi) = (parity("llada"), parity("phi"));
    let limits = ModelLimits::new(&main, main.model.shape().max_positions);
    let limits = ModelLimits { has_verifier: true, ..limits };
    let verifier = Verifier { model: phi.model, kv_dtype: DType::F32 };
    let device = &cpu().device;
    let engine =
        Engine::start_with(main.model, DType::F32, Some(verifier), device, CONFIG).unwrap();
    let handle = engine.handle();
    Served { engine, handle, limits }
}

fn adaptive(weight: f64, cache: Cache) -> DecodingConfig {
    DecodingConfig {
        region: Region::Window(BLOCK),
        score: Score::LeftToRight,
        cache,
        ..by(Quota::Adaptive { weight })
    }
}

#[test]
fn adaptive_drafts_stand_as_far_as_the_mixture_agrees() {
    let [llada, _] = families();
    let (served, phi) = (with_verifier(), serve(parity("phi"), CONFIG));
    let mut forwards = [0; 3];
    for cache in [Cache::None, Cache::Dual, Cache::Prefix, Cache::Interval] {
        for prompt in llada.prompts(5) {
            for (index, weight) in [0.0, 0.5, 1.0].into_iter().enumerate() {
                let params = whole(prompt, adaptive(weight, cache));
                let [answer] = served.answers([params]).try_into().unwrap();
                forwards[index] += answer.usage.forwards;
                assert_eq!((answer.tokens.len(), answer.reason), (LENGTH, FinishReason::Length));
                // A draft of one token, at the end, needs no verification.
                let unverified = answer.usage.forwards - answer.usage.verifier_forwards;
                assert!(unverified <= 1, "{:?}", answer.usage);
                let positions: Vec<usize> = order(&answer.trace).iter().map(|c| c.0).collect();
                assert_eq!(positions, (0..LENGTH).collect::<Vec<_>>(), "from left to right");
                if weight == 1.0 {
                    assert_eq!(answer.usage.forwards, LENGTH / BLOCK, "every draft is accepted");
                }
                if weight == 0.0 && cache == Cache::None {
                    assert_agrees(&phi, prompt, &answer);
                }
            }
        }
    }
    println!("adaptive: {forwards:?} forwards at weight 0, 0.5, 1");
    assert!(forwards[2] < forwards[1] && forwards[1] <= forwards[0]);
}

/// All tokens of a pass but its first are those the causal model continues with.
fn assert_agrees(phi: &Served, prompt: &[u32], answer: &Answer) {
    let text = [prompt.to_vec(), answer.ids()].concat();
    let accepted: Vec<(usize, u32)> =
        answer.trace.iter().flat_map(|step| step.committed[1..].iter().copied()).collect();
    let next = phi.answers(accepted.iter().map(|&(position, _)| {
        let params = greedy(&text[..prompt.len() + position], 1, None);
        RequestParams { ignore_eos: true, ..params }
    }));
    for ((position, id), next) in accepted.into_iter().zip(next) {
        assert_eq!(next.ids(), [id], "position {position}");
    }
}
