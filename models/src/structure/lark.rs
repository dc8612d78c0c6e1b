//! Grammars in Lark's notation, before the library sees them: which of its statements can be
//! followed here, and the schemas within them.

use serde_json::{Deserializer, Value};

use super::limits::{ALTERNATIVES, GROUPS, REPETITIONS, RULES, TEXT_BYTES, at_most};
use super::{StructureError, regex, schema};

/// A grammar of one of these texts.
pub(super) fn of_choices(texts: &[String]) -> Result<String, StructureError> {
    at_most("the number of choices", texts.len(), ALTERNATIVES)?;
    at_most("the choices' length in bytes", texts.iter().map(String::len).sum(), TEXT_BYTES)?;
    if texts.is_empty() || texts.iter().any(String::is_empty) {
        return Err(StructureError::invalid("choices have to be texts, at least one"));
    }
    let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    // One terminal: a rule would try each text as a word of its own.
    Ok(format!("start: CHOICE\nCHOICE: {}\n", texts.join(" | ")))
}

/// A text as a string of the notation, which takes no raw control characters.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// Checks a grammar and prepares the schemas in it.
pub(super) fn prepare(text: &str) -> Result<String, StructureError> {
    at_most("the grammar's length in bytes", text.len(), TEXT_BYTES)?;
    let mut reader =
        Reader { text, at: 0, out: String::new(), named: false, groups: 0, rules: 0, bars: 0 };
    while reader.at < text.len() {
        reader.item()?;
    }
    Ok(reader.out)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    out: String,
    /// Whether the colon of this line's definition is behind.
    named: bool,
    groups: usize,
    rules: usize,
    bars: usize,
}

impl<'a> Reader<'a> {
    fn item(&mut self) -> Result<(), StructureError> {
        let rest = &self.text[self.at..];
        let first = rest.chars().next().unwrap_or_default();
        match first {
            '#' => self.copy(line(rest)),
            '/' if rest.starts_with("//") => self.copy(line(rest)),
            '/' => {
                let length = closed(rest, '/').ok_or_else(|| self.refuse("this never ends"))?;
                regex::check(&rest[1..length - 1].replace("\\/", "/"))?;
                self.copy(length);
            }
            '"' => {
                let length = closed(rest, '"').ok_or_else(|| self.refuse("this never ends"))?;
                self.copy(length);
            }
            '%' => self.statement(rest)?,
            '<' => return Err(self.refuse("control tokens cannot be asked for")),
            '@' => return Err(self.refuse("there are no other grammars")),
            '0'..='9' => self.number(rest)?,
            c if is_name(c) => self.copy(rest.find(|c| !is_name(c)).unwrap_or(rest.len())),
            _ => self.mark(first)?,
        }
        Ok(())
    }

    /// What is one character.
    fn mark(&mut self, first: char) -> Result<(), StructureError> {
        match first {
            '\n' => self.named = false,
            '|' => {
                self.named = true;
                self.bars += 1;
                at_most("the number of alternatives", self.bars, ALTERNATIVES)?;
            }
            ':' => {
                if self.text[self.at..].starts_with("::=") {
                    return Err(self.refuse("this is GBNF or EBNF; Lark is expected"));
                }
                if self.text[self.at..].starts_with("::") {
                    return Err(self.refuse("parameters of rules are not supported"));
                }
                self.named = true;
                self.rules += 1;
                at_most("the number of rules and terminals", self.rules, RULES)?;
            }
            '[' if !self.named => {
                return Err(self.refuse("attributes of rules are not supported"));
            }
            '(' | '[' => {
                self.groups += 1;
                at_most("the grammar's depth", self.groups, GROUPS)?;
            }
            ')' | ']' => self.groups = self.groups.saturating_sub(1),
            _ => {}
        }
        self.copy(first.len_utf8());
        Ok(())
    }

    fn number(&mut self, rest: &str) -> Result<(), StructureError> {
        let length = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number = rest[..length].parse().unwrap_or(usize::MAX);
        at_most("a repetition of the grammar", number, REPETITIONS)?;
        self.copy(length);
        Ok(())
    }

    fn statement(&mut self, rest: &str) -> Result<(), StructureError> {
        let end = |c: char| !c.is_ascii_alphabetic() && c != '_';
        let name = &rest[1..];
        let name = &name[..name.find(end).unwrap_or(name.len())];
        match name {
            "json" => {
                self.copy(1 + name.len());
                let value = &self.text[self.at..];
                let mut values = Deserializer::from_str(value).into_iter::<Value>();
                let schema = match values.next() {
                    Some(Ok(schema)) => schema,
                    Some(Err(e)) => return Err(self.refuse(&format!("%json: {e}"))),
                    None => return Err(self.refuse("%json without a schema")),
                };
                self.at += values.byte_offset();
                let schema = schema::prepare(&schema)?;
                self.out.push_str(&format!(" {schema}"));
            }
            "ignore" | "import" => {
                self.named = true;
                self.copy(1 + name.len());
            }
            _ => return Err(self.refuse(&format!("'%{name}' is not supported"))),
        }
        Ok(())
    }

    fn copy(&mut self, length: usize) {
        self.out.push_str(&self.text[self.at..self.at + length]);
        self.at += length;
    }

    fn refuse(&self, reason: &str) -> StructureError {
        let line = self.text[..self.at].lines().count().max(1);
        StructureError::invalid(format!("grammar, line {line}: {reason}"))
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn line(rest: &str) -> usize {
    rest.find('\n').unwrap_or(rest.len())
}

/// Length of what a mark opens and the same mark closes, on one line, unless escaped.
fn closed(rest: &str, mark: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            '\n' => return None,
            '\\' if !escaped => escaped = true,
            c if c == mark && !escaped => return Some(at + c.len_utf8()),
            _ => escaped = false,
        }
    }
    None
}
