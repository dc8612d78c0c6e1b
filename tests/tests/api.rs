//! The API over real sockets: the eleven checks of the replaced server, and what clients rely on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a suite that meets something unforeseen has failed"
)]

use dfastllm_server::ServeOptions;
use dfastllm_tests::http::{
    CAPITAL, CHAT, COMPLETIONS, chat_body, endless, options, serve, serve_builtin, spawn, text,
    with,
};
use futures_util::future::join_all;
use serde_json::{Value, json};

// The eleven checks of the replaced server.

#[tokio::test]
async fn health_says_what_it_said_before() {
    let server = serve_builtin("tiny-llada").await;
    let (status, body) = server.get("/health").await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 200);
    assert_eq!(body["status"], "healthy");
    assert_eq!(body["state"], "ready");
    assert_eq!(body["model_loaded"], true);
    assert_eq!(body["model"], "tiny-llada");
    assert_eq!(body["device"], "cpu");
    assert_eq!((&body["queue_size"], &body["queue_capacity"]), (&json!(0), &json!(256)));
    assert!(body["uptime_seconds"].as_f64().unwrap() >= 0.0);
    assert_eq!(server.get("/health/live").await.0, 200);
    assert_eq!(server.get("/health/ready").await.0, 200);
    let (_, version) = server.get("/version").await;
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
}

#[tokio::test]
async fn models_are_listed_and_found_by_name() {
    let mut options = options("tiny-phi");
    options.names = vec!["first".to_owned(), "org/second".to_owned()];
    let server = serve(options, vec![]).await;
    let (_, body) = server.get("/v1/models").await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["data"][0]["id"], "first");
    assert_eq!(body["data"][1]["id"], "org/second");
    assert_eq!(body["data"][0]["max_model_len"], 512);
    assert_eq!(server.get("/v1/models/org/second").await.0, 200);
    assert_eq!(server.get("/v1/models/third").await.0, 404);
    let (_, answer) = server.post(CHAT, &chat_body("org/second")).await;
    assert_eq!(answer["model"], "first", "the first name is the name in answers");
}

#[tokio::test]
async fn completions_and_chat_answer_the_question() {
    for model in ["tiny-phi", "tiny-llada", "tiny-dream"] {
        let server = serve_builtin(model).await;
        let answer = server.chat(model, CAPITAL, json!({})).await;
        assert_eq!(text(&answer), "The capital of France is Paris.", "{model}");
        assert_eq!(answer["object"], "chat.completion");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
        assert_eq!(answer["usage"]["prompt_tokens"], 15);
        assert_eq!(answer["usage"]["completion_tokens"], 12);
        assert_eq!(answer["usage"]["total_tokens"], 27);
        let prompt = format!("<|user|>\n{CAPITAL}<|end|>\n<|assistant|>\n");
        let body = json!({"model": model, "prompt": prompt, "max_tokens": 32});
        let (status, answer) = server.post(COMPLETIONS, &body).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["choices"][0]["text"], "The capital of France is Paris.", "{model}");
        assert_eq!(answer["object"], "text_completion");
    }
}

#[tokio::test]
async fn a_stream_comes_in_several_chunks_and_equals_the_whole() {
    for model in ["tiny-phi", "tiny-llada", "tiny-dream"] {
        let server = serve_builtin(model).await;
        let more = match model {
            "tiny-phi" => json!({}),
            _ => json!({"diffusion": {"quota": "one", "score": "left_to_right"}}),
        };
        let whole = server.post(CHAT, &with(chat_body(model), more.clone())).await.1;
        let options = json!({"stream": true, "stream_options": {"include_usage": true}});
        let body = with(with(chat_body(model), more), options);
        let (chunks, done) = server.stream(CHAT, &body).await;
        assert!(done);
        assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        assert_eq!(chunks[0]["object"], "chat.completion.chunk");
        assert!(chunks.iter().all(|c| c["id"] == chunks[0]["id"]));
        let deltas: Vec<&str> = chunks[1..]
            .iter()
            .filter_map(|c| c["choices"][0]["delta"]["content"].as_str())
            .collect();
        assert!(deltas.len() >= 8, "{model}: {deltas:?}");
        assert_eq!(deltas.concat(), text(&whole));
        let usage = chunks.last().unwrap();
        assert_eq!((&usage["choices"], &usage["usage"]), (&json!([]), &whole["usage"]));
        let end = &chunks[chunks.len() - 2]["choices"][0];
        assert_eq!((&end["delta"], &end["finish_reason"]), (&json!({}), &json!("stop")));
    }
}

#[tokio::test]
async fn an_unknown_model_and_an_empty_prompt_are_answered_word_for_word() {
    let server = serve_builtin("tiny-phi").await;
    let (status, answer) = server.post(CHAT, &chat_body("invalid-model")).await;
    assert_eq!(status, 404);
    let error = json!({
        "message": "Model 'invalid-model' not found. Available models: tiny-phi",
        "type": "model_not_found", "param": "model", "code": 404,
    });
    assert_eq!(answer["error"], error);
    for (prompt, index) in [(json!(""), 0), (json!(["a", ""]), 1)] {
        let body = json!({"model": "tiny-phi", "prompt": prompt});
        let (status, answer) = server.post(COMPLETIONS, &body).await;
        assert_eq!(status, 400);
        let message = format!("Prompt at index {index} cannot be empty");
        assert_eq!(answer["error"]["message"], message);
        assert_eq!(answer["error"]["type"], "validation_error");
        assert_eq!(answer["error"]["code"], 400);
    }
}

#[tokio::test]
async fn metrics_move_with_what_happens() {
    let server = serve_builtin("tiny-llada").await;
    let names = ["vdiff_request_success_total", "vdiff_requests_success_total"];
    for name in names {
        assert!(server.metric(name).await.abs() < f64::EPSILON);
    }
    server.chat("tiny-llada", CAPITAL, json!({})).await;
    server.stream(CHAT, &with(chat_body("tiny-llada"), json!({"stream": true}))).await;
    server.post(CHAT, &chat_body("other")).await;
    server.until(|s| s.running == 0).await;
    for (name, want) in [
        ("vdiff_requests_total", 3.0),
        ("vdiff_request_success_total", 2.0),
        ("vdiff_request_failure_total", 1.0),
        ("vdiff_prompt_tokens_total", 30.0),
        ("vdiff_generation_tokens_total", 24.0),
        ("vllm:generation_tokens_total", 24.0),
        ("vdiff_parallel_tokens_decoded_total", 22.0),
        ("vllm:diffusion_num_denoising_steps_total", 2.0),
        ("vllm:diffusion_num_committed_tokens_total", 24.0),
        ("vdiff_num_requests_running", 0.0),
        ("vllm:num_requests_waiting", 0.0),
        ("vdiff_request_latency_seconds_count", 2.0),
        ("vllm:time_to_first_token_seconds_count", 2.0),
        ("vdiff_time_per_output_token_seconds_count", 2.0),
        ("vdiff_parallel_batch_size_sum", 24.0),
        ("vllm:request_prompt_tokens_sum", 30.0),
        ("vllm:cache_config_info", 1.0),
        ("vdiff_model_info", 1.0),
    ] {
        assert!((server.metric(name).await - want).abs() < 1e-9, "{name}");
    }
}

#[tokio::test]
async fn five_parallel_requests_and_256_tokens_are_answered() {
    let server = serve_builtin("tiny-phi").await;
    let bodies: Vec<Value> = (0..5).map(|_| chat_body("tiny-phi")).collect();
    let answers = join_all(bodies.iter().map(|body| server.post(CHAT, body))).await;
    for (status, answer) in answers {
        assert_eq!((status, text(&answer)), (200, "The capital of France is Paris."));
    }
    let body =
        json!({"model": "tiny-phi", "prompt": "Once", "max_tokens": 256, "ignore_eos": true});
    let (_, answer) = server.post(COMPLETIONS, &body).await;
    assert_eq!(answer["usage"]["completion_tokens"], 256);
    assert!(answer["usage"]["forwards"].as_u64().unwrap() <= 256, "drafts may save passes");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

// What clients rely on.

#[tokio::test]
async fn stop_strings_cut_the_text_wherever_they_lie() {
    let server = serve_builtin("tiny-phi").await;
    for (stop, want) in [
        (json!("France"), "The capital of "),
        (json!(["is Par", "Paris"]), "The capital of France "),
        (json!(["xyz", "The"]), ""),
    ] {
        let answer = server.chat("tiny-phi", CAPITAL, json!({"stop": stop})).await;
        assert_eq!(text(&answer), want);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let body = with(chat_body("tiny-phi"), json!({"stop": stop, "stream": true}));
        let (chunks, _) = server.stream(CHAT, &body).await;
        let streamed: String =
            chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(streamed, want);
    }
}

/// The second choice takes hundreds of thousands of passes; the first meets its stop string after a few and gives
/// its seat back at once.
#[tokio::test]
async fn a_stopped_choice_frees_its_seat_while_others_run() {
    let server = serve_builtin("tiny-llada").await;
    let question = format!("<|user|>\n{CAPITAL}<|end|>\n<|assistant|>\n");
    let body = json!({
        "model": "tiny-llada", "prompt": [question, "x"], "max_tokens": 300, "ignore_eos": true,
        "stop": "The capital", "diffusion": {"preset": "reference", "steps": 300_000, "score": "left_to_right"},
    });
    let running = spawn(&server, COMPLETIONS, body);
    server.until(|s| s.totals.steps > 5 && s.running == 1).await;
    running.abort();
    server.until(|s| s.running == 0).await;
}

#[tokio::test]
async fn diffusion_settings_decide_how_an_answer_is_made() {
    let server = serve_builtin("tiny-llada").await;
    let run = async |settings: Value| {
        let more = json!({
            "max_tokens": 64, "diffusion": settings, "return_token_ids": true, "ignore_eos": true,
        });
        server.chat("tiny-llada", CAPITAL, more).await
    };
    let reference = run(json!({"preset": "reference", "trace": true})).await;
    assert_eq!(reference["usage"]["forwards"], 64, "one position a step");
    let choice = &reference["choices"][0];
    assert_eq!(choice["token_ids"].as_array().unwrap().len(), 64);
    let trace = choice["trace"].as_array().unwrap();
    assert_eq!(trace.len(), 64);
    assert_eq!((&trace[0]["step"], &trace[0]["remasked"]), (&json!(1), &json!([])));
    let committed: usize =
        trace.iter().map(|step| step["committed"].as_array().unwrap().len()).sum();
    assert_eq!(committed, 64);
    let four = run(json!({"preset": "reference", "steps": 16})).await;
    assert_eq!(four["usage"]["forwards"], 16);
    assert!((four["usage"]["tokens_per_forward"].as_f64().unwrap() - 4.0).abs() < 1e-9);
    assert!(four["choices"][0].get("trace").is_none());
    let guided = run(json!({"preset": "reference", "steps": 16, "cfg_scale": 1.5})).await;
    assert_eq!(guided["usage"]["forwards"], 16, "a guided pair counts once");
    let fast = run(json!({})).await;
    assert!(fast["usage"]["forwards"].as_u64().unwrap() < 16, "{}", fast["usage"]);
}

#[tokio::test]
async fn a_trace_survives_a_stop_string_and_steps_need_not_divide() {
    let server = serve_builtin("tiny-llada").await;
    let settings = json!({"quota": "one", "score": "left_to_right", "trace": true});
    let more = json!({"stop": "Paris", "diffusion": settings});
    let answer = server.chat("tiny-llada", CAPITAL, more).await;
    assert_eq!(text(&answer), "The capital of France is ");
    let trace = answer["choices"][0]["trace"].as_array().unwrap();
    assert_eq!(trace.len() as u64, answer["usage"]["forwards"].as_u64().unwrap());
    let settings = json!({"steps": 10, "block_length": 24});
    let more = json!({"max_tokens": 64, "ignore_eos": true, "diffusion": settings});
    let answer = server.chat("tiny-llada", CAPITAL, more).await;
    // Three blocks (24, 24, 16) with four steps each.
    assert_eq!(answer["usage"]["forwards"], 12);
}

#[tokio::test]
async fn exact_gives_the_tokens_of_reference_with_fewer_passes() {
    for model in ["tiny-llada", "tiny-dream"] {
        let server = serve_builtin(model).await;
        let run = async |preset: &str| {
            let score = if model == "tiny-dream" { json!("entropy") } else { Value::Null };
            let settings =
                json!({"preset": preset, "block_length": 8, "steps": 64, "score": score});
            let more = json!({"max_tokens": 64, "diffusion": settings, "return_token_ids": true});
            server.chat(model, CAPITAL, more).await
        };
        let (reference, exact) = (run("reference").await, run("exact").await);
        let (a, b) = (&reference["choices"][0], &exact["choices"][0]);
        assert_eq!(a["token_ids"], b["token_ids"], "{model}");
        let forwards = |answer: &Value| answer["usage"]["forwards"].as_u64().unwrap();
        assert_eq!(forwards(&reference), 64);
        assert!(forwards(&exact) < 32, "{model}: {}", exact["usage"]);
    }
}

#[tokio::test]
async fn seeds_choices_and_sampling_are_honoured() {
    for model in ["tiny-phi", "tiny-llada", "tiny-dream"] {
        let server = serve_builtin(model).await;
        let run = async |more: Value| {
            let base = json!({"temperature": 1.5, "max_tokens": 24, "seed": 5});
            server.chat(model, "Tell me a story.", with(base, more)).await
        };
        let two = run(json!({"n": 2})).await;
        let first = text(&two).to_owned();
        let second = two["choices"][1]["message"]["content"].as_str().unwrap();
        assert_ne!(first, second, "{model}: choices differ");
        assert_eq!(text(&run(json!({})).await), first, "{model}: the same seed, the same text");
        assert_eq!(text(&run(json!({"seed": 6})).await), second, "{model}: seed + 1");
        let greedy = run(json!({"temperature": 0})).await;
        assert_eq!(text(&run(json!({"top_k": 1})).await), text(&greedy), "{model}: top_k 1");
        assert_eq!(text(&run(json!({"top_p": 0.0})).await), text(&greedy), "{model}: top_p 0");
        assert_eq!(text(&run(json!({"min_p": 1.0})).await), text(&greedy), "{model}: min_p 1");
        assert_eq!(two["usage"]["prompt_tokens"], greedy["usage"]["prompt_tokens"]);
    }
}

#[tokio::test]
async fn logit_bias_min_tokens_and_stop_ids_are_honoured() {
    for model in ["tiny-phi", "tiny-llada"] {
        let server = serve_builtin(model).await;
        let plain = server.chat(model, CAPITAL, json!({"return_token_ids": true})).await;
        let ids: Vec<u64> =
            serde_json::from_value(plain["choices"][0]["token_ids"].clone()).unwrap();
        let bias = json!({"logit_bias": {ids[0].to_string(): -100}, "return_token_ids": true});
        let biased = server.chat(model, CAPITAL, bias).await;
        assert_ne!(biased["choices"][0]["token_ids"][0], ids[0], "{model}");
        let stopped = server.chat(
            model,
            CAPITAL,
            json!({"stop_token_ids": [ids[2]], "return_token_ids": true}),
        );
        assert_eq!(stopped.await["choices"][0]["token_ids"], json!(ids[..3]), "{model}");
        let longer = server.chat(model, CAPITAL, json!({"min_tokens": 20, "max_tokens": 32})).await;
        assert!(longer["usage"]["completion_tokens"].as_u64().unwrap() > 20, "{model}");
    }
}

#[tokio::test]
async fn prompts_may_be_lists_and_token_ids() {
    let server = serve_builtin("tiny-phi").await;
    let ids = json!([3, 205, 430, 297, 267, 603, 327, 867, 37, 5, 205, 4, 205]);
    let answer = async |prompt: Value| {
        let body = json!({"model": "tiny-phi", "prompt": prompt, "max_tokens": 8});
        server.post(COMPLETIONS, &body).await.1
    };
    let one = answer(ids.clone()).await;
    let both = answer(json!([ids, [3, 205]])).await;
    assert_eq!(both["choices"][0]["text"], one["choices"][0]["text"]);
    assert_eq!(both["choices"][1]["index"], 1);
    assert_eq!(both["usage"]["prompt_tokens"], 15);
    let texts = answer(json!(["One", "Two"])).await;
    assert_eq!(texts["choices"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn chat_contents_may_be_parts_and_developers_are_systems() {
    let server = serve_builtin("tiny-phi").await;
    let answer = async |messages: Value| {
        let body = json!({"model": "tiny-phi", "messages": messages});
        server.post(CHAT, &body).await.1
    };
    let parts = json!([{"type": "text", "text": "What is the capital"}, {"type": "text", "text": " of France?"}]);
    let joined = answer(json!([{"role": "user", "content": parts}])).await;
    assert_eq!(text(&joined), "The capital of France is Paris.");
    let user = json!({"role": "user", "content": CAPITAL});
    let developer = answer(json!([{"role": "developer", "content": "Be kind."}, user])).await;
    let system = answer(json!([{"role": "system", "content": "Be kind."}, user])).await;
    assert_eq!(text(&developer), text(&system));
    assert_eq!(developer["usage"]["prompt_tokens"], system["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn a_request_is_cancelled_by_its_id_or_by_the_answers() {
    let server = serve(ServeOptions { speculative_tokens: 0, ..options("tiny-phi") }, vec![]).await;
    // Choices for minutes: no machine is done with them before they are cancelled.
    let prompts = vec!["x"; 128];
    let body =
        json!({"model": "tiny-phi", "prompt": prompts, "max_tokens": 500, "ignore_eos": true});
    let request = server.client.post(format!("{}{COMPLETIONS}", server.url)).json(&body);
    let request = request.header("x-request-id", "mine");
    let waiting = tokio::spawn(async move { request.send().await.unwrap() });
    server.until(|s| s.running > 0).await;
    let delete = async |id: &str| {
        let url = format!("{}/v1/requests/{id}", server.url);
        let response = server.client.delete(url).send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    let (status, answer) = delete("mine").await;
    assert_eq!((status, &answer["cancelled"]), (200, &json!(true)));
    let response = waiting.await.unwrap();
    assert_eq!(response.status().as_u16(), 499);
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["code"], "request_cancelled");
    let (status, answer) = delete("mine").await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("request_not_found")));

    let mut response = server.send(COMPLETIONS, &with(body, json!({"stream": true}))).await;
    let first = response.chunk().await.unwrap().unwrap();
    let first = String::from_utf8(first.to_vec()).unwrap();
    let first = first.strip_prefix("data: ").unwrap().split("\n\n").next().unwrap();
    let id = serde_json::from_str::<Value>(first).unwrap()["id"].as_str().unwrap().to_owned();
    assert_eq!(delete(&id).await.0, 200);
    let rest = response.text().await.unwrap();
    assert!(rest.contains("request_cancelled") && rest.ends_with("data: [DONE]\n\n"), "{rest}");
    server.until(|s| s.running == 0 && s.kv_usage < 1e-9).await;
    let (_, metrics) = server.get("/metrics").await;
    let aborted = metrics.lines().find(|line| line.contains("finished_reason=\"abort\"")).unwrap();
    let aborted: f64 = aborted.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(
        (2.0..=256.0).contains(&aborted),
        "choices of both, less those that were done: {aborted}"
    );
}

#[tokio::test]
async fn what_was_read_before_is_counted_as_cached() {
    let server = serve_builtin("tiny-phi").await;
    let ask = async |more: Value| {
        let messages = json!([
            {"role": "system", "content": "Be kind."}, {"role": "user", "content": CAPITAL},
        ]);
        let body = with(json!({"model": "tiny-phi", "messages": messages}), more);
        server.post(CHAT, &body).await.1
    };
    let cached = |answer: &Value| {
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    let first = ask(json!({})).await;
    let prompt = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!((cached(&first), prompt), (0, 24));
    let second = ask(json!({"n": 3})).await;
    assert_eq!((cached(&second), second["usage"]["prompt_tokens"].as_u64()), (16, Some(24)));
    for choice in second["choices"].as_array().unwrap() {
        assert_eq!(choice["message"]["content"], text(&first));
    }
    for (name, want) in [
        ("vllm:prefix_cache_queries_total", 4.0 * 24.0),
        // One by its full page, two by all but the last token of the first choice's pages.
        ("vllm:prefix_cache_hits_total", 16.0 + 2.0 * 23.0),
        ("vllm:prompt_tokens_cached_total", 16.0 + 2.0 * 23.0),
        ("vdiff_kv_cache_hit_rate", 62.0 / 96.0),
        ("vllm:num_preemptions_total", 0.0),
    ] {
        assert!((server.metric(name).await - want).abs() < 1e-9, "{name}");
    }
}

/// With no patience at all any working engine counts as stalled, and one at rest does not.
#[tokio::test]
async fn an_engine_that_shows_no_life_is_unhealthy() {
    let options =
        ServeOptions { stall_timeout: std::time::Duration::ZERO, ..options("tiny-llada") };
    let server = serve(options, vec![]).await;
    assert_eq!(server.get("/health").await.0, 200);
    let running = spawn(&server, COMPLETIONS, endless());
    let mut health = server.get("/health").await;
    while health.0 == 200 {
        assert!(!running.is_finished());
        health = server.get("/health").await;
    }
    let body: Value = serde_json::from_str(&health.1).unwrap();
    assert_eq!(
        (health.0, &body["status"], &body["state"]),
        (503, &json!("unhealthy"), &json!("stalled"))
    );
    running.abort();
    server.until(|s| s.running == 0 && s.silent_for.is_zero()).await;
    assert_eq!(server.get("/health").await.0, 200);
}
