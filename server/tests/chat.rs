//! Conversations over a pipe, as a script would hold them.
#![expect(clippy::unwrap_used, reason = "a test that cannot start its program has failed")]

mod support;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use support::{program, stderr, stdout};

const QUESTION: &str = "What is the capital of France?";
const ANSWER: &str = "The capital of France is Paris.\n";

fn start(args: &[&str]) -> Child {
    let mut command: Command = program();
    command.args(["chat", "--dtype", "f32"]).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn chat(args: &[&str], input: &str) -> Output {
    let mut child = start(args);
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn every_family_converses() {
    for model in ["builtin:tiny-phi", "builtin:tiny-llada", "builtin:tiny-dream"] {
        let input =
            format!("{QUESTION}\n\n/clear\n\"\"\"What is the capital\nof France?\"\"\"\n/bye\nx");
        let output = chat(&["--model", model], &input);
        assert_eq!(output.status.code(), Some(0), "{model}: {}", stderr(&output));
        let lines: Vec<String> = stdout(&output).lines().map(str::to_owned).collect();
        assert_eq!(lines[0], ANSWER.trim_end(), "{model}");
        // What is behind /bye is not read.
        assert!(lines.len() >= 2 && !lines[1].is_empty(), "{model}: {lines:?}");
        assert_eq!(stderr(&output), "", "{model}");
    }
}

#[test]
fn history_counts_until_it_is_cleared() {
    let show = |input: &str| -> String {
        let output = chat(&["--model", "builtin:tiny-phi"], &format!("{input}\n/show\n"));
        let shown = stdout(&output);
        shown.lines().find(|line| line.starts_with("messages")).unwrap().to_owned()
    };
    let messages = |n: usize| format!("{:<12}{n}", "messages");
    assert_eq!(show(""), messages(0));
    assert_eq!(show(&format!("{QUESTION}\n{QUESTION}")), messages(4));
    assert_eq!(show(&format!("{QUESTION}\n/clear")), messages(0));
    // A template that says what it is given: earlier turns and the system's word reach the model.
    let folder = tempfile::tempdir().unwrap();
    let template = folder.path().join("strict.jinja");
    let text = "{% if messages|length > 1 %}{{ raise_exception(messages|map(attribute='role')|join('+')) }}\
        {% endif %}{{ '<|user|>\\n' + messages[0].content + '<|end|>\\n<|assistant|>\\n' }}";
    std::fs::write(&template, text).unwrap();
    let template = template.to_str().unwrap();
    let with = ["--model", "builtin:tiny-phi", "--chat-template", template];
    let output =
        chat(&with, &format!("{QUESTION}\n{QUESTION}\n/set system S\n/clear\n{QUESTION}\n"));
    assert_eq!(stdout(&output), ANSWER);
    let told = stderr(&output);
    assert!(told.contains("user+assistant+user (line 1); /clear starts over"), "{told}");
    assert!(told.contains("system+user"), "{told}");
    let output = chat(&[&with[..], &["--system", "S"]].concat(), QUESTION);
    assert!(stderr(&output).contains("system+user"), "{}", stderr(&output));
}

#[test]
fn settings_change_answers_and_mistakes_are_told() {
    let output = chat(
        &["--model", "builtin:tiny-llada"],
        &format!(
            "/set max_tokens 4\n/set diffusion {{\"steps\": 2}}\n{QUESTION}\n/show\n/frobnicate\n\
             /set temperature 1000\n/set diffusion {{\"stepps\": 2}}\n/set seed x\n/set top_p\n/help\n"
        ),
    );
    assert_eq!(output.status.code(), Some(0));
    let (said, told) = (stdout(&output), stderr(&output));
    assert!(said.starts_with("The capital of Fr\n"), "{said}");
    for wanted in
        ["model       builtin:tiny-llada", "max_tokens  4", "{\"steps\":2}", "/bye, Ctrl-D"]
    {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    let wanted = [
        "unknown command '/frobnicate'",
        "temperature",
        "stepps",
        "seed is 'x'",
        "/set takes a name and a value",
    ];
    assert_eq!(told.lines().count(), wanted.len(), "{told}");
    for (line, want) in told.lines().zip(wanted) {
        assert!(line.contains(want), "{want}: {line}");
    }
    let output =
        chat(&["--model", "builtin:tiny-phi"], "/set diffusion {\"steps\": 2}\n\"\"\"open\n");
    assert!(stderr(&output).contains("this one is autoregressive"), "{}", stderr(&output));
    assert!(stderr(&output).contains("has no end and was not sent"), "{}", stderr(&output));
    let output = chat(&["--model", "builtin:tiny-phi", "--temperature", "1000"], "");
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

/// A model that never ends by itself.
#[cfg(unix)]
fn endless() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/builtin");
    for file in ["config.json", "generation_config.json", "model.safetensors"] {
        std::fs::copy(builtin.join("tiny-phi").join(file), folder.path().join(file)).unwrap();
    }
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(builtin.join(file), folder.path().join(file)).unwrap();
    }
    for file in ["config.json", "generation_config.json"] {
        let path = folder.path().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config["eos_token_id"] = 1023.into();
        // Room for thousands of steps.
        config["max_position_embeddings"] = 8192.into();
        std::fs::write(&path, config.to_string()).unwrap();
    }
    folder
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_the_answer_and_not_the_program() {
    let folder = endless();
    let model = folder.path().to_str().unwrap();
    let args = ["--model", model, "--temperature", "1", "--speculative-tokens", "0"];
    let mut child = start(&[&args[..], &["--seed", "1"]].concat());
    let (mut stdin, mut answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    stdin.write_all(format!("{QUESTION}\n").as_bytes()).unwrap();
    let mut first = [0; 8];
    answers.read_exact(&mut first).unwrap();
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    // The program goes on: it counts both messages, and leaves when it is told to.
    stdin.write_all(b"/show\n/bye\n").unwrap();
    let mut rest = String::new();
    answers.read_to_string(&mut rest).unwrap();
    let shown = rest.lines().find(|line| line.starts_with("messages")).unwrap();
    assert_eq!(shown.split_whitespace().nth(1), Some("2"));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stderr(&output), "stopped\n");
}
