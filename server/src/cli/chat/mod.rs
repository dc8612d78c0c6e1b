//! `dfastllm chat`

mod commands;
mod input;
mod session;

use std::io::Write;

use clap::Args;
use dfastllm_backends::DeviceProvider;

use self::commands::Command;
use self::input::{Entries, Entry, Incoming, Lines};
use self::session::Session;
use super::answer::SamplingArgs;
use super::flags::{ModelArgs, Seats};
use super::{Failure, print};
use crate::ServedModel;

/// Flags of a conversation.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// What the model is told first
    #[arg(long, env = "DFASTLLM_SYSTEM", default_value = "", hide_default_value = true)]
    system: String,

    /// Most tokens of an answer [default: what fits; 256 of a diffusion model]
    #[arg(long, env = "DFASTLLM_MAX_TOKENS")]
    max_tokens: Option<usize>,

    #[command(flatten)]
    sampling: SamplingArgs,
}

pub(crate) fn run(args: ChatArgs, providers: &[Box<dyn DeviceProvider>]) -> Result<(), Failure> {
    let settings = args.sampling.settings(args.max_tokens, args.model.seed)?;
    let options = args.model.options(Seats::single(&args.model.model))?;
    let template = args.model.template(&options.files)?;
    let (served, engine) = ServedModel::start(&options, providers).map_err(Failure::failed)?;
    let served = served.with_chat_template(template);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start the async runtime: {e}")))?;
    let mut session = Session::new(served, settings, args.system)?;
    let mut lines = Lines::open()?;
    if lines.is_terminal() {
        print(&format!("{}; /help for help\n", args.model.model))?;
    }
    runtime.block_on(converse(&mut session, &mut lines))?;
    drop(session);
    engine.shut_down();
    Ok(())
}

/// Reads and answers until the user leaves.
async fn converse(session: &mut Session, lines: &mut Lines) -> Result<(), Failure> {
    let mut entries = Entries::default();
    loop {
        let prompt = if entries.is_open() { "... " } else { ">>> " };
        let line = match lines.next(prompt).await? {
            Incoming::Line(line) => line,
            Incoming::Interrupt if lines.is_terminal() => {
                entries.clear();
                note("Ctrl-D or /bye leaves");
                continue;
            }
            Incoming::End if entries.is_open() => {
                note("the text after \"\"\" has no end and was not sent");
                return Ok(());
            }
            Incoming::Interrupt | Incoming::End => return Ok(()),
        };
        let text = match entries.push(&line) {
            Ok(None) => continue,
            Ok(Some(Entry::Text(text))) => text,
            Ok(Some(Entry::Line(line))) if line.trim_start().starts_with('/') => {
                match Command::parse(&line).and_then(|c| Ok((session.carry_out(&c)?, c))) {
                    Ok((_, Command::Bye)) => return Ok(()),
                    Ok((said, _)) => print(&said)?,
                    Err(message) => note(&message),
                }
                continue;
            }
            Ok(Some(Entry::Line(line))) => line,
            Err(message) => {
                note(&message);
                continue;
            }
        };
        if !text.trim().is_empty()
            && let Err(message) = session.say(text).await?
        {
            note(&message);
        }
    }
}

/// Says something beside the conversation; stdout is for answers.
fn note(message: &str) {
    // Nothing is left to do if stderr is closed.
    let _ = writeln!(std::io::stderr(), "{message}");
}
