//! The same for the endpoints of other APIs.

use dfastllm_engine::decoding::Preset;
use dfastllm_models::builtin_files;
use dfastllm_server::{AppState, ServeOptions};
use dfastllm_tests::http::{CAPITAL, Server, listen, options, serve, serve_builtin, with};
use serde_json::{Value, json};

use crate::document::Document;
use crate::fields;

pub(crate) const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";
const INFILL: &str = "/infill";
const TOKENIZE: &str = "/tokenize";
const DETOKENIZE: &str = "/detokenize";

fn response(model: &str, more: Value) -> Value {
    with(json!({"model": model, "input": CAPITAL}), more)
}

fn message(model: &str, more: Value) -> Value {
    let messages = json!([{"role": "user", "content": CAPITAL}]);
    with(json!({"model": model, "messages": messages, "max_tokens": 64}), more)
}

fn gap(more: Value) -> Value {
    let texts = json!({"input_prefix": "The capital of", "input_suffix": " is Paris."});
    with(with(texts, json!({"n_predict": 5})), more)
}

/// Every endpoint with a request that it takes.
fn requests() -> [(&'static str, Value); 6] {
    let counted = with(message("tiny-llada", json!({})), json!({"max_tokens": null}));
    [
        (RESPONSES, response("tiny-llada", json!({}))),
        (MESSAGES, message("tiny-llada", json!({}))),
        (COUNT, counted),
        (INFILL, gap(json!({"model": "tiny-llada"}))),
        (TOKENIZE, json!({"model": "tiny-llada", "prompt": CAPITAL})),
        (DETOKENIZE, json!({"model": "tiny-llada", "tokens": [1, 2]})),
    ]
}

/// Its first token settles at once, its last after hundreds of thousands of passes.
fn endless() -> Value {
    json!({"preset": "reference", "steps": 400_000, "score": "left_to_right"})
}

/// Cancels a request of a stream that has begun, and gives the whole stream.
async fn broken(server: &Server, path: &str, body: &Value) -> Vec<Value> {
    let request = server.client.post(format!("{}{path}", server.url)).json(body);
    let mut response = request.header("x-request-id", "broken").send().await.unwrap();
    assert_eq!(response.status(), 200);
    let mut text = String::from_utf8(response.chunk().await.unwrap().unwrap().to_vec()).unwrap();
    let cancel = server.client.delete(format!("{}/v1/requests/broken", server.url));
    assert_eq!(cancel.send().await.unwrap().status(), 200, "{text}");
    text.push_str(&response.text().await.unwrap());
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}

#[tokio::test]
async fn responses_are_those_of_the_document() {
    let phi = serve_builtin("tiny-phi").await;
    let audited = ServeOptions { audit: true, preset: Preset::Turbo, ..options("tiny-llada") };
    let llada = serve(audited, vec![]).await;
    let drafts = ServeOptions { draft_model: builtin_files("tiny-phi"), ..options("tiny-llada") };
    let drafts = serve(drafts, vec![]).await;
    let mut document = Document::of(&phi).await;
    let all = json!({"return_token_ids": true, "include": ["message.output_text.logprobs"],
        "top_logprobs": 2, "metadata": {"a": "b"}, "instructions": "Be kind.", "temperature": 0,
        "top_p": 1, "max_output_tokens": 32, "stop": ["\u{1}"], "store": true, "tools": [],
        "tool_choice": "auto", "truncation": "disabled", "background": false, "reasoning": {},
        "text": {"format": {"type": "text"}, "verbosity": "low"}, "context_management": [],
        "stream_options": {"include_obfuscation": false}, "previous_response_id": null});
    let said = json!([{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        {"type": "message", "role": "assistant", "content": "Hi"},
        {"role": "user", "content": CAPITAL}]);
    for stream in [false, true] {
        let stream = json!({"stream": stream});
        for (server, model) in [(&phi, "tiny-phi"), (&llada, "tiny-llada")] {
            let more = with(all.clone(), stream.clone());
            document.ask(server, RESPONSES, &response(model, more)).await;
            let short = with(json!({"max_output_tokens": 3, "input": said}), stream.clone());
            document.ask(server, RESPONSES, &response(model, short)).await;
        }
        let traced = json!({"trace": true, "cache": "dual", "quota": "one"});
        for diffusion in [traced, json!({"infill": ["", 4, " and ", 3, "."]})] {
            let more = with(json!({"diffusion": diffusion}), stream.clone());
            document.ask(&llada, RESPONSES, &response("tiny-llada", more)).await;
        }
    }
    let verified = json!({"diffusion": {"quota": "adaptive"}});
    document.ask(&drafts, RESPONSES, &response("tiny-llada", verified)).await;
    let slow = json!({"stream": true, "ignore_eos": true, "max_output_tokens": 440,
        "diffusion": endless()});
    let events = broken(&llada, RESPONSES, &response("tiny-llada", slow)).await;
    assert_eq!(events.last().unwrap()["type"], "response.failed");
    for event in &events {
        document.judge(("post", RESPONSES), (200, "text/event-stream"), event);
    }
    // Nothing is stored, and no model thinks first.
    let never = ["effort", "previous_response_id", "summary"];
    assert_eq!(document.unseen("ResponseObject"), never);
    assert_eq!(document.unseen("ResponseEvent"), never);
}

#[tokio::test]
async fn messages_are_those_of_the_document() {
    let server = serve_builtin("tiny-llada").await;
    let mut document = Document::of(&server).await;
    let all = json!({"system": [{"type": "text", "text": "Be kind."}], "tools": [],
        "mcp_servers": [], "tool_choice": {"type": "auto"}, "thinking": {"type": "disabled"},
        "output_config": {}, "stop_sequences": ["Paris"], "temperature": 0});
    for stream in [false, true] {
        let stream = json!({"stream": stream});
        for more in [json!({}), json!({"max_tokens": 3}), all.clone()] {
            let body = message("tiny-llada", with(more, stream.clone()));
            document.ask(&server, MESSAGES, &body).await;
        }
    }
    let slow = json!({"stream": true, "ignore_eos": true, "max_tokens": 440,
        "diffusion": endless()});
    let events = broken(&server, MESSAGES, &message("tiny-llada", slow)).await;
    assert_eq!(events.last().unwrap()["type"], "error");
    for event in &events {
        document.judge(("post", MESSAGES), (200, "text/event-stream"), event);
    }
    assert_eq!(document.unseen("MessageObject"), [""; 0]);
    assert_eq!(document.unseen("MessageEvent"), [""; 0]);
    let (_, counted) = &requests()[2];
    let counted = with(counted.clone(), json!({"max_tokens": null}));
    document.ask(&server, COUNT, &counted).await;
}

#[tokio::test]
async fn gaps_and_tokens_are_those_of_the_document() {
    let server = serve_builtin("tiny-llada").await;
    let mut document = Document::of(&server).await;
    let all = json!({"prompt": " all", "input_extra": [{"text": "x", "filename": "y"}],
        "repeat_penalty": 1, "return_tokens": true, "t_max_predict_ms": 60_000, "n_probs": 0,
        "n_indent": 0, "samplers": ["top_k", "infill"], "stop": "\u{1}", "seed": -1,
        "ignore_eos": true});
    for stream in [false, true] {
        let body = gap(with(all.clone(), json!({"stream": stream})));
        document.ask(&server, INFILL, &body).await;
        let parts = json!({"response_fields": ["content", "timings/predicted_n"], "n_predict": -1});
        document.ask(&server, INFILL, &gap(with(parts, json!({"stream": stream})))).await;
    }
    // Parts may be called anything; all of an answer may not.
    let (status, answer) = server.post(INFILL, &gap(all.clone())).await;
    assert_eq!(status, 200, "{answer}");
    document.is("InfillText", &answer);
    let streamed = server.stream(INFILL, &gap(with(all, json!({"stream": true})))).await.0;
    let (last, chunks) = streamed.split_last().unwrap();
    assert!(!chunks.is_empty());
    chunks.iter().for_each(|chunk| document.is("InfillChunk", chunk));
    document.is("InfillText", last);
    let slow = json!({"stream": true, "n_predict": 400, "ignore_eos": true, "return_tokens": true,
        "diffusion": endless()});
    let events = broken(&server, INFILL, &gap(slow)).await;
    document.is("ErrorBody", events.last().unwrap());
    // `usage` is that of OpenAI's endpoints, whose suite meets all of it.
    let elsewhere =
        ["agreement", "audit", "draft_model_forwards", "max_drift", "mean_drift", "positions"];
    assert_eq!(document.unseen("InfillText"), elsewhere);
    assert_eq!(document.unseen("InfillChunk"), [""; 0]);
    let chat = json!({"messages": [{"role": "user", "content": "x"}], "tools": [],
        "add_generation_prompt": false, "add_special_tokens": true, "return_token_strs": true,
        "continue_final_message": false});
    for body in [json!({"prompt": CAPITAL, "return_token_strs": true}), chat] {
        document.ask(&server, TOKENIZE, &body).await;
    }
    document.ask(&server, DETOKENIZE, &json!({"tokens": [17, 18, 19]})).await;
    document.get(&server, "/tokenizer_info", "/tokenizer_info").await;
    assert_eq!(document.unseen("Tokenized"), [""; 0]);
    let never = ["bos_token", "cls_token", "sep_token", "unk_token"];
    assert_eq!(document.unseen("TokenizerInfo"), never);
}

#[tokio::test]
async fn their_errors_are_those_of_the_document() {
    let server = serve(options("tiny-llada"), vec!["secret".to_owned()]).await;
    let mut document = Document::of(&server).await;
    let (loading, task) = listen(AppState::new("tiny-llada", vec![])).await;
    for (path, body) in requests() {
        let post = |url: &str| server.client.post(format!("{url}{path}"));
        let sent = async |request: reqwest::RequestBuilder, status: u16| {
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), status, "{path}");
            response
        };
        let route = ("post", path);
        let with_key = || post(&server.url).bearer_auth("secret");
        document.judge_response(route, sent(with_key().json(&body), 200).await).await;
        document.judge_response(route, sent(post(&server.url).json(&body), 401).await).await;
        document.judge_response(route, sent(post(&loading).json(&body), 503).await).await;
        document.judge_response(route, sent(with_key().body("{}"), 415).await).await;
        for (wrong, status) in [
            (json!({"unheard_of": 1}), 400),
            (json!({"model": 3}), 400),
            (json!({"model": "other"}), 404),
            (json!({"unheard_of": "x".repeat(5 << 20)}), 413),
        ] {
            let request = with_key().json(&with(body.clone(), wrong));
            document.judge_response(route, sent(request, status).await).await;
        }
    }
    for (url, status) in [(&server.url, 401), (&loading, 503)] {
        let info = server.client.get(format!("{url}/tokenizer_info")).send().await.unwrap();
        assert_eq!(info.status(), status);
        document.judge_response(("get", "/tokenizer_info"), info).await;
    }
    assert_eq!(document.unseen("ErrorBody"), [""; 0]);
    assert_eq!(document.unseen("MessagesError"), [""; 0]);
    task.abort();
    // What starts work may be asked for too often; what does not run the model knows no queue.
    for (path, method, operation) in document.operations() {
        let has = |status: &str| operation["responses"][status].is_object();
        assert_eq!(has("429"), has("401") && method == "post", "{method} {path}");
        let runs = ["/v1/completions", "/v1/chat/completions", RESPONSES, MESSAGES, INFILL];
        assert_eq!(has("504") && has("499"), runs.contains(&path), "{method} {path}");
    }
}

/// What is documented is a field that the endpoint knows.
#[tokio::test]
async fn their_fields_are_those_the_server_reads() {
    let server = serve_builtin("tiny-llada").await;
    let document = Document::of(&server).await;
    let chat = json!({"messages": [{"role": "user", "content": "x"}]});
    let [responses, messages, count, infill, text, ids] = requests();
    for (name, (path, body)) in [
        ("ResponsesRequest", &responses),
        ("SharedFields", &responses),
        ("MessagesRequest", &messages),
        ("MessagesConversation", &messages),
        ("SharedFields", &messages),
        ("MessagesConversation", &count),
        ("InfillRequest", &infill),
        ("SharedFields", &infill),
        ("TokenizeText", &text),
        ("TokenizeChat", &(TOKENIZE, chat)),
        ("DetokenizeRequest", &ids),
    ] {
        let fields = fields(&document, name);
        assert!(fields.len() >= 2, "{name}");
        for (field, _) in fields {
            let wrong = with(body.clone(), json!({field: {"?": 1}}));
            let (status, answer) = server.post(path, &wrong).await;
            // Some change nothing, whatever they say.
            assert!(matches!(status, 200 | 400), "{path} {field}: {answer}");
            let message = answer["error"]["message"].as_str().unwrap_or_default();
            let unknown = format!("'{field}' is not supported by this endpoint");
            assert_ne!(message, unknown, "{path}");
        }
    }
}
