//! Lines of a terminal or of a pipe, and the entries they make.

use std::io::{self, BufRead, IsTerminal, Read};

use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config, Editor};
use tokio::sync::mpsc;

use crate::cli::Failure;

/// Begins and ends a text of several lines.
const QUOTES: &str = "\"\"\"";
/// Longest line, and longest text of several.
const MAX_BYTES: usize = 16 << 20;

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Line(String),
    /// Ctrl-C while nothing is answered.
    Interrupt,
    End,
}

/// Where lines come from.
pub(super) enum Lines {
    /// With editing and history.
    Terminal(Box<Editor<(), MemHistory>>),
    /// From a thread, so that a signal is heard meanwhile.
    Pipe(mpsc::Receiver<io::Result<String>>),
}

impl Lines {
    /// Reads stdin: as a person types, or as a program writes.
    pub(super) fn open() -> Result<Self, Failure> {
        let failed = |e: &dyn std::fmt::Display| Failure::failed(format!("cannot read stdin: {e}"));
        if io::stdin().is_terminal() && io::stdout().is_terminal() {
            let editor = Editor::with_history(Config::default(), MemHistory::new());
            return editor.map(|e| Self::Terminal(Box::new(e))).map_err(|e| failed(&e));
        }
        let (send, lines) = mpsc::channel(1);
        let read = move || {
            let mut stdin = io::stdin().lock();
            while let Some(line) = next_line(&mut stdin).transpose() {
                if send.blocking_send(line).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().spawn(read).map_err(|e| failed(&e))?;
        Ok(Self::Pipe(lines))
    }

    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next line.
    ///
    /// # Errors
    /// When stdin fails, or holds something that is not text.
    pub(super) async fn next(&mut self, prompt: &str) -> Result<Incoming, Failure> {
        let failed = |e: &dyn std::fmt::Display| Failure::failed(format!("cannot read stdin: {e}"));
        match self {
            Self::Terminal(editor) => match editor.readline(prompt) {
                Ok(line) => {
                    // A history that is full forgets; nothing else can happen in memory.
                    let _ = editor.add_history_entry(line.as_str());
                    Ok(Incoming::Line(line))
                }
                Err(ReadlineError::Interrupted) => Ok(Incoming::Interrupt),
                Err(ReadlineError::Eof) => Ok(Incoming::End),
                Err(e) => Err(failed(&e)),
            },
            Self::Pipe(lines) => tokio::select! {
                line = lines.recv() => match line {
                    Some(Ok(line)) => Ok(Incoming::Line(line)),
                    Some(Err(e)) => Err(failed(&e)),
                    None => Ok(Incoming::End),
                },
                _ = tokio::signal::ctrl_c() => Ok(Incoming::Interrupt),
            },
        }
    }
}

/// A line without its end; `None` after the last.
fn next_line(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    from.take(MAX_BYTES as u64 + 1).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() > MAX_BYTES {
        return Err(io::Error::other(format!("a line of more than {MAX_BYTES} bytes")));
    }
    let text = String::from_utf8(line).map_err(|_| io::Error::other("a line is not UTF-8"))?;
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// One thing the user enters.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A line as it is: a command if it begins with `/`.
    Line(String),
    /// A text between quotes, never a command.
    Text(String),
}

/// Lines to entries.
#[derive(Debug, Default)]
pub(super) struct Entries {
    open: Option<String>,
}

impl Entries {
    /// Whether a text of several lines has begun.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Forgets what has begun.
    pub(super) fn clear(&mut self) {
        self.open = None;
    }

    /// Takes a line; `None` if more have to come.
    ///
    /// # Errors
    /// When the text becomes too long; it is forgotten then.
    pub(super) fn push(&mut self, line: &str) -> Result<Option<Entry>, String> {
        let (before, rest) = match self.open.take() {
            Some(text) => (text, line),
            None => match line.trim_start().strip_prefix(QUOTES) {
                Some(rest) => (String::new(), rest),
                None => return Ok(Some(Entry::Line(line.to_owned()))),
            },
        };
        if before.len() + rest.len() > MAX_BYTES {
            return Err(format!("the text is longer than {MAX_BYTES} bytes"));
        }
        match rest.trim_end().strip_suffix(QUOTES) {
            Some(last) => Ok(Some(Entry::Text(before + last))),
            None => {
                self.open = Some(before + rest + "\n");
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_lines_together() {
        let mut entries = Entries::default();
        let line = |text: &str| Ok(Some(Entry::Line(text.to_owned())));
        let text = |text: &str| Ok(Some(Entry::Text(text.to_owned())));
        assert_eq!(entries.push("hello \"\"\""), line("hello \"\"\""));
        assert_eq!(entries.push("\"\"\"/one line\"\"\""), text("/one line"));
        assert_eq!(entries.push("  \"\"\"first"), Ok(None));
        assert!(entries.is_open());
        assert_eq!(entries.push("/second"), Ok(None));
        assert_eq!(entries.push("third\"\"\" "), text("first\n/second\nthird"));
        assert!(!entries.is_open());
        assert_eq!(entries.push("\"\"\""), Ok(None));
        assert_eq!(entries.push(""), Ok(None));
        assert_eq!(entries.push("\"\"\""), text("\n\n"));
        assert_eq!(entries.push("\"\"\"a"), Ok(None));
        assert!(entries.push(&"b".repeat(MAX_BYTES)).is_err());
        assert!(!entries.is_open());
    }

    #[test]
    fn lines_are_text_and_bounded() {
        let mut from = io::Cursor::new(b"a\r\n\nb".to_vec());
        assert_eq!(next_line(&mut from).unwrap().as_deref(), Some("a"));
        assert_eq!(next_line(&mut from).unwrap().as_deref(), Some(""));
        assert_eq!(next_line(&mut from).unwrap().as_deref(), Some("b"));
        assert_eq!(next_line(&mut from).unwrap(), None);
        assert!(next_line(&mut io::Cursor::new(b"\xff\n")).is_err());
        assert!(next_line(&mut io::Cursor::new(vec![b'a'; MAX_BYTES + 1])).is_err());
    }
}
