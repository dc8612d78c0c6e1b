//! What of a request can be wrong, refused by name.

use dfastllm_models::Alignment;

use super::{
    InfillPart, MAX_DRAFT, MAX_SAMPLES, ModelLimits, Patterns, RequestParams, Sampling, Task,
    parts_len,
};
use crate::RequestError;
use crate::decoding::{Canvas, DecodingConfig, Quota, Revise};

const MAX_LOGIT_BIAS: usize = 1024;
const MAX_TOP_LOGPROBS: usize = 20;
/// Most positions that all samples of a likelihood could mask.
const MAX_MASKED: usize = 1 << 18;
/// Most parts of an infilled text.
const MAX_PARTS: usize = 256;

fn refuse(param: &'static str, message: impl Into<String>) -> Result<(), RequestError> {
    Err(RequestError::new(param, message))
}

/// What the knobs need of this model and this request.
pub(super) fn check_model(
    config: &DecodingConfig,
    params: &RequestParams,
    limits: &ModelLimits,
) -> Result<(), RequestError> {
    if matches!(config.quota, Quota::Adaptive { .. }) {
        if !limits.has_verifier {
            let message = "quota adaptive needs a causal model to verify with: --draft-model";
            return refuse("diffusion.quota", message);
        }
        if params.progress {
            return refuse("diffusion.progress", "quota adaptive commits drafts, not positions");
        }
    }
    if matches!(config.revise, Revise::Wino(_)) && limits.alignment == Alignment::Next {
        let message = "remask wino hides a position from the row that predicts it; in this model \
                       that is the row before it, which sees it";
        return refuse("diffusion.remask", message);
    }
    if config.canvas == Canvas::Daedal && params.ignore_eos {
        let message = "canvas daedal looks for the end; it does not go with ignore_eos";
        return refuse("diffusion.canvas", message);
    }
    if !params.infill.is_empty() {
        if matches!(config.quota, Quota::Adaptive { .. }) {
            return refuse("diffusion.quota", "quota adaptive fills no gaps between given texts");
        }
        if config.speculate > 0 {
            return refuse("diffusion.speculate", "speculate fills no gaps between given texts");
        }
    }
    if config.canvas == Canvas::Daedal {
        if params.progress {
            let message = "canvas daedal moves positions that were told of";
            return refuse("diffusion.progress", message);
        }
        if matches!(config.quota, Quota::Stable { .. }) {
            let message = "quota stable keeps whole rows; canvas daedal lets their number grow";
            return refuse("diffusion.quota", message);
        }
    }
    if config.canvas != Canvas::Fixed && !params.infill.is_empty() {
        return refuse("diffusion.canvas", "gaps between given texts need canvas fixed");
    }
    Ok(())
}

pub(super) fn check_task(params: &RequestParams, limits: &ModelLimits) -> Result<(), RequestError> {
    if params.task == Task::ScorePrompt && params.prompt.len() < 2 {
        return refuse("prompt", "a single token has nothing before it to be scored after");
    }
    let is_guided = params.decoding.as_ref().is_some_and(|config| config.cfg_scale > 0.0);
    if params.task == Task::ScorePrompt && is_guided {
        let message = "guidance hides the prompt, which is what is scored";
        return refuse("diffusion.cfg_scale", message);
    }
    let Task::Likelihood { answer_start, patterns } = &params.task else { return Ok(()) };
    let param = "diffusion.likelihood";
    let len = params.prompt.len();
    if limits.mask_id.is_none() {
        return refuse(param, "the estimate is for masked-diffusion models");
    }
    if *answer_start >= len {
        let message = format!("answer_start is {answer_start}, expected below {len} tokens");
        return refuse(param, message);
    }
    match patterns {
        Patterns::Drawn(samples) if !(1..=MAX_SAMPLES).contains(samples) => {
            refuse(param, format!("samples is {samples}, expected 1 to {MAX_SAMPLES}"))
        }
        Patterns::Drawn(samples) if samples.saturating_mul(len - answer_start) > MAX_MASKED => {
            let answer = len - answer_start;
            let message = format!(
                "{samples} samples of {answer} tokens, together at most {MAX_MASKED} positions"
            );
            refuse(param, message)
        }
        Patterns::Drawn(_) => Ok(()),
        Patterns::Given(patterns) => {
            let answer = len - answer_start;
            let is_ascending = |p: &Vec<usize>| p.windows(2).all(|pair| pair[0] < pair[1]);
            let fits = |p: &Vec<usize>| p.last().is_some_and(|&i| i < answer) && is_ascending(p);
            if (1..=MAX_SAMPLES).contains(&patterns.len()) && patterns.iter().all(fits) {
                return Ok(());
            }
            let expected = format!("1 to {MAX_SAMPLES} subsets of {answer} positions, ascending");
            refuse(param, format!("expected {expected}"))
        }
    }
}

/// What does not go with an answer that has to have a structure. Its beginning says what may follow,
/// so it settles from left to right and keeps what it has.
pub(super) fn check_structure(params: &RequestParams) -> Result<(), RequestError> {
    if params.structure.is_none() {
        return Ok(());
    }
    let config = params.decoding.as_ref();
    let found = [
        ("min_tokens", params.min_tokens > 0),
        ("ignore_eos", params.ignore_eos),
        ("allowed_token_ids", params.sampling.allowed_token_ids.is_some()),
        ("bad_words", !params.sampling.bad_words.is_empty()),
        ("diffusion.likelihood", params.task != Task::Generate),
        ("diffusion.infill", !params.infill.is_empty()),
        ("diffusion.remask", config.is_some_and(|c| c.revise != Revise::None)),
        ("diffusion.speculate", config.is_some_and(|c| c.speculate > 0)),
        ("diffusion.quota", config.is_some_and(|c| matches!(c.quota, Quota::Adaptive { .. }))),
    ];
    match found.into_iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((param, _)) => {
            refuse(param, format!("{param} does not go with an answer that has a structure"))
        }
    }
}

/// Text and gaps after the prompt; the gaps hold `max_tokens` together.
pub(super) fn check_parts(
    params: &RequestParams,
    limits: &ModelLimits,
) -> Result<Vec<InfillPart>, RequestError> {
    if params.task != Task::Generate {
        return Ok(Vec::new());
    }
    if params.infill.is_empty() {
        return Ok(vec![InfillPart::Gap { len: params.max_tokens, is_free: true }]);
    }
    if limits.mask_id.is_none() {
        refuse("suffix", "this model writes from left to right; it cannot fill gaps")?;
    }
    if params.infill.len() > MAX_PARTS {
        let message = format!("{} parts, at most {MAX_PARTS}", params.infill.len());
        refuse("diffusion.infill", message)?;
    }
    let mut open = 0;
    for part in &params.infill {
        match part {
            InfillPart::Given(ids) => check_ids("suffix", ids, limits.vocab)?,
            InfillPart::Gap { len: 0, .. } => refuse("diffusion.infill", "a gap of 0 tokens")?,
            InfillPart::Gap { len, .. } => open += len,
        }
    }
    if open != params.max_tokens {
        let message =
            format!("the gaps hold {open} tokens, but max_tokens is {}", params.max_tokens);
        refuse("diffusion.infill", message)?;
    }
    Ok(params.infill.clone())
}

pub(super) fn check_lengths(
    params: &RequestParams,
    limits: &ModelLimits,
) -> Result<(), RequestError> {
    let (prompt, max_tokens, context) =
        (params.prompt.len(), params.max_tokens, limits.max_model_len);
    if prompt == 0 {
        return Err(RequestError::new("prompt", "the prompt has no tokens, expected at least one"));
    }
    if max_tokens == 0 && params.task == Task::Generate {
        return Err(RequestError::new("max_tokens", "max_tokens is 0, expected at least 1"));
    }
    let answer = if params.infill.is_empty() { max_tokens } else { parts_len(&params.infill) };
    if prompt.saturating_add(answer) > context {
        let message = format!(
            "This model's maximum context length is {context} tokens; \
             the prompt has {prompt} and max_tokens is {max_tokens}"
        );
        let error = RequestError::new("max_tokens", message);
        return Err(RequestError { context_exceeded: true, ..error });
    }
    if params.max_draft > MAX_DRAFT {
        let message = format!("drafts of {} tokens, at most {MAX_DRAFT}", params.max_draft);
        return Err(RequestError::new("max_draft", message));
    }
    if params.min_tokens > max_tokens && params.task == Task::Generate {
        let message = format!("min_tokens is {}, expected at most max_tokens", params.min_tokens);
        return Err(RequestError::new("min_tokens", message));
    }
    Ok(())
}

pub(super) fn check_sampling(
    sampling: &Sampling,
    limits: &ModelLimits,
) -> Result<(), RequestError> {
    let range = |param, value: f64, from: f64, to: f64| {
        if (from..=to).contains(&value) {
            return Ok(());
        }
        Err(RequestError::new(param, format!("{param} is {value}, expected {from} to {to}")))
    };
    range("temperature", sampling.temperature, 0.0, 100.0)?;
    range("top_p", sampling.top_p.unwrap_or(1.0), 0.0, 1.0)?;
    range("min_p", sampling.min_p.unwrap_or(0.0), 0.0, 1.0)?;
    range("presence_penalty", sampling.penalties.presence, -2.0, 2.0)?;
    range("frequency_penalty", sampling.penalties.frequency, -2.0, 2.0)?;
    range("repetition_penalty", sampling.penalties.repetition, 0.01, 100.0)?;
    if sampling.top_k == Some(0) {
        return Err(RequestError::new("top_k", "top_k is 0, expected at least 1"));
    }
    if sampling.top_logprobs > MAX_TOP_LOGPROBS {
        let found = sampling.top_logprobs;
        let message = format!("{found} log-probabilities asked for, at most {MAX_TOP_LOGPROBS}");
        return Err(RequestError::new("logprobs", message));
    }
    let entries = sampling.logit_bias.len();
    if entries > MAX_LOGIT_BIAS {
        let message = format!("logit_bias has {entries} entries, at most {MAX_LOGIT_BIAS}");
        return Err(RequestError::new("logit_bias", message));
    }
    for &(id, bias) in &sampling.logit_bias {
        check_ids("logit_bias", &[id], limits.vocab)?;
        range("logit_bias", f64::from(bias), -100.0, 100.0)?;
    }
    Ok(())
}

pub(super) fn check_ids(
    param: &'static str,
    ids: &[u32],
    vocab: usize,
) -> Result<(), RequestError> {
    match ids.iter().find(|&&id| id as usize >= vocab) {
        None => Ok(()),
        Some(id) => {
            let message = format!("token id {id} is outside the vocabulary of {vocab}");
            Err(RequestError::new(param, message))
        }
    }
}
