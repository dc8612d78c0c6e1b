//! Chat templates: Jinja as transformers renders it.

use std::sync::Arc;

use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value as JinjaValue, context};
use serde::Serialize;
use serde_json::Value;

use crate::{LoadError, ModelFiles};

/// Instructions a template may run: thousands of times what the longest real one needs.
const FUEL: u64 = 50_000_000;
const NAME: &str = "chat";

/// A template could not render the messages; the message is the template's own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("chat template: {0}")]
pub struct ChatError(String);

/// A compiled chat template. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    special_tokens: Arc<serde_json::Map<String, Value>>,
    source: Arc<str>,
}

impl ChatTemplate {
    /// The checkpoint's template (`chat_template.jinja` or `tokenizer_config.json`), or the
    /// family's own, or none.
    pub(crate) fn load(
        files: &ModelFiles,
        family: Option<&'static str>,
    ) -> Result<Option<Self>, LoadError> {
        let config: Value = files.json("tokenizer_config.json")?.unwrap_or_default();
        let own = match files.read("chat_template.jinja")? {
            Some(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            None => template_text(&config["chat_template"]),
        };
        let Some(text) = own.or_else(|| family.map(str::to_owned)) else { return Ok(None) };
        Self::new(&text, special_tokens(&config)).map(Some)
    }

    /// A template of the user's for a checkpoint, whose special tokens it may name.
    ///
    /// # Errors
    /// When it is not valid Jinja or `tokenizer_config.json` is damaged.
    pub fn for_checkpoint(files: &ModelFiles, text: &str) -> Result<Self, LoadError> {
        let config: Value = files.json("tokenizer_config.json")?.unwrap_or_default();
        Self::new(text, special_tokens(&config))
    }

    /// Compiles a template text; `special_tokens` are variables such as `bos_token`.
    ///
    /// # Errors
    /// When it is not valid Jinja.
    pub fn new(
        text: &str,
        special_tokens: serde_json::Map<String, Value>,
    ) -> Result<Self, LoadError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, without_generation_tags(text))
            .map_err(|e| LoadError::ChatTemplate(e.to_string()))?;
        let (environment, special_tokens) = (Arc::new(environment), Arc::new(special_tokens));
        Ok(Self { environment, special_tokens, source: text.into() })
    }

    /// The template as it was written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template says something about `tools`.
    #[must_use]
    pub fn takes_tools(&self) -> bool {
        let template = self.environment.get_template(NAME);
        template.is_ok_and(|t| t.undeclared_variables(false).contains("tools"))
    }

    /// Renders messages (and tools) to the text of a prompt.
    ///
    /// # Errors
    /// What the template raises or fails at.
    pub fn render(
        &self,
        messages: &Value,
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        let rendering = Rendering { add_generation_prompt, ..Rendering::default() };
        self.render_with(messages, tools, &rendering)
    }

    /// The same with more to say about it.
    ///
    /// # Errors
    /// What the template raises or fails at, or that the last message cannot be continued.
    pub fn render_with(
        &self,
        messages: &Value,
        tools: Option<&Value>,
        rendering: &Rendering,
    ) -> Result<String, ChatError> {
        let text = |e: minijinja::Error| ChatError(describe(&e));
        let mut variables = (*self.special_tokens).clone();
        variables.extend(rendering.variables.clone());
        let variables = JinjaValue::from_serialize(variables);
        let given = context! {
            messages => JinjaValue::from_serialize(messages),
            add_generation_prompt => rendering.add_generation_prompt,
            tools => tools.map(JinjaValue::from_serialize),
            ..variables
        };
        let prompt = self.environment.get_template(NAME).and_then(|t| t.render(given));
        let prompt = prompt.map_err(text)?;
        match rendering.continue_final_message {
            true => up_to_last_message(prompt, messages),
            false => Ok(prompt),
        }
    }
}

/// How messages become a prompt.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rendering {
    /// Whether the assistant's turn is opened at the end.
    pub add_generation_prompt: bool,
    /// Whether the prompt ends with the last message, open, so that the answer goes on with it.
    pub continue_final_message: bool,
    /// Variables of the template besides its own.
    pub variables: serde_json::Map<String, Value>,
}

/// Cuts what the template puts behind the last message (`continue_final_message` of transformers).
fn up_to_last_message(mut prompt: String, messages: &Value) -> Result<String, ChatError> {
    let last = messages.as_array().and_then(|m| m.last()).and_then(|m| m["content"].as_str());
    let last = last.unwrap_or_default();
    let bare = last.trim();
    let found = if bare.is_empty() { None } else { prompt.rfind(bare) };
    let Some(at) = found else {
        let message = "the last message is empty or not in the prompt; it cannot be continued";
        return Err(ChatError(message.to_owned()));
    };
    // Templates that trim contents leave no space to continue after.
    let from_start = last.trim_start();
    let kept = if prompt[at..].starts_with(from_start) { from_start } else { bare };
    prompt.truncate(at + kept.len());
    Ok(prompt)
}

/// `bos_token` and its like: a text, or an object with one.
fn special_tokens(config: &Value) -> serde_json::Map<String, Value> {
    let mut special = serde_json::Map::new();
    for name in ["bos_token", "eos_token", "pad_token", "unk_token", "mask_token"] {
        let token = config[name].as_str().or_else(|| config[name]["content"].as_str());
        if let Some(token) = token {
            special.insert(name.to_owned(), token.into());
        }
    }
    special
}

/// `chat_template` is a text, or a list of named texts of which `default` counts.
fn template_text(value: &Value) -> Option<String> {
    let named = |entry: &&Value| entry["name"] == "default";
    let text = match value {
        Value::Array(entries) => &entries.iter().find(named)?["template"],
        other => other,
    };
    text.as_str().map(str::to_owned)
}

/// `{% generation %}` marks the assistant's tokens for training and renders as nothing; minijinja
/// does not know it.
fn without_generation_tags(text: &str) -> String {
    let mut out = text.to_owned();
    for name in ["generation", "endgeneration"] {
        for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
            let comment = (open.replace('%', "#"), close.replace('%', "#"));
            out = out
                .replace(&format!("{open} {name} {close}"), &format!("{}{}", comment.0, comment.1));
        }
    }
    out
}

fn describe(error: &minijinja::Error) -> String {
    let place = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    format!("{}{place}", error.detail().map_or_else(|| error.kind().to_string(), str::to_owned))
}

fn raise_exception(message: String) -> Result<JinjaValue, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: String) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(&format, &jiff::Zoned::now())
        .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string()))
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=…)`, which transformers puts in place of
/// Jinja's HTML-safe filter.
fn to_json(value: &JinjaValue, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // The default anyway; other options of json.dumps are refused.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    let indentation = " ".repeat(indent.unwrap_or(0).min(16));
    let written = match indent {
        Some(_) => {
            let pretty = serde_json::ser::PrettyFormatter::with_indent(indentation.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)),
    };
    written.map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// `", "` and `": "`, Python's default separators.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
    ) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_says_whether_it_takes_tools() {
        let takes = |text: &str| {
            ChatTemplate::new(text, serde_json::Map::new()).expect("a template").takes_tools()
        };
        assert!(takes("{%- if tools %}{{ tools | tojson }}{% endif %}{{ messages }}"));
        assert!(!takes("{{ messages[0].tools }} no tools"));
    }
}
