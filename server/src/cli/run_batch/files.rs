//! Files of requests and of answers, a line at a time.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

use crate::cli::Failure;

/// Longest line: a body of the server's limit, and what stands around it.
const MAX_LINE_BYTES: usize = 5 << 20;

/// A line of the input.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InputLine {
    /// From 1.
    pub(super) number: u64,
    /// Its bytes without the end, or how many there are if they are too many.
    pub(super) bytes: Result<Vec<u8>, TooLong>,
    /// Where the next line begins.
    pub(super) end: u64,
}

/// A line is too long to be kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl TooLong {
    pub(super) fn message(&self) -> String {
        format!("longer than {MAX_LINE_BYTES} bytes")
    }
}

/// The input, and its size if that is known.
pub(super) fn open(path: &str) -> Result<(Box<dyn BufRead + Send>, Option<u64>), Failure> {
    if path == "-" {
        return Ok((Box::new(BufReader::new(io::stdin())), None));
    }
    let failed = |e: io::Error| Failure::failed(format!("{path}: {e}"));
    let file = File::open(path).map_err(failed)?;
    let data = file.metadata().map_err(failed)?;
    if data.is_dir() {
        return Err(Failure::failed(format!("{path}: is a folder, expected a file of requests")));
    }
    Ok((Box::new(BufReader::new(file)), Some(data.len())))
}

/// Makes sure that the output can be written and is not the input; what it holds stays for now.
pub(super) fn check(path: &str, input: &str) -> Result<(), Failure> {
    if path == "-" {
        return Ok(());
    }
    let same =
        || Some(Path::new(path).canonicalize().ok()? == Path::new(input).canonicalize().ok()?);
    if same() == Some(true) {
        return Err(Failure::usage(format!("--output {path} is the input")));
    }
    let opened = File::options().create(true).write(true).truncate(false).open(path);
    opened.map(drop).map_err(|e| Failure::failed(format!("{path}: {e}")))
}

/// The output, empty.
pub(super) fn create(path: &str) -> Result<Box<dyn Write + Send>, Failure> {
    if path == "-" {
        return Ok(Box::new(io::stdout()));
    }
    let file = File::create(path).map_err(|e| Failure::failed(format!("{path}: {e}")))?;
    Ok(Box::new(BufWriter::new(file)))
}

/// The lines of a file that are not blank.
pub(super) struct InputLines<R> {
    from: R,
    number: u64,
    end: u64,
}

impl<R: BufRead> InputLines<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, number: 0, end: 0 }
    }

    fn read(&mut self) -> io::Result<Option<InputLine>> {
        loop {
            let mut bytes = Vec::new();
            let limit = MAX_LINE_BYTES as u64 + 1;
            let n = (&mut self.from).take(limit).read_until(b'\n', &mut bytes)?;
            if n == 0 {
                return Ok(None);
            }
            self.number += 1;
            self.end += n as u64;
            let whole = bytes.last() == Some(&b'\n') || n <= MAX_LINE_BYTES;
            if !whole {
                self.end += skip_line(&mut self.from)?;
                let (number, end) = (self.number, self.end);
                return Ok(Some(InputLine { number, bytes: Err(TooLong), end }));
            }
            let bytes = bytes.trim_ascii();
            if !bytes.is_empty() {
                let bytes = Ok(bytes.to_vec());
                return Ok(Some(InputLine { number: self.number, bytes, end: self.end }));
            }
        }
    }
}

impl<R: BufRead> Iterator for InputLines<R> {
    type Item = io::Result<InputLine>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// Reads to the end of a line without keeping it, and returns how much that was.
fn skip_line(from: &mut impl BufRead) -> io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = from.fill_buf()?;
        let end = buffer.iter().position(|&b| b == b'\n');
        let n = end.map_or(buffer.len(), |at| at + 1);
        from.consume(n);
        skipped += n as u64;
        if end.is_some() || n == 0 {
            return Ok(skipped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_count_and_long_ones_are_not_kept() {
        let mut text = b"\n {1} \r\n".to_vec();
        text.extend(vec![b'x'; 2 * MAX_LINE_BYTES]);
        text.extend(b"\n{2}");
        let bytes = text.len() as u64;
        let lines: Vec<InputLine> =
            InputLines::new(io::Cursor::new(text)).collect::<io::Result<_>>().unwrap();
        let (second, third, last) = (&lines[0], &lines[1], &lines[2]);
        assert_eq!((second.number, second.bytes.as_deref()), (2, Ok(&b"{1}"[..])));
        assert_eq!((third.number, &third.bytes), (3, &Err(TooLong)));
        assert_eq!((last.number, last.bytes.as_deref(), last.end), (4, Ok(&b"{2}"[..]), bytes));
        assert_eq!(lines.len(), 3);
        // Exactly as long as allowed, without a line end.
        let text = vec![b'x'; MAX_LINE_BYTES];
        let line = InputLines::new(io::Cursor::new(text)).next().unwrap().unwrap();
        assert_eq!(line.bytes.map(|b| b.len()), Ok(MAX_LINE_BYTES));
    }
}
