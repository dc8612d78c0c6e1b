use super::*;
use serde_json::json;
use std::time::Instant;

fn synthetic(n: usize) -> Tokenizer {
    let file = builtin_files("tiny-llada").unwrap();
    let bytes = file.builtin("tokenizer.json").unwrap();
    let mut t: serde_json::Value = serde_json::from_slice(bytes).unwrap();
    let mut seed = 1u64;
    let mut next = |m: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % m
    };
    let vocab = t["model"]["vocab"].as_object_mut().unwrap();
    let syl = [
        "a", "e", "in", "er", "on", "th", "st", "re", "co", "de", "pro", "al", "is", "ti", "ma",
        "ra", "lo", "ne", "ing", "ed", "un", "ver", "ter", "qu", "x", "z", "tion", "ment", "'",
        "-",
    ];
    while vocab.len() < n {
        let kind = next(20);
        let mut w = String::new();
        if kind < 9 {
            w.push('Ġ');
        }
        match kind {
            0..=15 => {
                for _ in 0..1 + next(4) {
                    w.push_str(syl[next(syl.len())]);
                }
                if next(4) == 0 {
                    w = w
                        .chars()
                        .enumerate()
                        .map(|(i, c)| {
                            if i == 0 || (i == 1 && w.starts_with('Ġ')) {
                                c.to_ascii_uppercase()
                            } else {
                                c
                            }
                        })
                        .collect();
                }
            }
            16 => {
                for _ in 0..1 + next(4) {
                    w.push(b"0123456789"[next(10)] as char);
                }
            }
            17 => {
                for _ in 0..1 + next(5) {
                    w.push(b"{}[]():;,.\"'\\/<>=+-*&^%$#@!?|~_"[next(31)] as char);
                }
                if next(3) == 0 {
                    w.push('Ċ');
                }
            }
            18 => {
                for _ in 0..1 + next(30) {
                    w.push('Ġ');
                }
                if next(2) == 0 {
                    w.push('Ċ');
                    w.push('ĉ');
                }
            }
            _ => {
                w.push('æ');
                w.push(['¼', '½', '¾', 'ģ', 'Ĥ', '°', '±'][next(7)]);
                for _ in 0..1 + next(3) {
                    w.push(['¡', '¢', '£', '¥', '§', '¨', '©', 'ª', 'Ģ', 'ģ', 'Ĥ', 'ĥ'][next(12)]);
                }
            }
        }
        let id = vocab.len();
        if !vocab.contains_key(&w) {
            vocab.insert(w, json!(id));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), t.to_string()).unwrap();
    Tokenizer::load(&crate::ModelFiles::Folder(folder.path().to_owned())).unwrap()
}

fn measure(name: &str, t: &Tokenizer, vocab: usize) {
    let start = Instant::now();
    let c = StructureCompiler::new(t, vocab, &ENDS).unwrap();
    eprintln!("== {name}: new {:?}", start.elapsed());
    let person = json!({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer","minimum":0,"maximum":150},"tags":{"type":"array","items":{"enum":["red","green","blue"]}},"address":{"type":"object","properties":{"street":{"type":"string","maxLength":40},"zip":{"type":"string","pattern":"^[0-9]{5}$"}},"required":["street","zip"],"additionalProperties":false}},"required":["name","age","tags","address"],"additionalProperties":false});
    let text = r#"{"name": "Ada Lovelace the first, in French: présentation", "age": 36, "tags": ["red", "blue"], "address": {"street": "12 St James's Square", "zip": "12345"}}"#;
    let cases: Vec<(&str, Structure, &str)> = vec![
        ("schema", Structure::JsonSchema(person), text),
        ("json_object", Structure::JsonObject, text),
        (
            "regex",
            Structure::Regex("[a-zé ,.]{10,200}".to_owned()),
            "some words, that follow a rule and nothing else",
        ),
        (
            "lark",
            Structure::Lark("start: (word \" \")* word\nword: /[a-z]+/ | /[0-9]+/".to_owned()),
            "some words 12 and 34 then",
        ),
    ];
    for (kind, s, text) in cases {
        let mut compile = vec![];
        let mut first = vec![];
        let mut mask = vec![];
        let mut adv = vec![];
        let mut one = vec![];
        let mut forced = vec![];
        let mut clone = vec![];
        let mut ended = vec![];
        for _ in 0..3 {
            let start = Instant::now();
            let mut g = c.compile(&s).unwrap();
            compile.push(start.elapsed().as_micros());
            let ids = t.encode(text, SpecialTokens::Skip).unwrap();
            let mut f = true;
            for id in ids {
                let start = Instant::now();
                let copy = g.clone();
                clone.push(start.elapsed().as_micros());
                drop(copy);
                let start = Instant::now();
                assert!(g.clone().allows(id).unwrap(), "{id}");
                one.push(start.elapsed().as_micros());
                let start = Instant::now();
                g.forced();
                forced.push(start.elapsed().as_micros());
                let start = Instant::now();
                g.allowed().unwrap();
                let d = start.elapsed().as_micros();
                if f {
                    first.push(d)
                } else {
                    mask.push(d)
                }
                f = false;
                let start = Instant::now();
                g.has_ended();
                ended.push(start.elapsed().as_micros());
                let start = Instant::now();
                g.advance(id).unwrap();
                adv.push(start.elapsed().as_micros());
            }
            assert!(g.may_end());
        }
        let stat = |mut v: Vec<u128>| {
            v.sort();
            let n = v.len();
            format!(
                "median {} mean {} p95 {} max {}",
                v[n / 2],
                v.iter().sum::<u128>() / n as u128,
                v[n * 95 / 100],
                v[n - 1]
            )
        };
        eprintln!(
            "{name} {kind}: compile {} | mask {} | allows {} | advance {} | forced {} | clone {} | has_ended {}",
            stat(compile),
            stat(mask),
            stat(one),
            stat(adv),
            stat(forced),
            stat(clone),
            stat(ended)
        );
    }
}

#[test]
fn masks_tmp() {
    measure("builtin", &tokenizer(), VOCAB);
    let t = synthetic(126_000);
    measure("126k", &t, 126_464);
}
