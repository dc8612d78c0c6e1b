//! The engine with a scripted model: faults stay with their requests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a suite that meets something unforeseen has failed"
)]

use std::time::{Duration, Instant};

use dfastllm_engine::decoding::{DecodingConfig, Preset, Quota, Score, preset};
use dfastllm_engine::{
    Engine, EngineConfig, EngineError, EngineState, GenerationRequest, ModelLimits, RequestParams,
    StartError, SubmitError,
};
use dfastllm_models::{
    Alignment, Attend, DType, KvPool, LanguageModel, ModelShape, Probe, RaggedRows, ReferenceLoop,
    Tensor,
};
use dfastllm_tests::engine::{CONFIG, Served, answer, greedy, serve_model};
use dfastllm_tests::fixtures::cpu;

const VOCAB: usize = 16;
const END: u32 = 1;
const MASK: u32 = 2;
/// A row with this token makes the step panic.
const PANIC: u32 = 13;
/// A row with this token has logits that are not a number.
const NAN: u32 = 14;

/// Predicts the token after its own; token 9 is followed by the end.
struct Counting {
    attend: Attend,
    /// Every pass waits for leave from here.
    leave: Option<flume::Receiver<()>>,
}

/// What a device does whose kernels failed to compile.
struct Zeros;

impl LanguageModel for Zeros {
    fn shape(&self) -> ModelShape {
        Counting { attend: Attend::Causal, leave: None }.shape()
    }

    fn alignment(&self) -> Alignment {
        Alignment::Next
    }

    fn attend(&self) -> Attend {
        Attend::Causal
    }

    fn forward(&self, rows: &RaggedRows, _: &mut KvPool, _: &mut Probe<'_>) -> Tensor<2> {
        Tensor::zeros([rows.len(), VOCAB], &cpu().device)
    }

    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        hidden
    }
}

#[test]
fn a_device_that_computes_nothing_is_found_out_at_the_start() {
    let started = Engine::start(Box::new(Zeros), DType::F32, &cpu().device, CONFIG);
    assert!(matches!(started, Err(StartError::Device)));
}

impl LanguageModel for Counting {
    fn shape(&self) -> ModelShape {
        ModelShape { vocab: VOCAB, max_positions: 64, layers: 1, kv_width: 8 }
    }

    fn alignment(&self) -> Alignment {
        Alignment::Next
    }

    fn attend(&self) -> Attend {
        self.attend
    }

    fn forward(&self, rows: &RaggedRows, _: &mut KvPool, _: &mut Probe<'_>) -> Tensor<2> {
        if let Some(leave) = &self.leave {
            leave.recv().unwrap();
        }
        assert!(!rows.tokens().contains(&PANIC), "scripted");
        let hidden: Vec<f32> = rows.tokens().iter().map(|&t| t as f32).collect();
        Tensor::<1>::from_floats(hidden.as_slice(), &cpu().device).reshape([rows.len(), 1])
    }

    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let rows = hidden.dims()[0];
        let tokens: Vec<f32> = hidden.into_data().try_to_vec().unwrap();
        let row = |&token: &f32| {
            let mut logits = vec![0f32; VOCAB];
            match token as u32 {
                NAN => logits[0] = f32::NAN,
                9 => logits[END as usize] = 10.0,
                token => logits[(token as usize + 1) % VOCAB] = 10.0,
            }
            logits
        };
        let logits: Vec<f32> = tokens.iter().flat_map(row).collect();
        Tensor::<1>::from_floats(logits.as_slice(), &cpu().device).reshape([rows, VOCAB])
    }
}

fn scripted(attend: Attend, config: EngineConfig) -> Served {
    let masked = attend == Attend::Bidirectional;
    let limits = ModelLimits {
        vocab: VOCAB,
        max_model_len: 64,
        end_ids: vec![END],
        mask_id: masked.then_some(MASK),
        reference: masked.then_some(ReferenceLoop::Timesteps),
        alignment: Alignment::Next,
        has_verifier: false,
    };
    serve_model(Box::new(Counting { attend, leave: None }), limits, config)
}

#[test]
fn a_step_that_panics_fails_its_requests_and_the_engine_goes_on() {
    let served = scripted(Attend::Causal, EngineConfig { max_num_seqs: 1, ..CONFIG });
    let good = served.submit(greedy(&[3], 20, None));
    let bad = served.submit(greedy(&[PANIC], 20, None));
    let later = served.submit(greedy(&[5], 20, None));
    assert_eq!(answer(&good).unwrap().ids(), [4, 5, 6, 7, 8, 9, END]);
    assert_eq!(answer(&bad).unwrap_err(), EngineError::StepFailed);
    assert_eq!(answer(&later).unwrap().ids(), [6, 7, 8, 9, END]);
    let stats = served.handle.stats().snapshot();
    assert_eq!((stats.totals.failed_steps, stats.state), (1, EngineState::Ready));
    served.engine.shut_down();
}

#[test]
fn a_device_that_keeps_failing_is_given_up() {
    let served = scripted(Attend::Causal, EngineConfig { max_num_seqs: 1, ..CONFIG });
    for _ in 0..3 {
        let bad = served.submit(greedy(&[PANIC], 20, None));
        assert_eq!(answer(&bad).unwrap_err(), EngineError::StepFailed);
    }
    let request = || GenerationRequest::new(greedy(&[3], 4, None), &served.limits).unwrap();
    // The thread notes its failure after it has told the last request.
    let refused = loop {
        match served.handle.submit(request()) {
            Ok(running) => drop(answer(&running)),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, SubmitError::Failed);
    assert_eq!(served.handle.stats().state(), EngineState::Failed);
}

#[test]
fn values_that_are_not_finite_fail_their_request_only() {
    let served = scripted(Attend::Causal, CONFIG);
    let bad = served.submit(greedy(&[NAN], 20, None));
    let good = served.submit(greedy(&[7], 20, None));
    assert_eq!(answer(&bad).unwrap_err(), EngineError::Numerical);
    assert_eq!(answer(&good).unwrap().ids(), [8, 9, END]);
    assert_eq!(served.handle.stats().snapshot().totals.numerical_errors, 1);
}

#[test]
fn pages_come_back_and_nobody_waits_for_ever() {
    // Room for two sequences of 20 tokens at a time.
    let served = scripted(Attend::Causal, EngineConfig { kv_cache_tokens: 64, ..CONFIG });
    let answers = served.answers((0..30).map(|i| RequestParams {
        ignore_eos: true,
        priority: i % 3,
        ..greedy(&[3, 4, 5], 20, None)
    }));
    assert!(answers.iter().all(|a| a.tokens.len() == 20));
    served.engine.shut_down();
    assert!(served.handle.stats().snapshot().kv_usage.abs() < 1e-9);
}

#[test]
fn a_long_prompt_is_read_in_chunks_of_the_budget() {
    let config = EngineConfig { max_num_batched_tokens: 8, ..CONFIG };
    let served = scripted(Attend::Causal, config);
    let answer = &served.answers([greedy(&[3; 50], 3, None)])[0];
    assert_eq!(answer.ids(), [4, 5, 6]);
    assert_eq!(answer.usage.forwards, 3, "a prompt counts once, however it was cut");
    // Seven chunks, of which the last gives the first token, and two more tokens.
    assert_eq!(served.handle.stats().snapshot().totals.steps, 9);
}

#[test]
fn a_canvas_larger_than_the_budget_is_never_cut() {
    let config = EngineConfig { max_num_batched_tokens: 8, ..CONFIG };
    let served = scripted(Attend::Bidirectional, config);
    let exact = preset(Preset::Exact, ReferenceLoop::EvenSplit, 12);
    let left = DecodingConfig { score: Score::LeftToRight, quota: Quota::One, ..exact };
    let answers = served.answers((0..3).map(|_| greedy(&[3], 12, Some(left.clone()))));
    for answer in answers {
        assert_eq!(answer.ids(), [4, 5, 6, 7, 8, 9, END]);
        assert_eq!(answer.usage.forwards, 7);
        let first = &answer.trace[0];
        assert_eq!((first.step, first.committed.as_slice()), (1, &[(0, 4)][..]));
    }
}

#[test]
fn a_request_can_be_cancelled_while_it_waits_and_while_it_runs() {
    let (go, leave) = flume::unbounded();
    let config = EngineConfig { max_num_seqs: 1, ..CONFIG };
    let limits = scripted(Attend::Causal, CONFIG).limits;
    // Leave for the pass at the start.
    go.send(()).unwrap();
    let model = Counting { attend: Attend::Causal, leave: Some(leave) };
    let served = serve_model(Box::new(model), limits, config);
    let endless = || RequestParams { ignore_eos: true, ..greedy(&[3], 60, None) };
    for _ in 0..10 {
        let (running, waiting) = (served.submit(endless()), served.submit(endless()));
        go.send(()).unwrap();
        running.events.recv().unwrap();
        waiting.cancel.request();
        running.cancel.request();
        // For a pass that may have begun meanwhile; far too few for sixty tokens.
        go.send(()).unwrap();
        assert_eq!(answer(&waiting).unwrap_err(), EngineError::Cancelled);
        assert_eq!(answer(&running).unwrap_err(), EngineError::Cancelled);
    }
    served.engine.shut_down();
}

#[test]
fn time_counts_from_the_arrival() {
    let served = scripted(Attend::Causal, CONFIG);
    let arrival = Instant::now().checked_sub(Duration::from_secs(20)).unwrap();
    let late = |seconds| RequestParams {
        arrival,
        timeout: Duration::from_secs(seconds),
        ..greedy(&[3], 20, None)
    };
    let error = answer(&served.submit(late(10))).unwrap_err();
    assert_eq!(error, EngineError::Timeout { seconds: 10 });
    assert_eq!(answer(&served.submit(late(3600))).unwrap().ids(), [4, 5, 6, 7, 8, 9, END]);
}

/// A prompt of two chunks whose second chunk is poisoned: the pages of the first, known by then,
/// are not given to anyone else.
#[test]
fn nobody_starts_from_pages_that_led_to_nan() {
    let served = scripted(Attend::Causal, EngineConfig { max_num_batched_tokens: 32, ..CONFIG });
    let healthy = [3; 33];
    let poisoned = [healthy.as_slice(), &[NAN]].concat();
    assert_eq!(answer(&served.submit(greedy(&poisoned, 2, None))), Err(EngineError::Numerical));
    let cached =
        |served: &Served| served.answers([greedy(&healthy, 2, None)])[0].usage.cached_tokens;
    assert_eq!([cached(&served), cached(&served)], [0, 32]);
}

#[test]
fn more_than_all_pages_is_refused_at_once() {
    let served = scripted(Attend::Causal, EngineConfig { kv_cache_tokens: 32, ..CONFIG });
    let request = GenerationRequest::new(greedy(&[3; 20], 13, None), &served.limits).unwrap();
    let error = served.handle.submit(request).unwrap_err();
    assert_eq!(error, SubmitError::TooLong { needed: 33, positions: 32 });
    assert_eq!(served.handle.stats().snapshot().queued, 0);
}

#[test]
fn silence_is_noticed_while_there_is_work_and_only_then() {
    let (go, leave) = flume::unbounded();
    let limits = scripted(Attend::Causal, CONFIG).limits;
    // Leave for the pass at the start.
    go.send(()).unwrap();
    let model = Counting { attend: Attend::Causal, leave: Some(leave) };
    let served = serve_model(Box::new(model), limits, CONFIG);
    let silent_for = || served.handle.stats().snapshot().silent_for;
    assert_eq!(silent_for(), Duration::ZERO);
    let running = served.submit(greedy(&[8], 5, None));
    let begun = Instant::now();
    while silent_for() < Duration::from_millis(60) {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::yield_now();
    }
    (0..2).for_each(|_| go.send(()).unwrap());
    assert_eq!(answer(&running).unwrap().ids(), [9, END]);
    while silent_for() > Duration::ZERO {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::yield_now();
    }
}
