//! Requests with tools, what models are told, and calls in answers.

use dfastllm_models::{
    SpecialTokens, Structure, StructureCompiler, StructureError, Tokenizer, builtin_files,
};
use serde_json::{Value, json};

use super::calls::Delta;
use super::*;

fn weather() -> Value {
    json!({"type": "function", "function": {"name": "get_weather", "description": "Weather",
        "strict": true, "parameters": {"type": "object", "properties": {"city": {"type": "string"},
        "near": {"$ref": "#/$defs/place"}}, "required": ["city"], "$defs": {"place": {"const":
        {"$ref": "#"}}}}}})
}

fn clock() -> Value {
    json!({"type": "function", "function": {"name": "clock"}})
}

fn tools(choice: Value, parallel: Value) -> Tools {
    let given = json!([weather(), clock()]);
    tools_of(Some(&given), Some(&choice), Some(&parallel)).unwrap().unwrap()
}

fn refused(tools: Value, choice: Value) -> String {
    match tools_of(Some(&tools), Some(&choice), None) {
        Err(ApiError::Invalid { param: Some(param), .. }) => param,
        other => panic!("{other:?}"),
    }
}

#[test]
fn tools_and_choices_are_read() {
    assert_eq!(tools_of(None, None, None), Ok(None));
    assert_eq!(tools_of(Some(&json!([])), Some(&json!("auto")), None), Ok(None));
    let given = json!([clock()]);
    assert_eq!(tools_of(Some(&given), Some(&json!("none")), None), Ok(None));
    let auto = tools_of(Some(&given), None, None).unwrap().unwrap();
    assert_eq!((auto.choice, auto.parallel), (ToolChoice::Auto, true));
    assert_eq!(tools(json!("required"), json!(false)).choice, ToolChoice::Required);
    let named = json!({"type": "function", "function": {"name": "clock"}});
    assert_eq!(tools(named, json!(null)).choice, ToolChoice::Named("clock".to_owned()));
}

#[test]
fn what_is_wrong_with_tools_is_named() {
    let function = |function: Value| json!([{"type": "function", "function": function}]);
    for (given, param) in [
        (json!({}), "tools"),
        (json!([1]), "tools[0]"),
        (json!([clock(), {"type": "web_search"}]), "tools[1].type"),
        (json!([{"type": "function", "function": {"name": "a"}, "x": 1}]), "tools[0].x"),
        (json!([{"type": "function"}]), "tools[0].function"),
        (json!([clock(), clock()]), "tools[1].function.name"),
        (function(json!({"name": "a b"})), "tools[0].function.name"),
        (function(json!({"name": "a".repeat(65)})), "tools[0].function.name"),
        (function(json!({"name": "a", "strict": 1})), "tools[0].function.strict"),
        (function(json!({"name": "a", "description": 1})), "tools[0].function.description"),
        (function(json!({"name": "a", "parameters": []})), "tools[0].function.parameters"),
        (
            function(json!({"name": "a", "parameters": {"type": "array"}})),
            "tools[0].function.parameters",
        ),
        (function(json!({"name": "a", "code": 1})), "tools[0].function.code"),
        (Value::Array(vec![clock(); 129]), "tools"),
    ] {
        assert_eq!(refused(given.clone(), json!("auto")), param, "{given}");
    }
    for (choice, param) in [
        (json!("any"), "tool_choice"),
        (json!({"type": "allowed_tools"}), "tool_choice"),
        (json!({"type": "function"}), "tool_choice.function"),
        (json!({"type": "function", "function": {}}), "tool_choice.function.name"),
        (json!({"type": "function", "function": {"name": "b"}}), "tool_choice.function.name"),
        (json!({"type": "function", "name": "a"}), "tool_choice.name"),
    ] {
        assert_eq!(refused(json!([clock()]), choice.clone()), param, "{choice}");
    }
    assert_eq!(refused(json!([]), json!("required")), "tool_choice");
    let parallel = tools_of(Some(&json!([clock()])), None, Some(&json!(1)));
    assert!(parallel.unwrap_err().message().starts_with("parallel_tool_calls is 1"));
}

fn chat() -> Value {
    json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "call_1", "type": "function",
            "function": {"name": "get_weather", "arguments": "{\"city\": \"Paris\"}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "call_2", "content": "late"}
    ])
}

#[test]
fn a_template_that_knows_tools_gets_them_with_arguments_as_objects() {
    let (messages, given) = render(&chat(), Some(&tools(json!("auto"), json!(true))), true);
    assert_eq!(given, Some(json!([weather(), clock()])));
    let call = &messages[1]["tool_calls"][0]["function"];
    assert_eq!(call, &json!({"name": "get_weather", "arguments": {"city": "Paris"}}));
    assert_eq!(messages[2], chat()[2]);
}

#[test]
fn a_template_without_tools_gets_text() {
    let (messages, given) = render(&chat(), Some(&tools(json!("auto"), json!(true))), false);
    assert_eq!(given, None);
    let about = messages[0]["content"].as_str().unwrap();
    assert_eq!(messages[0]["role"], "system");
    assert!(about.contains(&format!("<tools>\n{}\n{}\n</tools>", weather(), clock())), "{about}");
    let rest = json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "<tool_call>\n{\"name\":\"get_weather\",\"arguments\":\
            {\"city\":\"Paris\"}}\n</tool_call>"},
        {"role": "user", "content": "<tool_response>\nsunny\n</tool_response>\n<tool_response>\n\
            late\n</tool_response>"}
    ]);
    assert_eq!(messages.as_array().unwrap()[1..], rest.as_array().unwrap()[..]);
    let own = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": ""}]);
    let (messages, _) = render(&own, Some(&tools(json!("auto"), json!(true))), false);
    assert!(messages[0]["content"].as_str().unwrap().starts_with("Be brief.\n\n# Tools"));
    assert_eq!(messages.as_array().unwrap().len(), 2);
    assert_eq!(render(&own, None, false), (own.clone(), None));
}

#[test]
fn forced_calls_have_the_form_of_a_call_of_one_tool() {
    assert_eq!(tools(json!("auto"), json!(true)).structure(), None);
    let Some(Structure::Lark(grammar)) = tools(json!("required"), json!(true)).structure() else {
        panic!("a grammar");
    };
    let schema = grammar.split("%json ").nth(1).unwrap();
    let schema: Value = serde_json::from_str(schema).unwrap();
    assert!(grammar.starts_with("start: call (\"\\n\" call)*\n"), "{grammar}");
    let first = &schema["anyOf"][0]["properties"];
    assert_eq!(first["name"], json!({"const": "get_weather"}));
    let place = "#/anyOf/0/properties/arguments/$defs/place";
    assert_eq!(first["arguments"]["properties"]["near"]["$ref"], place);
    assert_eq!(schema.pointer(&place[1..]), Some(&json!({"const": {"$ref": "#"}})));
    assert_eq!(schema["anyOf"][1]["properties"]["arguments"], json!({"type": "object"}));
    let named = json!({"type": "function", "function": {"name": "clock"}});
    for (choice, parallel) in [(json!("required"), json!(false)), (named, json!(true))] {
        let Some(Structure::Lark(one)) = tools(choice, parallel).structure() else {
            panic!("none")
        };
        assert!(
            one.starts_with("start: call\ncall: \"<tool_call>\\n\" body \"\\n</tool_call>\"\n")
        );
    }
}

#[test]
fn a_schema_that_does_not_compile_is_refused_at_its_tool() {
    let error = |path: &str| StructureError::Invalid { path: path.to_owned(), reason: "no".into() };
    let several = tools(json!("required"), json!(true));
    let refused = several.refusal(&error("/anyOf/1/properties/arguments/not"));
    assert_eq!(refused.message(), "tools[1].function.parameters/not: no");
    let named = json!({"type": "function", "function": {"name": "clock"}});
    let refused = tools(named, json!(true)).refusal(&error("/properties/arguments/not"));
    assert_eq!(refused.message(), "tools[1].function.parameters/not: no");
    assert!(several.refusal(&error("")).message().starts_with("tools: "));
}

#[test]
fn forced_calls_can_be_followed() {
    let tokenizer = Tokenizer::load(&builtin_files("tiny-llada").unwrap()).unwrap();
    let compiler = StructureCompiler::new(&tokenizer, 1024, &[0]).unwrap();
    let follow = |tools: &Tools, text: &str| {
        let mut guide = compiler.compile(&tools.structure().unwrap()).unwrap();
        let ids = tokenizer.encode(text, SpecialTokens::Skip).unwrap();
        ids.iter().all(|id| guide.advance(*id).is_ok()) && guide.may_end()
    };
    let clock = "<tool_call>\n{\"name\": \"clock\", \"arguments\": {\"any\": [1]}}\n</tool_call>";
    let weather = "<tool_call>\n{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Zürich\",\"near\":\
                   {\"$ref\":\"#\"}}}\n</tool_call>";
    let any = tools(json!("required"), json!(true));
    assert!(follow(&any, clock) && follow(&any, weather));
    assert!(follow(&any, &format!("{clock}\n{weather}")));
    assert!(!follow(&any, &weather.replace("\"city\":\"Zürich\",", "")));
    assert!(!follow(&any, "It is late."));
    let named = json!({"type": "function", "function": {"name": "clock"}});
    let named = tools(named, json!(true));
    assert!(follow(&named, clock) && !follow(&named, weather));
    assert!(!follow(&named, &format!("{clock}\n{clock}")));
    let given = json!([clock_with(json!({"type": "object", "not": {}}))]);
    let refused = tools_of(Some(&given), Some(&json!("required")), None).unwrap().unwrap();
    let error = compiler.compile(&refused.structure().unwrap()).unwrap_err();
    assert_eq!(
        refused.refusal(&error).message(),
        "tools[0].function.parameters/not: this keyword is not supported"
    );
}

fn clock_with(parameters: Value) -> Value {
    json!({"type": "function", "function": {"name": "clock", "parameters": parameters}})
}

/// Pushes a text in pieces of so many characters.
fn read(parser: &mut CallParser, text: &str, size: usize) -> Vec<Delta> {
    let letters: Vec<char> = text.chars().collect();
    let pieces = letters.chunks(size).map(|piece| piece.iter().collect::<String>());
    let mut deltas: Vec<Delta> = pieces.flat_map(|piece| parser.push(&piece)).collect();
    deltas.extend(parser.finish());
    deltas
}

/// Content, and name and arguments of every call, whatever the pieces.
fn split(tools: &Tools, text: &str) -> (Option<String>, Vec<(String, String)>, bool) {
    let mut seen = Vec::new();
    for size in [1, 2, 3, 7, 1000] {
        let mut parser = tools.parser();
        let deltas = read(&mut parser, text, size);
        let (content, calls) = message(&deltas);
        let text = |call: &Value, key: &str| call["function"][key].as_str().unwrap().to_owned();
        let calls: Vec<_> =
            calls.iter().map(|call| (text(call, "name"), text(call, "arguments"))).collect();
        let reason = parser.finish_reason("stop") == "tool_calls";
        assert_eq!(parser.finish_reason("length"), "length");
        seen.push((content, calls, reason));
    }
    assert!(seen.windows(2).all(|two| two[0] == two[1]), "{seen:?}");
    seen.swap_remove(0)
}

#[test]
fn calls_are_found_between_texts() {
    let auto = tools(json!("auto"), json!(true));
    let text = "Let me see.\n\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \
                \"Zürich </tool_call> {\"}}\n</tool_call>\n<tool_call>{\"name\": \"clock\"}\
                </tool_call>\n";
    let (content, calls, called) = split(&auto, text);
    assert_eq!(content.as_deref(), Some("Let me see."));
    let weather = "{\"city\":\"Zürich </tool_call> {\"}".to_owned();
    let expected =
        [("get_weather".to_owned(), weather), ("clock".to_owned(), "{}".to_owned())].to_vec();
    assert_eq!((calls, called), (expected, true));
    // The closing mark may be missing, or be cut.
    for end in ["", "\n", "</tool", "\n</tool_call"] {
        let text = format!("<tool_call>{{\"name\": \"clock\", \"arguments\": \"{{}}\"}}{end}");
        let (content, calls, _) = split(&auto, &text);
        assert_eq!((content, calls), (None, vec![("clock".to_owned(), "{}".to_owned())]), "{end}");
    }
}

#[test]
fn a_call_that_lacks_a_brace_takes_no_other_with_it() {
    let auto = tools(json!("auto"), json!(true));
    let broken = "<tool_call>{\"name\": \"clock\", \"arguments\": {}</tool_call>";
    let whole = "<tool_call>{\"name\": \"clock\", \"arguments\": {}}</tool_call>";
    let (content, calls, called) = split(&auto, &format!("{broken}{whole}"));
    assert_eq!((content.as_deref(), calls.len(), called), (Some(broken), 1, true));
}

#[test]
fn a_forced_call_that_is_cut_is_neither_content_nor_an_end() {
    let forced = tools(json!("required"), json!(true));
    let (content, calls, called) = split(&forced, "<tool_c");
    assert_eq!((content, calls.len(), called), (Some(String::new()), 0, false));
    let cut = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"";
    let (content, calls, called) = split(&forced, cut);
    assert_eq!((content, calls.len(), called), (None, 1, false));
}

#[test]
fn what_is_no_call_stays_content() {
    let auto = tools(json!("auto"), json!(true));
    for text in [
        "",
        "a < b and <tool_cal no\n ",
        "<tool_call>\nnonsense\n</tool_call> and so on",
        "<tool_call>{\"name\": \"other\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"clock\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": \"clock\", \"arguments\": \"[1]\"}</tool_call>",
        "<tool_call>{\"name\": \"clock\", \"argum",
        "<tool_call>[</tool_call>",
        "<tool_call>",
    ] {
        let (content, calls, called) = split(&auto, text);
        assert_eq!((content.as_deref(), calls.len(), called), (Some(text), 0, false));
    }
}

#[test]
fn a_partial_mark_is_held_back_and_text_is_not() {
    let mut parser = tools(json!("auto"), json!(true)).parser();
    let text = |text: &str| vec![Delta::Content(text.to_owned())];
    assert_eq!(parser.push("so <tool"), text("so"));
    assert_eq!(parser.push("_cal"), []);
    assert_eq!(parser.push("x then"), text(" <tool_calx then"));
    assert_eq!(parser.push("\n<tool_call>{\"name\":"), []);
    let told = parser.push(" \"clock\"}</tool_call>");
    assert!(matches!(&told[0], Delta::Call { index: 0, id, name }
        if name == "clock" && id.starts_with("call_") && id.len() == 37));
    assert_eq!(told[0].to_json()["tool_calls"][0]["function"]["arguments"], "");
    assert_eq!(
        told[1].to_json(),
        json!({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]})
    );
}

#[test]
fn at_most_one_call_without_parallel_calls() {
    let one = tools(json!("auto"), json!(false));
    let call = "<tool_call>{\"name\": \"clock\"}</tool_call>";
    let (content, calls, called) = split(&one, &format!("{call}\n{call} more"));
    assert_eq!((content, calls.len(), called), (None, 1, true));
    let mut parser = one.parser();
    parser.push(call);
    assert!(parser.is_done());
}

#[test]
fn forced_calls_are_told_as_they_come() {
    let forced = tools(json!("required"), json!(true));
    let mut parser = forced.parser();
    assert_eq!(parser.push("<tool_call>\n{\"name\": \"get_weather\", \"argum"), []);
    let told = parser.push("ents\": {\"ci");
    assert!(matches!(&told[0], Delta::Call { name, .. } if name == "get_weather"));
    let arguments = |text: &str| Delta::Arguments { index: 0, text: text.to_owned() };
    assert_eq!(told[1], arguments("{\"ci"));
    assert_eq!(
        parser.push("ty\": \"}\\\"</tool_call>\""),
        [arguments("ty\": \"}\\\"</tool_call>\"")]
    );
    assert_eq!(parser.push("}}\n</tool"), [arguments("}")]);
    assert_eq!(parser.push("_call>"), []);
    assert_eq!(parser.finish(), []);
    let two = "<tool_call>\n{\"name\":\"clock\",\"arguments\":{}}\n</tool_call>\n".repeat(2);
    let (content, calls, called) = split(&forced, two.trim_end());
    assert_eq!((content, calls.len(), called), (None, 2, true));
    // Cut short: what was told stays, and no mark is content.
    let mut parser = forced.parser();
    let deltas = read(&mut parser, "<tool_call>\n{\"name\":\"clock\",\"arguments\":{\"a", 5);
    let (content, calls) = message(&deltas);
    assert_eq!((content, calls[0]["function"]["arguments"].as_str()), (None, Some("{\"a")));
    assert_eq!(parser.finish_reason("length"), "length");
    let deltas = read(&mut forced.parser(), "<tool_call>\n{\"na", 5);
    assert_eq!(message(&deltas), (Some(String::new()), Vec::new()));
}
