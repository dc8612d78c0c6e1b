//! Choices of one HTTP request on the engine: submitted together, their events merged.

use std::pin::Pin;
use std::time::Instant;

use dfastllm_engine::{
    EngineError, Event, FinishReason, GenerationRequest, RequestParams, Running, TextAssembler,
    TraceStep, Usage,
};
use dfastllm_models::{SpecialTokens, Tokenizer};
use futures_util::stream::{AbortHandle, SelectAll, Stream, StreamExt, abortable};

use crate::convert::AnswerOptions;
use crate::metrics::{Outcome, Times};
use crate::requests::Registered;
use crate::{ApiError, AppState, ServedModel};

/// What became certain about one choice.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Update {
    /// Which choice.
    pub(crate) index: usize,
    /// New text.
    pub(crate) text: String,
    /// New token ids, the end token included.
    pub(crate) token_ids: Vec<u32>,
    /// Why it ended, if it did.
    pub(crate) finish: Option<FinishReason>,
}

type Events = Pin<Box<dyn Stream<Item = (usize, Event)> + Send>>;

/// The running choices of a request. Dropping it cancels them.
pub(crate) struct Choices {
    state: AppState,
    events: SelectAll<Events>,
    choices: Vec<Choice>,
    open: usize,
    _registered: Option<Registered>,
}

struct Choice {
    assembler: TextAssembler,
    usage: Usage,
    trace: Vec<TraceStep>,
    arrival: Instant,
    first_token: Option<Instant>,
    abort: AbortHandle,
    done: bool,
}

impl Choices {
    /// Submits every prompt `n` times; choice `i` draws with seed + `i`.
    pub(crate) fn submit(
        (state, served): (&AppState, &ServedModel),
        prompts: Vec<Vec<u32>>,
        params: &RequestParams,
        options: &AnswerOptions,
        names: Vec<String>,
    ) -> Result<Self, ApiError> {
        let asked = prompts.len().saturating_mul(options.n);
        let places = served.engine.config().max_queue;
        if asked > places {
            let message =
                format!("{asked} choices asked for at once, at most {places} find a place");
            return Err(ApiError::invalid("n", message));
        }
        let request = |prompt: &Vec<u32>, choice: u64| {
            let seed = params.seed.wrapping_add(choice);
            let params = RequestParams { prompt: prompt.clone(), seed, ..params.clone() };
            GenerationRequest::new(params, &served.limits)
        };
        let requests: Vec<Vec<GenerationRequest>> = prompts
            .iter()
            .map(|prompt| (0..options.n as u64).map(|i| request(prompt, i)).collect())
            .collect::<Result<_, _>>()?;
        // Dropped when a later prompt is refused, which cancels and counts the earlier ones.
        let mut this = Self {
            state: state.clone(),
            events: SelectAll::new(),
            choices: Vec::new(),
            open: 0,
            _registered: None,
        };
        let mut cancels = Vec::new();
        for (prompt, requests) in prompts.iter().zip(requests) {
            for running in served.engine.submit_choices(requests)? {
                cancels.push(running.cancel.clone());
                let assembler = assembler(&served.tokenizer, options);
                this.add(running, prompt.len(), params.arrival, assembler);
            }
        }
        this.open = this.choices.len();
        this._registered = Some(state.requests().register(names, cancels));
        Ok(this)
    }

    fn add(
        &mut self,
        Running { events, .. }: Running,
        prompt_tokens: usize,
        arrival: Instant,
        assembler: TextAssembler,
    ) {
        let index = self.choices.len();
        let stream = events.into_stream().map(move |event| (index, event));
        // A choice that meets a stop string gives its seat back before the others are done.
        let (stream, abort) = abortable(stream);
        self.events.push(Box::pin(stream) as Events);
        self.choices.push(Choice {
            assembler,
            usage: Usage { prompt_tokens, ..Usage::default() },
            trace: Vec::new(),
            arrival,
            first_token: None,
            abort,
            done: false,
        });
        self.state.metrics().received(prompt_tokens);
    }

    /// The next update, or `None` when every choice has ended.
    ///
    /// # Errors
    /// The engine's, for the choice it concerns; the request is over then.
    pub(crate) async fn next(&mut self) -> Result<Option<Update>, EngineError> {
        while self.open > 0 {
            let Some((index, event)) = self.events.next().await else {
                // The engine thread is gone without a word.
                return Err(EngineError::Stopped);
            };
            let choice = &mut self.choices[index];
            if choice.done {
                continue;
            }
            let update = choice.take(index, event)?;
            if let Some(reason) = update.finish {
                choice.end(&self.state, Outcome::Finished(reason));
                self.open -= 1;
            }
            return Ok(Some(update));
        }
        Ok(None)
    }

    /// What all choices took; a prompt counts once however many choices it has.
    pub(crate) fn usage(&self, n: usize) -> Usage {
        let prompts = || self.choices.iter().step_by(n.max(1));
        Usage {
            prompt_tokens: prompts().map(|c| c.usage.prompt_tokens).sum(),
            cached_tokens: prompts().map(|c| c.usage.cached_tokens).sum(),
            completion_tokens: self.choices.iter().map(|c| c.usage.completion_tokens).sum(),
            forwards: self.choices.iter().map(|c| c.usage.forwards).sum(),
        }
    }

    /// Commits of a finished choice, step by step.
    pub(crate) fn take_trace(&mut self, index: usize) -> Vec<TraceStep> {
        std::mem::take(&mut self.choices[index].trace)
    }

    pub(crate) fn len(&self) -> usize {
        self.choices.len()
    }

    /// Counts what is still running as ended by an error.
    pub(crate) fn fail(&mut self, error: &EngineError) {
        let outcome = match error {
            EngineError::Cancelled => Outcome::Aborted,
            _ => Outcome::Failed,
        };
        for choice in &mut self.choices {
            choice.end(&self.state, outcome);
        }
    }
}

impl Drop for Choices {
    fn drop(&mut self) {
        for choice in &mut self.choices {
            choice.end(&self.state, Outcome::Aborted);
        }
    }
}

impl Choice {
    fn take(&mut self, index: usize, event: Event) -> Result<Update, EngineError> {
        let mut update = Update { index, text: String::new(), token_ids: Vec::new(), finish: None };
        match event {
            Event::Settled { tokens, usage, trace } => {
                self.trace.extend(trace);
                self.first_token.get_or_insert_with(Instant::now);
                self.usage = Usage { completion_tokens: self.usage.completion_tokens, ..usage };
                for token in &tokens {
                    update.text.push_str(&self.assembler.push(token));
                    update.token_ids.push(token.id);
                    self.usage.completion_tokens += 1;
                    if self.assembler.is_stopped() {
                        update.finish = Some(FinishReason::Stop);
                        break;
                    }
                }
            }
            Event::Finished { reason, usage, trace } => {
                update.text = self.assembler.finish();
                // A stop string may be complete only with the characters that were held back.
                let stopped = self.assembler.is_stopped();
                update.finish = Some(if stopped { FinishReason::Stop } else { reason });
                self.usage = Usage { completion_tokens: self.usage.completion_tokens, ..usage };
                self.trace.extend(trace);
            }
            Event::Failed(error) => return Err(error),
        }
        Ok(update)
    }

    fn end(&mut self, state: &AppState, outcome: Outcome) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        self.abort.abort();
        let times = Times {
            total: self.arrival.elapsed(),
            first_token: self.first_token.map(|at| at - self.arrival),
        };
        state.metrics().ended(outcome, self.usage, times);
    }
}

fn assembler(tokenizer: &Tokenizer, options: &AnswerOptions) -> TextAssembler {
    let special = match options.skip_special_tokens {
        true => SpecialTokens::Skip,
        false => SpecialTokens::Include,
    };
    TextAssembler::new(tokenizer.stream(special), options.stops.clone())
}
