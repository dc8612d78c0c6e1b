//! Prompts that are part of the answer, and how likely the model finds them.

use dfastllm_engine::{GenerationRequest, PromptScores, RequestParams, SettledToken, Task, Usage};
use dfastllm_models::{SpecialTokens, Tokenizer};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde_json::{Value, json};

use crate::ApiError;
use crate::convert::AnswerOptions;
use crate::generation::Scorer;
use crate::logprobs::{Place, completions};

/// A prompt at the beginning of its answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Echo {
    pub(crate) text: String,
    /// Its tokens, if log-probabilities are wanted; the first has none.
    tokens: Vec<SettledToken>,
}

impl Echo {
    /// The `logprobs` object of prompt and answer.
    pub(crate) fn logprobs(
        &self,
        answer: &[SettledToken],
        options: &AnswerOptions,
        tokenizer: &Tokenizer,
    ) -> Value {
        let prompt = self.tokens.iter().enumerate();
        let prompt = prompt.map(|(i, t)| (t, (i > 0).then_some(t.logprob)));
        let chars = if self.tokens.is_empty() { self.text.chars().count() } else { 0 };
        let place = Place { chars, gap: 0 };
        let answer = answer.iter().map(|t| (t, Some(t.logprob)));
        let mut object = completions(prompt.chain(answer), (place, options), tokenizer);
        if options.at_commit {
            object["measured"] = "at_commit".into();
        }
        object
    }
}

impl Echo {
    /// Where the answer begins.
    pub(crate) fn end(&self, options: &AnswerOptions, tokenizer: &Tokenizer) -> Place {
        let mut place = Place::default();
        if self.tokens.is_empty() {
            place.chars = self.text.chars().count();
        }
        for token in &self.tokens {
            place.pass(token, options, tokenizer);
        }
        place
    }
}

/// A prompt as given, or the text of its ids.
pub(crate) fn text_of(given: Option<&str>, ids: &[u32], tokenizer: &Tokenizer) -> String {
    given.map_or_else(|| tokenizer.decode(ids, SpecialTokens::Include), str::to_owned)
}

/// Prompts of one request that are scored at a time: others are to have their turn.
const AT_ONCE: usize = 8;

/// Echoes of prompts; scored if `params` asks for log-probabilities.
pub(crate) async fn echoes(
    prompts: &[(String, Vec<u32>)],
    params: &RequestParams,
    wants_scores: bool,
    scorer: Scorer<'_>,
) -> Result<(Vec<Echo>, Usage), ApiError> {
    let echoes: Vec<_> =
        prompts.iter().map(|prompt| echo(prompt, params, wants_scores, scorer)).collect();
    let echoes: Vec<(Echo, Usage)> = stream::iter(echoes).buffered(AT_ONCE).try_collect().await?;
    let mut total = Usage::default();
    echoes.iter().for_each(|(_, usage)| total.merge(usage));
    Ok((echoes.into_iter().map(|(echo, _)| echo).collect(), total))
}

async fn echo(
    (text, ids): &(String, Vec<u32>),
    params: &RequestParams,
    wants_scores: bool,
    scorer: Scorer<'_>,
) -> Result<(Echo, Usage), ApiError> {
    if !wants_scores || ids.len() < 2 {
        // Nothing is run for it; it has to be a prompt all the same.
        let max_tokens = params.max_tokens.max(1);
        let infill = if params.max_tokens == 0 { Vec::new() } else { params.infill.clone() };
        let alone = RequestParams { prompt: ids.clone(), max_tokens, infill, ..params.clone() };
        GenerationRequest::new(alone, &scorer.served.limits)?;
    }
    let mut echo = Echo { text: text.clone(), tokens: Vec::new() };
    if wants_scores {
        let unscored = |id| SettledToken { id, logprob: 0.0, top: vec![], is_end: false, gap: 0 };
        echo.tokens.extend(ids.first().copied().map(unscored));
    }
    let mut total = Usage::default();
    if wants_scores && ids.len() > 1 {
        let params = RequestParams {
            prompt: ids.clone(),
            max_tokens: 0,
            task: Task::ScorePrompt,
            infill: Vec::new(),
            ..params.clone()
        };
        let (scores, usage) = scorer.score(params).await?;
        if let PromptScores::Tokens(scored) = scores {
            echo.tokens.extend(scored);
        }
        total = Usage { prompt_tokens: 0, ..usage };
    }
    Ok((echo, total))
}

/// A choice for each prompt with the estimate of its answer's likelihood.
pub(crate) async fn likelihoods(
    prompts: &[(String, Vec<u32>)],
    params: &RequestParams,
    scorer: Scorer<'_>,
) -> Result<(Vec<Value>, Usage), ApiError> {
    let score = |(_, ids): &(String, Vec<u32>)| {
        scorer.score(RequestParams { prompt: ids.clone(), ..params.clone() })
    };
    let scored: Vec<_> = prompts.iter().map(score).collect();
    let scored: Vec<(PromptScores, Usage)> =
        stream::iter(scored).buffered(AT_ONCE).try_collect().await?;
    let (mut choices, mut total) = (Vec::new(), Usage::default());
    for (index, (scores, usage)) in scored.into_iter().enumerate() {
        let PromptScores::Likelihood(found) = scores else { continue };
        // A single sample tells nothing of its error.
        let error = Some(found.standard_error).filter(|e| e.is_finite());
        choices.push(json!({
            "index": index,
            "text": "",
            "logprobs": null,
            "finish_reason": "stop",
            "likelihood": {
                "total": found.total,
                "standard_error": error,
                "samples": found.samples.len(),
            },
        }));
        total.merge(&usage);
    }
    Ok((choices, total))
}
