//! How far a download is.

use std::io::IsTerminal;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What is told where no bar can be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WithoutTerminal {
    /// Nothing.
    Quiet,
    /// A line of the log for every file.
    Log,
}

impl WithoutTerminal {
    /// A bar for one file on a terminal, something hidden elsewhere.
    pub(super) fn bar(self, file: &str, size: u64) -> ProgressBar {
        if !std::io::stderr().is_terminal() {
            if self == Self::Log {
                tracing::info!("downloading {file}, {}", HumanBytes(size));
            }
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr());
        bar.set_message(file.to_owned());
        let style =
            "{msg:34!} {wide_bar} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta:>4}";
        match ProgressStyle::with_template(style) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }
}
