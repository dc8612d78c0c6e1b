//! What a line that begins with `/` asks for.

use serde_json::Value;

use crate::cli::answer::Settings;

/// `/help`
pub(super) const HELP: &str = "\
/set system TEXT      what the model is told first; without TEXT nothing
/set NAME VALUE       temperature, top_p, top_k, max_tokens, seed, or diffusion with a JSON
                      object; the VALUE default takes it back
/show                 model and settings
/clear                forget the conversation
/help, /?             this
/bye, Ctrl-D          leave
\"\"\"                   begins and ends a text of several lines
Ctrl-C                stops the answer
";

/// A command.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Command {
    Bye,
    Clear,
    Help,
    Show,
    System(String),
    Set(String, String),
}

impl Command {
    /// Reads a line that begins with `/`.
    ///
    /// # Errors
    /// When it is no command.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let (name, rest) = word(line);
        let alone = |command: Self| match rest {
            "" => Ok(command),
            _ => Err(format!("{name} takes nothing, found '{}'", short(rest))),
        };
        match name {
            "/bye" | "/exit" | "/quit" => alone(Self::Bye),
            "/clear" => alone(Self::Clear),
            "/help" | "/?" => alone(Self::Help),
            "/show" => alone(Self::Show),
            "/set" => match word(rest) {
                ("system", text) => Ok(Self::System(text.to_owned())),
                ("", _) | (_, "") => Err("/set takes a name and a value; see /help".to_owned()),
                (setting, value) => Ok(Self::Set(setting.to_owned(), value.to_owned())),
            },
            _ => Err(format!("unknown command '{}'; see /help", short(name))),
        }
    }
}

/// Changes a setting by name.
///
/// # Errors
/// When there is no such setting, or the value is not of its kind.
pub(super) fn set(settings: &mut Settings, name: &str, value: &str) -> Result<(), String> {
    let is_default = value == "default";
    let wrong = |expected: &str| format!("{name} is '{}', expected {expected}", short(value));
    let number = || match value.parse::<f64>() {
        _ if is_default => Ok(None),
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(wrong("a number or default")),
    };
    let whole = || match value.parse::<u64>() {
        _ if is_default => Ok(None),
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(wrong("a whole number or default")),
    };
    let size = || {
        let size = |n| usize::try_from(n).map_err(|_| wrong("a smaller number"));
        whole()?.map(size).transpose()
    };
    match name {
        "temperature" => settings.temperature = number()?,
        "top_p" => settings.top_p = number()?,
        "top_k" => settings.top_k = size()?,
        "max_tokens" => settings.max_tokens = size()?,
        "seed" => settings.seed = whole()?,
        "diffusion" if is_default => settings.diffusion.clear(),
        "diffusion" => match serde_json::from_str(value) {
            Ok(Value::Object(fields)) => settings.diffusion = fields,
            Ok(_) => return Err(wrong("a JSON object or default")),
            Err(e) => return Err(format!("diffusion: {e}")),
        },
        _ => return Err(format!("there is no setting '{}'; see /help", short(name))),
    }
    Ok(())
}

/// The first word, and the rest.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim();
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (word, rest.trim_start())
}

fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_or_refused_by_name() {
        assert_eq!(Command::parse("/bye "), Ok(Command::Bye));
        assert_eq!(Command::parse("/?"), Ok(Command::Help));
        assert_eq!(Command::parse("/set system"), Ok(Command::System(String::new())));
        let system = Command::System("Be  brief. ".trim().to_owned());
        assert_eq!(Command::parse("/set  system  Be  brief. "), Ok(system));
        let set = Command::Set("diffusion".to_owned(), r#"{"steps": 4}"#.to_owned());
        assert_eq!(Command::parse(r#"/set diffusion {"steps": 4}"#), Ok(set));
        for (line, wanted) in [
            ("/byebye", "unknown command '/byebye'"),
            ("/", "unknown command '/'"),
            ("/clear all", "/clear takes nothing, found 'all'"),
            ("/set", "a name and a value"),
            ("/set temperature", "a name and a value"),
        ] {
            assert!(Command::parse(line).unwrap_err().contains(wanted), "{line}");
        }
    }

    #[test]
    fn settings_are_set_taken_back_and_refused() {
        let mut settings = Settings::default();
        for (name, value) in [
            ("temperature", "0.5"),
            ("top_p", "0.9"),
            ("top_k", "40"),
            ("max_tokens", "7"),
            ("seed", "18446744073709551615"),
            ("diffusion", r#"{"steps": 4}"#),
        ] {
            set(&mut settings, name, value).unwrap();
        }
        assert_eq!((settings.temperature, settings.top_p), (Some(0.5), Some(0.9)));
        assert_eq!((settings.top_k, settings.max_tokens), (Some(40), Some(7)));
        assert_eq!((settings.seed, settings.diffusion.len()), (Some(u64::MAX), 1));
        set(&mut settings, "temperature", "default").unwrap();
        set(&mut settings, "diffusion", "default").unwrap();
        assert_eq!((settings.temperature, settings.diffusion.len()), (None, 0));
        for (name, value, wanted) in [
            ("temperature", "warm", "temperature is 'warm', expected a number"),
            ("seed", "-1", "seed is '-1', expected a whole number"),
            ("max_tokens", "1.5", "max_tokens is '1.5'"),
            ("diffusion", "[]", "expected a JSON object"),
            ("diffusion", "{", "diffusion: EOF"),
            ("colour", "red", "no setting 'colour'"),
        ] {
            assert!(set(&mut settings, name, value).unwrap_err().contains(wanted), "{name}");
        }
    }
}
