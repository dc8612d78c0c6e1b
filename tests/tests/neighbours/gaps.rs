//! Gaps between two texts, as editors ask for them.

use super::*;

const INFILL: &str = "/infill";

fn gap() -> Value {
    let prefix = format!("<|user|>\n{CAPITAL}<|end|>\n<|assistant|>\n");
    json!({"input_prefix": prefix, "prompt": "The capital", "input_suffix": " Paris.<|end|>",
        "n_predict": 5, "temperature": 0})
}

#[tokio::test]
async fn a_gap_is_filled_whole_and_streamed() {
    let server = serve_builtin("tiny-llada").await;
    let answer = ok(&server, INFILL, gap()).await;
    assert_eq!(answer["content"], " of France is", "{answer}");
    assert_eq!((&answer["stop"], &answer["stop_type"]), (&json!(true), &json!("limit")));
    assert_eq!((&answer["model"], &answer["truncated"]), (&json!("tiny-llada"), &json!(false)));
    assert_eq!((&answer["tokens"], &answer["has_new_line"]), (&json!([]), &json!(false)));
    let before = format!("{}The capital", gap()["input_prefix"].as_str().unwrap());
    assert_eq!(answer["prompt"], before);
    assert_eq!(answer["tokens_evaluated"], ids(&server, &before).len());
    assert_eq!(answer["tokens_predicted"], answer["timings"]["predicted_n"]);
    let completion = json!({"model": "tiny-llada", "prompt": before, "suffix": " Paris.<|end|>",
        "max_tokens": 5, "return_token_ids": true});
    let completion = ok(&server, "/v1/completions", completion).await;
    let ids = &completion["choices"][0]["token_ids"];
    let body = with(gap(), json!({"return_tokens": true}));
    let answer = ok(&server, INFILL, body.clone()).await;
    assert_eq!(&answer["tokens"], ids);
    let (events, done) = server.stream(INFILL, &with(body, json!({"stream": true}))).await;
    assert!(!done, "llama-server sends no [DONE] here");
    let said: String = events.iter().map(|e| e["content"].as_str().unwrap()).collect();
    assert_eq!(said, " of France is");
    let streamed: Vec<&Value> =
        events.iter().flat_map(|e| e["tokens"].as_array().unwrap()).collect();
    assert_eq!(json!(streamed), *ids);
    let (last, before) = events.split_last().unwrap();
    assert!(before.iter().all(|e| e["stop"] == false) && !before.is_empty());
    assert_eq!((&last["stop"], &last["stop_type"]), (&json!(true), &json!("limit")));
    let dream = serve_builtin("tiny-dream").await;
    let answer = ok(&dream, INFILL, gap()).await;
    let expected = json!({"model": "tiny-dream", "suffix": " Paris.<|end|>", "max_tokens": 5,
        "prompt": answer["prompt"]});
    let completion = ok(&dream, "/v1/completions", expected).await;
    assert_eq!(answer["content"], completion["choices"][0]["text"]);
}

#[tokio::test]
async fn what_editors_send_is_honoured() {
    let server = serve_builtin("tiny-llada").await;
    let extra = json!({"input_extra": [{"filename": "a.txt", "text": "Hello"}], "n_predict": -1,
        "id_slot": 0, "cache_prompt": true, "seed": -1, "n_indent": 0, "t_max_prompt_ms": 500,
        "stop": ["France"], "samplers": ["top_k", "top_p", "temperature", "infill"],
        "response_fields": ["content", "timings/predicted_n", "stopping_word", "nothing"]});
    let answer = ok(&server, INFILL, with(gap(), extra.clone())).await;
    let names: Vec<&str> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["content", "timings/predicted_n", "stopping_word"], "{answer}");
    let extra =
        with(extra, json!({"response_fields": null, "stop": null, "t_max_predict_ms": i64::MAX}));
    let answer = ok(&server, INFILL, with(gap(), extra)).await;
    assert!(answer["prompt"].as_str().unwrap().starts_with("--- a.txt ---\n\nHello\n\n<|user|>"));
    let stopped = ok(&server, INFILL, with(gap(), json!({"stop": ["x", " France"]}))).await;
    assert_eq!(
        (&stopped["content"], &stopped["stop_type"], &stopped["stopping_word"]),
        (&json!(" of"), &json!("word"), &json!(" France"))
    );
    // Three hundred passes, and no time for one of them.
    let slow = json!({"n_predict": 300, "t_max_predict_ms": 1, "diffusion": {"quota": "one"}});
    let cut = ok(&server, INFILL, with(gap(), slow)).await;
    assert_eq!(cut["stop_type"], "limit");
    assert!(cut["tokens_predicted"].as_u64().unwrap() < 300, "{cut}");
    server.until(|s| s.running == 0).await;
}

#[tokio::test]
async fn gaps_are_refused_by_name() {
    let server = serve_builtin("tiny-llada").await;
    for (more, param) in [
        (json!({"input_prefix": "", "prompt": null}), "input_prefix"),
        (json!({"input_suffix": 3}), "input_suffix"),
        (json!({"input_extra": [{"filename": "a"}]}), "input_extra[0]"),
        (json!({"n_predict": 0}), "n_predict"),
        (json!({"n_predict": 1000}), "n_predict"),
        (json!({"n_predict": -2}), "n_predict"),
        (json!({"samplers": ["dry"]}), "samplers"),
        (json!({"n_probs": 3}), "n_probs"),
        (json!({"n_indent": 4}), "n_indent"),
        (json!({"repeat_penalty": 0}), "repeat_penalty"),
        (json!({"mirostat": 2}), "mirostat"),
        (json!({"echo": true}), "echo"),
        (json!({"t_max_predict_ms": "1"}), "t_max_predict_ms"),
        (json!({"response_fields": [3]}), "response_fields"),
        (json!({"diffusion": {"infill": ["x", 3]}}), "diffusion.infill"),
    ] {
        assert_eq!(refused(&server, INFILL, with(gap(), more.clone())).await, param, "{more}");
    }
    let phi = serve_builtin("tiny-phi").await;
    let (status, answer) = phi.post(INFILL, &gap()).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("input_suffix")));
    assert!(answer["error"]["message"].as_str().unwrap().contains("left to right"), "{answer}");
}
