//! The structure holds: sizes, directions, names.
#![allow(clippy::unwrap_used, reason = "a file that cannot be read is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Files below a folder with one of these endings.
fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    folders.push(path);
                }
            } else if endings.iter().any(|e| name.ends_with(e)) {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "{folder}");
    found
}

fn sources() -> Vec<(PathBuf, String)> {
    ["backends", "models", "engine", "server", "tests", "examples"]
        .iter()
        .flat_map(|folder| files(folder, &[".rs"]))
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
        .collect()
}

#[test]
fn files_stay_short() {
    let mut lines: Vec<usize> = Vec::new();
    for (path, text) in sources() {
        let n = text.lines().count();
        assert!(n <= 500, "{}: {n} lines", path.display());
        lines.push(n);
    }
    lines.sort_unstable();
    let median = lines[lines.len() / 2];
    assert!((60..=180).contains(&median), "median of {median} lines");
}

#[test]
fn crates_name_only_crates_below_them() {
    for (krate, forbidden) in [
        ("backends", vec!["models", "engine", "server", "cube"]),
        ("models", vec!["engine", "server", "cube"]),
        ("engine", vec!["backends", "server", "cube"]),
    ] {
        let manifest = fs::read_to_string(root().join(krate).join("Cargo.toml")).unwrap();
        for other in forbidden {
            assert!(!manifest.contains(&format!("dfastllm-{other}.")), "{krate} names {other}");
        }
        assert!(!manifest.contains("tokio"), "{krate} is not asynchronous");
    }
}

#[test]
fn the_engine_names_no_family_and_only_the_runner_touches_tensors() {
    for path in files("engine/src", &[".rs"]) {
        let text = fs::read_to_string(&path).unwrap();
        let code: String = text.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
        let code = code.replace("philox", "");
        for family in ["phi", "llada", "dream", "cuda", "vulkan"] {
            assert!(!code.to_lowercase().contains(family), "{}: {family}", path.display());
        }
        assert!(!code.contains("cfg(feature"), "{}", path.display());
        let tensors = code.contains("Tensor<") || code.contains("score_rows");
        assert!(!tensors || path.ends_with("runner.rs"), "{}", path.display());
    }
}

#[test]
fn unsafe_code_stays_in_a_few_places_and_says_why() {
    for (path, text) in sources() {
        let blocks = text.matches("unsafe {").count();
        let allowed = path.parent().is_some_and(|p| p.ends_with("backends/src/cpu/isa"))
            || path.ends_with("backends/src/mapping.rs")
            || path.ends_with("backends/cube/src/kernels/graph.rs");
        assert!(blocks == 0 || allowed || path.ends_with("tidy.rs"), "{}", path.display());
        if allowed {
            assert!(text.matches("SAFETY").count() >= blocks, "{blocks} blocks need a reason each");
        }
    }
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    for path in files("", &[".md"]) {
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let to = path.parent().unwrap().join(target);
            assert!(to.exists(), "{}: {link}", path.display());
        }
    }
}

#[test]
fn every_flag_is_in_the_readme() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for path in files("server/src/cli", &[".rs"]) {
        let text = fs::read_to_string(&path).unwrap();
        for name in text.split("env = \"DFASTLLM_").skip(1).filter_map(|r| r.split('"').next()) {
            let flag = format!("`--{}`", name.to_lowercase().replace('_', "-"));
            assert!(readme.contains(&flag), "{flag}");
        }
    }
}
