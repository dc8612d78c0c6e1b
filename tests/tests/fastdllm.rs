//! Fast-dLLM's loops, pass by pass: its quirks are rules of this suite that drive the product's loop.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a suite that meets something unforeseen has failed"
)]

use dfastllm_engine::decoding::{
    BlockState, Cache, CacheRule, CacheView, Candidate, DecodingConfig, Pass, Preset, Quota,
    QuotaRule, Region, Rules, Score, preset, quota_rule,
};
use dfastllm_engine::{GenerationRequest, RequestParams, Sampling};
use dfastllm_models::ReferenceLoop;
use dfastllm_tests::engine::{CONFIG, Served, answer, greedy, serve};
use dfastllm_tests::fixtures::parity;
use dfastllm_tests::golden::{ids, records};
use serde_json::{Value, json};

/// What Fast-dLLM does beside the rule it publishes.
struct Quirks {
    rule: Box<dyn QuotaRule>,
    /// Its factor takes the last candidate too if that is the only one that fails.
    factor: Option<f64>,
    /// Dream's caches take the first position of a block from the whole pass, however unsure.
    takes_first: bool,
    /// Dream without a cache takes this many a pass, and what earlier passes left.
    per_pass: Option<usize>,
    left_over: usize,
}

impl QuotaRule for Quirks {
    fn choose(&mut self, ranked: &[Candidate], state: &BlockState) -> Vec<usize> {
        if let Some(factor) = self.factor {
            let fails =
                |(i, c): (usize, &Candidate)| i > 0 && c.confidence < 1.0 - factor / (i + 2) as f64;
            let first = ranked.iter().enumerate().position(|(i, c)| fails((i, c)));
            let count = match first {
                Some(i) if i + 1 == ranked.len() => ranked.len(),
                other => other.unwrap_or(ranked.len()),
            };
            return (0..count).collect();
        }
        let considered = match self.per_pass {
            Some(each) => &ranked[..(each + self.left_over).min(ranked.len())],
            None => ranked,
        };
        let mut chosen = self.rule.choose(considered, state);
        if let Some(each) = self.per_pass {
            self.left_over = each + self.left_over - chosen.len();
        }
        if self.takes_first && state.step == 0 {
            let first = (0..ranked.len()).min_by_key(|&i| ranked[i].position);
            chosen = first.into_iter().collect();
        }
        chosen
    }

    fn is_finished(&self, state: &BlockState) -> bool {
        self.rule.is_finished(state)
    }
}

/// Dream's window begins with the block: its first row keeps its own logits.
struct WithoutLead(Cache);

impl CacheRule for WithoutLead {
    fn pass(&self, view: &CacheView<'_>) -> Pass {
        self.0.pass(&CacheView { lead: 0, ..view.clone() })
    }
}

fn cache(record: &Value) -> Cache {
    match record["cache"].as_str().unwrap() {
        "none" => Cache::None,
        "prefix" => Cache::Prefix,
        "dual" => Cache::Dual,
        other => panic!("{other}"),
    }
}

fn number(record: &Value, key: &str) -> usize {
    record[key].as_u64().unwrap() as usize
}

/// Runs a record and compares every pass and the tokens.
fn replay(served: &Served, record: &Value, params: RequestParams, rules: Rules) {
    let prompt = ids(&record["prompt_ids"]);
    let params = RequestParams { prompt, ignore_eos: true, ..params };
    let request = GenerationRequest::new(params, &served.limits).unwrap().with_rules(rules);
    let answer = answer(&served.handle.submit(request).unwrap()).unwrap();
    let name =
        format!("{} {} {} {}", record["name"], record["cache"], record["mode"], record["alg"]);
    let mut passes = vec![json!([]); answer.usage.forwards];
    for step in &answer.trace {
        passes[step.step - 1] = json!(step.committed);
    }
    let want: Vec<&Value> = record["trace"].as_array().unwrap().iter().map(|s| &s["c"]).collect();
    for (pass, (got, want)) in passes.iter().zip(&want).enumerate() {
        assert_eq!(&got, want, "{name} pass {}", pass + 1);
    }
    assert_eq!(passes.len(), number(record, "forward_passes"), "{name}");
    let whole = record["passes"].as_str().unwrap().matches('F').count();
    let refreshes = if record["cache"] == "none" { 0 } else { whole };
    assert_eq!(answer.usage.refreshes, refreshes, "{name}");
    assert_eq!(json!(answer.ids()), record["ids"], "{name}");
}

#[test]
fn llada_equals_fast_dllm() {
    let served = serve(parity("llada"), CONFIG);
    let records = records("fastdllm/llada.jsonl");
    for record in &records {
        let length = number(record, "gen_length");
        let quota = match record["mode"].as_str().unwrap() {
            "threshold" => Quota::Threshold(record["value"].as_f64().unwrap()),
            "factor" => Quota::Factor(record["value"].as_f64().unwrap()),
            _ => Quota::EvenSplit { steps: number(record, "steps") },
        };
        let config = DecodingConfig {
            region: Region::Blocks(number(record, "block_length")),
            quota,
            cache: cache(record),
            ..preset(Preset::Reference, ReferenceLoop::EvenSplit, length)
        };
        let rules = Rules {
            quota: Box::new(Quirks {
                rule: quota_rule(&config),
                factor: if let Quota::Factor(f) = quota { Some(f) } else { None },
                takes_first: false,
                per_pass: None,
                left_over: 0,
            }),
            cache: Box::new(config.cache),
        };
        replay(&served, record, greedy(&[], length, Some(config)), rules);
    }
    assert_eq!(records.len(), 60);
}

#[test]
fn dream_equals_fast_dllm() {
    let served = serve(parity("dream"), CONFIG);
    let records = records("fastdllm/dream.jsonl");
    for record in &records {
        let length = number(record, "max_new_tokens");
        let steps = number(record, "steps");
        let is_entropy = record["alg"] == "entropy";
        let region = match record["block_length"].as_u64() {
            Some(size) => Region::Blocks(size as usize),
            None => Region::Canvas,
        };
        let config = DecodingConfig {
            region,
            score: if is_entropy { Score::Entropy } else { Score::Probability },
            quota: match record["threshold"].as_f64() {
                Some(threshold) if !is_entropy => Quota::Threshold(threshold),
                _ => Quota::Timesteps { steps, eps: 1e-3 },
            },
            cache: cache(record),
            ..preset(Preset::Reference, ReferenceLoop::Timesteps, length)
        };
        let is_cached = config.cache != Cache::None;
        let rules = Rules {
            quota: Box::new(Quirks {
                rule: quota_rule(&config),
                factor: None,
                takes_first: is_cached,
                per_pass: (!is_cached).then_some(length / steps),
                left_over: 0,
            }),
            cache: Box::new(WithoutLead(config.cache)),
        };
        let top_k = record["top_k"].as_u64().map(|k| k as usize);
        let sampling = Sampling { top_k, ..Sampling::default() };
        let params = RequestParams { sampling, ..greedy(&[], length, Some(config)) };
        replay(&served, record, params, rules);
    }
    assert_eq!(records.len(), 70);
}
