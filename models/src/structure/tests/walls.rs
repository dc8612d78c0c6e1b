//! What is refused, with its reason, and that nothing takes for ever.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

fn schema(schema: Value) -> Structure {
    Structure::JsonSchema(schema)
}

/// Served or refused, in bounded time; with some steps of an answer.
fn settle(name: &str, structure: &Structure) -> Result<(), String> {
    let start = Instant::now();
    let result = compiler().compile(structure);
    let compiled = start.elapsed();
    assert!(compiled < Duration::from_secs(6), "{name}: {compiled:?}");
    let start = Instant::now();
    let steps = result.and_then(|mut guide| {
        (0..40).try_for_each(|_| {
            let next = guide.allowed()?.ids().filter(|id| !ENDS.contains(id)).last();
            guide.forced();
            next.map_or(Ok(()), |next| guide.advance(next))
        })
    });
    // A step is milliseconds at worst.
    assert!(start.elapsed() < Duration::from_secs(4), "{name}: {:?}", start.elapsed());
    steps.map_err(|e| e.to_string())
}

#[test]
fn regular_expressions_that_run_away_elsewhere_are_served_or_refused() {
    let regex =
        |text: &str| settle(&text[..text.len().min(20)], &Structure::Regex(text.to_owned()));
    assert_eq!(regex("(a+)+$"), Ok(()));
    assert_eq!(regex("(a|a)*b"), Ok(()));
    assert_eq!(regex("(x+x+)+y"), Ok(()));
    assert_eq!(regex("(.*a){12}"), Ok(()));
    assert_eq!(
        regex("a{1,1000000}").unwrap_err(),
        "a repetition of the regular expression is 1000000, the limit is 10000"
    );
    let long = "ab".repeat(50_000);
    assert_eq!(
        regex(&long).unwrap_err(),
        "the regular expression's length in bytes is 100000, the limit is 32768"
    );
    let words: Vec<String> = (0..10_000).map(|i| format!("{i:x}")).collect();
    assert!(regex(&words.join("|")).unwrap_err().contains("length in bytes"));
    assert_eq!(regex(&words[..5_000].join("|")), Ok(()));
    assert_eq!(
        regex(&"a|".repeat(10_001)).unwrap_err(),
        "the number of alternatives is 10001, the limit is 10000"
    );
    let groups = format!("{}a{}", "(".repeat(1000), ")".repeat(1000));
    assert!(regex(&groups).unwrap_err().contains("nest"));
    assert!(regex("[").unwrap_err().starts_with("regular expression: unclosed"));
    assert!(regex(r"\bword").unwrap_err().contains("word boundaries"));
    assert!(regex("(?=a)b").unwrap_err().contains("look-around"));
    assert!(regex("(?P<stop>a)b").unwrap_err().contains("stop"));
    assert!(regex("(?x) a # b").unwrap_err().contains("'x'"));
    assert!(regex("(?x: a )b").unwrap_err().contains("'x'"));
    assert!(regex("").unwrap_err().contains("empty"));
    assert!(regex(r"[^\s\S]").unwrap_err().contains("nothing matches"));
    assert!(regex(r"(?-u:\xff)").is_err());
}

#[test]
fn regular_expressions_that_are_too_much_end_with_their_reason() {
    for (name, text) in [
        ("nested", "((a{100}){100}){100}".to_owned()),
        ("counts", "(?:[a-z]{1,9999}[0-9a-f]{1,9999}){2}x".to_owned()),
        ("dots", "(.*[a-m].{900}|.*[n-z].{901})".to_owned()),
        ("stars", "(a*)*".repeat(3000)),
        ("classes", r"[\p{L}\p{N}--\p{Lu}]{0,500}".repeat(100)),
    ] {
        if let Err(reason) = settle(name, &Structure::Regex(text)) {
            assert!(!reason.contains('\n') && reason.len() < 400, "{reason}");
        }
    }
}

#[test]
fn what_single_tokens_cost_does_not_add_up() {
    // Every place is a new state of some cost, and no mask is asked for in between.
    let mut guide = guide(&Structure::Regex("(.*[a-m].{40}|.*[n-z].{41})*".to_owned()));
    let letters = tokenizer().encode("a", SpecialTokens::Skip).unwrap()[0];
    let others = tokenizer().encode("z", SpecialTokens::Skip).unwrap()[0];
    let mut draw = 1_u32;
    for step in 0..6_000 {
        draw = draw.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let next = if draw >> 31 == 0 { letters } else { others };
        assert_eq!(guide.advance(next), Ok(()), "step {step}");
    }
}

#[test]
fn references_are_followed_within_the_schema_only() {
    let tree = json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object",
        "properties": {"left": {"$ref": "#/$defs/node"}, "n": {"type": "integer"}},
        "required": ["n"], "additionalProperties": false}}});
    assert!(accepts(&schema(tree), r#"{"left": {"left": {"n": 1}, "n": 2}, "n": 3}"#));
    let remote = json!({"type": "object", "properties": {"a": {"$ref": "https://example.com/s"}}});
    assert_eq!(
        refusal(&schema(remote)),
        "at /properties/a/$ref: \"https://example.com/s\" is outside this schema, which is not \
         supported"
    );
    for to in ["#/$defs/Page[a b~1c]", "#/$defs/Page%5Ba%20b~1c%5D"] {
        let named = json!({"$ref": to, "$defs": {"Page[a b/c]": {"type": "null"}}});
        assert!(accepts(&schema(named), "null"), "{to}");
    }
    assert!(refusal(&schema(json!({"$ref": "#/$defs/x"}))).contains("leads nowhere"));
    assert!(refusal(&schema(json!({"$ref": "#"}))).contains("requires itself"));
    let endless = json!({"type": "object", "properties": {"next": {"$ref": "#"}},
        "required": ["next"]});
    assert!(refusal(&schema(endless)).contains("requires itself"));
    let chain: serde_json::Map<String, Value> = (0..1000)
        .map(|i| {
            (
                format!("d{i}"),
                json!({"type": "array", "items": {"$ref": format!("#/$defs/d{}", (i + 1) % 1000)}}),
            )
        })
        .collect();
    assert_eq!(settle("chain", &schema(json!({"$ref": "#/$defs/d0", "$defs": chain}))), Ok(()));
}

#[test]
fn contradictions_are_refused() {
    for contradiction in [
        json!(false),
        json!({"type": "integer", "minimum": 5, "maximum": 4}),
        json!({"type": "string", "minLength": 5, "maxLength": 4}),
        json!({"type": "string", "enum": [1, 2]}),
        json!({"allOf": [{"type": "string"}, {"type": "number"}]}),
        json!({"enum": []}),
        json!({"type": "object", "properties": {"a": false}, "required": ["a"]}),
        json!({"type": "integer", "multipleOf": 10, "minimum": 1, "maximum": 9}),
        json!({"type": "object", "required": ["a"], "properties": {
            "a": {"type": "integer", "multipleOf": 10, "minimum": 1, "maximum": 9}}}),
        json!({"type": "string", "pattern": "^a+$", "enum": ["b"]}),
        json!({"type": "array", "items": false, "minItems": 1}),
    ] {
        let result = compiler().compile(&schema(contradiction.clone()));
        assert!(
            matches!(result, Err(StructureError::Invalid { .. })),
            "{contradiction}: {result:?}"
        );
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (unsupported, place) in [
        (json!({"type": "array", "uniqueItems": true}), "at /uniqueItems: "),
        (json!({"not": {"type": "string"}}), "at /not: "),
        (json!({"properties": {"a/b": {"if": true}}}), "at /properties/a~1b/if: "),
        (json!({"type": "string", "format": "iri"}), "at /format: "),
        (json!({"type": "text"}), "at /type: "),
        (json!({"x-guidance": {"lenient": true}}), "at /x-guidance: "),
        (json!({"anyOf": [{"type": "string", "pattern": "("}]}), "at /anyOf/0/pattern: "),
        (json!({"const": 1e300}), "at /const: "),
        (json!({"required": "a"}), "at /required: "),
        (json!({"maxLength": -1}), "at /maxLength: "),
        (json!({"oneOf": [{"type": "string"}, {"minLength": 2}]}), "options of a oneOf"),
        (json!({"minProperties": 2}), "minProperties"),
        (json!([]), "a schema is an object"),
    ] {
        let reason = refusal(&schema(unsupported.clone()));
        assert!(reason.starts_with(place), "{unsupported}: {reason}");
    }
}

#[test]
fn schemas_that_are_large_are_served_or_refused() {
    let mut deep = json!({"type": "null"});
    for _ in 0..30 {
        deep = json!({"oneOf": [{"type": "string"}, {"type": "array", "items": deep}]});
    }
    assert_eq!(settle("oneOf 30", &schema(deep.clone())), Ok(()));
    let mut overlap = json!({"type": "null"});
    for i in 0..40 {
        overlap = json!({"oneOf": [overlap, {"minLength": i}]});
    }
    assert!(settle("overlap", &schema(overlap)).is_err());
    let mut deeper = deep;
    for _ in 0..30 {
        deeper = json!({"items": {"items": deeper}});
    }
    assert_eq!(
        settle("deeper", &schema(deeper)).unwrap_err(),
        "the schema's depth is 101, the limit is 100"
    );
    let values = |n: usize| -> Vec<String> { (0..n).map(|i| format!("value {i}")).collect() };
    assert_eq!(settle("enum", &schema(json!({"type": "string", "enum": values(10_000)}))), Ok(()));
    assert!(settle("enum+", &schema(json!({"enum": values(10_001)}))).is_err());
    assert_eq!(settle("choice", &Structure::Choice(values(10_000))), Ok(()));
    assert!(settle("choice+", &Structure::Choice(values(10_001))).is_err());
    let all: Vec<Value> = (0..6).map(|_| json!({"anyOf": values(60).iter().map(|v| json!({"properties": {v: {"type": "string"}}})).collect::<Vec<_>>()})).collect();
    assert!(settle("product", &schema(json!({"allOf": all}))).is_err());
    let properties: serde_json::Map<String, Value> =
        (0..1000).map(|i| (format!("p{i}"), json!({"type": ["integer", "null"]}))).collect();
    assert_eq!(
        settle(
            "properties",
            &schema(
                json!({"type": "object", "properties": properties, "additionalProperties": false})
            )
        ),
        Ok(())
    );
    assert_eq!(
        settle(
            "counts",
            &schema(
                json!({"type": "array", "minItems": 5000, "maxItems": 10_000, "items": {"type": "string", "maxLength": 10_000}})
            )
        ),
        Ok(())
    );
}

#[test]
fn grammars_that_are_large_ask_for_control_tokens_or_run_away_are_refused() {
    let lark = |text: &str| settle("lark", &Structure::Lark(text.to_owned()));
    for (text, reason) in [
        ("start: <|im_start|> \"a\"", "control tokens"),
        ("start: <[1-5]>", "control tokens"),
        ("start: @other", "no other grammars"),
        ("root ::= \"a\"", "Lark is expected"),
        ("%llguidance {\"allow_invalid_utf8\": true}\nstart: \"a\"", "'%llguidance'"),
        ("start: x\nx[stop=\"b\"]: /a+/", "attributes"),
        ("start: %json {\"not\": {}}", "at /not"),
        ("start: %json {", "%json"),
        ("start: \"a", "never ends"),
        ("start: /a{20000}/", "repetition"),
        ("start: \"a\"~20000", "repetition"),
        ("a: \"x\"", "start"),
        ("start: \"a\" b", "b"),
        ("", "start"),
    ] {
        let found = lark(text).unwrap_err();
        assert!(found.contains(reason) && !found.contains('\n'), "{text}: {found}");
    }
    let chain = |name: &str, length: usize| {
        let rules = (0..length).map(|i| format!("{name}{i}: \"a\" {name}{}\n", i + 1));
        let rules: String = rules.collect();
        settle("chain", &Structure::Lark(format!("start: {name}0\n{rules}{name}{length}: \"b\"")))
    };
    assert_eq!((chain("r", 900), chain("R", 900)), (Ok(()), Ok(())));
    assert!(chain("r", 999).unwrap_err().starts_with("the number of rules and terminals is 1001"));
    assert_eq!(lark("start: start start start | \"a\" | \"a\" start | \"aa\""), Ok(()));
    assert_eq!(lark("start: \"a\" start"), Ok(()));
    let groups = format!("start: {}\"a\"{}", "(".repeat(1000), ")".repeat(1000));
    assert!(lark(&groups).unwrap_err().contains("depth"));
}
