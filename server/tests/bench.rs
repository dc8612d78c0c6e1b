//! `bench` and `synth`, run as a user runs them.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot start its program has failed"
)]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dfastllm")).args(args).output().unwrap()
}

fn rows(args: &[&str]) -> Vec<Value> {
    let output = run(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn assert_mistake(code: i32, args: &[&str], wanted: &str) {
    let output = run(args);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    assert!(text.lines().count() == 1 && text.contains(wanted), "{args:?}: {text}");
}

fn number(row: &Value, column: &str) -> f64 {
    row[column].as_f64().unwrap_or_else(|| panic!("{column}: {row}"))
}

#[test]
fn throughput_counts_what_it_ran() {
    let rows = rows(&[
        "bench",
        "throughput",
        "--model",
        "builtin:tiny-phi",
        "--concurrency",
        "1,4",
        "--requests",
        "4",
        "--input-len",
        "8",
        "--output-len",
        "12",
        "--speculative-tokens",
        "0",
        "--json",
    ]);
    assert_eq!(rows.len(), 2);
    for (row, concurrency) in rows.iter().zip([1.0, 4.0]) {
        assert_eq!(number(row, "concurrency"), concurrency);
        // Four requests of twelve tokens, one a pass.
        assert_eq!((number(row, "requests"), number(row, "forwards")), (4.0, 48.0));
        assert_eq!(number(row, "tokens_per_forward"), 1.0);
        let per_step = number(row, "occupancy") * number(row, "steps");
        assert!(per_step > 47.9, "a prompt may be read in several steps: {row}");
        let split = ["model_%", "scoring_%", "scheduler_%"].map(|c| number(row, c));
        assert!((split.iter().sum::<f64>() - 100.0).abs() < 1e-6, "{row}");
    }
    assert_eq!(number(&rows[0], "steps"), 48.0);
    // They were submitted together.
    assert!(number(&rows[1], "occupancy") > 3.9);
}

#[test]
fn latency_is_measured_with_and_without_disturbance() {
    let row_of = |model: &str, args: &[&str]| {
        rows(&[&["bench", "latency", "--json", "--model", model], args].concat()).remove(0)
    };
    let row = |args: &[&str]| row_of("builtin:tiny-phi", args);
    let plain = row(&["--concurrency", "2", "--input-len", "8", "--output-len", "8"]);
    assert!(number(&plain, "ttft_p50_ms") > 0.0);
    let shared = row(&["--shared-prefix", "100", "--requests", "2"]);
    assert_eq!(number(&shared, "cached_tokens"), 96.0);
    let disturbed =
        row(&["--long-prompt", "32", "--concurrency", "2", "--speculative-tokens", "0"]);
    assert!(number(&disturbed, "reading_gaps") > 0.0, "{disturbed}");
    let denoised = row_of("builtin:tiny-dream", &["--concurrency", "1", "--requests", "1"]);
    assert!(number(&denoised, "ttft_p50_ms") > 0.0);
}

#[test]
fn serving_is_compared_with_the_engine_alone() {
    for model in ["builtin:tiny-phi", "builtin:tiny-llada"] {
        let lengths = ["--requests", "4", "--input-len", "8", "--output-len", "12"];
        let args = ["bench", "serve", "--json", "--model", model, "--concurrency", "1,2"];
        let rows = rows(&[&args[..], &lengths[..]].concat());
        assert_eq!(rows.len(), 2);
        for (row, concurrency) in rows.iter().zip([1.0, 2.0]) {
            // Four requests in each of three rounds.
            assert_eq!((number(row, "concurrency"), number(row, "requests")), (concurrency, 12.0));
            let (engine, http) =
                (number(row, "engine_tokens_per_s"), number(row, "http_tokens_per_s"));
            assert!((number(row, "ratio") - http / engine).abs() < 1e-9 && http > 0.0, "{row}");
            assert!(number(row, "health_probes") >= 3.0 && number(row, "ttft_p50_ms") > 0.0);
            assert!(number(row, "health_p50_ms") <= number(row, "health_p99_ms"), "{row}");
        }
    }
}

#[test]
fn random_checkpoints_load_and_differ_by_their_seed() {
    let folder = tempfile::tempdir().unwrap();
    let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/builtin");
    let make = |family: &str, seed: &str, dtype: &str| {
        let out = folder.path().join(format!("{family}-{seed}"));
        let shape = builtin.join(family).join("config.json");
        let (out, shape) = (out.to_str().unwrap().to_owned(), shape.to_str().unwrap().to_owned());
        let args = ["synth", &out, "--shape", &shape, "--seed", seed, "--dtype", dtype];
        assert!(run(&args).status.success());
        assert_mistake(1, &args, "holds a checkpoint already");
        let answer = run(&["generate", "--model", &out, "--prompt", "x", "--seed", "1", "--json"]);
        assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
        serde_json::from_slice::<Value>(&answer.stdout).unwrap()["token_ids"].clone()
    };
    assert_ne!(make("tiny-phi", "1", "bf16"), make("tiny-phi", "2", "f32"));
    make("tiny-llada", "1", "f16");
    make("tiny-dream", "1", "bf16");
}

#[test]
fn mistakes_are_named() {
    for (args, wanted) in [
        (&["bench", "speed"][..], "speed"),
        (&["bench", "--input-len", "9:5"], "9:5"),
        (&["bench", "--concurrency", "0"], "--concurrency"),
        (&["bench", "throughput", "--long-prompt", "9"], "--long-prompt"),
        (&["bench", "latency", "--long-prompt", "9", "--input-len", "9"], "--input-len"),
        (&["bench", "latency", "--shared-prefix", "9", "--concurrency", "2"], "--concurrency"),
        (&["bench", "--model", "builtin:tiny-phi", "--input-len", "600"], "512"),
        (&["bench", "--model", "builtin:tiny-phi", "--diffusion", "{\"steps\": 1}"], "--diffusion"),
        (&["synth", "/nowhere", "--shape", "gpt"], "phi-350m"),
        (&["synth", "/nowhere", "--dtype", "int8"], "--dtype"),
        (&["synth", "/nowhere", "--dtype", "auto"], "--dtype"),
        (&["generate", "--prompt", "x", "--speculative-tokens", "99"], "--speculative-tokens"),
        (&["serve", "--stall-timeout", "0"], "--stall-timeout"),
    ] {
        assert_mistake(2, args, wanted);
    }
}

#[test]
fn the_roofline_says_what_passes_reach_of_the_machine() {
    let rows = rows(&[
        "bench",
        "roofline",
        "--model",
        "builtin:tiny-llada",
        "--device",
        "cpu",
        "--input-len",
        "64",
        "--passes",
        "2",
        "--json",
    ]);
    // 64 positions and 512 rows are more than the model has.
    let counts: Vec<f64> = rows.iter().map(|row| number(row, "rows")).collect();
    assert_eq!(counts, [1.0, 8.0, 32.0]);
    for row in &rows {
        let parts = ["embed", "norm", "qkv", "attention", "mlp", "head", "scoring"];
        let sum: f64 = parts.iter().map(|part| number(row, &format!("{part}_ms"))).sum();
        for part in ["qkv", "attention", "mlp", "head"] {
            assert!(number(row, &format!("{part}_ms")) > 0.0, "{part}: {row}");
        }
        let pass = number(row, "pass_ms");
        // Medians of two passes are those of one pass, whichever it is of a part.
        assert!(sum <= pass * 1.001 && sum > 0.0, "{sum} {row}");
        for share in ["read_%", "multiply_%", "of_GB_s", "of_GFLOP_s"] {
            assert!(number(row, share) > 0.0, "{share}: {row}");
        }
    }
    let more = number(&rows[2], "GFLOP_s") * number(&rows[2], "pass_ms");
    let one = number(&rows[0], "GFLOP_s") * number(&rows[0], "pass_ms");
    assert!((more / one - 32.0).abs() < 1e-6, "32 rows multiply 32 times as often");
    assert_mistake(2, &["bench", "roofline", "--input-len", "4096"], "leaves no room");
}
