//! Decoding against the traces of the original implementations.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a suite that meets something unforeseen has failed"
)]

use std::collections::VecDeque;

use dfastllm_engine::decoding::{
    BlockState, DecodingConfig, Preset, Quota, Region, Score, Uniforms, preset, quota_rule,
};
use dfastllm_engine::{GenerationRequest, RequestParams, Sampling};
use dfastllm_models::ReferenceLoop;
use dfastllm_models::ops::philox::Counter;
use dfastllm_tests::engine::{Answer, CONFIG, answer, greedy, serve};
use dfastllm_tests::fixtures::parity;
use dfastllm_tests::golden::{ids, numbers, records};
use serde_json::{Value, json};

fn number(record: &Value, key: &str) -> usize {
    record[key].as_u64().unwrap() as usize
}

/// Passes with their commits; passes that committed nothing are empty.
fn commits(answer: &Answer) -> Vec<Value> {
    let mut passes = vec![json!([]); answer.usage.forwards];
    for step in &answer.trace {
        passes[step.step - 1] = json!(step.committed);
        assert!(step.remasked.is_empty());
    }
    passes
}

fn assert_trace(record: &Value, trace: &Value, ids: &Value, answer: &Answer) {
    let want: Vec<Value> = trace.as_array().unwrap().iter().map(|step| step["c"].clone()).collect();
    let got = commits(answer);
    assert_eq!(got.len(), number(record, "forward_passes"), "{}", record["name"]);
    for (step, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_eq!(got, want, "{} pass {}", record["name"], step + 1);
    }
    assert_eq!(json!(answer.ids()), *ids, "{}", record["name"]);
}

fn llada(record: &Value) -> (usize, DecodingConfig) {
    let length = number(record, "gen_length");
    let config = DecodingConfig {
        region: Region::Blocks(number(record, "block_length")),
        quota: Quota::EvenSplit { steps: number(record, "steps") },
        cfg_scale: record["cfg_scale"].as_f64().unwrap(),
        ..preset(Preset::Reference, ReferenceLoop::EvenSplit, length)
    };
    (length, config)
}

/// Every position of the canvas, end tokens included, as the originals return them.
fn whole_canvas(prompt: &[u32], length: usize, config: DecodingConfig) -> RequestParams {
    RequestParams { ignore_eos: true, ..greedy(prompt, length, Some(config)) }
}

#[test]
fn llada_traces_equal_generate() {
    let served = serve(parity("llada"), CONFIG);
    let records = records("llada/generate.jsonl");
    let answers = served.answers(records.iter().map(|record| {
        let (length, config) = llada(record);
        whole_canvas(&ids(&record["prompt_ids"]), length, config)
    }));
    for (record, answer) in records.iter().zip(&answers) {
        assert_trace(record, &record["trace"], &record["ids"], answer);
    }
    assert_eq!(records.len(), 70);
}

/// Rows of a padded batch are sequences of their own here.
#[test]
fn llada_batches_equal_generate_row_by_row() {
    let served = serve(parity("llada"), CONFIG);
    let records = records("llada/generate_batch.jsonl");
    for record in &records {
        let (length, config) = llada(record);
        let rows = prompts_without_padding(record);
        let answers =
            served.answers(rows.iter().map(|row| whole_canvas(row, length, config.clone())));
        for (row, answer) in answers.iter().enumerate() {
            assert_trace(record, &record["trace"][row], &record["ids"][row], answer);
        }
    }
    assert_eq!(records.len(), 7);
}

fn prompts_without_padding(record: &Value) -> Vec<Vec<u32>> {
    let prompts = record["prompt_ids"].as_array().unwrap();
    let masks = record["attention_mask"].as_array().unwrap();
    let keep = |(prompt, mask): (&Value, &Value)| {
        ids(prompt).into_iter().zip(ids(mask)).filter(|(_, m)| *m == 1).map(|(id, _)| id).collect()
    };
    prompts.iter().zip(masks).map(keep).collect()
}

fn dream(record: &Value) -> RequestParams {
    let length = number(record, "max_new_tokens");
    let score = match record["alg"].as_str().unwrap() {
        "entropy" => Score::Entropy,
        "maskgit_plus" => Score::Probability,
        "topk_margin" => Score::Margin,
        "origin" => Score::Random,
        other => panic!("{other}"),
    };
    let (steps, eps) = (number(record, "steps"), record["eps"].as_f64().unwrap());
    let quota = match score {
        Score::Random => Quota::Bernoulli { steps, eps },
        _ => Quota::Timesteps { steps, eps },
    };
    let config = DecodingConfig {
        score,
        quota,
        ..preset(Preset::Reference, ReferenceLoop::Timesteps, length)
    };
    let top_k = record["top_k"].as_u64().map(|k| k as usize);
    let params = whole_canvas(&[], length, config);
    RequestParams { sampling: Sampling { top_k, ..Sampling::default() }, ..params }
}

#[test]
fn dream_traces_equal_diffusion_generate() {
    let served = serve(parity("dream"), CONFIG);
    let records = records("dream/diffusion_generate.jsonl");
    let answers = served.answers(
        records.iter().map(|r| RequestParams { prompt: ids(&r["prompt_ids"]), ..dream(r) }),
    );
    for (record, answer) in records.iter().zip(&answers) {
        assert_trace(record, &record["trace"], &record["ids"], answer);
    }
    assert_eq!(records.len(), 55);
}

#[test]
fn dream_batches_equal_diffusion_generate_row_by_row() {
    let served = serve(parity("dream"), CONFIG);
    let records = records("dream/diffusion_generate_batch.jsonl");
    for record in &records {
        let rows = prompts_without_padding(record);
        let answers = served
            .answers(rows.iter().map(|row| RequestParams { prompt: row.clone(), ..dream(record) }));
        for (row, answer) in answers.iter().enumerate() {
            assert_trace(record, &record["trace"][row], &record["ids"][row], answer);
        }
    }
    assert_eq!(records.len(), 4);
}

/// Recorded draws in the order the original made them.
#[derive(Debug)]
struct Tape(VecDeque<f64>);

impl Uniforms for Tape {
    fn draw(&mut self, _: Counter) -> f64 {
        self.0.pop_front().expect("the record holds a draw for every masked position")
    }
}

#[test]
fn dream_origin_replays_recorded_draws() {
    let served = serve(parity("dream"), CONFIG);
    let records = records("dream/origin_replay.jsonl");
    for record in &records {
        let draws = record["trace"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|step| numbers(&step["u"]))
            .collect();
        let params = RequestParams { prompt: ids(&record["prompt_ids"]), ..dream(record) };
        let request = GenerationRequest::new(params, &served.limits).unwrap();
        let request = request.with_uniforms(Box::new(Tape(draws)));
        let answer = answer(&served.handle.submit(request).unwrap()).unwrap();
        assert_trace(record, &record["trace"], &record["ids"], &answer);
    }
    assert_eq!(records.len(), 4);
}

#[test]
fn timestep_quotas_equal_the_recorded_schedules() {
    let records = records("dream/schedule.jsonl");
    for record in &records {
        let (steps, mut open) = (number(record, "steps"), number(record, "masked"));
        let eps = record["eps"].as_f64().unwrap();
        let rule = quota_rule(&DecodingConfig {
            quota: Quota::Timesteps { steps, eps },
            ..preset(Preset::Reference, ReferenceLoop::Timesteps, open)
        });
        let quotas: Vec<usize> = (0..steps)
            .map(|step| {
                let state = BlockState { step, steps, open, open_at_start: open };
                let quota = rule.planned(&state).unwrap();
                open -= quota;
                quota
            })
            .collect();
        assert_eq!(json!(quotas), record["per_step"], "{record}");
    }
    assert!(records.len() > 50, "{}", records.len());
}

#[test]
fn phi_greedy_continuations_equal_the_original() {
    let served = serve(parity("phi"), CONFIG);
    let records = records("autoregressive/phi_greedy.jsonl");
    let answers = served.answers(records.iter().map(|r| {
        let params = greedy(&ids(&r["prompt_ids"]), number(r, "max_new_tokens"), None);
        RequestParams { sampling: Sampling { top_logprobs: 5, ..Sampling::default() }, ..params }
    }));
    for (record, answer) in records.iter().zip(&answers) {
        assert_eq!(json!(answer.ids()), record["ids"], "{}", record["name"]);
        let reason = format!("{:?}", answer.reason).to_lowercase();
        assert_eq!(record["finish_reason"], reason.as_str());
        assert_eq!(answer.usage.forwards, answer.tokens.len());
        for (i, (token, want)) in answer.tokens.iter().zip(numbers(&record["logprobs"])).enumerate()
        {
            assert!(
                (token.logprob - want).abs() < 1e-3,
                "{} {i}: {token:?} {want}",
                record["name"]
            );
            let top: Vec<u32> = token.top.iter().map(|(id, _)| *id).collect();
            assert_eq!(top, ids(&record["top5_ids"][i]), "{} {i}", record["name"]);
        }
    }
    assert_eq!(records.len(), 40);
}
