//! `dfastllm generate`

use std::io::Read;

use clap::Args;
use dfastllm_backends::DeviceProvider;
use dfastllm_engine::Running;
use dfastllm_models::SpecialTokens;
use serde_json::json;

use super::answer::{Answer, SamplingArgs};
use super::flags::{ModelArgs, Seats};
use super::{Failure, print};
use crate::ServedModel;
use crate::openai::conversation::Conversation;

const MAX_PROMPT_BYTES: u64 = 64 << 20;

/// Flags of one completion.
#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// The prompt; - reads it from stdin
    #[arg(long, env = "DFASTLLM_PROMPT", default_value = "-")]
    prompt: String,

    /// Wrap the prompt in the model's chat template
    #[arg(long, env = "DFASTLLM_CHAT")]
    chat: bool,

    /// Most tokens to generate; the canvas of a diffusion model
    #[arg(long, env = "DFASTLLM_MAX_TOKENS", default_value_t = 128)]
    max_tokens: usize,

    #[command(flatten)]
    sampling: SamplingArgs,

    /// Print one JSON object at the end instead of the text as it comes
    #[arg(long, env = "DFASTLLM_JSON")]
    json: bool,
}

pub(crate) fn run(
    args: GenerateArgs,
    providers: &[Box<dyn DeviceProvider>],
) -> Result<(), Failure> {
    let options = args.model.options(Seats::single(&args.model.model))?;
    let template = args.model.template(&options.files)?;
    let prompt = prompt_text(&args)?;
    let settings = args.sampling.settings(Some(args.max_tokens), args.model.seed)?;
    let (served, engine) = ServedModel::start(&options, providers).map_err(Failure::failed)?;
    let served = served.with_chat_template(template);
    let ids = prompt_tokens(&args, &prompt, &served)?;
    let request = settings.request(ids, &served).map_err(Failure::usage)?;
    let running = served.engine.submit(request).map_err(|e| Failure::failed(e.to_string()))?;
    let answer = collect(&running, &served, args.json)?;
    if args.json {
        print(&format!("{}\n", answer.json()))?;
    } else {
        print("\n")?;
    }
    drop(served);
    engine.shut_down();
    Ok(())
}

fn prompt_text(args: &GenerateArgs) -> Result<String, Failure> {
    if args.prompt != "-" {
        return Ok(args.prompt.clone());
    }
    let mut text = String::new();
    std::io::stdin()
        .take(MAX_PROMPT_BYTES)
        .read_to_string(&mut text)
        .map_err(|e| Failure::failed(format!("cannot read the prompt from stdin: {e}")))?;
    Ok(text)
}

fn prompt_tokens(
    args: &GenerateArgs,
    prompt: &str,
    served: &ServedModel,
) -> Result<Vec<u32>, Failure> {
    if !args.chat {
        return served.tokenizer.encode(prompt, SpecialTokens::Include).map_err(Failure::failed);
    }
    let Some(template) = &served.chat else {
        return Err(Failure::usage("--chat: the model has no chat template"));
    };
    let messages = json!([{"role": "user", "content": prompt}]);
    Conversation::of(messages).encode(template, &served.tokenizer).map_err(Failure::failed)
}

/// Waits for the answer; prints it as it comes unless it is to be JSON.
fn collect(running: &Running, served: &ServedModel, quiet: bool) -> Result<Answer, Failure> {
    let mut answer = Answer::new(served);
    while !answer.is_over() {
        let event = running.events.recv().map_err(|_| Failure::failed("the engine stopped"))?;
        let text = answer.take(event)?;
        if !quiet {
            print(&text)?;
        }
    }
    Ok(answer)
}
