//! What only models that denoise offer, over HTTP: gaps, watching, likelihoods, log-probabilities at
//! commit time, caches and their audit, drafts that another model verifies.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a suite that meets something unforeseen has failed"
)]

use std::collections::HashMap;

use dfastllm_models::builtin_files;
use dfastllm_server::ServeOptions;
use dfastllm_tests::http::{
    CHAT, COMPLETIONS, Server, chat_body, options, serve, serve_builtin, text, with,
};
use serde_json::{Value, json};

const QUESTION: &str = "<|user|>\nWhat is the capital of France?<|end|>\n<|assistant|>\n";

async fn complete(server: &Server, model: &str, more: Value) -> Value {
    let (status, answer) =
        server.post(COMPLETIONS, &with(json!({"model": model, "prompt": QUESTION}), more)).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

#[tokio::test]
async fn gaps_are_filled_between_the_texts_around_them() {
    let server = serve_builtin("tiny-llada").await;
    let more = json!({"prompt": format!("{QUESTION}The capital"), "suffix": " Paris.<|end|>"});
    let answer = complete(&server, "tiny-llada", with(more, json!({"max_tokens": 5}))).await;
    assert_eq!(answer["choices"][0]["text"], " of France is", "{answer}");
    let infill = json!(["", {"max_tokens": 3}, " of France", 1, " Paris.", 1]);
    let diffusion =
        json!({"diffusion": {"infill": infill}, "return_token_ids": true, "logprobs": 0});
    let answer = complete(&server, "tiny-llada", diffusion.clone()).await;
    let choice = &answer["choices"][0];
    let gaps: Vec<&str> =
        choice["gaps"].as_array().unwrap().iter().map(|gap| gap.as_str().unwrap()).collect();
    assert_eq!(gaps.len(), 3, "{answer}");
    let text = format!("{} of France{} Paris.{}", gaps[0], gaps[1], gaps[2]);
    assert_eq!(choice["text"], text);
    assert_eq!(answer["usage"]["completion_tokens"], 5);
    let offsets = &choice["logprobs"]["text_offset"];
    let second = gaps[0].len() + " of France".len();
    assert_eq!(offsets[3], second, "{answer}");
    assert_eq!(offsets[4], second + gaps[1].len() + " Paris.".len(), "{answer}");
    let body = with(json!({"model": "tiny-llada", "prompt": QUESTION, "stream": true}), diffusion);
    let (chunks, done) = server.stream(COMPLETIONS, &body).await;
    let streamed: String = chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
    assert!(done && streamed == text, "{streamed}");
    let choices = || chunks.iter().map(|c| &c["choices"][0]);
    assert_eq!(choices().rev().find_map(|c| c["gaps"].as_array()), choice["gaps"].as_array());
    let streamed = choices().filter_map(|c| c["logprobs"]["text_offset"].as_array()).flatten();
    assert!(streamed.eq(offsets.as_array().unwrap()), "{offsets}");
}

#[tokio::test]
async fn a_gap_is_told_as_the_text_has_it() {
    let server = serve_builtin("tiny-llada").await;
    let ask = async |infill: Value, more: Value| {
        let body = with(json!({"prompt": format!("{QUESTION}The capital of France")}), more);
        let body = with(body, json!({"diffusion": {"infill": infill}}));
        complete(&server, "tiny-llada", body).await["choices"][0].clone()
    };
    let choice = ask(json!([4, ".<|end|>"]), json!({})).await;
    assert_eq!((&choice["text"], &choice["gaps"]), (&json!(" is Paris"), &json!([" is Paris"])));
    let gaps = json!([4, ". It is", 3, "."]);
    let choice = ask(gaps, json!({"stop": "Paris"})).await;
    assert_eq!((&choice["text"], &choice["gaps"]), (&json!(" is "), &json!([" is ", ""])));
    assert_eq!(choice["finish_reason"], "stop");
}

#[tokio::test]
async fn who_watches_sees_every_position_change() {
    let server = serve_builtin("tiny-llada").await;
    let more = json!({"stream": true, "max_tokens": 32,
        "diffusion": {"progress": true, "quota": "one"}, "return_token_ids": true});
    let (chunks, done) = server.stream(CHAT, &with(chat_body("tiny-llada"), more)).await;
    assert!(done);
    let (mut held, mut ids) = (HashMap::new(), Vec::new());
    for choice in chunks.iter().map(|c| &c["choices"][0]) {
        ids.extend(choice["token_ids"].as_array().into_iter().flatten().cloned());
        for change in choice["denoising"].as_array().into_iter().flatten() {
            assert_eq!(choice["delta"], json!({}));
            let [position, id, text, confidence, kind] = change.as_array().unwrap().as_slice()
            else {
                panic!("{change}");
            };
            assert!(text.is_string() && (0.0..=1.0).contains(&confidence.as_f64().unwrap()));
            if kind == "committed" {
                assert_eq!(held.insert(position.as_u64().unwrap(), id.clone()), None);
            } else {
                assert_eq!(kind, "tentative");
                assert!(!held.contains_key(&position.as_u64().unwrap()), "committed before");
            }
        }
    }
    assert!(!ids.is_empty());
    for (position, id) in ids.iter().enumerate() {
        assert_eq!(held.get(&(position as u64)), Some(id), "position {position}");
    }
}

#[tokio::test]
async fn log_probabilities_come_with_tokens_whole_and_streamed() {
    for model in ["tiny-llada", "tiny-phi"] {
        let server = serve_builtin(model).await;
        let more = json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 20, "temperature": 0});
        let body = with(chat_body(model), more.clone());
        let (_, answer) = server.post(CHAT, &body).await;
        let object = &answer["choices"][0]["logprobs"];
        let content = object["content"].as_array().unwrap();
        assert_eq!(content.len(), answer["usage"]["completion_tokens"], "{answer}");
        for token in content {
            let top = token["top_logprobs"].as_array().unwrap();
            assert_eq!((top.len(), &top[0]["token"]), (2, &token["token"]), "greedy");
            assert!(token["logprob"].as_f64().unwrap() <= 0.0);
        }
        let tokens: String = content.iter().map(|t| t["token"].as_str().unwrap()).collect();
        assert!(tokens.starts_with(text(&answer)), "{tokens}");
        let at_commit = model == "tiny-llada";
        assert_eq!(object["measured"] == "at_commit", at_commit);
        let (chunks, _) = server.stream(CHAT, &with(body, json!({"stream": true}))).await;
        let lists = chunks.iter().filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array());
        assert_eq!(&lists.flatten().cloned().collect::<Vec<_>>(), content, "{model}");
    }
}

/// What evaluation harnesses send to rank choices.
#[tokio::test]
async fn an_echoed_prompt_is_scored_token_by_token() {
    for model in ["tiny-llada", "tiny-dream", "tiny-phi"] {
        let server = serve_builtin(model).await;
        let score = async |answer: &str, max_tokens: usize| {
            let prompt = format!("{QUESTION}The capital of France is {answer}.");
            let more = json!({"prompt": prompt, "echo": true, "logprobs": 1,
                "max_tokens": max_tokens, "temperature": 0});
            let answer = complete(&server, model, more).await;
            let choice = &answer["choices"][0];
            assert!(choice["text"].as_str().unwrap().starts_with(&prompt), "{answer}");
            let list = |key: &str| choice["logprobs"][key].as_array().unwrap().clone();
            let logprobs = list("token_logprobs");
            let tokens: String =
                list("tokens").iter().map(|t| t.as_str().unwrap().to_owned()).collect();
            assert!(tokens.starts_with(&prompt) && logprobs[0].is_null());
            let prompt_tokens = answer["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
            assert_eq!(logprobs.len(), prompt_tokens + max_tokens, "{answer}");
            assert_eq!(list("text_offset").len(), logprobs.len());
            logprobs[1..prompt_tokens].iter().map(|l| l.as_f64().unwrap()).sum::<f64>()
        };
        let right = score("Paris", 0).await;
        assert!((right - score("Paris", 1).await).abs() < 1e-4, "{model}");
        assert!(right > score("Rome", 0).await + 1.0, "{model}: the right answer is likelier");
    }
}

#[tokio::test]
async fn the_likelihood_of_an_answer_is_estimated() {
    let server = serve_builtin("tiny-llada").await;
    let estimate = async |answer: &str, seed: u64| {
        let prompt = format!("{QUESTION}The capital of France is {answer}.");
        let likelihood = json!({"answer_start": 16, "samples": 64});
        let more = json!({"prompt": prompt, "seed": seed, "diffusion": {"likelihood": likelihood}});
        let answer = complete(&server, "tiny-llada", more).await;
        let found = answer["choices"][0]["likelihood"].clone();
        assert_eq!(found["samples"], 64, "{answer}");
        assert!(found["standard_error"].as_f64().unwrap() > 0.0);
        found["total"].as_f64().unwrap()
    };
    let right = estimate("Paris", 1).await;
    assert!(right < 0.0 && right == estimate("Paris", 1).await, "{right}");
    assert_ne!(right, estimate("Paris", 2).await);
    assert!(right > estimate("Rome", 1).await);
}

#[tokio::test]
async fn a_prompt_of_one_token_has_nothing_to_score() {
    for model in ["tiny-llada", "tiny-phi"] {
        let server = serve_builtin(model).await;
        let more = json!({"prompt": [300], "echo": true, "logprobs": 1, "max_tokens": 0});
        let answer = complete(&server, model, more).await;
        let logprobs = &answer["choices"][0]["logprobs"]["token_logprobs"];
        assert_eq!(*logprobs, json!([null]), "{answer}");
    }
}

#[tokio::test]
async fn an_echo_alone_honours_or_refuses_every_option_and_is_counted() {
    let server = serve_builtin("tiny-llada").await;
    let echo = json!({"model": "tiny-llada", "prompt": [300, 301], "echo": true, "max_tokens": 0});
    for (more, param) in [
        (json!({"n": 2}), "n"),
        (json!({"suffix": "x"}), "suffix"),
        (json!({"return_token_ids": true}), "return_token_ids"),
        (json!({"diffusion": {"trace": true}}), "diffusion.trace"),
        (json!({"prompt": [99999]}), "prompt"),
        (json!({"temperature": 900}), "temperature"),
        (json!({"logprobs": 0, "diffusion": {"cfg_scale": 1.0}}), "diffusion.cfg_scale"),
        (json!({"logprobs": 1, "top_logprobs": 2}), "top_logprobs"),
    ] {
        let (status, answer) = server.post(COMPLETIONS, &with(echo.clone(), more)).await;
        assert_eq!((status, answer["error"]["param"].as_str()), (400, Some(param)), "{answer}");
    }
    let before = server.metric("vdiff_requests_success_total").await;
    for preset in ["reference", "exact", "fast"] {
        let more = json!({"logprobs": 0, "diffusion": {"preset": preset}});
        let (status, answer) = server.post(COMPLETIONS, &with(echo.clone(), more)).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["choices"][0]["logprobs"]["measured"], "at_commit");
    }
    assert_eq!(server.metric("vdiff_requests_success_total").await, before + 3.0);
}

#[tokio::test]
async fn streamed_offsets_are_those_of_the_whole_answer() {
    let server = serve_builtin("tiny-llada").await;
    let body = json!({"model": "tiny-llada", "prompt": QUESTION, "max_tokens": 32, "logprobs": 1,
        "diffusion": {"quota": "one"}});
    let (_, whole) = server.post(COMPLETIONS, &body).await;
    let (chunks, _) = server.stream(COMPLETIONS, &with(body, json!({"stream": true}))).await;
    let lists = chunks.iter().filter_map(|c| c["choices"][0]["logprobs"]["text_offset"].as_array());
    let offsets: Vec<Value> = lists.flatten().cloned().collect();
    assert!(offsets.len() > 5 && json!(offsets) == whole["choices"][0]["logprobs"]["text_offset"]);
}

#[tokio::test]
async fn a_likelihood_has_no_answer_that_options_could_be_for() {
    let server = serve_builtin("tiny-llada").await;
    for (more, param) in [
        (json!({"echo": true}), "echo"),
        (json!({"n": 2}), "n"),
        (json!({"logprobs": 1}), "logprobs"),
        (json!({"suffix": "x"}), "suffix"),
        (json!({"max_tokens": 5}), "max_tokens"),
        (json!({"stream": true}), "stream"),
        (json!({"stop": "x"}), "stop"),
        (json!({"min_tokens": 5}), "min_tokens"),
        (json!({"return_token_ids": true}), "return_token_ids"),
        (json!({"logit_bias": {"5": 1}}), "logit_bias"),
        (json!({"gen_length": 5}), "max_tokens"),
    ] {
        let body = json!({"model": "tiny-llada", "prompt": QUESTION,
            "diffusion": {"likelihood": {"answer_start": 3, "samples": 2}}});
        let (status, answer) = server.post(COMPLETIONS, &with(body, more)).await;
        assert_eq!((status, answer["error"]["param"].as_str()), (400, Some(param)), "{answer}");
    }
}

#[tokio::test]
async fn penalties_change_what_is_repeated() {
    for model in ["tiny-llada", "tiny-dream", "tiny-phi"] {
        let server = serve_builtin(model).await;
        let ask = async |more: Value| {
            let more = with(json!({"max_tokens": 64, "temperature": 0}), more);
            let answer = server.chat(model, "Count down from 28 to 19.", more).await;
            text(&answer).to_owned()
        };
        let plain = ask(json!({})).await;
        // Digits repeat, but the model may be too sure of them for the mildest penalty.
        let mut changed = Vec::new();
        for penalty in ["presence_penalty", "frequency_penalty", "repetition_penalty"] {
            let lowered = ask(json!({penalty: 2.0})).await;
            changed.extend((lowered != plain).then_some(penalty));
        }
        assert!(changed.len() >= 2, "{model}: {changed:?}");
        let neutral = json!({"presence_penalty": 0, "repetition_penalty": 1});
        assert_eq!(ask(neutral).await, plain);
    }
}

#[tokio::test]
async fn an_audit_reports_what_caches_change() {
    let audited = ServeOptions { audit: true, ..options("tiny-llada") };
    let server = serve(audited, vec![]).await;
    let story = "Tell me a story about Noah and a green boat.";
    let more = json!({"max_tokens": 96, "diffusion": {"cache": "dual", "trace": true}});
    let answer = server.chat("tiny-llada", story, more.clone()).await;
    let usage = &answer["usage"];
    assert!(usage["cache_refreshes"].as_u64().unwrap() >= 1, "{usage}");
    let (agreement, drift) = (&usage["audit"]["agreement"], &usage["audit"]["max_drift"]);
    println!("{}", usage["audit"]);
    assert!((0.5..=1.0).contains(&agreement.as_f64().unwrap()), "{usage}");
    assert!((0.0..=1.0).contains(&drift.as_f64().unwrap()) && *drift != 0.0, "{usage}");
    let trace = answer["choices"][0]["trace"].as_array().unwrap();
    assert!(trace.iter().any(|step| step["audit"]["positions"].is_u64()));
    let plain = serve_builtin("tiny-llada").await.chat("tiny-llada", story, more).await;
    assert_eq!(text(&plain), text(&answer), "an audit changes nothing");
    let exact = json!({"max_tokens": 96, "diffusion": {"cache": "none"}});
    let answer = server.chat("tiny-llada", story, exact).await;
    assert!(answer["usage"].get("audit").is_none(), "nothing was reused");
}

#[tokio::test]
async fn a_causal_model_verifies_drafts() {
    let draft_model = builtin_files("tiny-phi");
    let server = serve(ServeOptions { draft_model, ..options("tiny-llada") }, vec![]).await;
    let ask = async |weight: f64| {
        let diffusion = json!({"quota": "adaptive", "draft_weight": weight});
        let more = json!({"max_tokens": 64, "diffusion": diffusion});
        let answer = server.chat("tiny-llada", "What is the capital of France?", more).await;
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let count = |key: &str| answer["usage"][key].as_u64().unwrap();
        assert_eq!(count("forwards"), count("draft_model_forwards"));
        (text(&answer).to_owned(), count("forwards"))
    };
    let (bold, careful) = (ask(1.0).await, ask(0.3).await);
    assert_eq!(careful.0, "The capital of France is Paris.");
    assert!(bold.1 <= careful.1, "{bold:?} {careful:?}");
}
