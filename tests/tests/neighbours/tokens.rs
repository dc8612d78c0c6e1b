//! Text to ids and back, over HTTP.

use super::*;

#[tokio::test]
async fn tokens_are_those_of_the_tokenizer_and_come_back_as_text() {
    for model in MODELS {
        let server = serve_builtin(model).await;
        let text = "The capital of Perú is Lima. 🙂<|end|>";
        let expected = ids(&server, text);
        let answer = ok(&server, "/tokenize", json!({"model": model, "prompt": text})).await;
        assert_eq!(answer["tokens"], json!(expected));
        assert_eq!(
            (&answer["count"], &answer["max_model_len"]),
            (&json!(expected.len()), &json!(512))
        );
        assert!(answer["token_strs"].is_null() && expected.contains(&5));
        let back = ok(&server, "/detokenize", json!({"tokens": expected})).await;
        assert_eq!(back, json!({"prompt": text}));
    }
}

#[tokio::test]
async fn tokens_of_a_chat_are_those_of_its_prompt() {
    let server = serve_builtin("tiny-llada").await;
    let prompt = format!("<|user|>\n{CAPITAL}<|end|>\n");
    let messages = chat_body("tiny-llada")["messages"].clone();
    let answer = ok(&server, "/tokenize", json!({"messages": messages})).await;
    assert_eq!(answer["tokens"], json!(ids(&server, &format!("{prompt}<|assistant|>\n"))));
    let chat = ok(&server, CHAT, chat_body("tiny-llada")).await;
    assert_eq!(answer["count"], chat["usage"]["prompt_tokens"]);
    let body =
        json!({"messages": messages, "add_generation_prompt": false, "return_token_strs": true});
    let answer = ok(&server, "/tokenize", body).await;
    assert_eq!(answer["tokens"], json!(ids(&server, &prompt)));
    let spelled = answer["token_strs"].as_array().unwrap();
    assert_eq!(
        (spelled.len(), &spelled[0], &spelled[1]),
        (answer["tokens"].as_array().unwrap().len(), &json!("<|user|>"), &json!("Ċ"))
    );
    // Calls, their results and tools take as many tokens as they do in a prompt.
    let call = json!({"id": "c", "type": "function",
        "function": {"name": "clock", "arguments": "{}"}});
    let talk = json!({
        "messages": [
            {"role": "user", "content": "When?"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "noon"},
        ],
        "tools": [{"type": "function", "function": {"name": "clock"}}],
    });
    let counted = ok(&server, "/tokenize", talk.clone()).await;
    let talk = with(talk, json!({"model": "tiny-llada", "max_tokens": 1}));
    let told = ok(&server, CHAT, talk).await;
    assert_eq!(counted["count"], told["usage"]["prompt_tokens"]);
    let joined: String = spelled.iter().map(|s| s.as_str().unwrap()).collect();
    assert_eq!(joined.replace('Ġ', " ").replace('Ċ', "\n"), prompt);
}

#[tokio::test]
async fn wrong_requests_for_tokens_are_refused_by_name() {
    let server = serve_builtin("tiny-phi").await;
    for (body, param) in [
        (json!({}), "prompt"),
        (json!({"prompt": 3}), "prompt"),
        (json!({"prompt": "x", "messages": []}), "messages"),
        (json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role"),
        (json!({"prompt": "x", "add_generation_prompt": true}), "add_generation_prompt"),
        (
            json!({"messages": [{"role": "user", "content": "x"}], "chat_template": "x"}),
            "chat_template",
        ),
        (json!({"prompt": "x", "add_special_tokens": "no"}), "add_special_tokens"),
        (json!({"prompt": "x ".repeat(600_000)}), "prompt"),
    ] {
        assert_eq!(refused(&server, "/tokenize", body).await, param);
    }
    for tokens in [
        json!(null),
        json!("x"),
        json!([-1]),
        json!([1, 1024]),
        json!([1.5]),
        json!(vec![1; 300_000]),
    ] {
        assert_eq!(refused(&server, "/detokenize", json!({"tokens": tokens})).await, "tokens");
    }
    for path in ["/tokenize", "/detokenize"] {
        let (status, answer) =
            server.post(path, &json!({"model": "x", "prompt": "x", "tokens": []})).await;
        assert_eq!((status, &answer["error"]["type"]), (404, &json!("model_not_found")));
    }
    assert_eq!(ok(&server, "/detokenize", json!({"tokens": []})).await, json!({"prompt": ""}));
    assert_eq!(ok(&server, "/tokenize", json!({"prompt": ""})).await["tokens"], json!([]));
}

#[tokio::test]
async fn the_tokenizer_is_described_for_clients_without_its_files() {
    let server = serve_builtin("tiny-dream").await;
    let (status, body) = server.get("/tokenizer_info").await;
    let info: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 200);
    for (name, expected) in [
        ("eos_token", json!("<|endoftext|>")),
        ("pad_token", json!("<|pad|>")),
        ("mask_token", json!("<|mask|>")),
        ("bos_token", Value::Null),
        ("tokenizer_class", json!("PreTrainedTokenizerFast")),
        ("model_max_length", json!(512)),
        ("add_bos_token", json!(false)),
    ] {
        assert_eq!(info.get(name), Some(&expected), "{name}");
    }
    let template = info["chat_template"].as_str().unwrap();
    assert!(template.starts_with("{% for message in messages %}"), "{template}");
    assert_eq!(info["added_tokens_decoder"]["5"]["content"], "<|end|>");
}
