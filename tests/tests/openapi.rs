//! `/openapi.json` says what the server does: its routes, its fields and its limits are the real
//! ones.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a suite that meets something unforeseen has failed"
)]

#[path = "openapi/answers.rs"]
mod answers;
#[path = "openapi/document.rs"]
mod document;
#[path = "openapi/neighbours.rs"]
mod neighbours;

use std::collections::BTreeSet;
use std::path::Path;

use dfastllm_tests::http::{CHAT, Server, chat_body, options, serve, serve_builtin, with};
use reqwest::Method;
use serde_json::{Value, json};

use document::Document;
use neighbours::RESPONSES;

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// Routes others rely on.
const PROMISED: [&str; 19] = [
    "get /docs",
    "get /openapi.json",
    "get /health",
    "get /health/live",
    "get /health/ready",
    "get /version",
    "get /metrics",
    "get /v1/models",
    "get /v1/models/{id}",
    "post /v1/completions",
    "post /v1/chat/completions",
    "delete /v1/requests/{id}",
    "post /v1/responses",
    "post /v1/messages",
    "post /v1/messages/count_tokens",
    "post /infill",
    "post /tokenize",
    "post /detokenize",
    "get /tokenizer_info",
];

/// A path whose parts that vary name nothing.
fn filled(path: &str) -> String {
    path.replace("{id}", "nothing")
}

#[tokio::test]
async fn documented_routes_answer_and_no_other_method_does() {
    let server = serve_builtin("tiny-phi").await;
    let document = Document::of(&server).await;
    let documented: BTreeSet<String> =
        document.operations().iter().map(|(path, method, _)| format!("{method} {path}")).collect();
    for route in PROMISED {
        assert!(documented.contains(route), "{route}");
    }
    let paths: BTreeSet<&str> = document.operations().iter().map(|(path, ..)| *path).collect();
    for path in paths {
        for method in METHODS {
            let name = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let request = server.client.request(name, format!("{}{}", server.url, filled(path)));
            let response = request.send().await.unwrap();
            let (status, text) = (response.status().as_u16(), response.text().await.unwrap());
            let is_known = documented.contains(&format!("{method} {path}"));
            assert_eq!(status != 405, is_known, "{method} {path}: {status}");
            assert!(!text.contains("no such route"), "{method} {path}: {text}");
        }
    }
}

/// Routes come from documented handlers only (`.routes(routes!(…))`), so none can be forgotten.
#[test]
fn every_route_is_a_documented_handler() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("server/src");
    let mut folders = vec![sources];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                for forbidden in [".route(", ".route_service(", ".nest_service("] {
                    assert!(!text.contains(forbidden), "{}: {forbidden}", path.display());
                }
            }
        }
    }
}

#[tokio::test]
async fn routes_want_a_key_where_the_document_says_so() {
    let server = serve(options("tiny-phi"), vec!["secret".to_owned()]).await;
    let document = Document::of(&server).await;
    for (path, method, operation) in document.operations() {
        let name = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let request = server.client.request(name, format!("{}{}", server.url, filled(path)));
        let status = request.send().await.unwrap().status().as_u16();
        assert_eq!(status == 401, operation["security"].is_array(), "{method} {path}");
        assert_eq!(status == 401, operation["responses"]["401"].is_object(), "{method} {path}");
    }
}

#[tokio::test]
async fn everything_is_said_once_and_nothing_is_left_out() {
    let server = serve_builtin("tiny-phi").await;
    let document = Document::of(&server).await;
    assert_eq!(document.value["openapi"], "3.1.0");
    assert_eq!(document.value["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut ids = BTreeSet::new();
    for (path, method, operation) in document.operations() {
        assert!(operation["summary"].is_string(), "{method} {path}");
        assert!(operation["responses"]["500"].is_object(), "{method} {path}");
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{method} {path}");
    }
    for name in [
        "Common",
        "CompletionRequest",
        "ChatRequest",
        "Diffusion",
        "StreamOptions",
        "SharedFields",
        "ResponsesRequest",
        "MessagesRequest",
        "MessagesConversation",
        "CountTokensRequest",
        "InfillRequest",
        "TokenizeText",
        "TokenizeChat",
        "DetokenizeRequest",
    ] {
        let fields = fields(&document, name);
        assert!(!fields.is_empty() || name == "CountTokensRequest", "{name}");
        for (field, schema) in fields {
            // Beside a reference, where there is one.
            let options = schema["oneOf"].as_array().into_iter().flatten().chain([schema]);
            let mut said = options.filter_map(|option| option["description"].as_str());
            assert!(said.next().is_some(), "{name}.{field} has no doc comment");
        }
    }
    let (status, page) = server.get("/docs").await;
    assert_eq!(status, 200);
    assert!(page.len() < 30_000 && page.contains("fetch(\"openapi.json\")"));
    assert!(!page.contains("http://") && !page.contains("https://"), "the page needs a network");
}

/// Own fields of a schema, and those it is put together from.
fn fields<'a>(document: &'a Document, name: &str) -> Vec<(&'a String, &'a Value)> {
    let schema = document.schema(name);
    let parts = schema["allOf"].as_array().into_iter().flatten().chain([schema]);
    parts.filter_map(|part| part["properties"].as_object()).flatten().collect()
}

#[tokio::test]
async fn limits_of_numbers_are_those_the_server_has() {
    let server = serve_builtin("tiny-phi").await;
    let document = Document::of(&server).await;
    let response = json!({"model": "tiny-phi", "input": "x"});
    assert!(limits(&server, &document, "Common", (CHAT, &chat_body("tiny-phi"))).await >= 15);
    assert_eq!(limits(&server, &document, "SharedFields", (RESPONSES, &response)).await, 14);
}

/// Tries the limits of a type's numbers, just within and just beyond; how many there are.
async fn limits(
    server: &Server,
    document: &Document,
    name: &str,
    (path, body): (&str, &Value),
) -> usize {
    let mut limits = 0;
    for (field, schema) in fields(document, name) {
        for (limit, step) in [("minimum", -1.0), ("maximum", 1.0)] {
            let Some(bound) = schema[limit].as_f64() else { continue };
            let is_whole = schema["type"].to_string().contains("integer");
            let number = |x: f64| if is_whole { json!(x as i64) } else { json!(x) };
            let ask = async |x: f64| {
                let short = match path {
                    CHAT => json!({"max_tokens": 1, "logprobs": true}),
                    _ => json!({"max_output_tokens": 1}),
                };
                let more = with(short, json!({field: number(x)}));
                server.post(path, &with(body.clone(), more)).await
            };
            let (status, answer) = ask(bound + step).await;
            let found = (status, answer["error"]["param"].as_str());
            // The engine names the completions' field.
            let is_engines = field == "top_logprobs" && limit == "maximum";
            let named = if is_engines { "logprobs" } else { field };
            assert_eq!(found, (400, Some(named)), "{field} {limit}: {answer}");
            if field != "max_tokens" {
                let (status, answer) = ask(bound).await;
                assert_eq!(status, 200, "{field} {limit}: {answer}");
            }
            limits += 1;
        }
    }
    limits
}

#[tokio::test]
async fn words_of_the_diffusion_object_are_those_the_server_knows() {
    let server = serve_builtin("tiny-llada").await;
    let document = Document::of(&server).await;
    let mut choices = 0;
    for (field, schema) in fields(&document, "Diffusion") {
        let options = schema["oneOf"].as_array().into_iter().flatten().chain([schema]);
        let words: BTreeSet<&str> = options
            .filter_map(|o| o["enum"].as_array())
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let body = with(chat_body("tiny-llada"), json!({"diffusion": {field: {"?": 1}}}));
        let (status, answer) = server.post(CHAT, &body).await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert_eq!(status, 400);
        assert!(!message.contains("unknown field"), "{message}");
        if words.is_empty() {
            continue;
        }
        let body = with(chat_body("tiny-llada"), json!({"diffusion": {field: "?"}}));
        let (_, answer) = server.post(CHAT, &body).await;
        let message = answer["error"]["message"].as_str().unwrap();
        let (_, told) = message.split_once("expected ").unwrap();
        let told = told.strip_prefix("one of ").unwrap_or(told).split(", ").collect();
        assert_eq!(words, told, "{field}");
        choices += 1;
    }
    assert_eq!(choices, 7);
}
