//! Files of requests, and the completions of a shell.
#![expect(clippy::unwrap_used, reason = "a test that cannot start its program has failed")]

mod support;

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use support::{program, stderr, stdout};

fn request(id: &str, body: Value) -> String {
    let url = if body["messages"].is_array() { "/v1/chat/completions" } else { "/v1/completions" };
    json!({"custom_id": id, "method": "POST", "url": url, "body": body}).to_string()
}

fn question(country: &str) -> Value {
    let content = format!("What is the capital of {country}?");
    json!({"model": "m", "messages": [{"role": "user", "content": content}]})
}

fn batch(more: &[&str], input: &str) -> Output {
    let mut command = program();
    command.args(["run-batch", "--model", "builtin:tiny-phi", "--served-model-name", "m"]);
    command.args(["--dtype", "f32"]).args(more);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // Beside the program, which may answer before it has read all.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()).ok());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn good_and_bad_lines_are_answered_in_order() {
    let input = [
        request("paris", question("France")),
        "{not json".to_owned(),
        request("lima", question("Peru")),
        String::new(),
        request("refused", json!({"model": "m", "prompt": "x", "frobnicate": 1})),
        request("other", json!({"model": "other", "prompt": "x"})),
        json!({"custom_id": "url", "method": "POST", "url": "/v1/embeddings", "body": {}})
            .to_string(),
        request("three", json!({"model": "m", "prompt": "x", "max_tokens": 2, "n": 3})),
    ]
    .join("\n");
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("in.jsonl"), folder.path().join("out.jsonl"));
    std::fs::write(&from, &input).unwrap();
    let files = ["-i", from.to_str().unwrap(), "-o", to.to_str().unwrap()];
    let output = batch(&files, "");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), "");
    assert!(
        stderr(&output).contains("7 lines: 3 answered, 2 refused, 2 bad"),
        "{}",
        stderr(&output)
    );
    let answers = lines(&std::fs::read_to_string(&to).unwrap());
    let ids: Vec<&Value> = answers.iter().map(|answer| &answer["custom_id"]).collect();
    let wanted = [
        json!("paris"),
        Value::Null,
        json!("lima"),
        json!("refused"),
        json!("other"),
        json!("url"),
    ];
    assert_eq!(ids[..6], wanted.iter().collect::<Vec<_>>());
    let text = |answer: &Value| {
        let response = &answer["response"];
        assert_eq!((&response["status_code"], &answer["error"]), (&json!(200), &Value::Null));
        assert!(answer["id"].as_str().unwrap().starts_with("batch_req_"));
        assert!(response["request_id"].as_str().is_some_and(|id| id.len() == 36));
        response["body"]["choices"][0]["message"]["content"].clone()
    };
    assert_eq!(text(&answers[0]), "The capital of France is Paris.");
    assert_eq!(text(&answers[2]), "The capital of Peru is Lima.");
    for (answer, status, param) in [(&answers[3], 400, "frobnicate"), (&answers[4], 404, "model")] {
        assert_eq!(answer["response"]["status_code"], status);
        assert_eq!(answer["response"]["body"]["error"]["param"], param);
        assert_eq!(answer["error"], Value::Null);
    }
    for (answer, code, message) in [
        (&answers[1], "invalid_json_line", "line 2: not valid JSON"),
        (&answers[5], "invalid_url", "line 7: url is \"/v1/embeddings\""),
    ] {
        assert_eq!((&answer["response"], &answer["error"]["code"]), (&Value::Null, &json!(code)));
        assert!(answer["error"]["message"].as_str().unwrap().starts_with(message), "{answer}");
    }
    assert_eq!(answers[6]["response"]["body"]["choices"].as_array().unwrap().len(), 3);
}

/// More than there are seats, and more choices than the engine has places: none is turned away.
#[test]
fn a_pipe_of_many_requests_is_answered_to_the_last() {
    let body = |i: usize| json!({"model": "m", "prompt": "x", "max_tokens": 1, "n": 1 + 40 * (i % 4), "seed": i});
    let many: Vec<String> = (0..60).map(|i| request(&i.to_string(), body(i))).collect();
    let pipes = ["-i", "-", "-o", "-", "--max-num-seqs", "24"];
    let output = batch(&pipes, &(many.join("\n") + "\n"));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let answers = lines(&stdout(&output));
    assert_eq!(answers.len(), 60);
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(answer["custom_id"], i.to_string());
        assert_eq!(answer["response"]["status_code"], 200, "{answer}");
        let choices = answer["response"]["body"]["choices"].as_array().unwrap();
        assert_eq!(choices.len(), 1 + 40 * (i % 4));
    }
}

#[test]
fn files_that_do_not_fit_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("both.jsonl");
    std::fs::write(&file, request("a", question("France"))).unwrap();
    let file = file.to_str().unwrap();
    for (args, code, wanted) in [
        (["-i", "/no/such/file", "-o", "-"], 1, "/no/such/file: "),
        (["-i", file, "-o", "/no/such/folder/out"], 1, "/no/such/folder/out: "),
        (["-i", file, "-o", file], 2, "is the input"),
        (["-i", folder.path().to_str().unwrap(), "-o", "-"], 1, "is a folder"),
    ] {
        let output = batch(&args, "");
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
        assert!(stderr(&output).contains(wanted), "{}", stderr(&output));
    }
    assert!(std::fs::read_to_string(file).unwrap().contains("France"));
    if Path::new("/dev/full").exists() {
        let output = batch(&["-i", file, "-o", "/dev/full"], "");
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("/dev/full: "), "{}", stderr(&output));
    }
    let output = batch(&["-i", "-", "-o", "-"], "");
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), ""));
}

#[test]
fn shells_complete_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = program().args(["completions", shell]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let text = stdout(&output);
        assert!(text.contains("run-batch") && text.contains("max-num-seqs"), "{shell}");
    }
    let output = program().args(["completions", "csh"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
}
