//! `dfastllm generate`

use std::io::Read;
use std::time::Duration;

use clap::Args;
use dfastllm_backends::DeviceProvider;
use dfastllm_engine::{
    Event, FinishReason, GenerationRequest, RequestParams, Running, Sampling, TextAssembler,
    TraceStep, Usage,
};
use dfastllm_models::SpecialTokens;
use serde_json::{Map, Value, json};

use super::flags::{ModelArgs, Seats};
use super::{Failure, print};
use crate::ServedModel;
use crate::convert::{entropy, refuse_diffusion};
use crate::diffusion::DiffusionFields;
use crate::openai::chat::encode_chat;
use crate::openai::respond::{trace as trace_json, usage as usage_json};

const MAX_PROMPT_BYTES: u64 = 64 << 20;

/// Nobody but the user ends a command.
const LONG: Duration = Duration::from_secs(86_400);

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

    /// 0 is greedy [default: the checkpoint's]
    #[arg(long, env = "DFASTLLM_TEMPERATURE")]
    temperature: Option<f64>,

    /// Keep tokens up to this probability
    #[arg(long, env = "DFASTLLM_TOP_P")]
    top_p: Option<f64>,

    /// Keep this many tokens
    #[arg(long, env = "DFASTLLM_TOP_K")]
    top_k: Option<usize>,

    /// Diffusion settings as the API takes them, for example '{"steps": 64}'
    #[arg(long, env = "DFASTLLM_DIFFUSION", default_value = "{}")]
    diffusion: String,

    /// Print one JSON object at the end instead of the text as it comes
    #[arg(long, env = "DFASTLLM_JSON")]
    json: bool,
}

pub(crate) fn run(
    args: GenerateArgs,
    providers: &[Box<dyn DeviceProvider>],
) -> Result<(), Failure> {
    let options = args.model.options(Seats {
        names: vec![args.model.model.clone()],
        max_num_seqs: 1,
        max_queue: 1,
        request_timeout: LONG,
        stall_timeout: LONG,
    })?;
    let template = args.model.template(&options.files)?;
    let prompt = prompt_text(&args)?;
    let (served, engine) = ServedModel::start(&options, providers).map_err(Failure::failed)?;
    let served = served.with_chat_template(template);
    let params = params(&args, &prompt, &served)?;
    let request = GenerationRequest::new(params, &served.limits)
        .map_err(|e| Failure::usage(e.to_string()))?;
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

fn params(
    args: &GenerateArgs,
    prompt: &str,
    served: &ServedModel,
) -> Result<RequestParams, Failure> {
    let ids = if args.chat {
        let Some(template) = &served.chat else {
            return Err(Failure::usage("--chat: the model has no chat template"));
        };
        let messages = json!([{"role": "user", "content": prompt}]);
        encode_chat(&messages, template, &served.tokenizer).map_err(Failure::failed)?
    } else {
        served.tokenizer.encode(prompt, SpecialTokens::Include).map_err(Failure::failed)?
    };
    let given: Map<String, Value> = serde_json::from_str(&args.diffusion)
        .map_err(|e| Failure::usage(format!("--diffusion: {e}")))?;
    let message = |e: crate::ApiError| Failure::usage(e.message());
    if served.limits.reference.is_none() {
        refuse_diffusion(&given).map_err(message)?;
    }
    let fields = DiffusionFields::new(given).map_err(message)?;
    fields.refuse(&["infill", "likelihood", "progress"]).map_err(message)?;
    if let Some(length) = fields.max_tokens() {
        let message = format!("--diffusion: gen_length is {length}; give --max-tokens instead");
        return Err(Failure::usage(message));
    }
    let decoding = match served.limits.reference {
        Some(published) => {
            Some(fields.config(served.preset, published, args.max_tokens).map_err(message)?)
        }
        None => None,
    };
    let neutral = if decoding.is_some() { 0.0 } else { 1.0 };
    let defaults = &served.generation;
    Ok(RequestParams {
        sampling: Sampling {
            temperature: args.temperature.or(defaults.temperature).unwrap_or(neutral),
            top_k: args.top_k.or(defaults.top_k).filter(|&k| k > 0),
            top_p: args.top_p.or(defaults.top_p),
            ..Sampling::default()
        },
        decoding,
        seed: args.model.seed.unwrap_or_else(entropy),
        timeout: served.request_timeout,
        max_draft: served.speculative_tokens,
        trace: fields.flag("trace").map_err(message)?.unwrap_or(false),
        audit: served.audit,
        ..RequestParams::new(ids, args.max_tokens)
    })
}

struct Answer {
    text: String,
    token_ids: Vec<u32>,
    reason: FinishReason,
    usage: Usage,
    trace: Vec<TraceStep>,
}

impl Answer {
    fn json(&self) -> Value {
        let reason = match self.reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        };
        let mut object = json!({
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": reason,
            "usage": usage_json(self.usage),
        });
        if !self.trace.is_empty() {
            object["trace"] = trace_json(&self.trace);
        }
        object
    }
}

/// Waits for the answer; prints it as it comes unless it is to be JSON.
fn collect(running: &Running, served: &ServedModel, quiet: bool) -> Result<Answer, Failure> {
    let stream = served.tokenizer.stream(SpecialTokens::Skip);
    let mut assembler = TextAssembler::new(stream, Vec::new());
    let (mut text, mut token_ids, mut steps) = (String::new(), Vec::new(), Vec::new());
    let mut emit = |delta: String| -> Result<(), Failure> {
        text.push_str(&delta);
        if quiet { Ok(()) } else { print(&delta) }
    };
    loop {
        match running.events.recv() {
            Ok(Event::Settled { tokens, trace, .. }) => {
                steps.extend(trace);
                for token in &tokens {
                    token_ids.push(token.id);
                    emit(assembler.push(token))?;
                }
            }
            // Only generation is asked for here.
            Ok(Event::Scored(_)) => {}
            Ok(Event::Finished { reason, usage, trace }) => {
                emit(assembler.finish())?;
                steps.extend(trace);
                return Ok(Answer { text, token_ids, reason, usage, trace: steps });
            }
            Ok(Event::Failed(error)) => return Err(Failure::failed(error.to_string())),
            Err(_) => return Err(Failure::failed("the engine stopped")),
        }
    }
}
