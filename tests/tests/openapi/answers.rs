//! Every real answer is one that the document describes, field by field, and every field that it
//! describes is met.

use dfastllm_engine::decoding::Preset;
use dfastllm_models::builtin_files;
use dfastllm_server::{AppState, ServeOptions};
use dfastllm_tests::http::{
    CHAT, COMPLETIONS, Server, chat_body, listen, options, serve, serve_builtin, with,
};
use serde_json::{Value, json};

use crate::document::Document;

impl Document {
    /// Asks, and holds the answer or all its events against the document.
    pub(crate) async fn ask(&mut self, server: &Server, path: &str, body: &Value) {
        let response = server.send(path, body).await;
        if response.status() == 200 {
            self.allows(path, body);
        }
        self.judge_response(("post", path), response).await;
    }

    pub(crate) async fn get(&mut self, server: &Server, path: &str, documented: &str) {
        let response = server.client.get(format!("{}{path}", server.url)).send().await.unwrap();
        self.judge_response(("get", documented), response).await;
    }

    pub(crate) async fn judge_response(
        &mut self,
        route: (&str, &str),
        response: reqwest::Response,
    ) {
        let status = response.status().as_u16();
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        let kind = kind.split(';').next().unwrap();
        let text = response.text().await.unwrap();
        let bodies: Vec<Value> = match kind {
            "application/json" => vec![serde_json::from_str(&text).unwrap()],
            "text/event-stream" => text
                .split("\n\n")
                // Some APIs name their events.
                .filter_map(|event| event.lines().find_map(|line| line.strip_prefix("data: ")))
                .filter(|data| *data != "[DONE]")
                .map(|data| serde_json::from_str(data).unwrap())
                .collect(),
            _ => vec![text.into()],
        };
        assert!(!bodies.is_empty(), "{route:?}");
        for body in bodies {
            self.judge(route, (status, kind), &body);
        }
    }
}

fn completion(model: &str, more: Value) -> Value {
    let body = json!({"model": model, "prompt": "The capital of France is", "max_tokens": 8});
    with(body, more)
}

#[tokio::test]
async fn answers_are_those_of_the_document() {
    let phi = serve_builtin("tiny-phi").await;
    let audited = ServeOptions { audit: true, preset: Preset::Turbo, ..options("tiny-llada") };
    let llada = serve(audited, vec![]).await;
    let drafts = ServeOptions { draft_model: builtin_files("tiny-phi"), ..options("tiny-llada") };
    let drafts = serve(drafts, vec![]).await;
    let mut document = Document::of(&phi).await;
    let all = json!({"return_token_ids": true, "n": 2});
    let streamed = json!({"stream": true, "stream_options": {"include_usage": true}});
    for (server, model) in [(&phi, "tiny-phi"), (&llada, "tiny-llada")] {
        for more in [json!({}), streamed.clone()] {
            let chat = with(with(chat_body(model), more.clone()), all.clone());
            let chat = with(chat, json!({"logprobs": true, "top_logprobs": 2}));
            document.ask(server, CHAT, &chat).await;
            let text = with(completion(model, more.clone()), all.clone());
            document.ask(server, COMPLETIONS, &with(text, json!({"logprobs": 2}))).await;
            let echo = completion(model, json!({"echo": true, "logprobs": 1}));
            document.ask(server, COMPLETIONS, &with(echo, more)).await;
        }
    }
    let often = json!({"stream": true, "stream_options": {"continuous_usage_stats": true}});
    document.ask(&phi, CHAT, &with(chat_body("tiny-phi"), often)).await;
    let watched = json!({"stream": true, "diffusion": {"progress": true, "trace": true}});
    document.ask(&llada, CHAT, &with(chat_body("tiny-llada"), watched.clone())).await;
    document.ask(&llada, COMPLETIONS, &completion("tiny-llada", watched)).await;
    let traced = json!({"diffusion": {"trace": true, "remask": "wino"}, "max_tokens": 64});
    document.ask(&llada, CHAT, &with(chat_body("tiny-llada"), traced.clone())).await;
    document.ask(&llada, COMPLETIONS, &completion("tiny-llada", traced)).await;
    for stream in [false, true] {
        let gaps = json!({"diffusion": {"infill": ["", 4, " and ", {"max_tokens": 8}, "."]}});
        let gaps = with(gaps, json!({"stream": stream, "max_tokens": null}));
        document.ask(&llada, CHAT, &with(chat_body("tiny-llada"), gaps.clone())).await;
        document.ask(&llada, COMPLETIONS, &completion("tiny-llada", gaps)).await;
    }
    for samples in [1, 4] {
        let likelihood = json!({"answer_start": 2, "samples": samples});
        let more = json!({"max_tokens": 0, "diffusion": {"likelihood": likelihood}});
        document.ask(&llada, COMPLETIONS, &completion("tiny-llada", more)).await;
    }
    for stream in [false, true] {
        let function = json!({"name": "clock", "parameters": {"type": "object"}});
        let tools = json!([{"type": "function", "function": function}]);
        let called = json!({"tools": tools, "tool_choice": "required", "stream": stream});
        let called = with(called, json!({"max_tokens": 64, "parallel_tool_calls": false}));
        document.ask(&phi, CHAT, &with(chat_body("tiny-phi"), called)).await;
    }
    let verified = json!({"diffusion": {"quota": "adaptive"}});
    document.ask(&drafts, CHAT, &with(chat_body("tiny-llada"), verified)).await;
    assert_eq!(document.unseen("Completion"), [""; 0]);
    // OpenAI's models refuse at times.
    assert_eq!(document.unseen("ChatCompletion"), ["refusal"]);
    assert_eq!(document.unseen("ChatChunk"), ["refusal"]);
}

#[tokio::test]
async fn so_are_errors_and_what_is_said_of_the_server() {
    let server = serve(options("tiny-phi"), vec![]).await;
    let mut document = Document::of(&server).await;
    for (path, documented) in [
        ("/health", "/health"),
        ("/health/live", "/health/live"),
        ("/health/ready", "/health/ready"),
        ("/version", "/version"),
        ("/metrics", "/metrics"),
        ("/openapi.json", "/openapi.json"),
        ("/docs", "/docs"),
        ("/v1/models", "/v1/models"),
        ("/v1/models/tiny-phi", "/v1/models/{id}"),
        ("/v1/models/x/y", "/v1/models/{id}"),
        ("/v1/models/%FF", "/v1/models/{id}"),
    ] {
        document.get(&server, path, documented).await;
    }
    for (path, body) in
        [(CHAT, chat_body("tiny-phi")), (COMPLETIONS, completion("tiny-phi", json!({})))]
    {
        for wrong in [
            json!({"model": "other"}),
            json!({"model": null}),
            json!({"temperature": -1}),
            json!({"prompt": "", "messages": []}),
            json!({"unheard_of": 1}),
        ] {
            document.ask(&server, path, &with(body.clone(), wrong)).await;
        }
        let plain = server.client.post(format!("{}{path}", server.url)).body("{}");
        document.judge_response(("post", path), plain.send().await.unwrap()).await;
        document.ask(&server, path, &json!({"prompt": "x".repeat(5 << 20)})).await;
    }
    for id in ["unknown", "%FF"] {
        let cancel = server.client.delete(format!("{}/v1/requests/{id}", server.url));
        let route = ("delete", "/v1/requests/{id}");
        document.judge_response(route, cancel.send().await.unwrap()).await;
    }
    assert_eq!(document.unseen("ErrorBody"), [""; 0]);
    // The CPU has no memory of its own to tell of; the suite `monitor` has one that does.
    let of_gpu = ["gpu_memory", "total_mb", "used_mb", "utilization"];
    assert_eq!(document.unseen("Health"), of_gpu);
    assert_eq!(document.unseen("ModelList"), ["parent"]);
    let (url, task) = listen(AppState::new("tiny-phi", vec![])).await;
    for path in ["/health", "/health/ready", "/v1/models"] {
        let loading = server.client.get(format!("{url}{path}")).send().await.unwrap();
        assert_eq!(loading.status(), 503);
        document.judge_response(("get", path), loading).await;
    }
    let chat = server.client.post(format!("{url}{CHAT}")).json(&chat_body("tiny-phi"));
    document.judge_response(("post", CHAT), chat.send().await.unwrap()).await;
    task.abort();
}
