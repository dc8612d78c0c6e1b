//! Wire types to valid engine requests. Every unknown or unsupported field is answered.

use std::time::Instant;

use axum::http::HeaderValue;
use dfastllm_engine::decoding::DecodingConfig;
use dfastllm_engine::{PenaltyScales, RequestParams, Sampling, Task};
use rand::TryRng;
use serde_json::{Map, Value};

use crate::choices::{choices, request_id, stream_options};
use crate::diffusion::{DiffusionFields, collect_aliases, collect_xargs};
use crate::infill::{Infill, parse_infill};
use crate::openai::types::Common;
use crate::prompting::{Cut, Truncation};
use crate::structured::{guide, refusal, structure_of};
use crate::words::{allowed_token_ids, bad_words};
use crate::{ApiError, AppState, ServedModel, fields};

const MAX_LOGIT_BIAS: usize = 1024;
const MAX_STOPS: usize = 4;
const MAX_STOP_BYTES: usize = 1024;
/// Answer length of a chat request to a model that denoises, unless it says otherwise.
const DIFFUSION_CHAT_TOKENS: usize = 256;
/// OpenAI's default of `/v1/completions`.
const COMPLETION_TOKENS: usize = 16;

/// Fields that OpenAI's clients send for bookkeeping; they change nothing in an answer.
const IGNORED: [&str; 14] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "parallel_tool_calls",
    "verbosity",
    "moderation",
    "prediction",
    "reasoning_effort",
    "session_id",
];

/// Which endpoint a request came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Completions,
    Chat,
}

impl Endpoint {
    /// Tokens that an answer needs where nobody says how many, and its prompt is to be cut.
    fn room(self, context: usize) -> usize {
        match self {
            Self::Completions => COMPLETION_TOKENS,
            Self::Chat => DIFFUSION_CHAT_TOKENS.min(context / 2).max(1),
        }
    }
}

/// What of a request concerns its answer, not the engine.
#[derive(Debug, Clone)]
pub(crate) struct AnswerOptions {
    /// Choices in the answer, for each prompt.
    pub(crate) n: usize,
    /// Choices that are made, the best of which are in the answer.
    pub(crate) best_of: usize,
    /// What is left of prompts that are too long.
    pub(crate) cut: Option<Cut>,
    /// What the request may be cancelled by, besides its ids in headers.
    pub(crate) request_id: Option<HeaderValue>,
    pub(crate) keeps_stop: bool,
    /// Whether tokens are spelled `token_id:7` in log-probabilities.
    pub(crate) as_token_ids: bool,
    pub(crate) stops: Vec<String>,
    pub(crate) skip_special_tokens: bool,
    pub(crate) return_token_ids: bool,
    pub(crate) trace: bool,
    /// Most probable tokens to report with each token, if log-probabilities are wanted.
    pub(crate) logprobs: Option<usize>,
    /// Whether log-probabilities are those of the pass that committed the token.
    pub(crate) at_commit: bool,
    /// Whether the text of each gap is told.
    pub(crate) gaps: bool,
    /// Texts between the gaps of an infilled text.
    pub(crate) between: Vec<String>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) continuous_usage: bool,
    /// Whether chunks are padded, so that their sizes tell nothing of their text.
    pub(crate) obfuscates: bool,
}

/// Checks that the model asked for is the one in service.
pub(crate) fn check_model(model: Option<&str>, served: &ServedModel) -> Result<(), ApiError> {
    match model {
        Some(name) if served.names.iter().any(|n| n == name) => Ok(()),
        Some(name) => {
            Err(ApiError::ModelNotFound { name: name.to_owned(), available: served.names.clone() })
        }
        None => Err(ApiError::invalid("model", "model is missing")),
    }
}

/// [`convert`], off the threads that answer health checks where texts have to be tokenised or
/// structures compiled.
pub(crate) async fn convert_request(
    mut common: Common,
    fields: (Option<Value>, Option<String>),
    longest_prompt: usize,
    endpoint: Endpoint,
    state: &AppState,
) -> Result<(RequestParams, AnswerOptions), ApiError> {
    let (format, outputs) = (common.response_format.take(), common.structured_outputs.take());
    let structure = structure_of(format.as_ref(), outputs.as_ref())?;
    let (mut params, options) = converted(common, fields, longest_prompt, endpoint, state).await?;
    if let Some(structure) = structure {
        let guide = guide(structure, state).await?;
        params.structure = Some(guide.map_err(|e| refusal(&e, format.as_ref(), outputs.as_ref()))?);
    }
    Ok((params, options))
}

async fn converted(
    common: Common,
    fields: (Option<Value>, Option<String>),
    longest_prompt: usize,
    endpoint: Endpoint,
    state: &AppState,
) -> Result<(RequestParams, AnswerOptions), ApiError> {
    let gaps = common.diffusion.as_ref().is_some_and(|fields| fields.contains_key("infill"));
    if !gaps && fields.1.is_none() && common.bad_words.is_none() {
        return convert(common, fields, longest_prompt, endpoint, state.require_model()?);
    }
    let state = state.clone();
    tokio::task::spawn_blocking(move || {
        convert(common, fields, longest_prompt, endpoint, state.require_model()?)
    })
    .await
    .unwrap_or_else(|_| {
        let message = "tokenisation failed".to_owned();
        Err(ApiError::Internal { code: "internal_error", message })
    })
}

/// Settles a request's options. The prompt is filled in later, one per choice.
fn convert(
    mut common: Common,
    (max_tokens, suffix): (Option<Value>, Option<String>),
    longest_prompt: usize,
    endpoint: Endpoint,
    served: &ServedModel,
) -> Result<(RequestParams, AnswerOptions), ApiError> {
    let mut given = common.diffusion.take().unwrap_or_default();
    collect_aliases(&mut common.rest, &mut given)?;
    let denoises = served.limits.reference.is_some();
    let steps_a_block = collect_xargs(common.vllm_xargs.as_ref(), denoises, &mut given)?;
    if !denoises {
        refuse_diffusion(&given)?;
    }
    let fields = DiffusionFields::new(given)?;
    refuse_rest(&common.rest)?;
    let infill = infill(suffix, &fields, served)?;
    let task = fields.likelihood()?.unwrap_or_default();
    let context = served.limits.max_model_len;
    let truncation = Truncation::new(&common, context)?;
    let asked = max_tokens_of(&common, max_tokens, &fields)?;
    let answer = asked.or(infill.open()).unwrap_or_else(|| endpoint.room(context));
    let room = context.saturating_sub(answer.saturating_add(infill.given()));
    let longest_prompt = truncation.map_or(longest_prompt, |t| t.longest(longest_prompt, room));
    let max_tokens = match asked {
        Some(tokens) if task != Task::Generate && tokens > 0 => {
            let message = "max_tokens does not go with diffusion.likelihood: there is no answer";
            return Err(ApiError::invalid("max_tokens", message));
        }
        _ if task != Task::Generate => 0,
        Some(tokens) => tokens,
        None => infill.open().unwrap_or_else(|| default_tokens(endpoint, longest_prompt, served)),
    };
    let decoding = decoding(&fields, steps_a_block, max_tokens.max(1), served)?;
    let flag = |name| Ok::<bool, ApiError>(fields.flag(name)?.unwrap_or(false));
    let mut options = answer_options(&common, flag("trace")?, endpoint, (&infill, served))?;
    let used = max_tokens.saturating_add(infill.given());
    options.cut = truncation.map(|t| t.cut(context.saturating_sub(used)));
    let progress = flag("progress")?;
    if progress && !options.stream {
        let message = "progress is told while the answer is made; it needs stream";
        return Err(ApiError::invalid("diffusion.progress", message));
    }
    let params = RequestParams {
        prompt: Vec::new(),
        max_tokens,
        min_tokens: whole("min_tokens", common.min_tokens.as_ref())?.unwrap_or(0),
        ignore_eos: common.ignore_eos.unwrap_or(false),
        stop_token_ids: stop_token_ids(&common)?,
        sampling: sampling(&common, options.logprobs.unwrap_or(0), served)?,
        decoding,
        seed: seed(&common, served)?,
        priority: common.priority.unwrap_or(0),
        arrival: Instant::now(),
        timeout: served.request_timeout,
        max_draft: served.speculative_tokens,
        trace: options.trace,
        progress,
        audit: served.audit,
        task,
        infill: infill.parts(max_tokens),
        structure: None,
    };
    Ok((params, options))
}

/// The knobs, with steps for every block where those are asked for.
fn decoding(
    fields: &DiffusionFields,
    steps_a_block: Option<usize>,
    length: usize,
    served: &ServedModel,
) -> Result<Option<DecodingConfig>, ApiError> {
    let Some(published) = served.limits.reference else { return Ok(None) };
    let config = fields.config(served.preset, published, length)?;
    let Some(each) = steps_a_block else { return Ok(Some(config)) };
    let steps = each.saturating_mul(config.blocks(length));
    fields.with_steps(steps).config(served.preset, published, length).map(Some)
}

/// The text behind the gap, or several gaps with texts between them.
fn infill(
    suffix: Option<String>,
    fields: &DiffusionFields,
    served: &ServedModel,
) -> Result<Infill, ApiError> {
    let suffix = suffix.filter(|text| !text.is_empty());
    match (suffix, fields.infill()) {
        (Some(_), Some(_)) => {
            let message = "suffix is one gap's text, diffusion.infill has its own";
            Err(ApiError::invalid("suffix", message))
        }
        (Some(_), None) if served.limits.mask_id.is_none() => {
            let message = "this model writes from left to right; it cannot fill gaps";
            Err(ApiError::unsupported("suffix", message.to_owned()))
        }
        (Some(text), None) => Infill::suffix(&text, &served.tokenizer),
        (None, Some(parts)) => parse_infill(parts, &served.tokenizer),
        (None, None) => Ok(Infill::default()),
    }
}

fn answer_options(
    common: &Common,
    trace: bool,
    endpoint: Endpoint,
    (infill, served): (&Infill, &ServedModel),
) -> Result<AnswerOptions, ApiError> {
    let (n, best_of) = choices(common)?;
    let stream = common.stream.unwrap_or(false);
    let stream_options = stream_options(common, stream)?;
    let keeps_special = common.skip_special_tokens == Some(false);
    if keeps_special && common.spaces_between_special_tokens == Some(true) {
        let message = "no spaces are put between special tokens";
        return Err(ApiError::unsupported("spaces_between_special_tokens", message.to_owned()));
    }
    Ok(AnswerOptions {
        n,
        best_of,
        cut: None,
        request_id: request_id(common)?,
        keeps_stop: common.include_stop_str_in_output.unwrap_or(false),
        as_token_ids: common.return_tokens_as_token_ids.unwrap_or(false),
        stops: stops(common.stop.as_ref())?,
        skip_special_tokens: !keeps_special,
        return_token_ids: common.return_token_ids.unwrap_or(false),
        trace,
        logprobs: logprobs(common, endpoint)?,
        at_commit: served.limits.mask_id.is_some(),
        gaps: infill.open().is_some(),
        between: infill.between().to_vec(),
        stream,
        include_usage: stream_options.include_usage.unwrap_or(false),
        continuous_usage: stream_options.continuous_usage_stats.unwrap_or(false),
        obfuscates: stream_options.include_obfuscation.unwrap_or(false),
    })
}

/// Completions ask by a number, chats by a switch and a number.
fn logprobs(common: &Common, endpoint: Endpoint) -> Result<Option<usize>, ApiError> {
    let asked = common.logprobs.as_ref().filter(|v| !v.is_null());
    let top = whole("top_logprobs", common.top_logprobs.as_ref())?;
    let number = match (endpoint, asked) {
        (_, None | Some(Value::Bool(false))) => {
            if top.is_some_and(|n| n > 0) {
                let message = "top_logprobs needs logprobs";
                return Err(ApiError::invalid("top_logprobs", message));
            }
            return Ok(None);
        }
        (Endpoint::Chat, Some(Value::Bool(true))) => top.unwrap_or(0),
        (Endpoint::Chat, Some(other)) => {
            return Err(ApiError::wrong("logprobs", other, "true or false"));
        }
        (Endpoint::Completions, Some(_)) if top.is_some_and(|n| n > 0) => {
            let message = "top_logprobs is for chats; here logprobs is the number";
            return Err(ApiError::invalid("top_logprobs", message));
        }
        (Endpoint::Completions, other) => whole("logprobs", other)?.unwrap_or(0),
    };
    Ok(Some(number))
}

/// Refuses diffusion settings of a request to an autoregressive model.
pub(crate) fn refuse_diffusion(given: &Map<String, Value>) -> Result<(), ApiError> {
    match given.iter().find(|(_, value)| !value.is_null()) {
        None => Ok(()),
        Some((field, _)) => {
            let field: String = field.chars().take(64).collect();
            let message = format!("{field} is for diffusion models; this one is autoregressive");
            Err(ApiError::unsupported(&format!("diffusion.{field}"), message))
        }
    }
}

/// Refuses fields that nothing here honours, unless their value asks for nothing.
fn refuse_rest(rest: &Map<String, Value>) -> Result<(), ApiError> {
    for (name, value) in rest {
        if value.is_null() || IGNORED.contains(&name.as_str()) || asks_for_nothing(name, value) {
            continue;
        }
        if let Some(answer) = fields::known(name, value) {
            answer?;
            continue;
        }
        let shown: String = name.chars().take(64).collect();
        let message = format!("'{shown}' is not supported by this server");
        return Err(ApiError::unsupported(&shown, message));
    }
    Ok(())
}

fn asks_for_nothing(name: &str, value: &Value) -> bool {
    match name {
        "echo" => *value == Value::Bool(false),
        "suffix" => value.as_str() == Some(""),
        "tools" | "functions" => value.as_array().is_some_and(Vec::is_empty),
        "tool_choice" | "function_call" => value.as_str() == Some("none"),
        "modalities" => *value == serde_json::json!(["text"]),
        _ => false,
    }
}

fn max_tokens_of(
    common: &Common,
    endpoint_field: Option<Value>,
    fields: &DiffusionFields,
) -> Result<Option<usize>, ApiError> {
    let mut found: Option<(&str, usize)> = None;
    for (name, value) in [
        ("max_tokens", common.max_tokens.as_ref()),
        ("max_completion_tokens", endpoint_field.as_ref()),
        ("gen_length", fields.max_tokens()),
    ] {
        let Some(tokens) = whole(name, value)? else { continue };
        match found {
            Some((other, n)) if n != tokens => {
                let message = format!("{name} is {tokens}, but {other} is {n}");
                return Err(ApiError::invalid(name, message));
            }
            _ => found = Some((name, tokens)),
        }
    }
    Ok(found.map(|(_, tokens)| tokens))
}

pub(crate) fn default_tokens(endpoint: Endpoint, prompt: usize, served: &ServedModel) -> usize {
    let rest = served.limits.max_model_len.saturating_sub(prompt);
    match (endpoint, served.limits.mask_id) {
        (Endpoint::Completions, _) => COMPLETION_TOKENS,
        (Endpoint::Chat, None) => rest.max(1),
        (Endpoint::Chat, Some(_)) => DIFFUSION_CHAT_TOKENS.min(rest).max(1),
    }
}

fn sampling(
    common: &Common,
    top_logprobs: usize,
    served: &ServedModel,
) -> Result<Sampling, ApiError> {
    let defaults = &served.generation;
    let neutral = if served.limits.mask_id.is_some() { 0.0 } else { 1.0 };
    let top_k = match &common.top_k {
        None | Some(Value::Null) => defaults.top_k.filter(|&k| k > 0),
        Some(value) => match value.as_i64() {
            Some(0 | -1) => None,
            Some(k) if k > 0 => usize::try_from(k).ok(),
            _ => return Err(ApiError::wrong("top_k", value, "-1, 0 or a positive whole number")),
        },
    };
    if let Some(entries) = common.logit_bias.as_ref().map(Map::len).filter(|&n| n > MAX_LOGIT_BIAS)
    {
        let message = format!("logit_bias has {entries} entries, at most {MAX_LOGIT_BIAS}");
        return Err(ApiError::invalid("logit_bias", message));
    }
    let logit_bias = common.logit_bias.iter().flatten().map(bias).collect::<Result<_, _>>()?;
    Ok(Sampling {
        temperature: common.temperature.or(defaults.temperature).unwrap_or(neutral),
        top_k,
        top_p: common.top_p.or(defaults.top_p).filter(|&p| p != 1.0),
        min_p: common.min_p.filter(|&p| p != 0.0),
        logit_bias,
        allowed_token_ids: allowed_token_ids(
            common.allowed_token_ids.as_ref(),
            served.limits.vocab,
        )?,
        bad_words: bad_words(common.bad_words.as_ref(), &served.tokenizer)?,
        penalties: PenaltyScales {
            presence: common.presence_penalty.unwrap_or(0.0),
            frequency: common.frequency_penalty.unwrap_or(0.0),
            repetition: common.repetition_penalty.unwrap_or(1.0),
        },
        top_logprobs,
    })
}

fn bias((id, value): (&String, &Value)) -> Result<(u32, f32), ApiError> {
    match (id.parse(), value.as_f64()) {
        (Ok(id), Some(bias)) => Ok((id, bias as f32)),
        _ => {
            let id: String = id.chars().take(64).collect();
            let message = format!("logit_bias['{id}'] has to map a token id to a number");
            Err(ApiError::invalid("logit_bias", message))
        }
    }
}

fn stop_token_ids(common: &Common) -> Result<Vec<u32>, ApiError> {
    let id = |value: &Value| match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok(id),
        None => Err(ApiError::wrong("stop_token_ids", value, "token ids")),
    };
    common.stop_token_ids.iter().flatten().map(id).collect()
}

fn stops(stop: Option<&Value>) -> Result<Vec<String>, ApiError> {
    let stops = match stop {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text.clone()],
        Some(value) => serde_json::from_value(value.clone())
            .map_err(|_| ApiError::wrong("stop", value, "a string or a list of strings"))?,
    };
    if stops.len() > MAX_STOPS {
        let message = format!("stop has {} strings, at most {MAX_STOPS}", stops.len());
        return Err(ApiError::invalid("stop", message));
    }
    if let Some(bad) = stops.iter().find(|s| s.is_empty() || s.len() > MAX_STOP_BYTES) {
        let message =
            format!("a stop string has {} bytes, expected 1 to {MAX_STOP_BYTES}", bad.len());
        return Err(ApiError::invalid("stop", message));
    }
    Ok(stops)
}

/// The request's seed, else the server's, else one from entropy.
fn seed(common: &Common, served: &ServedModel) -> Result<u64, ApiError> {
    match &common.seed {
        None | Some(Value::Null) => Ok(served.seed.unwrap_or_else(entropy)),
        Some(value) => match value.as_i64() {
            Some(seed) => Ok(seed.cast_unsigned()),
            None => Err(ApiError::wrong("seed", value, "a 64-bit integer")),
        },
    }
}

pub(crate) fn entropy() -> u64 {
    // Without an entropy source a fixed seed still gives a valid answer.
    rand::rngs::SysRng.try_next_u64().unwrap_or(0)
}

fn whole(name: &str, value: Option<&Value>) -> Result<Option<usize>, ApiError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) => Ok(Some(n)),
            None => Err(ApiError::wrong(name, value, "a whole number of at least 0")),
        },
    }
}
