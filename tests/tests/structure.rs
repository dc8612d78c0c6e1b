//! Answers with a structure, from the engine: every family's follow it, and no draft changes them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a suite that meets something unforeseen has failed"
)]

use std::sync::LazyLock;

use dfastllm_engine::decoding::{DecodingConfig, Preset, preset};
use dfastllm_engine::{FinishReason, RequestParams, Sampling};
use dfastllm_models::{SpecialTokens, Structure, StructureCompiler, Tokenizer};
use dfastllm_tests::engine::{Answer, CONFIG, Served, greedy, serve};
use dfastllm_tests::fixtures::builtin;
use serde_json::{Value, json};

/// Positions of an answer at most.
const LENGTH: usize = 64;

/// A served model with what turns structures into guides.
struct Structured {
    served: Served,
    tokenizer: Tokenizer,
    compiler: StructureCompiler,
}

impl Structured {
    fn new(model: &str) -> Self {
        let loaded = builtin(model);
        let (tokenizer, vocab) = (loaded.tokenizer.clone(), loaded.model.shape().vocab);
        let compiler = StructureCompiler::new(&tokenizer, vocab, &loaded.special.end_ids).unwrap();
        Self { served: serve(loaded, CONFIG), tokenizer, compiler }
    }

    fn decoding(&self, preset_name: Preset) -> Option<DecodingConfig> {
        self.served.limits.reference.map(|published| preset(preset_name, published, LENGTH))
    }

    fn params(&self, structure: &Structure, temperature: f64, seed: u64) -> RequestParams {
        let prompt = self.tokenizer.encode("Tell me about Rome.", SpecialTokens::Include).unwrap();
        RequestParams {
            structure: Some(self.compiler.compile(structure).unwrap()),
            sampling: Sampling { temperature, ..Sampling::default() },
            seed,
            ..greedy(&prompt, LENGTH, self.decoding(Preset::Fast))
        }
    }

    fn text(&self, answer: &Answer) -> String {
        self.tokenizer.decode(&answer.ids(), SpecialTokens::Skip)
    }
}

static PHI: LazyLock<Structured> = LazyLock::new(|| Structured::new("tiny-phi"));
static LLADA: LazyLock<Structured> = LazyLock::new(|| Structured::new("tiny-llada"));
static DREAM: LazyLock<Structured> = LazyLock::new(|| Structured::new("tiny-dream"));

fn families() -> [&'static Structured; 3] {
    [&PHI, &LLADA, &DREAM]
}

fn city() -> Structure {
    Structure::JsonSchema(json!({
        "type": "object",
        "properties": {
            "city": {"enum": ["Rome", "Paris"]},
            "people": {"type": "integer", "minimum": 0, "maximum": 99},
            "old": {"type": "boolean"},
        },
        "required": ["city", "people", "old"],
        "additionalProperties": false,
    }))
}

fn is_city(text: &str) -> bool {
    let Ok(value) = serde_json::from_str::<Value>(text) else { return false };
    let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
    keys == ["city", "people", "old"]
        && ["Rome", "Paris"].contains(&value["city"].as_str().unwrap())
        && value["people"].as_u64().is_some_and(|n| n < 100)
        && value["old"].is_boolean()
}

#[test]
fn answers_of_every_family_follow_a_schema_whatever_is_drawn() {
    for family in families() {
        let drawn = (0..8).map(|seed| family.params(&city(), f64::from(seed as u32) / 2.0, seed));
        for answer in family.served.answers(drawn) {
            let text = family.text(&answer);
            assert!(is_city(&text), "{text}");
            assert_eq!(answer.reason, FinishReason::Stop);
        }
        let free = RequestParams { structure: None, ..family.params(&city(), 0.0, 0) };
        let text = family.text(&family.served.answers([free])[0]);
        assert!(!text.starts_with('{'), "{text}");
    }
}

#[test]
fn what_cannot_be_otherwise_takes_no_pass_of_its_own() {
    let text = "In the beginning there was nothing at all.";
    for family in families() {
        let choice = Structure::Choice(vec![text.to_owned()]);
        let answer = &family.served.answers([family.params(&choice, 1.0, 3)])[0];
        assert_eq!(family.text(answer), text);
        let (passes, tokens) = (answer.usage.forwards, answer.tokens.len());
        assert!(passes * 3 <= tokens, "{passes} passes for {tokens} tokens");
        assert!(answer.tokens.iter().all(|t| t.logprob < 0.0), "measured as the model finds them");
    }
}

#[test]
fn drafts_change_no_token_of_a_structure() {
    let pattern = Structure::Regex("(the cat sat on the mat, ){1,4}[a-z]{1,8}".to_owned());
    let params = |max_draft, seed| RequestParams { max_draft, ..PHI.params(&pattern, 1.5, seed) };
    let without = PHI.served.answers((0..6).map(|seed| params(0, seed)));
    let with = PHI.served.answers((0..6).map(|seed| params(8, seed)));
    for (a, b) in without.iter().zip(&with) {
        assert_eq!(a.tokens, b.tokens);
        assert!(PHI.text(a).starts_with("the cat sat on the mat, "));
    }
}

#[test]
fn every_way_to_denoise_follows_a_structure() {
    for family in [&*LLADA, &*DREAM] {
        for name in [Preset::Reference, Preset::Exact, Preset::Fast, Preset::Turbo] {
            let params =
                RequestParams { decoding: family.decoding(name), ..family.params(&city(), 0.0, 0) };
            let answer = &family.served.answers([params])[0];
            let text = family.text(answer);
            assert!(is_city(&text), "{name}: {text}");
        }
    }
}

#[test]
fn an_answer_that_may_end_ends_where_the_model_says_so() {
    let digits = Structure::Regex("[0-9]{2,40}".to_owned());
    for family in families() {
        for answer in family.served.answers((0..6).map(|seed| family.params(&digits, 1.0, seed))) {
            let text = family.text(&answer);
            assert!((2..=40).contains(&text.len()), "{text}");
            assert!(text.bytes().all(|b| b.is_ascii_digit()), "{text}");
        }
    }
}

#[test]
fn too_few_positions_are_a_length_and_no_broken_rule() {
    for family in families() {
        let params = RequestParams {
            decoding: family.served.limits.reference.map(|p| preset(Preset::Fast, p, 6)),
            max_tokens: 6,
            ..family.params(&city(), 0.0, 0)
        };
        let answer = &family.served.answers([params])[0];
        assert_eq!((answer.reason, answer.tokens.len()), (FinishReason::Length, 6));
        assert!(family.text(answer).starts_with("{\""), "{}", family.text(answer));
    }
}
