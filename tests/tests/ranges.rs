//! Values at and beyond the ends of their ranges, and requests that are large on purpose.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a suite that meets something unforeseen has failed"
)]

use dfastllm_server::ServeOptions;
use dfastllm_tests::http::{
    CAPITAL, CHAT, COMPLETIONS, Server, chat_body, options, serve, serve_builtin, spawn, text, with,
};
use futures_util::future::join_all;
use serde_json::{Map, Value, json};

const QUESTION: &str = "<|user|>\nWhat is the capital of France?<|end|>\n<|assistant|>\n";

fn body(model: &str, more: Value) -> Value {
    with(json!({"model": model, "prompt": [300, 301], "max_tokens": 2}), more)
}

/// Status, parameter and code of an answer.
async fn answered(server: &Server, path: &str, body: &Value) -> (u16, Value, Value) {
    let (status, answer) = server.post(path, body).await;
    let shown: String = body.to_string().chars().take(200).collect();
    assert!(status == 200 || answer["error"]["message"].is_string(), "{shown}: {answer}");
    (status, answer["error"]["param"].clone(), answer["error"]["code"].clone())
}

#[tokio::test]
async fn prompts_up_to_the_context_are_answered() {
    for model in ["tiny-phi", "tiny-llada"] {
        let server = serve_builtin(model).await;
        for (len, want) in [(511, 200), (512, 400), (513, 400), (5120, 400)] {
            let more = json!({"prompt": vec![300; len], "max_tokens": 1});
            let (status, _, code) = answered(&server, COMPLETIONS, &body(model, more)).await;
            assert_eq!(status, want, "{model}: {len}");
            assert!(status == 200 || code == "context_length_exceeded", "{code}");
        }
        let long = with(
            chat_body(model),
            json!({"messages": [{"role": "user", "content": "word ".repeat(5000)}]}),
        );
        let (status, _, code) = answered(&server, CHAT, &long).await;
        assert_eq!((status, code), (400, json!("context_length_exceeded")), "{model}");
        for (prompt, want) in [
            (json!(vec!["a"; 1025]), json!("prompt")),
            (json!([]), json!("prompt")),
            (json!([[]]), json!("prompt")),
            (json!([300, -1]), json!("prompt")),
            (json!([300, 1.5]), json!("prompt")),
            (json!([300, 1024]), json!("prompt")),
            (json!([300, 4_294_967_296_u64]), json!("prompt")),
            (json!({"a": 1}), json!("prompt")),
            (json!([true]), json!("prompt")),
            (json!(["a", 3]), json!("prompt")),
        ] {
            let (status, param, _) =
                answered(&server, COMPLETIONS, &body(model, json!({"prompt": prompt}))).await;
            assert_eq!((status, param), (400, want), "{model}: {prompt:.60}");
        }
        let highest = json!({"prompt": [1023, 0]});
        assert_eq!(answered(&server, COMPLETIONS, &body(model, highest)).await.0, 200);
    }
}

type Cases<'a> = Vec<(Value, Option<&'a str>)>;

/// Each is answered, or refused with the name of the parameter.
async fn check(server: &Server, cases: Cases<'_>) {
    for (more, want) in cases {
        let (status, param, _) =
            answered(server, COMPLETIONS, &body("tiny-phi", more.clone())).await;
        let status_wanted = if want.is_some() { 400 } else { 200 };
        let shown: String = more.to_string().chars().take(80).collect();
        assert_eq!((status, param.as_str()), (status_wanted, want), "{shown}");
    }
}

#[tokio::test]
async fn sampling_beyond_its_range_is_refused_and_at_its_end_is_not() {
    let entries = |n: u32| -> Value {
        (0..n).map(|id| (id.to_string(), json!(1))).collect::<Map<_, _>>().into()
    };
    let server = serve_builtin("tiny-phi").await;
    let cases = vec![
        (json!({"temperature": 1e-10}), None),
        (json!({"temperature": 1e9}), Some("temperature")),
        (json!({"temperature": "1"}), Some("temperature")),
        (json!({"top_p": 0}), None),
        (json!({"top_p": 1}), None),
        (json!({"top_p": 1.0001}), Some("top_p")),
        (json!({"top_p": -0.1}), Some("top_p")),
        (json!({"top_k": -1}), None),
        (json!({"top_k": 0}), None),
        (json!({"top_k": 1_000_000_000}), None),
        (json!({"top_k": -5}), Some("top_k")),
        (json!({"top_k": 1.5}), Some("top_k")),
        (json!({"min_p": 1}), None),
        (json!({"min_p": 2}), Some("min_p")),
        (json!({"presence_penalty": -2, "frequency_penalty": 2}), None),
        (json!({"presence_penalty": -2.1}), Some("presence_penalty")),
        (json!({"frequency_penalty": 2.1}), Some("frequency_penalty")),
        (json!({"repetition_penalty": 0}), Some("repetition_penalty")),
        (json!({"repetition_penalty": -1}), Some("repetition_penalty")),
        (json!({"logit_bias": entries(1024)}), None),
        (json!({"logit_bias": entries(300_000)}), Some("logit_bias")),
        (json!({"logit_bias": {"abc": 1}}), Some("logit_bias")),
        (json!({"logit_bias": {"-1": 1}}), Some("logit_bias")),
        (json!({"logit_bias": {"1024": 1}}), Some("logit_bias")),
        (json!({"logit_bias": {"5": 101}}), Some("logit_bias")),
        (json!({"logit_bias": {"5": -1e39}}), Some("logit_bias")),
        (json!({"logit_bias": {"5": "1"}}), Some("logit_bias")),
        (json!({"logit_bias": [1]}), Some("logit_bias")),
    ];
    check(&server, cases).await;
    let huge = r#"{"model": "tiny-phi", "prompt": "a", "logit_bias": {"5": 1e999}}"#;
    let request = server.client.post(format!("{}{COMPLETIONS}", server.url));
    let request = request.header("content-type", "application/json").body(huge);
    assert_eq!(request.send().await.unwrap().status(), 400, "no float of JSON's");
    let null =
        json!({"model": "tiny-phi", "prompt": [300], "max_tokens": null, "ignore_eos": true});
    assert_eq!(server.post(COMPLETIONS, &null).await.1["usage"]["completion_tokens"], 16);
    let sampled = json!({"temperature": 1e-10, "max_tokens": 12, "prompt": QUESTION});
    let greedy = with(sampled.clone(), json!({"temperature": 0}));
    let (_, sampled) = server.post(COMPLETIONS, &body("tiny-phi", sampled)).await;
    let (_, greedy) = server.post(COMPLETIONS, &body("tiny-phi", greedy)).await;
    assert_eq!(sampled["choices"], greedy["choices"]);
}

#[tokio::test]
async fn counts_and_lists_beyond_their_range_are_refused_and_at_its_end_are_not() {
    let server = serve_builtin("tiny-phi").await;
    let cases = vec![
        (json!({"n": 0}), Some("n")),
        (json!({"n": -1}), Some("n")),
        (json!({"n": 129}), Some("n")),
        (json!({"n": 18_446_744_073_709_551_615_u64}), Some("n")),
        (json!({"n": 1.0}), Some("n")),
        (json!({"max_tokens": -1}), Some("max_tokens")),
        (json!({"max_tokens": 0}), Some("max_tokens")),
        (json!({"max_tokens": 2_147_483_648_u32}), Some("max_tokens")),
        (json!({"max_tokens": 18_446_744_073_709_551_615_u64}), Some("max_tokens")),
        (json!({"max_tokens": 1.5}), Some("max_tokens")),
        (json!({"max_tokens": "16"}), Some("max_tokens")),
        (json!({"min_tokens": 3}), Some("min_tokens")),
        (json!({"min_tokens": -1}), Some("min_tokens")),
        (json!({"seed": i64::MIN}), None),
        (json!({"seed": i64::MAX}), None),
        (json!({"seed": 9_223_372_036_854_775_808_u64}), Some("seed")),
        (json!({"seed": 1.5}), Some("seed")),
        (json!({"logprobs": 20}), None),
        (json!({"logprobs": 21}), Some("logprobs")),
        (json!({"logprobs": -1}), Some("logprobs")),
        (json!({"stop": ["a", "b", "c", "d"]}), None),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), Some("stop")),
        (json!({"stop": [""]}), Some("stop")),
        (json!({"stop": "x".repeat(1 << 20)}), Some("stop")),
        (json!({"stop": [3]}), Some("stop")),
        (json!({"stop_token_ids": vec![5; 128]}), None),
        (json!({"stop_token_ids": vec![5; 129]}), Some("stop_token_ids")),
        (json!({"stop_token_ids": [-1]}), Some("stop_token_ids")),
    ];
    check(&server, cases).await;
}

#[tokio::test]
async fn what_stops_at_once_has_no_text() {
    for model in ["tiny-phi", "tiny-llada", "tiny-dream"] {
        let server = serve_builtin(model).await;
        let answer = server.chat(model, CAPITAL, json!({"stop": ["T", "The"]})).await;
        assert_eq!((text(&answer), &answer["choices"][0]["finish_reason"]), ("", &json!("stop")));
        assert_eq!(answer["usage"]["completion_tokens"], 1, "{model}");
        let more = json!({"logit_bias": {"0": 100}, "return_token_ids": true});
        let answer = server.chat(model, CAPITAL, more).await;
        let choice = &answer["choices"][0];
        assert_eq!((text(&answer), &choice["token_ids"]), ("", &json!([0])), "{model}");
        assert_eq!(choice["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn a_seed_gives_the_same_answer_in_any_company() {
    for model in ["tiny-phi", "tiny-llada", "tiny-dream"] {
        let server = serve_builtin(model).await;
        for seed in [i64::MIN, 7, i64::MAX] {
            let more = json!({"prompt": QUESTION, "temperature": 1.2, "seed": seed, "max_tokens": 12,
                "logprobs": 1, "n": 2});
            let body = body(model, more);
            let alone = server.post(COMPLETIONS, &body).await.1;
            let noise: Vec<_> = (0..10)
                .map(|i| {
                    let more = json!({"prompt": vec![300 + i; 5 + 9 * i], "temperature": 1.0,
                        "seed": i, "max_tokens": 10 + i, "ignore_eos": true});
                    spawn(&server, COMPLETIONS, self::body(model, more))
                })
                .collect();
            let answers = join_all((0..20).map(|_| server.post(COMPLETIONS, &body))).await;
            for (status, answer) in answers {
                assert_eq!(
                    (status, &answer["choices"]),
                    (200, &alone["choices"]),
                    "{model} {seed}"
                );
            }
            for other in noise {
                assert_eq!(other.await.unwrap().0, 200);
            }
        }
    }
}

#[tokio::test]
async fn a_huge_model_name_is_cut_in_the_answer_and_no_label() {
    let server = serve_builtin("tiny-phi").await;
    let name = "m".repeat(3 << 20);
    let (status, answer) = server.post(CHAT, &chat_body(&name)).await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!((status, &answer["error"]["type"]), (404, &json!("model_not_found")));
    assert!(message.len() < 400, "{}", message.len());
    let large = chat_body(&"m".repeat(10 << 20));
    let request = server.client.post(format!("{}{CHAT}", server.url)).json(&large);
    // The connection may be closed before all of it is sent; then there is no answer to read.
    if let Ok(response) = request.send().await {
        assert_eq!(response.status(), 413);
    }
    for name in ["", "../../etc/passwd", "a\0b"] {
        assert_eq!(server.post(CHAT, &chat_body(name)).await.0, 404, "{name:?}");
    }
    let (_, metrics) = server.get("/metrics").await;
    assert!(!metrics.contains("mmm") && !metrics.contains("passwd"));
}

#[tokio::test]
async fn a_mask_that_a_prompt_spells_is_text() {
    for model in ["tiny-llada", "tiny-dream"] {
        let server = serve_builtin(model).await;
        let prompt = format!("<|mask|>{QUESTION}<|mask|><|mask|>");
        let more = json!({"prompt": prompt, "echo": true, "max_tokens": 8, "ignore_eos": true,
            "diffusion": {"trace": true, "quota": "one"}, "return_token_ids": true});
        let (status, answer) = server.post(COMPLETIONS, &body(model, more)).await;
        let choice = &answer["choices"][0];
        assert!(status == 200 && choice["text"].as_str().unwrap().starts_with(&prompt), "{answer}");
        assert_eq!(answer["usage"]["prompt_tokens"], 15 + 3);
        let steps = choice["trace"].as_array().unwrap().iter();
        let mut committed: Vec<u64> = steps
            .flat_map(|step| step["committed"].as_array().unwrap())
            .map(|commit| commit[0].as_u64().unwrap())
            .collect();
        committed.sort_unstable();
        assert_eq!(committed, (0..8).collect::<Vec<u64>>(), "{model}: the answer's and no others");
        let ids = choice["token_ids"].as_array().unwrap();
        assert!(ids.iter().all(|id| *id != 2), "{model}: the mask is never an answer");
    }
}

/// One seat and a list of prompts that would keep it for minutes.
#[tokio::test]
async fn scoring_is_cancelled_by_its_id() {
    let server = serve(ServeOptions { max_num_seqs: 1, ..options("tiny-llada") }, vec![]).await;
    let likelihood = json!({"likelihood": {"answer_start": 10, "samples": 512}});
    for more in [
        json!({"echo": true, "logprobs": 0, "max_tokens": 0}),
        json!({"echo": true, "logprobs": 0, "max_tokens": 4}),
        json!({"diffusion": likelihood, "max_tokens": null}),
    ] {
        let prompt: Vec<u32> = (0..500).map(|i| 300 + i).collect();
        let more = with(more, json!({"prompt": vec![prompt; 128], "request_id": "mine"}));
        let running = spawn(&server, COMPLETIONS, body("tiny-llada", more));
        server.until(|s| s.running == 1).await;
        let url = format!("{}/v1/requests/mine", server.url);
        assert_eq!(server.client.delete(&url).send().await.unwrap().status(), 200);
        let (status, answer) = running.await.unwrap();
        assert_eq!((status, &answer["error"]["code"]), (499, &json!("request_cancelled")));
        assert_eq!(server.client.delete(&url).send().await.unwrap().status(), 404);
        // Its numbers have to be gone before those of the next are looked for.
        server.until(|s| s.running == 0 && s.queued == 0).await;
    }
}

#[tokio::test]
async fn a_body_may_name_its_request() {
    let server = serve_builtin("tiny-phi").await;
    for stream in [false, true] {
        let more = json!({"request_id": "mine-7", "stream": stream});
        let response = server.send(CHAT, &with(chat_body("tiny-phi"), more)).await;
        assert_eq!(response.headers()["x-request-id"], "mine-7");
    }
    let echo = json!({"request_id": "mine-8", "echo": true, "max_tokens": 0});
    let response = server.send(COMPLETIONS, &body("tiny-phi", echo)).await;
    assert_eq!(response.headers()["x-request-id"], "mine-8");
}
