//! Whatever is drawn among the allowed tokens ends as JSON that its schema accepts.

use serde_json::{Value, json};

use super::*;

/// Schemas whose instances are bounded, so that drawing ends.
fn bounded() -> Vec<Value> {
    let text = json!({"type": "string", "maxLength": 6});
    vec![
        json!({"type": "boolean"}),
        json!({"type": "null"}),
        json!({"type": "integer", "minimum": -17, "maximum": 1234}),
        json!({"type": "number", "exclusiveMinimum": 0.5, "maximum": 2, "multipleOf": 0.25}),
        json!({"type": "integer", "multipleOf": 7, "minimum": 20, "maximum": 90}),
        json!({"type": "string", "minLength": 2, "maxLength": 8}),
        json!({"type": "string", "pattern": "^[a-cé]{1,4}-\\d{2}$"}),
        json!({"type": "string", "format": "date"}),
        json!({"type": "string", "format": "uuid", "title": "An id"}),
        json!({"enum": ["a", 1, null, true, 2.5, {"k": ["v"]}, "quote \" and \\ and \n"]}),
        json!({"const": {"fixed": [1, "two", {"three": false}]}}),
        json!({"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 1, "maxItems": 4}),
        json!({"type": "array", "prefixItems": [{"type": "boolean"}, text], "items": false}),
        json!({"type": "object", "properties": {"b": text, "a": {"type": "boolean"}},
            "required": ["a"], "additionalProperties": false}),
        json!({"type": "object", "properties": {"x": {"type": "null"}, "y": {"type": "null"}},
            "minProperties": 1, "additionalProperties": false}),
        json!({"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, text]}),
        json!({"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], "$defs": {
            "cat": {"type": "object", "properties": {"kind": {"const": "cat"}, "lives": {"type":
                "integer", "minimum": 0, "maximum": 9}}, "required": ["kind", "lives"],
                "additionalProperties": false},
            "dog": {"type": "object", "properties": {"kind": {"const": "dog"}, "name": text},
                "required": ["kind"], "additionalProperties": false}},
            "discriminator": {"propertyName": "kind"}}),
        json!({"allOf": [{"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}},
            "required": ["n"]}, {"properties": {"n": {"maximum": 40}},
            "additionalProperties": false}]}),
        json!({"type": ["string", "null"], "maxLength": 3}),
        json!({"definitions": {"row": {"type": "array", "items": {"type": "boolean"},
            "maxItems": 3}}, "type": "object", "properties": {"rows": {"type": "array",
            "items": {"$ref": "#/definitions/row"}, "maxItems": 2}}, "required": ["rows"],
            "additionalProperties": false}),
        json!({"type": "object", "patternProperties": {"^k[0-9]$": {"type": "boolean"}},
            "additionalProperties": false, "maxProperties": 3}),
        json!({"type": "object", "properties": {"a": {"type": "boolean"}},
            "additionalProperties": {"type": "null"}, "required": ["a"], "maxProperties": 2}),
    ]
}

/// Where a schema would lie.
const PLACE: &str = "http://127.0.0.1/schema.json";

/// Small draws that are the same everywhere.
struct Draws(u64);

impl Draws {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % most
    }
}

/// An answer drawn evenly among the allowed tokens.
fn draw(mut guide: Guide, draws: &mut Draws) -> String {
    let mut ids = Vec::new();
    loop {
        let allowed: Vec<u32> = guide.allowed().expect("tokens").ids().collect();
        let id = allowed[draws.below(allowed.len())];
        guide.advance(id).expect("an allowed token");
        if ENDS.contains(&id) {
            return tokenizer().decode(&ids, SpecialTokens::Skip);
        }
        ids.push(id);
        assert!(ids.len() < 20_000, "{guide:?}");
    }
}

#[test]
fn drawn_answers_are_accepted_by_their_schemas() {
    let compiler = compiler();
    let mut draws = Draws(7);
    for schema in bounded() {
        let (mut schemas, mut checker) = (boon::Schemas::new(), boon::Compiler::new());
        checker.add_resource(PLACE, schema.clone()).expect("a schema");
        let index = checker.compile(PLACE, &mut schemas).expect("a schema");
        let guide = compiler.compile(&Structure::JsonSchema(schema.clone())).expect("a guide");
        for _ in 0..12 {
            let text = draw(guide.clone(), &mut draws);
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| {
                panic!("{schema}: {text}: {e}");
            });
            assert!(schemas.validate(&value, index).is_ok(), "{schema}: {text}");
        }
    }
}

#[test]
fn drawn_answers_of_the_other_kinds_match() {
    let compiler = compiler();
    let mut draws = Draws(11);
    let choices = ["red", "green", "red green"].map(str::to_owned).to_vec();
    let choice = compiler.compile(&Structure::Choice(choices.clone())).unwrap();
    let regex = compiler.compile(&Structure::Regex("(ab|c){1,3}[é🦀]?".to_owned())).unwrap();
    let lark = "start: \"(\" item (\",\" item)? \")\"\nitem: /[0-9]{1,2}/ | start";
    let lark = compiler.compile(&Structure::Lark(lark.to_owned())).unwrap();
    for _ in 0..30 {
        assert!(choices.contains(&draw(choice.clone(), &mut draws)));
        let text = draw(regex.clone(), &mut draws);
        let rest = text.trim_end_matches(['é', '🦀']).replace("ab", "c");
        assert!((1..=3).contains(&rest.len()) && rest.chars().all(|c| c == 'c'), "{text}");
        let text = draw(lark.clone(), &mut draws);
        let depth = |c| text.chars().filter(|found| *found == c).count();
        assert!(text.starts_with('(') && depth('(') == depth(')'), "{text}");
    }
}
