//! Choices of one HTTP request on the engine: submitted together, their events merged.

use std::pin::Pin;
use std::time::Instant;

use dfastllm_engine::{
    Change, EngineError, Event, FinishReason, GenerationRequest, PromptScores, RequestParams,
    Running, SettledToken, TextAssembler, TraceStep, Usage,
};
use dfastllm_models::{Guide, SpecialTokens, Tokenizer};
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
    /// New tokens, the end token included.
    pub(crate) tokens: Vec<SettledToken>,
    /// Positions that changed, for someone who watches.
    pub(crate) changes: Vec<Change>,
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
    /// Assemblers of the gaps to come, each with the text before its gap.
    later: std::vec::IntoIter<(String, TextAssembler)>,
    /// Texts of the gaps so far.
    gaps: Vec<String>,
    usage: Usage,
    trace: Vec<TraceStep>,
    arrival: Instant,
    first_token: Option<Instant>,
    abort: AbortHandle,
    done: bool,
}

impl Choices {
    /// Submits every prompt `best_of` times; choice `i` draws with seed + `i`.
    pub(crate) fn submit(
        (state, served): (&AppState, &ServedModel),
        prompts: Vec<Vec<u32>>,
        params: &RequestParams,
        options: &AnswerOptions,
        names: Vec<String>,
    ) -> Result<Self, ApiError> {
        let asked = prompts.len().saturating_mul(options.best_of);
        let places = served.engine.config().max_queue;
        if asked > places {
            let message =
                format!("{asked} choices asked for at once, at most {places} find a place");
            return Err(ApiError::invalid("n", message));
        }
        let request = |prompt: &Vec<u32>, choice: u64| {
            let seed = params.seed.wrapping_add(choice);
            let structure = params.structure.as_ref().map(Guide::fork);
            let prompt = prompt.clone();
            let params = RequestParams { prompt, seed, structure, ..params.clone() };
            GenerationRequest::new(params, &served.limits)
        };
        let requests: Vec<Vec<GenerationRequest>> = prompts
            .iter()
            .map(|prompt| (0..options.best_of as u64).map(|i| request(prompt, i)).collect())
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
                let new = || assembler(&served.tokenizer, options);
                let later = options.between.iter().map(|text| (text.clone(), new())).collect();
                this.add(running, prompt.len(), params.arrival, (new(), later));
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
        (assembler, later): (TextAssembler, Vec<(String, TextAssembler)>),
    ) {
        let index = self.choices.len();
        let stream = events.into_stream().map(move |event| (index, event));
        // A choice that meets a stop string gives its seat back before the others are done.
        let (stream, abort) = abortable(stream);
        self.events.push(Box::pin(stream) as Events);
        self.choices.push(Choice {
            assembler,
            later: later.into_iter(),
            gaps: vec![String::new()],
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
        let mut total = Usage::default();
        for (index, choice) in self.choices.iter().enumerate() {
            let mut usage = choice.usage;
            if !index.is_multiple_of(n.max(1)) {
                (usage.prompt_tokens, usage.cached_tokens) = (0, 0);
            }
            total.merge(&usage);
        }
        total
    }

    /// Commits of a finished choice, step by step.
    pub(crate) fn take_trace(&mut self, index: usize) -> Vec<TraceStep> {
        std::mem::take(&mut self.choices[index].trace)
    }

    /// Texts of a finished choice's gaps, without what stands between them.
    pub(crate) fn take_gaps(&mut self, index: usize) -> Vec<String> {
        let choice = &mut self.choices[index];
        choice.gaps.resize(choice.gaps.len() + choice.later.len(), String::new());
        std::mem::take(&mut choice.gaps)
    }

    /// The stop string that ended a choice, if one did.
    pub(crate) fn stop_string(&self, index: usize) -> Option<&str> {
        self.choices[index].assembler.stopped_at()
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
        let mut update = Update {
            index,
            text: String::new(),
            tokens: Vec::new(),
            changes: Vec::new(),
            finish: None,
        };
        match event {
            Event::Settled { tokens, changes, usage, trace } => {
                self.trace.extend(trace);
                update.changes = changes;
                self.usage = Usage { completion_tokens: self.usage.completion_tokens, ..usage };
                for token in tokens {
                    self.first_token.get_or_insert_with(Instant::now);
                    self.enter(token.gap, &mut update.text);
                    if !self.assembler.is_stopped() {
                        let text = self.assembler.push(&token);
                        self.say(&text, &mut update.text);
                        update.tokens.push(token);
                        self.usage.completion_tokens += 1;
                    }
                    if self.assembler.is_stopped() {
                        update.finish = Some(FinishReason::Stop);
                        break;
                    }
                }
            }
            // Asked for by `score` only.
            Event::Scored(_) => {}
            Event::Finished { reason, usage, trace } => {
                self.enter(usize::MAX, &mut update.text);
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

    /// Ends the texts of gaps before this one, each with the text that follows it, unless a stop
    /// string comes first.
    fn enter(&mut self, gap: usize, text: &mut String) {
        while self.gaps.len() <= gap {
            let held = self.assembler.finish();
            self.say(&held, text);
            if self.assembler.is_stopped() {
                return;
            }
            let Some((between, next)) = self.later.next() else { return };
            text.push_str(&between);
            self.assembler = next;
            self.gaps.push(String::new());
        }
    }

    /// New text of the gap that is being filled.
    fn say(&mut self, new: &str, text: &mut String) {
        text.push_str(new);
        if let Some(gap) = self.gaps.last_mut() {
            gap.push_str(new);
        }
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

/// Runs requests that only score their prompts.
#[derive(Clone, Copy)]
pub(crate) struct Scorer<'a> {
    pub(crate) state: &'a AppState,
    pub(crate) served: &'a ServedModel,
    /// What they may be cancelled by.
    pub(crate) names: &'a [String],
}

impl Scorer<'_> {
    /// Scores of a prompt, and what they took.
    ///
    /// # Errors
    /// The engine's, or that the request cannot be made.
    pub(crate) async fn score(
        self,
        params: RequestParams,
    ) -> Result<(PromptScores, Usage), ApiError> {
        let request = GenerationRequest::new(params, &self.served.limits)?;
        let running = self.served.engine.submit(request)?;
        let cancels = vec![running.cancel.clone()];
        let _registered = self.state.requests().register(self.names.to_vec(), cancels);
        let mut scores = PromptScores::Tokens(Vec::new());
        loop {
            match running.events.recv_async().await {
                Ok(Event::Scored(found)) => scores = found,
                Ok(Event::Finished { usage, .. }) => return Ok((scores, usage)),
                Ok(Event::Failed(error)) => return Err(error.into()),
                Ok(Event::Settled { .. }) => {}
                Err(_) => return Err(EngineError::Stopped.into()),
            }
        }
    }
}

fn assembler(tokenizer: &Tokenizer, options: &AnswerOptions) -> TextAssembler {
    let special = match options.skip_special_tokens {
        true => SpecialTokens::Skip,
        false => SpecialTokens::Include,
    };
    TextAssembler::new(tokenizer.stream(special), options.stops.clone())
        .keeping_stop(options.keeps_stop)
}
