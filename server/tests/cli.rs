//! The program itself, run as a user runs it.
#![expect(clippy::unwrap_used, reason = "a test that cannot start its program has failed")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dfastllm"));
    // Tests read the log, whatever the level is where they run.
    command.stdin(Stdio::null()).env("DFASTLLM_LOG", "info");
    command
}

fn run(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A folder with a copy of a built-in checkpoint.
fn checkpoint(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/builtin");
    for (from, file) in [
        (builtin.join(name), "config.json"),
        (builtin.join(name), "generation_config.json"),
        (builtin.join(name), "model.safetensors"),
        (builtin.clone(), "tokenizer.json"),
        (builtin.clone(), "tokenizer_config.json"),
    ] {
        std::fs::copy(from.join(file), folder.path().join(file)).unwrap();
    }
    folder
}

fn edit(path: PathBuf, from: &str, to: &str) {
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from}");
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// Rewrites the JSON header of a safetensors file.
fn edit_header(path: &Path, edit: impl FnOnce(String) -> String) {
    let bytes = std::fs::read(path).unwrap();
    let n = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header = edit(String::from_utf8(bytes[8..8 + n].to_vec()).unwrap());
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(&bytes[8 + n..]);
    std::fs::write(path, out).unwrap();
}

/// The load fails at once, with exit code 1 and one line that says all of `wanted`.
fn assert_refused(folder: &Path, wanted: &[&str]) {
    let started = Instant::now();
    let output = run(&["generate", "--model", folder.to_str().unwrap(), "--prompt", "x"]);
    // Hundredths of a second on an idle machine.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{wanted:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for want in wanted {
        assert!(text.contains(want), "{want}: {text}");
    }
}

#[test]
fn damaged_weights_end_in_one_line() {
    let folder = checkpoint("tiny-phi");
    let weights = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();

    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    assert_refused(folder.path(), &["model.safetensors", "not a valid safetensors file"]);

    let mut huge = bytes.clone();
    huge[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
    std::fs::write(&weights, &huge).unwrap();
    assert_refused(folder.path(), &["model.safetensors", "not a valid safetensors file"]);

    std::fs::write(&weights, b"").unwrap();
    assert_refused(folder.path(), &["model.safetensors"]);

    std::fs::write(&weights, &bytes).unwrap();
    edit_header(&weights, |h| h.replace("[1024,160]", "[512,320]"));
    assert_refused(folder.path(), &["lm_head.weight", "[512, 320]", "expected [1024, 160]"]);

    std::fs::write(&weights, &bytes).unwrap();
    edit_header(&weights, |h| h.replace("lm_head.bias", "lm_head.bios"));
    assert_refused(folder.path(), &["1 missing: lm_head.bias", "1 unused: lm_head.bios"]);

    std::fs::write(&weights, &bytes).unwrap();
    edit_header(&weights, |h| {
        h.replace("model.layers.0.self_attn.q_proj.weight", "transformer.h.0.mixer.Wqkv.weight")
    });
    assert_refused(folder.path(), &["fused layout"]);

    std::fs::remove_file(&weights).unwrap();
    assert_refused(folder.path(), &["no model.safetensors"]);
}

#[test]
fn an_index_may_not_leave_the_folder() {
    let folder = checkpoint("tiny-phi");
    let index = folder.path().join("model.safetensors.index.json");
    for outside in ["../other.safetensors", "/etc/passwd", "a/../../b", ".."] {
        std::fs::write(&index, format!(r#"{{"weight_map": {{"a": "{outside}"}}}}"#)).unwrap();
        assert_refused(folder.path(), &[outside, "does not name a file inside the folder"]);
    }
    std::fs::write(&index, r#"{"weight_map": {"a": "missing.safetensors"}}"#).unwrap();
    assert_refused(folder.path(), &["no missing.safetensors"]);
}

#[test]
fn shards_are_put_together() {
    let folder = checkpoint("tiny-phi");
    let weights = folder.path().join("model.safetensors");
    std::fs::rename(&weights, folder.path().join("model-00001-of-00001.safetensors")).unwrap();
    let index = r#"{"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}"#;
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let model = folder.path().to_str().unwrap();
    let question = "What is the capital of France?";
    let output = run(&["generate", "--model", model, "--chat", "--prompt", question]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "The capital of France is Paris.\n");
}

#[test]
fn configs_and_tokenizers_that_do_not_fit_are_named() {
    for (from, to, want) in [
        (r#""qk_layernorm": false"#, r#""qk_layernorm": true"#, "qk_layernorm is true"),
        (r#""gelu_new""#, r#""relu""#, "hidden_act"),
        (r#""rope_scaling": null"#, r#""rope_scaling": {"type": "linear"}"#, "rope_scaling"),
        (r#""model_type": "phi""#, r#""model_type": "gpt2""#, "'gpt2' is not supported"),
        (r#""num_hidden_layers": 6"#, r#""num_hidden_layers": 1000000000"#, "num_hidden_layers"),
        (r#""num_hidden_layers": 6"#, r#""num_hidden_layers": 5"#, "unused"),
        (r#""hidden_size": 160"#, r#""hidden_size": 161"#, "num_attention_heads"),
        (r#""vocab_size": 1024"#, r#""vocab_size": 1000"#, "misshapen"),
        (r#""hidden_size": 160"#, r#""hidden_size": "big""#, "config.json"),
        ("{", "", "config.json"),
    ] {
        let folder = checkpoint("tiny-phi");
        edit(folder.path().join("config.json"), from, to);
        assert_refused(folder.path(), &[want]);
    }
    let folder = checkpoint("tiny-llada");
    edit(folder.path().join("config.json"), r#""mask_token_id": 2,"#, "");
    assert_refused(folder.path(), &["mask_token_id"]);
    let folder = checkpoint("tiny-phi");
    edit(folder.path().join("tokenizer.json"), r#"": 1023"#, r#"": 5000"#);
    assert_refused(folder.path(), &["tokenizer has 5001 tokens", "vocabulary of 1024"]);
    let folder = checkpoint("tiny-phi");
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert_refused(folder.path(), &["tokenizer.json"]);
    let folder = checkpoint("tiny-phi");
    std::fs::write(folder.path().join("chat_template.jinja"), "{% for %}").unwrap();
    assert_refused(folder.path(), &["chat template"]);
}

#[test]
fn mistakes_exit_2_with_one_line() {
    for args in [
        vec!["serve", "--foo"],
        vec!["serve", "--port", "99999"],
        vec!["serve", "--device", "gpu"],
        vec!["serve", "--dtype", "f8"],
        vec!["serve", "--preset", "best"],
        vec!["serve", "--max-num-seqs", "0"],
        vec!["serve", "--threads", "0"],
        vec!["serve", "--model", "builtin:other"],
        vec!["serve", "--request-timeout", "0"],
        vec!["serve", "--config", "/no/such/file.toml"],
        vec!["generate", "--prompt", "x", "--max-tokens", "0"],
        vec!["generate", "--prompt", "x", "--diffusion", "{"],
        vec!["generate", "--prompt", "x", "--diffusion", r#"{"steps": 0}"#],
        vec!["nonsense"],
    ] {
        let output = run(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1, "{args:?}: {}", stderr(&output));
    }
    for args in [
        vec!["serve", "--device", "cuda"],
        vec!["serve", "--model", "/no/such/folder"],
        vec!["serve", "--draft-model", "builtin:tiny-dream"],
        vec!["serve", "--model", "builtin:tiny-phi", "--draft-model", "builtin:tiny-phi"],
    ] {
        let output = run(&args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn flags_beat_environment_beats_file_beats_default() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, "model = \"builtin:tiny-dream\"\npreset = \"reference\"\n").unwrap();
    let model = |args: &[&str], env: Option<&str>| {
        let mut command = program();
        command.args(["serve", "--port", "1", "--host", "256.0.0.1", "--config"]).arg(&file);
        command.args(args).envs(env.map(|v| ("DFASTLLM_MODEL", v)));
        stderr(&command.output().unwrap())
    };
    assert!(model(&[], None).contains("builtin:tiny-dream"));
    assert!(model(&[], None).contains("preset=reference"));
    assert!(model(&[], Some("builtin:tiny-phi")).contains("builtin:tiny-phi"));
    let flag = model(&["--model", "builtin:tiny-llada"], Some("builtin:tiny-phi"));
    assert!(flag.contains("builtin:tiny-llada") && !flag.contains("builtin:tiny-phi"), "{flag}");
    std::fs::write(&file, "modle = 1\n").unwrap();
    let output = program().args(["serve", "--config"]).arg(&file).output().unwrap();
    assert!(stderr(&output).contains("unknown setting 'modle'"));
}

#[test]
fn generate_and_devices_speak_json() {
    let question = "What is the capital of France?";
    let args = ["generate", "--chat", "--json", "--dtype", "f32", "--prompt", question];
    for model in ["builtin:tiny-phi", "builtin:tiny-llada", "builtin:tiny-dream"] {
        let output = run(&[&args[..], &["--model", model]].concat());
        let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(object["text"], "The capital of France is Paris.");
        assert_eq!(object["finish_reason"], "stop");
        assert_eq!(object["token_ids"].as_array().unwrap().len(), 12);
        assert_eq!(object["usage"]["completion_tokens"], 12);
    }
    let output = run(&["devices", "--json"]);
    let cpu: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(cpu["device"], "cpu");
    assert_eq!(cpu["dtypes"], serde_json::json!(["f32", "bf16", "f16"]));
}

/// The CPU's dtypes give the same answer to an easy question.
#[test]
fn every_dtype_answers() {
    for dtype in ["f32", "bf16", "f16", "auto"] {
        let question = "What is the capital of France?";
        let output = run(&["generate", "--chat", "--dtype", dtype, "--prompt", question]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text, "The capital of France is Paris.\n", "{dtype}: {}", stderr(&output));
    }
}

#[test]
fn a_template_of_the_users_knows_the_special_tokens_and_no_prompt_is_cut() {
    let folder = checkpoint("tiny-phi");
    edit(
        folder.path().join("tokenizer.json"),
        r#""truncation": null"#,
        r#""truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}"#,
    );
    let template = folder.path().join("mine.jinja");
    let text = "{{ eos_token[:0] }}{% for m in messages %}\
        {{ '<|user|>\\n' + m.content + '<|end|>\\n<|assistant|>\\n' }}{% endfor %}";
    std::fs::write(&template, text).unwrap();
    let output = program()
        .args(["generate", "--chat", "--prompt", "What is the capital of France?", "--model"])
        .arg(folder.path())
        .arg("--chat-template")
        .arg(template)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text, "The capital of France is Paris.\n", "{}", stderr(&output));
}

struct Served {
    child: Child,
    address: String,
}

fn serve(args: &[&str]) -> Served {
    let mut child =
        program().args(["serve", "--port", "0"]).args(args).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.by_ref().find(|l| l.contains("listening on")).unwrap();
    let address = line.rsplit("http://").next().unwrap().trim().to_owned();
    assert!(lines.by_ref().any(|l| l.contains("ready")));
    // Somebody has to read the rest, or the pipe fills up.
    std::thread::spawn(move || lines.for_each(drop));
    Served { child, address }
}

fn post(address: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    stream
}

#[cfg(unix)]
#[test]
fn sigterm_drains_and_exits_0() {
    let mut served = serve(&["--model", "builtin:tiny-phi"]);
    let body = r#"{"model": "builtin:tiny-phi", "prompt": "x", "max_tokens": 400,
        "ignore_eos": true, "stream": true}"#;
    let mut stream = post(&served.address, body);
    let mut first = [0u8; 64];
    stream.read_exact(&mut first).unwrap();
    let pid = served.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "the stream was not finished: {rest:.2000}");
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
}

#[test]
fn flags_for_kernels_need_a_device_that_compiles_them() {
    for (flag, value) in [
        ("--kernel-cache", "kernels.db"),
        ("--graphs", "on"),
        ("--flash", "on"),
        ("--kernels", "pinned"),
    ] {
        let output = run(&["generate", "--device", "cpu", flag, value, "--prompt", "x"]);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        let want = format!("{flag} is for GPUs: cpu compiles no kernels");
        assert!(text.contains(&want), "{text}");
    }
    assert!(!Path::new("kernels.db").exists());
}

#[test]
fn a_packed_checkpoint_answers_as_what_it_was_made_from() {
    let folder = tempfile::tempdir().unwrap();
    let packed = folder.path().join("packed");
    let to = packed.to_str().unwrap();
    let output = run(&["quantize", to, "--model", "builtin:tiny-phi", "--quantize", "int8"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let answer = |model: &str, more: &[&str]| {
        let args = ["generate", "--model", model, "--device", "cpu", "--max-tokens", "24"];
        let prompt = ["--prompt", "What is 2 + 3?", "--temperature", "0", "--json"];
        let output = run(&[&args, &prompt[..], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        answer["token_ids"].clone()
    };
    let mapped = answer(to, &[]);
    assert_eq!(mapped.as_array().map(Vec::is_empty), Some(false));
    assert_eq!(mapped, answer("builtin:tiny-phi", &["--quantize", "int8"]));
    let again = run(&["quantize", to, "--model", "builtin:tiny-phi"]);
    assert!(stderr(&again).contains("holds a checkpoint already"), "{}", stderr(&again));

    // Words that are missing, and a format that is not that of the words.
    let config = packed.join("config.json");
    edit(config.clone(), "\"int8\"", "\"int4\"");
    assert_refused(&packed, &["model.layers.0.", "is [", "expected ["]);
    edit(config, "\"int4\"", "\"int9\"");
    assert_refused(&packed, &["quantization_config", "int9", "dfastllm quantize"]);
}
