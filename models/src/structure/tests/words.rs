//! Guides token by token: kinds of structures, forced tokens, ends, copies, bytes.

use serde_json::{Value, json};

use super::super::bytes::token_bytes;
use super::*;

#[test]
fn the_bytes_of_every_token_are_those_it_is_decoded_to() {
    let tokenizer = tokenizer();
    let bytes = token_bytes(&tokenizer, VOCAB + 40).unwrap();
    assert_eq!(bytes.len(), VOCAB + 40);
    for (id, bytes) in (0..).zip(&bytes) {
        // Control tokens, and rows of the head without a token.
        if id < 7 || id as usize >= VOCAB {
            assert!(bytes.is_empty(), "{id}: {bytes:?}");
            continue;
        }
        let text = tokenizer.decode(&[id], SpecialTokens::Include);
        if bytes.is_empty() {
            // The letter of 0xFF, which no text has.
            assert_eq!(tokenizer.id_of("ÿ"), Some(id));
            continue;
        }
        assert_eq!(String::from_utf8_lossy(bytes), text, "{id}");
    }
    // Half a character is lost in its text, so whole ones are spelled byte by byte.
    for text in ["é", "漢", "🦀", "\u{7ff}"] {
        let ids = tokenizer.encode(text, SpecialTokens::Skip).unwrap();
        let spelled: Vec<u8> = ids.iter().flat_map(|id| bytes[*id as usize].clone()).collect();
        assert_eq!(spelled, text.as_bytes());
    }
}

#[test]
fn tokenizers_of_two_files_have_the_same_bytes() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/slow-tokenizer");
    let slow = Tokenizer::load(&crate::ModelFiles::Folder(folder.into())).unwrap();
    let bytes = token_bytes(&slow, slow.size()).unwrap();
    let mut texts = 0;
    for (id, bytes) in (0..).zip(&bytes).filter(|(_, bytes)| !bytes.is_empty()) {
        let text = slow.decode(&[id], SpecialTokens::Include);
        assert_eq!(String::from_utf8_lossy(bytes), text, "{id}");
        texts += 1;
    }
    // All but seven control tokens and the letter of 0xFF.
    assert_eq!((texts, slow.size()), (VOCAB - 8, VOCAB));
}

#[test]
fn tokenizers_with_byte_fallback_have_the_bytes_of_their_decoder() {
    let file = json!({
        "version": "1.0",
        "added_tokens": [
            {"id": 0, "content": "<s>", "special": true, "single_word": false, "lstrip": false,
             "rstrip": false, "normalized": false},
            {"id": 5, "content": "<|im_start|>", "special": false, "single_word": false,
             "lstrip": false, "rstrip": false, "normalized": false}
        ],
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        ]},
        "model": {"type": "BPE", "byte_fallback": true, "merges": [],
            "vocab": {"<s>": 0, "<0xE6>": 1, "a": 2, "▁": 3, "é": 4}}
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    let tokenizer = Tokenizer::load(&crate::ModelFiles::Folder(folder.path().to_owned())).unwrap();
    let bytes = token_bytes(&tokenizer, 7).unwrap();
    let expected: [&[u8]; 7] = [b"", b"\xe6", b"a", b" ", "é".as_bytes(), b"", b""];
    assert_eq!(bytes, expected);
}

#[test]
fn a_regular_expression_is_matched_from_start_to_end() {
    let date = Structure::Regex(r"^\d{4}-\d{2}/(jan|feb)$".to_owned());
    assert!(accepts(&date, "2026-11/jan"));
    assert!(!accepts(&date, "2026-11/mar"));
    assert!(!accepts(&date, "2026-11/ja"));
    assert!(!accepts(&date, "on 2026-11/jan"));
    assert!(accepts(&Structure::Regex("[ß-ÿ漢]+🦀".to_owned()), "ä漢🦀"));
}

#[test]
fn a_choice_may_end_within_a_longer_one() {
    let choice = ["yes", "yes, \"but\"", "nö\n\u{7f}🦀"].map(str::to_owned).to_vec();
    let structure = Structure::Choice(choice.clone());
    for text in &choice {
        assert!(accepts(&structure, text), "{text}");
    }
    assert!(!accepts(&structure, "yes, "));
    let mut guide = guide(&structure);
    follow(&mut guide, "yes").unwrap();
    assert!(guide.may_end() && !guide.has_ended());
    follow(&mut guide, ", \"but\"").unwrap();
    assert!(guide.has_ended());
}

#[test]
fn a_json_object_takes_any_object_and_nothing_else() {
    let object = Structure::JsonObject;
    assert!(accepts(&object, r#"{"a": [1, -2.5e3, null], "b": {"ü": "\n\"x\""}}"#));
    assert!(accepts(&object, r#"{"a":[1,true],"b":{}}"#));
    assert!(accepts(&object, "{}"));
    for text in ["[]", "1", "{\"a\":  1}", "{ }", "{\"a\" :1}", " {}", "{'a': 1}", "{}\n"] {
        assert!(!accepts(&object, text), "{text}");
    }
}

#[test]
fn a_grammar_is_followed_with_schemas_in_it() {
    let grammar = r#"
        // A comment with "an open quote and <a marker>.
        start: "<call>" body "</call>" tail*
        body: %json {"type": "object", "properties": {"n": {"type": "integer", "minimum": 10}},
            "required": ["n"], "additionalProperties": false, "title": "T"}
        tail: /[a-z\/]{2}/ | ";"
    "#;
    let structure = Structure::Lark(grammar.to_owned());
    assert!(accepts(&structure, r#"<call>{"n": 12}</call>"#));
    assert!(accepts(&structure, r#"<call>{"n":12}</call>a/;;"#));
    assert!(!accepts(&structure, r#"<call>{"n": 9}</call>"#));
    assert!(!accepts(&structure, r#"<call>{"n":  12}</call>"#));
}

#[test]
fn control_tokens_never_come_and_ends_only_where_an_answer_may_end() {
    // Any text at all, and the names of control tokens among it.
    let mut guide = guide(&Structure::Regex(r"(?s:.)*x".to_owned()));
    for text in ["<|mask|>", "a", "漢", "x"] {
        let bytes_of = |text: &str| {
            let bytes = token_bytes(&tokenizer(), VOCAB).unwrap();
            let id = |byte: &u8| bytes.iter().position(|b| b == &[*byte]).unwrap() as u32;
            text.as_bytes().iter().map(id).collect::<Vec<u32>>()
        };
        for id in bytes_of(text) {
            let allowed = guide.allowed().unwrap();
            for control in [1, 2, 3, 4, 6] {
                assert!(!allowed.contains(control));
            }
            let ends = guide.may_end();
            assert_eq!(ENDS.map(|end| allowed.contains(end)), [ends, ends]);
            assert!(allowed.contains(id));
            guide.advance(id).unwrap();
        }
    }
    assert!(guide.may_end());
    assert!(guide.allows(5).unwrap());
    assert!(!guide.allows(2).unwrap() && !guide.allows(9999).unwrap());
    guide.advance(5).unwrap();
    assert!(guide.has_ended());
    assert_eq!(guide.allowed().unwrap().count(), 0);
    assert_eq!(guide.advance(5), Err(StructureError::NotAllowed(5)));
}

#[test]
fn the_mask_is_what_single_tokens_say() {
    let mut guide = guide(&schema(json!({"type": "object", "properties": {
        "name": {"type": "string", "maxLength": 9}, "size": {"type": "number"}
    }, "required": ["name"]})));
    for id in tokenizer().encode("{\"name\": \"é x\", \"size\": 1.5}", SpecialTokens::Skip).unwrap()
    {
        let alone: Vec<u32> =
            (0..VOCAB as u32 + 64).filter(|id| guide.clone().allows(*id).unwrap()).collect();
        let allowed = guide.allowed().unwrap();
        assert_eq!(allowed.ids().collect::<Vec<_>>(), alone);
        assert_eq!(allowed.count(), alone.len());
        assert_eq!(allowed.words().len(), VOCAB / 32);
        guide.advance(id).unwrap();
    }
    assert!(guide.has_ended());
}

#[test]
fn forced_tokens_are_the_text_that_is_fixed() {
    let tokenizer = tokenizer();
    let mut guide = guide(&schema(json!({"type": "object", "properties": {
        "description": {"const": "a fixed text"}, "total": {"type": "boolean"}
    }, "required": ["description", "total"], "additionalProperties": false})));
    let mut text = String::new();
    let mut forced = 0;
    while !guide.has_ended() {
        let mut next = guide.forced();
        forced += next.len();
        if next.is_empty() {
            // A blank or not, true or false: the first there is.
            next = guide.allowed().unwrap().ids().take(1).collect();
        }
        for id in next {
            assert!(guide.allows(id).unwrap());
            guide.advance(id).unwrap();
            text.push_str(&tokenizer.decode(&[id], SpecialTokens::Skip));
        }
    }
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["description"], "a fixed text");
    let ids = tokenizer.encode(&text, SpecialTokens::Skip).unwrap().len();
    assert!(forced * 3 > ids * 2, "{forced} of {ids} tokens of {text}");
    assert!(guide.forced().is_empty());
}

#[test]
fn forced_tokens_are_spelled_as_the_tokenizer_does_and_stop_before_what_is_open() {
    let spelled = "the fixed beginning of a longer sentence";
    let mut guide = guide(&Structure::Regex(format!("{spelled}[a-z ]+")));
    let ids = tokenizer().encode(spelled, SpecialTokens::Skip).unwrap();
    let forced = guide.forced();
    assert!(!forced.is_empty() && forced.len() < ids.len());
    assert_eq!(forced, ids[..forced.len()]);
    // Nothing has moved.
    assert_eq!(guide.forced(), forced);
    follow(&mut guide, spelled).unwrap();
    assert!(guide.forced().is_empty());
}

#[test]
fn a_token_that_is_not_allowed_changes_nothing_and_copies_are_apart() {
    let mut one = guide(&Structure::Choice(vec!["alpha".to_owned(), "beta".to_owned()]));
    let before = one.allowed().unwrap();
    let wrong = tokenizer().encode("c", SpecialTokens::Skip).unwrap()[0];
    assert_eq!(one.advance(wrong), Err(StructureError::NotAllowed(wrong)));
    assert_eq!(one.allowed().unwrap(), before);
    let mut two = one.clone();
    follow(&mut one, "alpha").unwrap();
    assert_eq!(two.allowed().unwrap(), before);
    follow(&mut two, "beta").unwrap();
    assert!(one.has_ended() && two.has_ended());
    assert!(format!("{two:?}").contains("beta"));
}

fn schema(schema: Value) -> Structure {
    Structure::JsonSchema(schema)
}
