//! Fields of the two generation endpoints that other servers know: each changes what it says, or is
//! refused by name.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a suite that meets something unforeseen has failed"
)]

use std::fs;
use std::path::Path;

use dfastllm_engine::{SettledToken, TextAssembler};
use dfastllm_models::{ModelFiles, SpecialTokens};
use dfastllm_server::ServeOptions;
use dfastllm_tests::fixtures::builtin;
use dfastllm_tests::http::{
    CAPITAL, CHAT, COMPLETIONS, Server, chat_body, options, serve, serve_builtin, text, with,
};
use serde_json::{Value, json};

const MODELS: [&str; 3] = ["tiny-phi", "tiny-llada", "tiny-dream"];
const QUESTION: &str = "<|user|>\nWhat is the capital of France?<|end|>\n<|assistant|>\n";

async fn complete(server: &Server, model: &str, more: Value) -> Value {
    let body = with(json!({"model": model, "prompt": QUESTION, "max_tokens": 16}), more);
    let (status, answer) = server.post(COMPLETIONS, &body).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

/// The parameter of a 400.
async fn param(server: &Server, path: &str, body: Value) -> String {
    let (status, answer) = server.post(path, &body).await;
    assert_eq!(status, 400, "{body} {answer}");
    answer["error"]["param"].as_str().unwrap_or_default().to_owned()
}

fn ids(choice: &Value) -> Vec<u64> {
    serde_json::from_value(choice["token_ids"].clone()).unwrap()
}

#[tokio::test]
async fn a_null_is_the_same_as_nothing_for_every_field() {
    let fields = "max_tokens min_tokens n temperature top_p top_k min_p seed stop stop_token_ids \
        ignore_eos skip_special_tokens logit_bias priority return_token_ids stream stream_options \
        presence_penalty frequency_penalty repetition_penalty logprobs top_logprobs diffusion \
        best_of truncate_prompt_tokens truncation_side add_special_tokens \
        include_stop_str_in_output bad_words allowed_token_ids return_tokens_as_token_ids \
        spaces_between_special_tokens request_id vllm_xargs suffix echo max_completion_tokens \
        add_generation_prompt continue_final_message chat_template_kwargs chat_template documents \
        tools tool_choice parallel_tool_calls functions function_call response_format \
        structured_outputs guided_json guided_regex user metadata store service_tier modalities \
        audio prediction reasoning_effort verbosity safety_identifier prompt_cache_key \
        prompt_cache_options moderation web_search_options length_penalty use_beam_search \
        prompt_logprobs cache_salt session_id logprob_token_ids prompt_embeds remasking alg \
        alg_temp gen_length parallel_decoding confidence_threshold anything_else";
    for model in ["tiny-phi", "tiny-llada"] {
        let server = serve_builtin(model).await;
        let mut all = chat_body(model);
        for field in fields.split_whitespace() {
            all[field] = Value::Null;
            let chat = with(chat_body(model), json!({field: null}));
            let (status, answer) = server.post(CHAT, &chat).await;
            assert_eq!(
                (status, text(&answer)),
                (200, "The capital of France is Paris."),
                "{field}"
            );
            let answer = complete(&server, model, json!({"max_tokens": 3, field: null})).await;
            assert_eq!(answer["choices"][0]["index"], 0, "{field}");
        }
        let (status, answer) = server.post(CHAT, &all).await;
        assert_eq!((status, text(&answer)), (200, "The capital of France is Paris."));
    }
}

/// Both endpoints refuse these fields.
async fn refused_everywhere(cases: Vec<(Value, &str)>) -> Server {
    let server = serve_builtin("tiny-phi").await;
    for (more, want) in cases {
        let body = with(chat_body("tiny-phi"), more.clone());
        assert_eq!(param(&server, CHAT, body).await, want, "{more}");
        let body = with(json!({"model": "tiny-phi", "prompt": "a", "max_tokens": 4}), more.clone());
        assert_eq!(param(&server, COMPLETIONS, body).await, want, "{more}");
    }
    server
}

#[tokio::test]
async fn lists_and_numbers_out_of_range_are_refused_by_name() {
    refused_everywhere(vec![
        (json!({"best_of": 0}), "best_of"),
        (json!({"best_of": 21}), "best_of"),
        (json!({"n": 3, "best_of": 2}), "best_of"),
        (json!({"best_of": 2, "stream": true}), "best_of"),
        (json!({"n": 129}), "n"),
        (json!({"truncate_prompt_tokens": 0}), "truncate_prompt_tokens"),
        (json!({"truncate_prompt_tokens": -2}), "truncate_prompt_tokens"),
        (json!({"truncate_prompt_tokens": 513}), "truncate_prompt_tokens"),
        (json!({"truncation_side": "left"}), "truncation_side"),
        (json!({"truncation_side": "up", "truncate_prompt_tokens": 3}), "truncation_side"),
        (json!({"bad_words": [""]}), "bad_words"),
        (json!({"bad_words": ["x".repeat(300)]}), "bad_words"),
        (json!({"bad_words": vec!["x"; 129]}), "bad_words"),
        (json!({"bad_words": "x"}), "bad_words"),
        (json!({"allowed_token_ids": []}), "allowed_token_ids"),
        (json!({"allowed_token_ids": [1024]}), "allowed_token_ids"),
        (json!({"allowed_token_ids": [-1]}), "allowed_token_ids"),
        (json!({"allowed_token_ids": [0], "min_tokens": 2}), "allowed_token_ids"),
        (json!({"allowed_token_ids": [613], "bad_words": [" capital"]}), "allowed_token_ids"),
    ])
    .await;
}

#[tokio::test]
async fn what_has_no_meaning_is_refused_by_name() {
    let server = refused_everywhere(vec![
        (json!({"request_id": ""}), "request_id"),
        (json!({"request_id": "a b"}), "request_id"),
        (json!({"request_id": "x".repeat(129)}), "request_id"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "stream_options": {"tell": 1}}), "stream_options.tell"),
        (
            json!({"spaces_between_special_tokens": true, "skip_special_tokens": false}),
            "spaces_between_special_tokens",
        ),
        (json!({"length_penalty": 1.2}), "length_penalty"),
        (json!({"use_beam_search": true}), "use_beam_search"),
        (json!({"prompt_logprobs": 1}), "prompt_logprobs"),
        (json!({"cache_salt": "x"}), "cache_salt"),
        (json!({"documents": [{"text": "x"}]}), "documents"),
        (json!({"chat_template": "{{ 'a' * 1000000000 }}"}), "chat_template"),
        (json!({"guided_regex": "a+"}), "guided_regex"),
        (json!({"guided_decoding_backend": "x"}), "guided_decoding_backend"),
        (json!({"vllm_xargs": {"diffusion_max_steps": 2}}), "vllm_xargs.diffusion_max_steps"),
        (json!({"vllm_xargs": {"kv": 2}}), "vllm_xargs.kv"),
        (json!({"diffusion": {"steps": 2}}), "diffusion.steps"),
    ])
    .await;
    for (more, want) in [
        (
            json!({"add_generation_prompt": true, "continue_final_message": true}),
            "continue_final_message",
        ),
        (json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs"),
        (json!({"chat_template_kwargs": {"a": "x".repeat(70_000)}}), "chat_template_kwargs"),
        (
            json!({"continue_final_message": true, "messages": [{"role": "user", "content": ""}]}),
            "messages",
        ),
    ] {
        assert_eq!(param(&server, CHAT, with(chat_body("tiny-phi"), more)).await, want);
    }
    let neutral = json!({
        "length_penalty": 1.0, "use_beam_search": false, "documents": [], "session_id": "me",
        "spaces_between_special_tokens": true, "best_of": 1, "vllm_xargs": {},
    });
    assert_eq!(
        text(&server.chat("tiny-phi", CAPITAL, neutral).await),
        "The capital of France is Paris."
    );
}

#[tokio::test]
async fn the_best_of_several_are_those_of_the_highest_mean_log_probability() {
    for model in ["tiny-phi", "tiny-llada"] {
        let server = serve_builtin(model).await;
        let more = json!({"temperature": 1.5, "seed": 9, "logprobs": 0, "n": 6, "max_tokens": 8});
        let all = complete(&server, model, more.clone()).await;
        let mean = |choice: &Value| {
            let list: Vec<f64> =
                serde_json::from_value(choice["logprobs"]["token_logprobs"].clone()).unwrap();
            list.iter().sum::<f64>() / list.len() as f64
        };
        let mut ranked = all["choices"].as_array().unwrap().clone();
        ranked.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        let best = complete(&server, model, with(more, json!({"n": 2, "best_of": 6}))).await;
        let choices = best["choices"].as_array().unwrap();
        assert_eq!(choices.len(), 2);
        for (index, (choice, want)) in choices.iter().zip(&ranked).enumerate() {
            assert_eq!((&choice["text"], &choice["index"]), (&want["text"], &json!(index)));
            assert_eq!(choice["logprobs"], want["logprobs"], "{model}");
        }
        for key in ["prompt_tokens", "completion_tokens", "forwards"] {
            assert_eq!(best["usage"][key], all["usage"][key], "{model}: all are counted");
        }
    }
}

#[tokio::test]
async fn prompts_are_cut_at_the_side_that_is_named() {
    for model in MODELS {
        let server = serve_builtin(model).await;
        let prompt: Vec<u32> = (0..600).map(|i| 300 + i % 500).collect();
        let ask = async |more: Value| {
            let more = with(json!({"temperature": 0, "max_tokens": 8, "ignore_eos": true}), more);
            complete(&server, model, with(more, json!({"return_token_ids": true}))).await
        };
        for (side, part) in [("left", &prompt[580..]), ("right", &prompt[..20])] {
            let cut =
                json!({"truncate_prompt_tokens": 20, "truncation_side": side, "prompt": prompt});
            let (cut, whole) = (ask(cut).await, ask(json!({"prompt": part})).await);
            assert_eq!(ids(&cut["choices"][0]), ids(&whole["choices"][0]), "{model} {side}");
            assert_eq!(cut["usage"]["prompt_tokens"], 20);
        }
        let fit = ask(json!({"truncate_prompt_tokens": -1, "prompt": prompt})).await;
        assert_eq!(fit["usage"]["prompt_tokens"], 504, "{model}");
        let short = ask(json!({"truncate_prompt_tokens": -1})).await;
        assert_eq!(short["usage"]["prompt_tokens"], 15, "{model}");
        let long = json!({"truncate_prompt_tokens": -1});
        let chat = server.chat(model, &"word ".repeat(600), with(long, json!({"stop": "e"}))).await;
        assert_eq!(chat["usage"]["prompt_tokens"], 512 - 256, "{model}");
        let body = json!({"model": model, "prompt": prompt, "max_tokens": 512,
            "truncate_prompt_tokens": -1});
        assert_eq!(param(&server, COMPLETIONS, body).await, "max_tokens");
    }
    let server = serve_builtin("tiny-phi").await;
    let more = json!({"echo": true, "max_tokens": 0, "truncate_prompt_tokens": 3, "logprobs": 0});
    let echoed = complete(&server, "tiny-phi", more).await;
    let choice = &echoed["choices"][0];
    assert_eq!(
        (&choice["text"], &echoed["usage"]["prompt_tokens"]),
        (&json!("\n<|assistant|>\n"), &json!(3))
    );
    assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), 3);
}

/// A copy of tiny-phi whose tokenizer begins texts with a token and whose template has a variable.
fn peculiar(folder: &Path) -> ServeOptions {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/builtin");
    for file in ["config.json", "generation_config.json", "model.safetensors"] {
        fs::copy(source.join("tiny-phi").join(file), folder.join(file)).unwrap();
    }
    let read = |file: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(source.join(file)).unwrap()).unwrap()
    };
    let mut tokenizer = read("tokenizer.json");
    let first = json!({"SpecialToken": {"id": "<|system|>", "type_id": 0}});
    let (one, two) = (
        json!({"Sequence": {"id": "A", "type_id": 0}}),
        json!({"Sequence": {"id": "B", "type_id": 1}}),
    );
    tokenizer["post_processor"] = json!({
        "type": "TemplateProcessing", "single": [first, one], "pair": [first, one, two],
        "special_tokens":
            {"<|system|>": {"id": "<|system|>", "ids": [6], "tokens": ["<|system|>"]}},
    });
    let mut config = read("tokenizer_config.json");
    let template = format!("{}{{{{ closing }}}}", config["chat_template"].as_str().unwrap());
    config["chat_template"] = template.into();
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    ServeOptions { files: ModelFiles::Folder(folder.to_owned()), ..options("tiny-phi") }
}

#[tokio::test]
async fn special_tokens_and_template_variables_are_the_requests_to_choose() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(peculiar(folder.path()), vec![]).await;
    let tokens = async |path: &str, body: Value| {
        let (status, answer) = server.post(path, &body).await;
        assert_eq!(status, 200, "{answer}");
        answer["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let text = json!({"model": "tiny-phi", "prompt": QUESTION, "max_tokens": 1});
    let chat = with(chat_body("tiny-phi"), json!({"max_tokens": 1}));
    for (add, in_text, in_chat) in
        [(json!(null), 16, 15), (json!(true), 16, 16), (json!(false), 15, 15)]
    {
        let more = json!({"add_special_tokens": add});
        assert_eq!(tokens(COMPLETIONS, with(text.clone(), more.clone())).await, in_text, "{add}");
        assert_eq!(tokens(CHAT, with(chat.clone(), more)).await, in_chat, "{add}");
    }
    // "<|assistant|>\n" are two tokens.
    let closed = with(chat.clone(), json!({"add_generation_prompt": false}));
    assert_eq!(tokens(CHAT, closed).await, 13);
    let variables = json!({"chat_template_kwargs": {"closing": "<|pad|><|pad|>"}});
    assert_eq!(tokens(CHAT, with(chat, variables)).await, 17);
}

#[tokio::test]
async fn a_last_message_is_continued() {
    for model in MODELS {
        let server = serve_builtin(model).await;
        let messages = json!([
            {"role": "user", "content": CAPITAL}, {"role": "assistant", "content": "The capital of"},
        ]);
        let body = json!({"model": model, "messages": messages, "continue_final_message": true,
            "temperature": 0, "max_tokens": 16});
        let (status, answer) = server.post(CHAT, &body).await;
        assert_eq!((status, text(&answer)), (200, " France is Paris."), "{model}");
    }
}

#[tokio::test]
async fn a_stop_string_stays_where_it_is_asked_to() {
    for model in MODELS {
        let server = serve_builtin(model).await;
        let more = json!({"stop": ["is Par", "xyz"], "include_stop_str_in_output": true});
        let answer = server.chat(model, CAPITAL, more.clone()).await;
        assert_eq!(text(&answer), "The capital of France is Par", "{model}");
        let body = with(with(chat_body(model), more), json!({"stream": true}));
        let (chunks, _) = server.stream(CHAT, &body).await;
        let streamed: String =
            chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(streamed, "The capital of France is Par", "{model}");
        let end = json!({"include_stop_str_in_output": true, "skip_special_tokens": false});
        let answer = server.chat(model, CAPITAL, end).await;
        let (whole, end) = text(&answer).split_at("The capital of France is Paris.".len());
        assert_eq!((whole, end), ("The capital of France is Paris.", "<|end|>"), "{model}");
    }
}

#[test]
fn the_earliest_stop_string_counts_even_inside_a_character_of_several_tokens() {
    let tokenizer = builtin("tiny-phi").tokenizer;
    let say = |text: &str, stops: &[&str], keeps: bool| {
        let stops = stops.iter().map(|&s| s.to_owned()).collect();
        let stream = tokenizer.stream(SpecialTokens::Skip);
        let mut assembler = TextAssembler::new(stream, stops).keeping_stop(keeps);
        let mut out = String::new();
        for id in tokenizer.encode(text, SpecialTokens::Skip).unwrap() {
            let token = SettledToken { id, logprob: 0.0, top: vec![], is_end: false, gap: 0 };
            out += &assembler.push(&token);
        }
        out += &assembler.finish();
        (out, assembler.is_stopped())
    };
    let stopped = |text: &str| (text.to_owned(), true);
    assert_eq!(say("a 😀 b", &["😀"], false), stopped("a "));
    assert_eq!(say("a 😀 b", &["😀"], true), stopped("a 😀"));
    assert_eq!(say("xabcd", &["abc", "ab"], false), stopped("x"));
    assert_eq!(say("xabcd", &["abc", "ab"], true), stopped("xab"));
    assert_eq!(say("ab", &["ab"], false), stopped(""));
    assert_eq!(say("xab", &["abc"], false), ("xab".to_owned(), false));
}

#[tokio::test]
async fn bad_words_are_not_said() {
    for model in MODELS {
        let server = serve_builtin(model).await;
        let plain =
            complete(&server, model, json!({"return_token_ids": true, "temperature": 0})).await;
        assert!(ids(&plain["choices"][0]).contains(&613), "{model} says ' capital'");
        let more = json!({"bad_words": [" capital"], "return_token_ids": true, "temperature": 0});
        let answer = complete(&server, model, more).await;
        assert!(!ids(&answer["choices"][0]).contains(&613), "{model}: {answer}");
    }
    let server = serve_builtin("tiny-phi").await;
    let plain = server.chat("tiny-phi", CAPITAL, json!({"return_token_ids": true})).await;
    let plain = ids(&plain["choices"][0]);
    let at = plain.iter().position(|&id| id == 613).unwrap();
    for speculative_tokens in [0, 8] {
        let options = ServeOptions { speculative_tokens, ..options("tiny-phi") };
        let server = serve(options, vec![]).await;
        let more = json!({"bad_words": [" capital of"], "return_token_ids": true, "max_tokens": 60, "ignore_eos": true});
        let answer = server.chat("tiny-phi", CAPITAL, more).await;
        let found = ids(&answer["choices"][0]);
        assert_eq!(found[..=at], plain[..=at], "only the last token of the word is banned");
        assert!(!found.windows(2).any(|pair| pair == &plain[at..at + 2]), "{answer}");
    }
    let server = serve_builtin("tiny-llada").await;
    let several = with(chat_body("tiny-llada"), json!({"bad_words": [" capital of"]}));
    assert_eq!(param(&server, CHAT, several).await, "bad_words");
}

#[tokio::test]
async fn only_allowed_tokens_are_chosen() {
    for model in MODELS {
        let server = serve_builtin(model).await;
        for temperature in [0.0, 1.0] {
            let more = json!({"allowed_token_ids": [613, 300, 301, 613], "temperature": temperature,
                "return_token_ids": true, "max_tokens": 20});
            let answer = complete(&server, model, more).await;
            let found = ids(&answer["choices"][0]);
            assert!(
                found.len() == 20 && found.iter().all(|id| [300, 301, 613].contains(id)),
                "{answer}"
            );
        }
    }
}

#[tokio::test]
async fn tokens_are_spelled_as_ids_and_bytes_are_their_own() {
    for model in MODELS {
        let server = serve_builtin(model).await;
        // The first of the three bytes of a typographic quote.
        let byte = builtin(model).tokenizer.id_of("â").unwrap();
        let more = json!({"allowed_token_ids": [byte], "max_tokens": 3, "return_token_ids": true});
        let chat = json!({"logprobs": true, "top_logprobs": 1});
        let answer = server.chat(model, CAPITAL, with(more.clone(), chat.clone())).await;
        let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
        assert_eq!(content.len(), 3, "{answer}");
        for token in content {
            assert_eq!((&token["token"], &token["bytes"]), (&json!("\u{FFFD}"), &json!([0xE2])));
        }
        let named = json!({"return_tokens_as_token_ids": true});
        let answer = server.chat(model, CAPITAL, with(with(more, chat), named.clone())).await;
        let token = &answer["choices"][0]["logprobs"]["content"][2];
        assert_eq!(
            (&token["token"], &token["bytes"]),
            (&json!(format!("token_id:{byte}")), &json!([0xE2]))
        );
        let more = json!({"logprobs": 2, "return_token_ids": true, "max_tokens": 6});
        let plain = complete(&server, model, more.clone()).await;
        let answer = complete(&server, model, with(more, named)).await;
        let choice = &answer["choices"][0];
        let want: Vec<String> = ids(choice).iter().map(|id| format!("token_id:{id}")).collect();
        assert_eq!(choice["logprobs"]["tokens"], json!(want));
        let top = choice["logprobs"]["top_logprobs"][0].as_object().unwrap();
        assert!(top.keys().all(|token| token.starts_with("token_id:")), "{top:?}");
        assert_eq!(
            choice["logprobs"]["text_offset"],
            plain["choices"][0]["logprobs"]["text_offset"]
        );
    }
}

#[tokio::test]
async fn vllms_names_of_diffusion_settings_are_ours() {
    for model in ["tiny-llada", "tiny-dream"] {
        let server = serve_builtin(model).await;
        let ask = async |more: Value| {
            let more =
                with(more, json!({"max_tokens": 32, "ignore_eos": true, "return_token_ids": true}));
            complete(&server, model, more).await
        };
        let theirs = json!({"diffusion_canvas_length": 8, "diffusion_max_steps": 2, "diffusion_read_only": 0});
        let theirs = ask(json!({"vllm_xargs": theirs})).await;
        let ours = ask(json!({"diffusion": {"block_length": 8, "steps": 8}})).await;
        assert_eq!(theirs["choices"], ours["choices"], "{model}");
        assert_eq!(theirs["usage"]["forwards"], 8, "four blocks of two steps");
        for (more, want) in [
            (json!({"vllm_xargs": {"diffusion_pinned": [1]}}), "vllm_xargs.diffusion_pinned"),
            (json!({"vllm_xargs": {"diffusion_read_only": 1}}), "vllm_xargs.diffusion_read_only"),
            (json!({"vllm_xargs": {"diffusion_max_steps": 0}}), "vllm_xargs.diffusion_max_steps"),
            (
                json!({"vllm_xargs": {"diffusion_max_steps": 2}, "diffusion": {"steps": 4}}),
                "vllm_xargs.diffusion_max_steps",
            ),
            (
                json!({"vllm_xargs": {"diffusion_canvas_length": 8}, "diffusion": {"block_length": 4}}),
                "vllm_xargs.diffusion_canvas_length",
            ),
            (
                json!({"parallel_decoding": true, "diffusion": {"quota": "one"}}),
                "diffusion.parallel_decoding",
            ),
        ] {
            assert_eq!(param(&server, CHAT, with(chat_body(model), more)).await, want);
        }
    }
}

#[tokio::test]
async fn an_end_in_any_gap_is_a_reason_to_finish() {
    let server = serve_builtin("tiny-llada").await;
    let ask = async |end: i32| {
        let infill = json!([{"max_tokens": 4}, " and", 2]);
        let more = json!({"logit_bias": {"0": end, "5": end}, "diffusion": {"infill": infill}, "max_tokens": null});
        complete(&server, "tiny-llada", more).await["choices"][0]["finish_reason"].clone()
    };
    assert_eq!((ask(100).await, ask(-100).await), (json!("stop"), json!("length")));
}
