//! What a request answers does not depend on its company: alone, in any batch, with any chunks,
//! pages, drafts or preemptions, bit by bit.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a suite that meets something unforeseen has failed"
)]

use std::collections::HashSet;

use dfastllm_engine::decoding::{DecodingConfig, Preset, preset};
use dfastllm_engine::{
    EngineConfig, FinishReason, GenerationRequest, RequestParams, Sampling, SettledToken, TraceStep,
};
use dfastllm_models::{PAGE_SIZE, ReferenceLoop, SpecialTokens, Tokenizer};
use dfastllm_tests::engine::{Answer, CONFIG, Served, answer, greedy, serve};
use dfastllm_tests::fixtures::builtin;

/// Everything of an answer that may not depend on its company.
type Essence = (Vec<SettledToken>, Vec<TraceStep>, FinishReason, usize);

fn essence(answer: Answer) -> Essence {
    (answer.tokens, answer.trace, answer.reason, answer.usage.forwards)
}

/// Prompts of unequal lengths, some with the same beginning.
fn prompt(index: usize) -> Vec<u32> {
    let shared = (0..40u32).map(|i| 20 + (i * i + index as u32 % 2 * 7) % 900);
    let own = (0..5 + index * 11 % 60).map(|i| 30 + ((i * 37 + index) % 800) as u32);
    if index.is_multiple_of(3) { own.collect() } else { shared.chain(own).collect() }
}

/// Greedy and drawn, with and without filters.
fn sampled(index: usize, params: RequestParams) -> RequestParams {
    let sampling = match index % 3 {
        0 => Sampling { top_logprobs: 3, ..Sampling::default() },
        1 => Sampling { temperature: 0.9, top_p: Some(0.95), ..Sampling::default() },
        _ => Sampling { temperature: 1.3, top_k: Some(20), ..Sampling::default() },
    };
    RequestParams { sampling, seed: index as u64, priority: index as i64 % 2, ..params }
}

fn causal(index: usize) -> RequestParams {
    let params = greedy(&prompt(index), 20 + index * 13 % 50, None);
    sampled(index, RequestParams { max_draft: 6, ignore_eos: index.is_multiple_of(2), ..params })
}

fn alone(served: &Served, params: impl Fn(usize) -> RequestParams, count: usize) -> Vec<Essence> {
    let answers = (0..count).map(|i| essence(served.answers([params(i)]).pop().unwrap()));
    let answers: Vec<Essence> = answers.collect();
    let texts: HashSet<Vec<u32>> =
        answers.iter().map(|(tokens, ..)| tokens.iter().map(|t| t.id).collect()).collect();
    assert!(texts.len() > count / 2, "seeds and prompts make a difference");
    answers
}

#[test]
fn a_causal_answer_is_the_same_alone_and_in_any_company() {
    let served = serve(builtin("tiny-phi"), CONFIG);
    let expected = alone(&served, causal, 12);
    // Each of them makes something else scarce: nothing, rows, seats, pages.
    for (config, preempts) in [
        (CONFIG, false),
        (EngineConfig { max_num_batched_tokens: 24, ..CONFIG }, false),
        (EngineConfig { max_num_seqs: 3, max_num_batched_tokens: 7, ..CONFIG }, false),
        (EngineConfig { kv_cache_tokens: 12 * PAGE_SIZE, ..CONFIG }, true),
    ] {
        let served = serve(builtin("tiny-phi"), config);
        for (index, answer) in served.answers((0..12).map(causal)).into_iter().enumerate() {
            assert!(essence(answer) == expected[index], "request {index} with {config:?}");
        }
        let totals = served.handle.stats().snapshot().totals;
        assert_eq!(totals.preemptions > 0, preempts, "{config:?}");
        assert!(totals.draft_tokens > 0, "drafts were made");
    }
}

#[test]
fn a_denoised_answer_is_the_same_alone_and_in_any_company() {
    let denoising = |index: usize| {
        let length = 16 + index * 7 % 40;
        let fast = preset(Preset::Fast, ReferenceLoop::EvenSplit, length);
        let config = DecodingConfig {
            cfg_scale: if index == 4 { 1.0 } else { 0.0 },
            order_temperature: if index == 5 { 0.5 } else { 0.0 },
            ..fast
        };
        sampled(index, greedy(&prompt(index), length, Some(config)))
    };
    let served = serve(builtin("tiny-llada"), CONFIG);
    let expected = alone(&served, denoising, 8);
    for config in [CONFIG, EngineConfig { max_num_batched_tokens: 150, ..CONFIG }] {
        let served = serve(builtin("tiny-llada"), config);
        for (index, answer) in served.answers((0..8).map(denoising)).into_iter().enumerate() {
            assert!(essence(answer) == expected[index], "request {index} with {config:?}");
        }
    }
}

/// The same question twice, with the answer in between: the second answer repeats much of it.
fn asked_again(served: &Served, tokenizer: &Tokenizer, question: &str) -> RequestParams {
    let text = format!("<|user|>\n{question}<|end|>\n<|assistant|>\n");
    let asked = tokenizer.encode(&text, SpecialTokens::Include).unwrap();
    let answered = served.answers([greedy(&asked, 150, None)]).pop().unwrap().ids();
    let newline = tokenizer.encode("\n", SpecialTokens::Include).unwrap();
    greedy(&[asked.clone(), answered, newline, asked].concat(), 100, None)
}

#[test]
fn drafts_change_no_token_and_save_passes() {
    let loaded = builtin("tiny-phi");
    let tokenizer = loaded.tokenizer.clone();
    let served = serve(loaded, CONFIG);
    let mut forwards = [0; 2];
    for question in [
        "Tell me a story about Noah and a green boat.",
        "I want a story with Clara and a purple hat.",
        "Multiplication table of 5 up to 6, please.",
        "Count down from 28 to 19.",
    ] {
        let plain = asked_again(&served, &tokenizer, question);
        let drafted = RequestParams { max_draft: 8, ..plain.clone() };
        let [plain, drafted] = [plain, drafted].map(|p| served.answers([p]).pop().unwrap());
        assert_eq!(plain.tokens, drafted.tokens);
        assert_eq!(plain.usage.forwards, plain.tokens.len());
        forwards[0] += plain.usage.forwards;
        forwards[1] += drafted.usage.forwards;
        let traced: usize = drafted.trace.iter().map(|step| step.committed.len()).sum();
        assert_eq!((traced, drafted.trace.len()), (plain.tokens.len(), drafted.usage.forwards));
    }
    let ratio = forwards[0] as f64 / forwards[1] as f64;
    println!("{forwards:?}: {ratio:.2} times fewer passes");
    assert!(ratio >= 1.5, "{ratio:.2} times fewer passes");
    let totals = served.handle.stats().snapshot().totals;
    assert_eq!(totals.accepted_tokens, (forwards[0] - forwards[1]) as u64);
}

#[test]
fn a_prompt_is_read_once_for_all_choices_and_for_whoever_comes_later() {
    let served = serve(builtin("tiny-phi"), CONFIG);
    let prompt = &[prompt(1), prompt(2), prompt(4)].concat()[..100];
    let choice = |seed| {
        let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        RequestParams { sampling, seed, ignore_eos: true, ..greedy(prompt, 10, None) }
    };
    let request = |seed| GenerationRequest::new(choice(seed), &served.limits).unwrap();
    let running = served.handle.submit_choices((0..4).map(request).collect()).unwrap();
    let answers: Vec<Answer> = running.iter().map(|r| answer(r).unwrap()).collect();
    // The prompt, its last row again for three choices, and nine more rows of each of the four.
    assert_eq!(served.handle.stats().snapshot().totals.rows, 100 + 3 + 4 * 9);
    let cached: Vec<usize> = answers.iter().map(|a| a.usage.cached_tokens).collect();
    assert_eq!(cached, [0, 99, 99, 99]);
    for (seed, answer) in answers.into_iter().enumerate() {
        let alone = serve(builtin("tiny-phi"), CONFIG).answers([choice(seed as u64)]);
        assert!(essence(answer) == essence(alone.into_iter().next().unwrap()), "choice {seed}");
    }
    // Full pages of the prompt only, and never all of it: the last row gives the first token.
    let again = &served.answers([choice(0)])[0];
    assert_eq!(again.usage.cached_tokens, 100 / PAGE_SIZE * PAGE_SIZE);
    let shorter = &served.answers([greedy(&prompt[..PAGE_SIZE * 2], 1, None)])[0];
    assert_eq!(shorter.usage.cached_tokens, PAGE_SIZE);
}

#[test]
fn denoised_requests_share_no_pages() {
    let served = serve(builtin("tiny-llada"), CONFIG);
    let fast = preset(Preset::Fast, ReferenceLoop::EvenSplit, 16);
    for _ in 0..2 {
        let answer = &served.answers([greedy(&prompt(1), 16, Some(fast.clone()))])[0];
        assert_eq!(answer.usage.cached_tokens, 0);
    }
    assert_eq!(served.handle.stats().snapshot().totals.prefix_queries, 0);
}

#[test]
fn streams_dropped_after_a_few_tokens_leave_nothing_behind() {
    let config = EngineConfig { max_queue: 500, kv_cache_tokens: 300 * PAGE_SIZE, ..CONFIG };
    let served = serve(builtin("tiny-phi"), config);
    let stats = || served.handle.stats().snapshot();
    for round in 0..10 {
        let request =
            |i: usize| RequestParams { ignore_eos: true, ..greedy(&prompt(round + i), 300, None) };
        let streams: Vec<_> = (0..500).map(|i| served.submit(request(i))).collect();
        for stream in &streams[..4] {
            for _ in 0..3 {
                stream.events.recv().unwrap();
            }
        }
        drop(streams);
        let before = stats().totals.steps;
        let gone = |s: &dfastllm_engine::StatsSnapshot| {
            (s.queued, s.running) == (0, 0) && s.kv_usage < 1e-9
        };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !gone(&stats()) {
            assert!(std::time::Instant::now() < deadline, "round {round}: {:?}", stats());
            std::thread::yield_now();
        }
        let steps = stats().totals.steps - before;
        assert!(steps <= 2, "round {round}: {steps} steps");
    }
}
