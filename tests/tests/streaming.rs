//! Streams: the order of their chunks, and that they add up to the whole answer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a suite that meets something unforeseen has failed"
)]

use dfastllm_tests::http::{CHAT, COMPLETIONS, Server, chat_body, serve_builtin, with};
use futures_util::stream::{self, StreamExt};
use serde_json::{Map, Value, json};

/// Pairs of a whole answer and its stream, over all models.
const PAIRS: usize = 1002;
/// Pairs at a time.
const AT_ONCE: usize = 12;

#[tokio::test]
async fn chunks_come_in_the_order_that_clients_expect() {
    for model in ["tiny-phi", "tiny-llada", "tiny-dream"] {
        let server = serve_builtin(model).await;
        let more = json!({"stream": true, "n": 2, "stream_options": {"include_usage": true}});
        let (chunks, done) = server.stream(CHAT, &with(chat_body(model), more)).await;
        assert!(done, "the last event is [DONE]");
        for key in ["id", "object", "created", "model"] {
            assert!(chunks.iter().all(|c| c[key] == chunks[0][key] && !c[key].is_null()), "{key}");
        }
        assert!(chunks[0]["id"].as_str().unwrap().starts_with("chatcmpl-"));
        let (usage, others) = chunks.split_last().unwrap();
        assert_eq!(usage["choices"], json!([]));
        assert!(usage["usage"]["total_tokens"].is_u64());
        assert!(others.iter().all(|c| c.get("usage") == Some(&Value::Null)), "{model}");
        for index in 0..2 {
            let of: Vec<&Value> =
                others.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == index).collect();
            let (last, rest) = of.split_last().unwrap();
            assert_eq!(rest[0]["delta"], json!({"role": "assistant", "content": ""}));
            assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("stop")));
            for choice in &rest[1..] {
                assert!(
                    choice["delta"]["content"].is_string() && choice["delta"]["role"].is_null()
                );
                assert_eq!(
                    (&choice["finish_reason"], &choice["logprobs"]),
                    (&Value::Null, &Value::Null)
                );
            }
        }
        let plain = with(chat_body(model), json!({"stream": true}));
        let (chunks, _) = server.stream(CHAT, &plain).await;
        assert!(chunks.iter().all(|c| c.get("usage").is_none() && c["choices"][0].is_object()));
    }
}

#[tokio::test]
async fn obfuscated_chunks_tell_nothing_of_their_length() {
    let server = serve_builtin("tiny-phi").await;
    let more = json!({"stream": true, "stream_options": {"include_obfuscation": true}});
    let (chunks, _) = server.stream(CHAT, &with(chat_body("tiny-phi"), more)).await;
    for chunk in &chunks {
        let text = chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        let padding = chunk["obfuscation"].as_str().unwrap();
        assert_eq!((text.len() + padding.len()) % 32, 0, "{chunk}");
    }
    let plain = json!({"stream": true, "stream_options": {"include_obfuscation": false}});
    let (chunks, _) = server.stream(CHAT, &with(chat_body("tiny-phi"), plain)).await;
    assert!(chunks.iter().all(|c| c.get("obfuscation").is_none()));
}

/// A stream of numbers that is the same in every run (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    /// One of them, `null` as often as each.
    fn maybe(&mut self, values: &[Value]) -> Value {
        let index = self.below(values.len() as u64 + 1) as usize;
        values.get(index).cloned().unwrap_or_default()
    }
}

fn question(dice: &mut Dice) -> String {
    let questions = [
        "What is the capital of France?",
        "Count down from 28 to 19.",
        "Tell me a story about Noah and a green boat.",
        "What is 3 plus 4?",
        "Größe 😀 naïve “quoted”",
        "x",
    ];
    questions[dice.below(questions.len() as u64) as usize].to_owned()
}

/// A request to one of the endpoints.
fn request(dice: &mut Dice, model: &str) -> (&'static str, Value) {
    let is_chat = dice.below(2) == 0;
    let mut body = json!({
        "model": model,
        "max_tokens": 1 + dice.below(14),
        "seed": dice.roll() as i64,
        "temperature": dice.maybe(&[json!(0), json!(0.7), json!(1.3)]),
        "top_p": dice.maybe(&[json!(0.9), json!(0.5)]),
        "top_k": dice.maybe(&[json!(5), json!(40)]),
        "min_p": dice.maybe(&[json!(0.05)]),
        "n": dice.maybe(&[json!(1), json!(1), json!(2)]),
        "stop": dice.maybe(&[json!("."), json!([" of", "the"]), json!(["e c", "ital", "\n"])]),
        "stop_token_ids": dice.maybe(&[Value::Null, json!([613, 300])]),
        "ignore_eos": dice.maybe(&[json!(true), json!(false)]),
        "presence_penalty": dice.maybe(&[Value::Null, json!(0.5)]),
        "repetition_penalty": dice.maybe(&[Value::Null, json!(1.2)]),
        "logit_bias": dice.maybe(&[Value::Null, json!({"613": 5, "300": -5})]),
        "skip_special_tokens": dice.maybe(&[Value::Null, json!(false)]),
        "include_stop_str_in_output": dice.maybe(&[Value::Null, json!(true)]),
        "bad_words": dice.maybe(&[Value::Null, json!([" capital"])]),
        "return_token_ids": dice.maybe(&[json!(true)]),
        "return_tokens_as_token_ids": dice.maybe(&[Value::Null, json!(true)]),
        "truncate_prompt_tokens": dice.maybe(&[Value::Null, json!(9)]),
    });
    if model != "tiny-phi" {
        body["diffusion"] = dice.maybe(&[
            json!({"quota": "one", "trace": true}),
            json!({"quota": "one", "score": "left_to_right"}),
            json!({"preset": "exact"}),
            json!({"preset": "turbo", "trace": true}),
            json!({"block_length": 4, "threshold": 0.5, "cache": "dual"}),
            json!({"canvas": "grow", "block_length": 4}),
        ]);
    }
    if is_chat {
        body["messages"] = json!([{"role": "user", "content": question(dice)}]);
        if dice.below(2) == 0 {
            (body["logprobs"], body["top_logprobs"]) = (true.into(), dice.below(3).into());
        }
        return (CHAT, body);
    }
    body["prompt"] = match dice.below(4) {
        0 => json!((0..=dice.below(30)).map(|_| 300 + dice.below(700)).collect::<Vec<_>>()),
        1 => json!([question(dice), "b"]),
        _ => json!(format!("<|user|>\n{}<|end|>\n<|assistant|>\n", question(dice))),
    };
    body["logprobs"] = dice.maybe(&[json!(0), json!(2)]);
    match (dice.below(4), model) {
        (0, _) => body["echo"] = true.into(),
        (1, "tiny-llada" | "tiny-dream") if body["diffusion"]["canvas"].is_null() => {
            body["suffix"] = " end.".into();
        }
        _ => {}
    }
    (COMPLETIONS, body)
}

/// Adds one chunk's choice to what came before.
fn add(whole: &mut Value, choice: &Value) {
    match (whole, choice) {
        (Value::String(text), Value::String(more)) => text.push_str(more),
        (Value::Array(list), Value::Array(more)) => list.extend(more.iter().cloned()),
        (Value::Object(fields), Value::Object(more)) => {
            for (name, value) in more.iter().filter(|(_, v)| !v.is_null()) {
                match fields.get_mut(name).filter(|v| !v.is_null()) {
                    Some(held) if name != "measured" && name != "role" => add(held, value),
                    Some(_) => {}
                    None => drop(fields.insert(name.clone(), value.clone())),
                }
            }
        }
        (held, value) => *held = value.clone(),
    }
}

/// The answer that the chunks of a stream add up to.
fn assembled(chunks: &[Value], choices: usize) -> Vec<Value> {
    let mut all = vec![Value::Object(Map::new()); choices];
    for choice in chunks.iter().flat_map(|c| c["choices"].as_array().unwrap()) {
        add(&mut all[choice["index"].as_u64().unwrap() as usize], choice);
    }
    all
}

/// Removes what is different by nature: a stream says `delta`, and an empty list has no chunk.
fn comparable(mut choice: Value) -> Value {
    let fields = choice.as_object_mut().unwrap();
    let content = fields
        .shift_remove("message")
        .or_else(|| fields.shift_remove("delta"))
        .map(|m| m["content"].clone());
    if let Some(content) = content {
        fields.insert("text".to_owned(), content);
    }
    fields.retain(|_, v| !v.is_null());
    choice
}

/// Whether both ways gave an answer, which then was the same.
async fn compare(server: &Server, (path, body): (&'static str, Value), cached: bool) -> bool {
    let (status, whole) = server.post(path, &body).await;
    let stream = json!({"stream": true, "stream_options": {"include_usage": true}});
    if status != 200 {
        let (other, refused) = server.post(path, &with(body.clone(), stream)).await;
        assert_eq!((status, &whole), (other, &refused), "{body}");
        return false;
    }
    let (chunks, done) = server.stream(path, &with(body.clone(), stream)).await;
    assert!(done, "{body}");
    let choices = whole["choices"].as_array().unwrap();
    let streamed = assembled(&chunks, choices.len());
    for (a, b) in choices.iter().zip(streamed) {
        assert_eq!(comparable(a.clone()), comparable(b), "{body}");
    }
    let (mut a, mut b) = (whole["usage"].clone(), chunks.last().unwrap()["usage"].clone());
    // How many pieces an echo is scored in depends on the company.
    let is_scored = body["echo"] == true && body["logprobs"].is_u64();
    for usage in [&mut a, &mut b].into_iter().filter(|_| is_scored) {
        usage["forwards"] = Value::Null;
        usage["tokens_per_forward"] = Value::Null;
    }
    if !cached {
        // The first of the two reads the prompt for both.
        for usage in [&mut a, &mut b] {
            usage["prompt_tokens_details"] = Value::Null;
        }
    }
    assert_eq!(a, b, "{body}");
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_adds_up_to_the_whole_answer() {
    let models = ["tiny-phi", "tiny-llada", "tiny-dream"];
    let mut compared = 0;
    for (index, model) in models.into_iter().enumerate() {
        let server = serve_builtin(model).await;
        let mut dice = Dice(2026 + index as u64);
        let requests: Vec<_> = (0..PAIRS / 3).map(|_| request(&mut dice, model)).collect();
        let cached = model != "tiny-phi";
        let pairs = requests.into_iter().map(|request| compare(&server, request, cached));
        let answered: Vec<bool> = stream::iter(pairs).buffer_unordered(AT_ONCE).collect().await;
        compared += answered.iter().filter(|answered| **answered).count();
    }
    println!("{compared} of {PAIRS} pairs were answered");
    assert!(compared > PAIRS * 9 / 10, "{compared}: too many were refused");
}
