//! Answers with a form, as clients ask for them: schemas, patterns, choices, grammars and calls.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a suite that meets something unforeseen has failed"
)]

use boon::{Compiler, Schemas};
use dfastllm_tests::fixtures::path;
use dfastllm_tests::http::{CHAT, COMPLETIONS, Server, serve_builtin, text, with};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

const MODELS: [&str; 3] = ["tiny-phi", "tiny-llada", "tiny-dream"];
const PLACE: &str = "http://127.0.0.1/schema.json";
/// Answers to each schema.
const EACH: u64 = 10;
/// Requests at a time.
const AT_ONCE: usize = 16;

fn schemas() -> Vec<Value> {
    let text = std::fs::read_to_string(path("structure/schemas.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn accepts(schema: &Value, text: &str) -> bool {
    let Ok(value) = serde_json::from_str::<Value>(text) else { return false };
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.add_resource(PLACE, schema.clone()).unwrap();
    compiler.enable_format_assertions();
    let index = compiler.compile(PLACE, &mut schemas).unwrap();
    schemas.validate(&value, index).is_ok()
}

/// A question with the form its answer has to have.
fn ask(model: &str, schema: &Value, seed: u64) -> Value {
    let prompts = ["What is the capital of France?", "Name a colour.", "How old is Ann?"];
    json!({
        "model": model,
        "messages": [{"role": "user", "content": prompts[seed as usize % prompts.len()]}],
        "max_tokens": 96,
        "temperature": if seed.is_multiple_of(2) { 0.0 } else { 1.2 },
        "seed": seed,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    })
}

async fn answers(server: &Server, bodies: Vec<Value>) -> Vec<Value> {
    stream::iter(bodies)
        .map(async |body| {
            let (status, answer) = server.post(CHAT, &body).await;
            assert_eq!(status, 200, "{body} {answer}");
            answer
        })
        .buffered(AT_ONCE)
        .collect()
        .await
}

async fn every_answer_is_accepted(model: &str) {
    let (server, schemas) = (serve_builtin(model).await, schemas());
    assert_eq!(schemas.len(), 20);
    let asked = schemas.iter().flat_map(|schema| (0..EACH).map(move |seed| (schema, seed)));
    let bodies: Vec<Value> = asked.clone().map(|(schema, seed)| ask(model, schema, seed)).collect();
    let free = bodies.iter().map(|body| with(body.clone(), json!({"response_format": null})));
    let free = answers(&server, free.collect()).await;
    let structured = answers(&server, bodies).await;
    let mut by_chance = 0;
    for (((schema, _), answer), free) in asked.zip(&structured).zip(&free) {
        assert!(accepts(schema, text(answer)), "{schema}: {}", text(answer));
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        by_chance += usize::from(accepts(schema, text(free)));
    }
    assert!(by_chance < 5, "{by_chance} answers that nobody asked to have a form have it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn phi_answers_what_twenty_schemas_accept() {
    every_answer_is_accepted("tiny-phi").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn llada_answers_what_twenty_schemas_accept() {
    every_answer_is_accepted("tiny-llada").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dream_answers_what_twenty_schemas_accept() {
    every_answer_is_accepted("tiny-dream").await;
}

#[tokio::test]
async fn patterns_choices_and_grammars_hold_on_both_endpoints() {
    for model in MODELS {
        let server = serve_builtin(model).await;
        for (form, fits) in [
            (json!({"regex": "[A-Z]{3}-[0-9]{2}"}), (|t| t.len() == 6) as fn(&str) -> bool),
            (json!({"choice": ["red", "green"]}), |t| t == "red" || t == "green"),
            (json!({"grammar": "start: \"<\" /[a-c]{2,4}/ \">\""}), |t| {
                t.starts_with('<') && t.ends_with('>')
            }),
            (json!({"json": "{\"enum\": [[1, 2]]}"}), |t| t == "[1, 2]" || t == "[1,2]"),
        ] {
            let more = json!({"structured_outputs": form, "max_tokens": 48, "seed": 1});
            let answer = server.chat(model, "Say something.", more.clone()).await;
            assert!(fits(text(&answer)), "{model} {form}: {}", text(&answer));
            let body = with(json!({"model": model, "prompt": "Say something."}), more);
            let (status, answer) = server.post(COMPLETIONS, &body).await;
            assert_eq!(status, 200, "{answer}");
            let said = answer["choices"][0]["text"].as_str().unwrap();
            assert!(fits(said), "{model} {form}: {said}");
            let (chunks, done) =
                server.stream(COMPLETIONS, &with(body, json!({"stream": true}))).await;
            let streamed: String =
                chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
            assert!(done && streamed == said, "{streamed}");
        }
    }
}

#[tokio::test]
async fn a_form_that_cannot_be_kept_is_refused_by_name() {
    let server = serve_builtin("tiny-llada").await;
    let object = json!({"type": "json_object"});
    let named = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}});
    for (more, param) in [
        (named(json!({"$ref": "https://example.com/s"})), "response_format.json_schema.schema"),
        (named(json!(false)), "response_format.json_schema.schema"),
        (json!({"structured_outputs": {"regex": "a("}}), "structured_outputs.regex"),
        (json!({"structured_outputs": {"grammar": "start: x"}}), "structured_outputs.grammar"),
        (json!({"structured_outputs": {"grammar": "root ::= x"}}), "structured_outputs.grammar"),
        (json!({"structured_outputs": {"regex": "a{0}"}}), "structured_outputs.regex"),
        (json!({"response_format": object, "min_tokens": 2}), "min_tokens"),
        (json!({"response_format": object, "ignore_eos": true}), "ignore_eos"),
        (json!({"response_format": object, "diffusion": {"remask": "wino"}}), "diffusion.remask"),
        (json!({"response_format": object, "allowed_token_ids": [5]}), "allowed_token_ids"),
        (json!({"guided_json": {}}), "guided_json"),
    ] {
        let body = json!({"model": "tiny-llada", "messages": [{"role": "user", "content": "Hi"}]});
        let (status, answer) = server.post(CHAT, &with(body, more.clone())).await;
        assert_eq!(
            (status, answer["error"]["param"].as_str()),
            (400, Some(param)),
            "{more} {answer}"
        );
    }
}

fn weather() -> Value {
    json!([{"type": "function", "function": {"name": "get_weather", "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
        "required": ["city", "days"],
        "additionalProperties": false,
    }}}, {"type": "function", "function": {"name": "clock"}}])
}

#[tokio::test]
async fn calls_that_are_asked_for_are_made_whole_and_streamed() {
    for model in MODELS {
        let server = serve_builtin(model).await;
        let choice = json!({"type": "function", "function": {"name": "get_weather"}});
        let more = json!({"tools": weather(), "tool_choice": choice, "max_tokens": 80, "seed": 3});
        let answer = server.chat(model, "Weather in Rome?", more.clone()).await;
        let whole = &answer["choices"][0];
        assert_eq!(whole["finish_reason"], "tool_calls", "{answer}");
        assert_eq!(whole["message"]["content"], Value::Null);
        let call = &whole["message"]["tool_calls"][0];
        assert_eq!(
            (&call["type"], &call["function"]["name"]),
            (&json!("function"), &json!("get_weather"))
        );
        let arguments = call["function"]["arguments"].as_str().unwrap();
        let given: Value = serde_json::from_str(arguments).unwrap();
        assert!(["Paris", "Rome"].contains(&given["city"].as_str().unwrap()), "{arguments}");
        assert!((1..=7).contains(&given["days"].as_i64().unwrap()));
        let body = json!({"model": model, "stream": true,
            "messages": [{"role": "user", "content": "Weather in Rome?"}]});
        let (chunks, done) = server.stream(CHAT, &with(body, more)).await;
        let calls: Vec<&Value> =
            chunks.iter().map(|c| &c["choices"][0]["delta"]["tool_calls"][0]).collect();
        let streamed: String =
            calls.iter().filter_map(|c| c["function"]["arguments"].as_str()).collect();
        assert!(done);
        assert_eq!(streamed, arguments);
        let names: Vec<&str> =
            calls.iter().filter_map(|c| c["function"]["name"].as_str()).collect();
        assert_eq!(names, ["get_weather"]);
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    }
}

#[tokio::test]
async fn results_of_calls_are_read_and_wrong_tools_refused() {
    let server = serve_builtin("tiny-phi").await;
    let call = json!({"id": "call_1", "type": "function",
        "function": {"name": "clock", "arguments": "{}"}});
    let messages = json!([
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]);
    let body =
        json!({"model": "tiny-phi", "messages": messages, "tools": weather(), "max_tokens": 8});
    let (status, answer) = server.post(CHAT, &body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["choices"][0]["message"].get("tool_calls"), None);
    let without = with(body.clone(), json!({"tool_choice": "none"}));
    let (_, shorter) = server.post(CHAT, &without).await;
    let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(tokens(&shorter) + 50 < tokens(&answer), "tools are told to the model unless none");
    for (more, param) in [
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "x"}}}),
            "tool_choice.function.name",
        ),
        (json!({"response_format": {"type": "json_object"}}), "tools"),
        (json!({"tools": null, "tool_choice": "required"}), "tool_choice"),
        (
            json!({"messages": [{"role": "assistant", "content": "", "tool_calls": ["x"]}]}),
            "messages[0].tool_calls",
        ),
    ] {
        let (status, answer) = server.post(CHAT, &with(body.clone(), more.clone())).await;
        assert_eq!(
            (status, answer["error"]["param"].as_str()),
            (400, Some(param)),
            "{more} {answer}"
        );
    }
}

#[tokio::test]
async fn the_responses_api_takes_forms_too() {
    let server = serve_builtin("tiny-dream").await;
    let format =
        json!({"type": "json_schema", "name": "city", "schema": {"enum": ["Rome", "Oslo"]}});
    let body = json!({"model": "tiny-dream", "input": "A city?", "text": {"format": format}});
    let (status, answer) = server.post("/v1/responses", &body).await;
    assert_eq!(status, 200, "{answer}");
    let said = answer["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(said == "\"Rome\"" || said == "\"Oslo\"", "{said}");
    assert_eq!(answer["text"]["format"], format);
    let wrong = json!({"type": "json_schema", "name": "x", "schema": {"$ref": "#/$defs/x"}});
    let (status, answer) =
        server.post("/v1/responses", &with(body, json!({"text": {"format": wrong}}))).await;
    assert_eq!((status, answer["error"]["param"].as_str()), (400, Some("text.format.schema")));
}
