//! What is refused, and how: wrong requests, overload, time, shutdown.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a suite that meets something unforeseen has failed"
)]

use dfastllm_server::AppState;
use dfastllm_tests::http::{
    CAPITAL, CHAT, COMPLETIONS, Server, chat_body, endless, listen, options, serve, serve_builtin,
    spawn, text, with,
};
use serde_json::{Value, json};

/// The message and parameter of a 400.
async fn refusal(server: &Server, path: &str, body: &Value) -> (String, Value) {
    let (status, answer) = server.post(path, body).await;
    assert_eq!(status, 400, "{body} {answer}");
    let error = &answer["error"];
    assert!(error["type"].is_string() && error.get("code").is_some(), "{answer}");
    (error["message"].as_str().unwrap().to_owned(), error["param"].clone())
}

#[tokio::test]
async fn wrong_requests_are_refused_by_name() {
    let server = serve_builtin("tiny-llada").await;
    for (more, param) in [
        (json!({"temperature": -1}), "temperature"),
        (json!({"top_p": 1.5}), "top_p"),
        (json!({"top_k": -5}), "top_k"),
        (json!({"n": 0}), "n"),
        (json!({"n": 1_000_000_000}), "n"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": 1.5}), "max_tokens"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": 600}), "max_tokens"),
        (json!({"max_tokens": 8, "max_completion_tokens": 9}), "max_completion_tokens"),
        (json!({"seed": 1e30}), "seed"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
        (json!({"stop": ""}), "stop"),
        (json!({"logit_bias": {"abc": 1}}), "logit_bias"),
        (json!({"logit_bias": {"99999": 1}}), "logit_bias"),
        (json!({"stop_token_ids": [99999]}), "stop_token_ids"),
        (json!({"presence_penalty": 2.5}), "presence_penalty"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"logprobs": 3}), "logprobs"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "logprobs"),
        (json!({"echo": true}), "echo"),
        (json!({"suffix": "x"}), "suffix"),
        (json!({"guided_json": {}}), "guided_json"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (
            json!({"max_tokens": 64, "diffusion": {"preset": "reference", "steps": 7, "block_length": 32}}),
            "diffusion.steps",
        ),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"stream": 3}), "stream"),
        (json!({"remasking": "random", "diffusion": {"remasking": "low_confidence"}}), "remasking"),
        (json!({"diffusion": {"steps": 0}}), "diffusion.steps"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": 3}]}), "messages[0].content"),
    ] {
        let body = with(chat_body("tiny-llada"), more);
        assert_eq!(refusal(&server, CHAT, &body).await.1, param, "{body}");
    }
    let many = json!({"model": "tiny-llada", "prompt": vec!["a"; 100], "n": 100});
    assert_eq!(refusal(&server, COMPLETIONS, &many).await.1, "n");
    let body = json!({"model": "tiny-llada", "prompt": [1, 2, 5000]});
    assert_eq!(refusal(&server, COMPLETIONS, &body).await.1, "prompt");
    let (status, answer) =
        server.post(CHAT, &with(chat_body("tiny-llada"), json!({"max_tokens": 600}))).await;
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")));
    let dream = serve_builtin("tiny-dream").await;
    let origin = json!({"diffusion": {"preset": "reference", "alg_temp": 0.5}});
    let body = with(chat_body("tiny-dream"), origin);
    assert_eq!(refusal(&dream, CHAT, &body).await.1, "diffusion.order_temperature");
    let phi = serve_builtin("tiny-phi").await;
    let body = with(chat_body("tiny-phi"), json!({"diffusion": {"steps": 8}}));
    assert_eq!(refusal(&phi, CHAT, &body).await.1, "diffusion.steps");
}

#[tokio::test]
async fn knobs_that_do_not_go_together_are_refused_by_name() {
    let server = serve_builtin("tiny-llada").await;
    for (more, param) in [
        (json!({"diffusion": {"cache": "all"}}), "diffusion.cache"),
        (json!({"diffusion": {"cache": "none", "refresh_every": 2}}), "diffusion.refresh_every"),
        (json!({"diffusion": {"quota": "adaptive"}}), "diffusion.quota"),
        (json!({"diffusion": {"quota": "stable", "region": "canvas"}}), "diffusion.region"),
        (json!({"diffusion": {"steps": 8, "remask": "below"}}), "diffusion.remask"),
        (json!({"diffusion": {"steps": 8, "window": 8}}), "diffusion.region"),
        (json!({"diffusion": {"canvas": "daedal", "cache": "dual"}}), "diffusion.cache"),
        (json!({"diffusion": {"canvas": "daedal"}, "ignore_eos": true}), "diffusion.canvas"),
        (json!({"diffusion": {"speculate": 4}}), "diffusion.quota"),
        (json!({"diffusion": {"speculate": 99, "quota": "one"}}), "diffusion.speculate"),
        (json!({"diffusion": {"progress": true}}), "diffusion.progress"),
        (json!({"diffusion": {"likelihood": {"answer_start": 3}}}), "diffusion.likelihood"),
        (json!({"diffusion": {"infill": ["a"]}}), "diffusion.infill"),
        (
            json!({"diffusion": {"quota": "one", "speculate": 2, "infill": [2, " x", 2]}}),
            "diffusion.speculate",
        ),
        (
            json!({"stream": true, "diffusion": {"canvas": "daedal", "progress": true}}),
            "diffusion.progress",
        ),
        (json!({"diffusion": {"canvas": "daedal", "quota": "stable"}}), "diffusion.quota"),
    ] {
        let body = with(chat_body("tiny-llada"), more);
        assert_eq!(refusal(&server, CHAT, &body).await.1, param, "{body}");
    }
    let dream = serve_builtin("tiny-dream").await;
    let wino = with(chat_body("tiny-dream"), json!({"diffusion": {"remask": "wino"}}));
    assert_eq!(refusal(&dream, CHAT, &wino).await.1, "diffusion.remask");
    let phi = serve_builtin("tiny-phi").await;
    let suffix = json!({"model": "tiny-phi", "prompt": "a", "suffix": "b"});
    assert_eq!(refusal(&phi, COMPLETIONS, &suffix).await.1, "suffix");
}

#[tokio::test]
async fn explicit_nulls_and_bookkeeping_fields_change_nothing() {
    let server = serve_builtin("tiny-phi").await;
    let nulls = json!({
        "max_tokens": null, "temperature": null, "stop": null, "stream_options": null, "n": null,
        "logit_bias": null, "seed": null, "top_p": null, "tools": null, "diffusion": null,
        "user": "me", "metadata": {"a": "b"}, "store": false, "presence_penalty": 0,
        "response_format": {"type": "text"},
    });
    let answer = server.chat("tiny-phi", CAPITAL, nulls).await;
    assert_eq!(text(&answer), "The capital of France is Paris.");
}

#[tokio::test]
async fn malformed_bodies_and_routes_get_the_error_shape() {
    let server = serve_builtin("tiny-phi").await;
    let url = format!("{}{CHAT}", server.url);
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    for body in
        ["", "{", "null", "[]", "{\"model\": 1}", "{} x", deep.as_str(), "{\"a\":\"\\ud800\"}"]
    {
        let request = server.client.post(&url).header("content-type", "application/json");
        let response = request.body(body.to_owned()).send().await.unwrap();
        assert_eq!(response.status(), 400, "{body:.30}");
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["error"]["type"], "invalid_request_error");
    }
    let plain = server.client.post(&url).body("{}").send().await.unwrap();
    assert_eq!(plain.status(), 415);
    let large = server.client.post(&url).header("content-type", "application/json");
    let large = large.body(vec![b' '; (4 << 20) + 1]).send().await.unwrap();
    assert_eq!(large.status(), 413);
    let wrong = server.client.get(&url).send().await.unwrap();
    assert_eq!(wrong.status(), 405);
    assert_eq!(wrong.headers()["allow"], "POST");
    let (status, body) = server.get("/nowhere").await;
    assert_eq!(status, 404);
    assert!(serde_json::from_str::<Value>(&body).unwrap()["error"]["message"].is_string());
}

#[tokio::test]
async fn request_ids_are_echoed_or_made() {
    let server = serve_builtin("tiny-phi").await;
    let get =
        |id: &str| server.client.get(format!("{}/health", server.url)).header("x-request-id", id);
    let echoed = get("mine-1").send().await.unwrap();
    assert_eq!(echoed.headers()["x-request-id"], "mine-1");
    let long = get(&"x".repeat(500)).send().await.unwrap();
    assert_eq!(long.headers()["x-request-id"].len(), 36);
}

#[tokio::test]
async fn keys_guard_the_api_and_nothing_else() {
    let server = serve(options("tiny-phi"), vec!["one".to_owned(), "two".to_owned()]).await;
    let models = format!("{}/v1/models", server.url);
    assert_eq!(server.get("/v1/models").await.0, 401);
    let refused =
        server.client.post(format!("{}{CHAT}", server.url)).body("{}").send().await.unwrap();
    assert_eq!(refused.headers()["www-authenticate"], "Bearer");
    for (key, status) in [("two", 200), ("three", 401)] {
        let response = server.client.get(&models).bearer_auth(key).send().await.unwrap();
        assert_eq!(response.status(), status);
    }
    assert_eq!(server.get("/health").await.0, 200);
    assert_eq!(server.get("/metrics").await.0, 200);
}

#[tokio::test]
async fn before_the_model_is_there_requests_are_told_to_wait() {
    let (url, task) = listen(AppState::new("soon", vec![])).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let health = client.get(format!("{url}/health")).send().await.unwrap();
    assert_eq!(health.status(), 503);
    assert_eq!(health.json::<Value>().await.unwrap()["state"], "loading");
    let chat = client.post(format!("{url}{CHAT}")).json(&chat_body("soon")).send().await.unwrap();
    assert_eq!(chat.status(), 503);
    assert_eq!(chat.headers()["retry-after"], "1");
    assert_eq!(client.get(format!("{url}/health/live")).send().await.unwrap().status(), 200);
    task.abort();
}

#[tokio::test]
async fn a_full_queue_is_429_and_a_disconnect_frees_its_seat() {
    let mut options = options("tiny-llada");
    (options.max_num_seqs, options.max_queue) = (1, 1);
    let server = serve(options, vec![]).await;
    let running = spawn(&server, COMPLETIONS, endless());
    server.until(|s| s.running == 1).await;
    let waiting = spawn(&server, COMPLETIONS, endless());
    server.until(|s| s.queued == 1).await;
    let response = server.send(COMPLETIONS, &endless()).await;
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "1");
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["error"]["code"], "rate_limit_exceeded");
    let (_, health) = server.get("/health").await;
    assert_eq!(serde_json::from_str::<Value>(&health).unwrap()["status"], "degraded");
    running.abort();
    waiting.abort();
    server.until(|s| s.running == 0 && s.queued == 0).await;
    let answer = server.chat("tiny-llada", CAPITAL, json!({})).await;
    assert_eq!(text(&answer), "The capital of France is Paris.");
}

#[tokio::test]
async fn a_request_out_of_time_is_a_504() {
    let mut options = options("tiny-llada");
    options.request_timeout = std::time::Duration::from_millis(200);
    let server = serve(options, vec![]).await;
    let (status, body) = server.post(COMPLETIONS, &endless()).await;
    assert_eq!((status, &body["error"]["type"]), (504, &json!("timeout_error")));
    for name in ["vdiff_requests_total", "vdiff_request_failure_total"] {
        assert!((server.metric(name).await - 1.0).abs() < 1e-9, "{name} counts it once");
    }
}

#[tokio::test]
async fn draining_refuses_new_requests_and_finishes_old_ones() {
    let server = serve_builtin("tiny-phi").await;
    let body = json!({"model": "tiny-phi", "prompt": "x", "max_tokens": 400, "ignore_eos": true});
    let running = spawn(&server, COMPLETIONS, body);
    server.until(|s| s.totals.steps > 0).await;
    server.state.model().unwrap().engine.drain();
    let refused = server.send(CHAT, &chat_body("tiny-phi")).await;
    assert_eq!(refused.status(), 503);
    assert_eq!(server.get("/health/ready").await.0, 503);
    let (status, answer) = running.await.unwrap();
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(400)));
}
