//! Flags of the server this one replaces: mapped where they have a meaning, else accepted with one
//! warning line.

use std::ffi::OsString;

/// Flags with another name here.
const RENAMED: [(&str, &str); 3] =
    [("--max-queue-size", "--max-queue"), ("-p", "--port"), ("-H", "--host")];

/// Flags without a meaning here, and whether they take a value.
const IGNORED: [(&str, bool); 26] = [
    ("--trust-remote-code", false),
    ("--enable-apd", false),
    ("--disable-apd", false),
    ("--apd-max-parallel", true),
    ("--apd-threshold", true),
    ("--diffusion-steps", true),
    ("--block-size", true),
    ("--tokenizer", true),
    ("--revision", true),
    ("--uvicorn-log-level", true),
    ("--tensor-parallel-size", true),
    ("-tp", true),
    ("--gpu-memory-utilization", true),
    ("--max-concurrent-requests", true),
    ("--rate-limit-requests", true),
    ("--rate-limit-window", true),
    ("--workers", true),
    ("--compile", false),
    ("--no-compile", false),
    ("--compile-mode", true),
    ("--flash-attention", false),
    ("--no-flash-attention", false),
    ("--quantization", true),
    ("--enable-hybrid", false),
    ("--enable-batching", false),
    ("--hybrid-mode", true),
];

/// Arguments in today's spelling, and a warning for each flag that means nothing any more.
pub(crate) fn translate(args: Vec<OsString>) -> (Vec<OsString>, Vec<String>) {
    let (mut kept, mut warnings) = (Vec::new(), Vec::new());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str() else {
            kept.push(arg);
            continue;
        };
        let (flag, value) = match text.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (text, None),
        };
        if let Some((_, name)) = RENAMED.iter().find(|(old, _)| *old == flag) {
            kept.push(name.into());
            kept.extend(value.map(Into::into));
        } else if let Some((_, takes_value)) = IGNORED.iter().find(|(old, _)| *old == flag) {
            if *takes_value && value.is_none() {
                args.next();
            }
            warnings.push(format!("{flag} has no effect in this server and is ignored"));
        } else {
            kept.push(arg);
        }
    }
    (kept, warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_flags_are_renamed_or_dropped_with_their_values() {
        let args =
            ["x", "serve", "--max-queue-size", "2", "--enable-apd", "--apd-threshold", "0.3"];
        let (kept, warnings) = translate(args.iter().map(Into::into).collect());
        assert_eq!(kept, ["x", "serve", "--max-queue", "2"]);
        assert_eq!(warnings.len(), 2);
        let (kept, _) =
            translate(["x", "--workers=4", "-p", "80"].iter().map(Into::into).collect());
        assert_eq!(kept, ["x", "--port", "80"]);
    }
}
