//! A server on a real socket, and what clients do with it.

use std::time::Duration;

use dfastllm_backends::{CpuProvider, DTypeChoice, DeviceProvider, DeviceSpec};
use dfastllm_engine::decoding::Preset;
use dfastllm_engine::{Engine, StatsSnapshot};
use dfastllm_models::builtin_files;
use dfastllm_server::{
    Access, AppState, Connections, ServeOptions, ServedModel, app, bind, serve_connections,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// A question all built-in models answer.
pub const CAPITAL: &str = "What is the capital of France?";
/// The chat endpoint.
pub const CHAT: &str = "/v1/chat/completions";
/// The completions endpoint.
pub const COMPLETIONS: &str = "/v1/completions";

/// The content of a chat answer.
#[must_use]
pub fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

/// A chat request with [`CAPITAL`].
#[must_use]
pub fn chat_body(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": CAPITAL}]})
}

/// A body with more fields.
#[must_use]
pub fn with(mut body: Value, more: Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// A running server; it stops when dropped.
pub struct Server {
    /// `http://127.0.0.1:port`
    pub url: String,
    /// What its handlers share.
    pub state: AppState,
    /// A client without proxies.
    pub client: reqwest::Client,
    task: JoinHandle<()>,
    _engine: Engine,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Options of a built-in model in f32, served under its own name.
#[must_use]
pub fn options(model: &str) -> ServeOptions {
    ServeOptions {
        stall_timeout: Duration::from_secs(60),
        warm_up: true,
        speculative_tokens: 8,
        draft_model: None,
        audit: false,
        files: builtin_files(model).unwrap(),
        names: vec![model.to_owned()],
        device: DeviceSpec::Cpu,
        weights: DTypeChoice::F32.into(),
        max_model_len: None,
        max_num_seqs: 16,
        max_num_batched_tokens: 2048,
        kv_cache_tokens: None,
        max_queue: 256,
        request_timeout: Duration::from_secs(300),
        preset: Preset::Fast,
        seed: None,
    }
}

/// Serves a built-in model with default options.
pub async fn serve_builtin(model: &str) -> Server {
    serve(options(model), vec![]).await
}

/// Serves with options and API keys.
pub async fn serve(options: ServeOptions, keys: Vec<String>) -> Server {
    let access = Access { api_keys: keys, ..Access::default() };
    serve_with(options, access, Connections::default()).await
}

/// Serves with everything there is to choose.
pub async fn serve_with(options: ServeOptions, access: Access, connections: Connections) -> Server {
    let providers: Vec<Box<dyn DeviceProvider>> = vec![Box::new(CpuProvider)];
    let (served, engine) = ServedModel::start(&options, &providers).unwrap();
    let state = AppState::with_access(&options.names[0], access);
    state.set_model(served);
    let (url, task) = listen_with(state.clone(), connections).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    Server { url, state, client, task, _engine: engine }
}

/// Puts a state behind a socket.
pub async fn listen(state: AppState) -> (String, JoinHandle<()>) {
    listen_with(state, Connections::default()).await
}

async fn listen_with(state: AppState, connections: Connections) -> (String, JoinHandle<()>) {
    let listener = bind("127.0.0.1", 0).await.unwrap();
    let scheme = if connections.tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", listener.local_addr().unwrap());
    let server = serve_connections(listener, app(state), connections, std::future::pending());
    let task = tokio::spawn(server);
    (url, task)
}

impl Server {
    /// GET, with status and body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let response = self.client.get(format!("{}{path}", self.url)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// POST of a JSON body, with status and JSON answer.
    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let response = self.send(path, body).await;
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// POST of a JSON body.
    pub async fn send(&self, path: &str, body: &Value) -> reqwest::Response {
        self.client.post(format!("{}{path}", self.url)).json(body).send().await.unwrap()
    }

    /// A chat answer to one user message.
    pub async fn chat(&self, model: &str, text: &str, more: Value) -> Value {
        let body = json!({"model": model, "messages": [{"role": "user", "content": text}]});
        let (status, answer) = self.post(CHAT, &with(body, more)).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Events of a stream: parsed data, and whether it ended with `[DONE]`.
    pub async fn stream(&self, path: &str, body: &Value) -> (Vec<Value>, bool) {
        let response = self.send(path, body).await;
        assert_eq!(response.status(), 200);
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert_eq!(kind, "text/event-stream; charset=utf-8");
        events(&response.text().await.unwrap())
    }

    /// The value of a metric without labels other than the model's.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let line = text.lines().find(|l| l.starts_with(&format!("{name}{{"))).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

fn events(text: &str) -> (Vec<Value>, bool) {
    let mut data: Vec<&str> = text
        .split("\n\n")
        .filter(|event| !event.is_empty())
        .map(|event| event.strip_prefix("data: ").unwrap())
        .collect();
    let done = data.last() == Some(&"[DONE]");
    if done {
        data.pop();
    }
    (data.into_iter().map(|d| serde_json::from_str(d).unwrap()).collect(), done)
}

/// A request whose answer takes thousands of passes, whatever the machine: to be cancelled.
#[must_use]
pub fn endless() -> Value {
    let settings = json!({"preset": "reference", "steps": 400_000});
    json!({"model": "tiny-llada", "prompt": "x", "max_tokens": 400, "diffusion": settings})
}

/// Sends a request in a task of its own; aborting the task drops the connection.
#[must_use]
pub fn spawn(server: &Server, path: &str, body: Value) -> JoinHandle<(u16, Value)> {
    let request = server.client.post(format!("{}{path}", server.url)).json(&body);
    tokio::spawn(async move {
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    })
}

impl Server {
    /// Waits until the engine's numbers are as wanted; a test that waits too long is stuck.
    pub async fn until(&self, wanted: impl Fn(&StatsSnapshot) -> bool) {
        let engine = &self.state.model().unwrap().engine;
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while !wanted(&engine.stats().snapshot()) {
            assert!(std::time::Instant::now() < deadline, "{:?}", engine.stats().snapshot());
            tokio::task::yield_now().await;
        }
    }
}
