//! Endpoints beside OpenAI's completions and chats: tokenising, responses, messages, gaps.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a suite that meets something unforeseen has failed"
)]

use dfastllm_models::SpecialTokens;
use dfastllm_tests::http::{
    CAPITAL, CHAT, Server, chat_body, options, serve, serve_builtin, text, with,
};
use serde_json::{Value, json};

#[path = "neighbours/gaps.rs"]
mod gaps;
#[path = "neighbours/tokens.rs"]
mod tokens;

const MODELS: [&str; 3] = ["tiny-phi", "tiny-llada", "tiny-dream"];
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";
const ANSWER: &str = "The capital of France is Paris.";

/// Ids of a text, as the model's tokenizer has them.
fn ids(server: &Server, text: &str) -> Vec<u32> {
    server.state.model().unwrap().tokenizer.encode(text, SpecialTokens::Skip).unwrap()
}

async fn ok(server: &Server, path: &str, body: Value) -> Value {
    let (status, answer) = server.post(path, &body).await;
    assert_eq!(status, 200, "{body} {answer}");
    answer
}

/// The parameter named by a 400.
async fn refused(server: &Server, path: &str, body: Value) -> String {
    let (status, answer) = server.post(path, &body).await;
    assert_eq!(status, 400, "{body} {answer}");
    answer["error"]["param"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

/// Named events of a stream.
async fn named(server: &Server, path: &str, body: &Value) -> Vec<(String, Value)> {
    let response = server.send(path, body).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    parse_named(&response.text().await.unwrap())
}

fn parse_named(stream: &str) -> Vec<(String, Value)> {
    let event = |event: &str| {
        let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], name);
        (name.to_owned(), data)
    };
    stream.split("\n\n").filter(|e| !e.is_empty()).map(event).collect()
}

/// The text of all events of a name.
fn joined(events: &[(String, Value)], name: &str, pointer: &str) -> String {
    let text = |(n, data): &(String, Value)| {
        (n == name).then(|| data.pointer(pointer).unwrap().as_str().unwrap().to_owned())
    };
    events.iter().filter_map(text).collect()
}

/// Names of events, repetitions left out.
fn order(events: &[(String, Value)]) -> Vec<&str> {
    let mut names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    names
}

#[tokio::test]
async fn a_response_has_the_answer_and_what_it_took() {
    for model in MODELS {
        let server = serve_builtin(model).await;
        let chat = ok(&server, CHAT, chat_body(model)).await;
        let body = json!({"model": model, "input": CAPITAL, "metadata": {"a": "b"},
            "max_output_tokens": 64, "temperature": 0, "store": true});
        let answer = ok(&server, RESPONSES, body).await;
        let item = &answer["output"][0];
        assert_eq!(answer["object"], "response");
        assert!(answer["id"].as_str().unwrap().starts_with("resp_"));
        assert!(item["id"].as_str().unwrap().starts_with("msg_"));
        assert_eq!(
            (&answer["status"], &item["status"]),
            (&json!("completed"), &json!("completed"))
        );
        assert_eq!(item["role"], "assistant");
        let part =
            json!([{"type": "output_text", "text": ANSWER, "annotations": [], "logprobs": []}]);
        assert_eq!(item["content"], part);
        assert_eq!((&answer["error"], &answer["incomplete_details"]), (&Value::Null, &Value::Null));
        assert_eq!((&answer["store"], &answer["metadata"]), (&json!(false), &json!({"a": "b"})));
        assert_eq!((&answer["max_output_tokens"], &answer["temperature"]), (&json!(64), &json!(0)));
        assert_eq!(answer["model"], model);
        let usage = &answer["usage"];
        assert_eq!(usage["input_tokens"], chat["usage"]["prompt_tokens"]);
        assert_eq!(
            (&usage["output_tokens"], &usage["total_tokens"]),
            (&json!(12), &chat["usage"]["total_tokens"])
        );
        assert_eq!(usage["output_tokens_details"], json!({"reasoning_tokens": 0}));
        assert!(usage["input_tokens_details"]["cached_tokens"].is_u64());
        assert!(usage["forwards"].as_u64().unwrap() > 0 && usage.get("prompt_tokens").is_none());
    }
}

#[tokio::test]
async fn a_streamed_response_ends_with_the_whole_one() {
    for model in MODELS {
        let server = serve_builtin(model).await;
        let body = json!({"model": model, "input": CAPITAL, "include": ["message.output_text.logprobs"],
            "top_logprobs": 2, "return_token_ids": true});
        let whole = ok(&server, RESPONSES, body.clone()).await;
        let events = named(&server, RESPONSES, &with(body, json!({"stream": true}))).await;
        assert_eq!(
            order(&events),
            [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_text.delta",
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.completed",
            ]
        );
        for (number, (_, data)) in events.iter().enumerate() {
            assert_eq!(data["sequence_number"], number);
        }
        assert_eq!(joined(&events, "response.output_text.delta", "/delta"), ANSWER, "{model}");
        let data = |name: &str| &events.iter().find(|(n, _)| n == name).unwrap().1;
        assert_eq!(data("response.created")["response"]["status"], "in_progress");
        assert_eq!(data("response.created")["response"]["output"], json!([]));
        assert_eq!(data("response.output_text.done")["text"], ANSWER);
        let last = &data("response.completed")["response"];
        assert_eq!(last["output"][0], data("response.output_item.done")["item"]);
        let part = &whole["output"][0]["content"][0];
        assert_eq!(&last["output"][0]["content"][0], part);
        assert_eq!(&data("response.content_part.done")["part"], part);
        assert_eq!(part["token_ids"].as_array().unwrap().len(), 12);
        let scored = part["logprobs"].as_array().unwrap();
        assert_eq!((scored.len(), scored[0]["top_logprobs"].as_array().unwrap().len()), (12, 2));
        let of_event = |(n, data): &(String, Value)| match n.as_str() {
            "response.output_text.delta" => data["logprobs"].as_array().unwrap().clone(),
            _ => vec![],
        };
        assert_eq!(events.iter().flat_map(of_event).collect::<Vec<_>>(), *scored);
        assert_eq!(last["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
        let item = &data("response.output_item.added")["item"]["id"];
        assert!(events.iter().all(|(_, d)| d.get("item_id").is_none_or(|id| id == item)));
    }
}

#[tokio::test]
async fn response_input_is_a_conversation() {
    let server = serve_builtin("tiny-phi").await;
    let said = json!([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"}, {"role": "user", "content": CAPITAL}]);
    let chat = json!({"model": "tiny-phi", "messages": said, "max_tokens": 4});
    let chat = ok(&server, CHAT, chat).await;
    let input = json!([{"role": "user", "content": "Hello"},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "Hi", "annotations": []}]},
        {"role": "user", "content": [{"type": "input_text", "text": "What is the capital"},
            {"type": "input_text", "text": " of France?"}]}]);
    let body = json!({"model": "tiny-phi", "instructions": "Be kind.", "input": input,
        "max_output_tokens": 4});
    let answer = ok(&server, RESPONSES, body.clone()).await;
    assert_eq!(answer["output"][0]["content"][0]["text"], text(&chat));
    assert_eq!(answer["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
    assert_eq!(answer["instructions"], "Be kind.");
    assert_eq!(
        (&answer["status"], &answer["output"][0]["status"]),
        (&json!("incomplete"), &json!("incomplete"))
    );
    assert_eq!(answer["incomplete_details"], json!({"reason": "max_output_tokens"}));
    let events = named(&server, RESPONSES, &with(body, json!({"stream": true}))).await;
    assert_eq!(events.last().unwrap().0, "response.incomplete");
    assert_eq!(
        events.last().unwrap().1["response"]["output"][0]["content"],
        answer["output"][0]["content"]
    );
}

#[tokio::test]
async fn responses_refuse_by_the_name_they_were_asked_by() {
    let server = serve_builtin("tiny-llada").await;
    for (more, param) in [
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": [{"role": "robot", "content": "x"}]}), "input[0].role"),
        (json!({"input": [{"type": "function_call_output"}]}), "input[0].type"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            "input[0].content[0]",
        ),
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"conversation": "c"}), "conversation"),
        (json!({"background": true}), "background"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"text": {"format": {"type": "xml"}}}), "text.format.type"),
        (json!({"text": {"format": "json"}}), "text.format"),
        (json!({"tools": [{"type": "web_search"}]}), "tools"),
        (json!({"include": ["x"]}), "include[0]"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"max_output_tokens": 600}), "max_output_tokens"),
        (json!({"max_tokens": 5}), "max_tokens"),
        (json!({"n": 2}), "n"),
        (json!({"metadata": {"a": 1}}), "metadata"),
        (json!({"metadata": {"a": "b".repeat(513)}}), "metadata"),
        (json!({"stream_options": {"include_usage": true}}), "include_usage"),
        (json!({"store": "yes"}), "store"),
        (json!({"temperature": -1}), "temperature"),
        (json!({"diffusion": {"progress": true}, "stream": true}), "diffusion.progress"),
        (json!({"diffusion": {"steps": 0}}), "diffusion.steps"),
    ] {
        let body = with(json!({"model": "tiny-llada", "input": CAPITAL}), more);
        assert_eq!(refused(&server, RESPONSES, body.clone()).await, param, "{body}");
    }
    let (status, answer) = server.post(RESPONSES, &json!({"model": "x", "input": "y"})).await;
    assert_eq!((status, &answer["error"]["type"]), (404, &json!("model_not_found")));
    let nothing = json!({"model": "tiny-llada", "input": CAPITAL, "tools": [], "tool_choice": "auto",
        "truncation": "disabled", "text": {"format": {"type": "text"}, "verbosity": "low"},
        "include": ["reasoning.encrypted_content"], "background": false, "parallel_tool_calls": true});
    assert_eq!(ok(&server, RESPONSES, nothing).await["output"][0]["content"][0]["text"], ANSWER);
    let traced = json!({"model": "tiny-llada", "input": CAPITAL, "diffusion": {"trace": true, "quota": "one"}});
    let answer = ok(&server, RESPONSES, traced).await;
    assert!(answer["output"][0]["content"][0]["trace"].as_array().unwrap().len() >= 12);
}

fn message_body(model: &str) -> Value {
    let messages = json!([{"role": "user", "content": CAPITAL}]);
    json!({"model": model, "messages": messages, "max_tokens": 64})
}

#[tokio::test]
async fn a_message_has_the_answer_whole_and_streamed() {
    for model in MODELS {
        let server = serve_builtin(model).await;
        let chat = ok(&server, CHAT, chat_body(model)).await;
        let answer = ok(&server, MESSAGES, message_body(model)).await;
        assert!(answer["id"].as_str().unwrap().starts_with("msg_"));
        assert_eq!((&answer["type"], &answer["role"]), (&json!("message"), &json!("assistant")));
        assert_eq!(answer["content"], json!([{"type": "text", "text": ANSWER}]));
        assert_eq!(
            (&answer["stop_reason"], &answer["stop_sequence"]),
            (&json!("end_turn"), &Value::Null)
        );
        let usage = &answer["usage"];
        let input = |usage: &Value| {
            usage["input_tokens"].as_u64().unwrap()
                + usage["cache_read_input_tokens"].as_u64().unwrap()
        };
        assert_eq!(json!(input(usage)), chat["usage"]["prompt_tokens"]);
        assert_eq!(usage["output_tokens"], 12);
        let count = json!({"model": model, "messages": message_body(model)["messages"]});
        let counted = ok(&server, "/v1/messages/count_tokens", count).await;
        assert_eq!(counted, json!({"input_tokens": chat["usage"]["prompt_tokens"]}));
        let body = with(message_body(model), json!({"stream": true}));
        let events = named(&server, MESSAGES, &body).await;
        assert_eq!(
            order(&events),
            [
                "message_start",
                "content_block_start",
                "content_block_delta",
                "content_block_stop",
                "message_delta",
                "message_stop",
            ]
        );
        assert_eq!(joined(&events, "content_block_delta", "/delta/text"), ANSWER);
        let start = &events[0].1["message"];
        assert_eq!((&start["content"], &start["stop_reason"]), (&json!([]), &Value::Null));
        assert_eq!(
            (&start["usage"]["output_tokens"], input(&start["usage"])),
            (&json!(0), input(usage))
        );
        let end = &events[events.len() - 2].1;
        assert_eq!(end["delta"], json!({"stop_reason": "end_turn", "stop_sequence": null}));
        assert_eq!(end["usage"]["output_tokens"], 12);
    }
}

#[tokio::test]
async fn a_message_says_why_it_ended() {
    let server = serve_builtin("tiny-llada").await;
    let stops = with(message_body("tiny-llada"), json!({"stop_sequences": ["Rome", "Paris"]}));
    let answer = ok(&server, MESSAGES, stops.clone()).await;
    assert_eq!(answer["content"][0]["text"], "The capital of France is ");
    assert_eq!(
        (&answer["stop_reason"], &answer["stop_sequence"]),
        (&json!("stop_sequence"), &json!("Paris"))
    );
    let events = named(&server, MESSAGES, &with(stops, json!({"stream": true}))).await;
    let delta = &events[events.len() - 2].1["delta"];
    assert_eq!(*delta, json!({"stop_reason": "stop_sequence", "stop_sequence": "Paris"}));
    let short = with(message_body("tiny-llada"), json!({"max_tokens": 3}));
    let answer = ok(&server, MESSAGES, short).await;
    assert_eq!(
        (&answer["stop_reason"], &answer["usage"]["output_tokens"]),
        (&json!("max_tokens"), &json!(3))
    );
    let blocks = json!({"model": "tiny-llada", "max_tokens": 4,
        "system": [{"type": "text", "text": "Be ", "cache_control": {"type": "ephemeral"}},
                   {"type": "text", "text": "kind."}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": CAPITAL}]}]});
    let said =
        json!([{"role": "system", "content": "Be kind."}, {"role": "user", "content": CAPITAL}]);
    let chat = json!({"model": "tiny-llada", "messages": said, "max_tokens": 4});
    let (answer, chat) = (ok(&server, MESSAGES, blocks).await, ok(&server, CHAT, chat).await);
    assert_eq!(answer["content"][0]["text"], text(&chat));
    assert_eq!(answer["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn errors_of_messages_have_anthropics_shape() {
    let server = serve(options("tiny-phi"), vec!["secret".to_owned()]).await;
    let post = async |path: &str, key: &str, body: Value| {
        let request = server.client.post(format!("{}{path}", server.url));
        let response = request.header("x-api-key", key).json(&body).send().await.unwrap();
        let id = response.headers()["request-id"].to_str().unwrap().to_owned();
        let (status, body) = (response.status().as_u16(), response.json::<Value>().await.unwrap());
        assert!(status == 200 || body["request_id"] == id, "{body}");
        (status, body)
    };
    let (status, answer) = post(MESSAGES, "secret", message_body("tiny-phi")).await;
    assert_eq!((status, &answer["content"][0]["text"]), (200, &json!(ANSWER)));
    for (path, key, body, status, kind) in [
        (MESSAGES, "wrong", message_body("tiny-phi"), 401, "authentication_error"),
        (MESSAGES, "secret", message_body("claude"), 404, "not_found_error"),
        ("/v1/messages/batches", "secret", json!({}), 404, "not_found_error"),
        (MESSAGES, "secret", json!({"a": "x".repeat(5 << 20)}), 413, "request_too_large"),
    ] {
        let (found, answer) = post(path, key, body).await;
        assert_eq!((found, &answer["type"]), (status, &json!("error")), "{answer}");
        assert_eq!(answer["error"]["type"], kind);
        assert!(answer["error"]["message"].is_string() && answer["error"].get("param").is_none());
    }
    let (status, body) = server.get(MESSAGES).await;
    assert!(status == 405 && body.starts_with("{\"type\":\"error\""), "{body}");
    for (more, named) in [
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"tools": [{"name": "f"}]}), "tools"),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}), "thinking"),
        (json!({"stop_sequences": ["a", "b", "c", "d", "e"]}), "stop_sequences"),
        (json!({"stop_sequences": [""]}), "stop"),
        (json!({"stop": "x"}), "'stop'"),
        (json!({"n": 2}), "'n'"),
        (json!({"return_token_ids": true}), "return_token_ids"),
        (json!({"diffusion": {"trace": true}}), "trace"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "system", "content": "x"}]}), "messages[0].role"),
        (
            json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}),
            "messages[1].role",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
            "messages[0].content[0]",
        ),
        (json!({"system": 3}), "system"),
    ] {
        let (status, answer) = post(MESSAGES, "secret", with(message_body("tiny-phi"), more)).await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert_eq!((status, &answer["error"]["type"]), (400, &json!("invalid_request_error")));
        assert!(message.contains(named), "{named}: {message}");
    }
    let nothing =
        json!({"tools": [], "thinking": {"type": "disabled"}, "metadata": {"user_id": "me"}});
    let answer = post(MESSAGES, "secret", with(message_body("tiny-phi"), nothing)).await;
    assert_eq!(answer.0, 200, "{}", answer.1);
    let other =
        server.client.get(format!("{}/v1/models", server.url)).header("x-api-key", "secret");
    assert_eq!(other.send().await.unwrap().status(), 200, "the key counts everywhere");
    assert_eq!(server.post("/tokenize", &json!({"prompt": "x"})).await.0, 401);
}

#[tokio::test]
async fn a_stream_that_breaks_says_so_in_its_own_words() {
    let server = serve_builtin("tiny-llada").await;
    // Its first token settles at once, its last after hundreds of thousands of passes.
    let endless = json!({"preset": "reference", "steps": 400_000, "score": "left_to_right"});
    let more = json!({"stream": true, "ignore_eos": true, "diffusion": endless});
    let response = json!({"model": "tiny-llada", "input": "x", "max_output_tokens": 440});
    let message = with(message_body("tiny-llada"), json!({"max_tokens": 440}));
    for (path, body, pointer) in
        [(RESPONSES, response, "/response/id"), (MESSAGES, message, "/message/id")]
    {
        let mut response = server.send(path, &with(body, more.clone())).await;
        let first = String::from_utf8(response.chunk().await.unwrap().unwrap().to_vec()).unwrap();
        let first_event = first.split_once("\n\n").unwrap().0;
        let (_, data) = &parse_named(first_event)[0];
        let id = data.pointer(pointer).unwrap().as_str().unwrap();
        let url = format!("{}/v1/requests/{id}", server.url);
        assert_eq!(server.client.delete(url).send().await.unwrap().status(), 200);
        let events = parse_named(&(first.clone() + &response.text().await.unwrap()));
        let (name, data) = events.last().unwrap();
        if path == RESPONSES {
            assert_eq!(
                (name.as_str(), &data["response"]["status"]),
                ("response.failed", &json!("failed"))
            );
            assert_eq!(data["response"]["error"]["code"], "server_error");
            assert_eq!(data["response"]["error"]["message"], "the request was cancelled");
        } else {
            let error = json!({"type": "api_error", "message": "the request was cancelled"});
            assert_eq!((name.as_str(), &data["error"]), ("error", &error));
        }
    }
}
