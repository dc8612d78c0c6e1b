//! Answers of other APIs than OpenAI's completions and chats: one text, whole or streamed, in the
//! shapes of the API the request came through.

use std::future::pending;
use std::time::Instant;

use axum::Json;
use axum::response::{IntoResponse, Response};
use dfastllm_engine::{FinishReason, Usage};
use futures_util::stream;
use serde_json::Value;

use crate::generation::Update;
use crate::openai::respond::{Answer, Prepared, next_update};
use crate::openai::streaming::event_stream;
use crate::{ApiError, AppState};

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// At an end token.
    EndToken,
    /// At this stop string.
    StopString(String),
    /// At its length.
    Length,
    /// At the time it was given.
    Time,
}

/// An answer that has ended.
#[derive(Debug)]
pub(crate) struct Answered {
    /// Its text.
    pub(crate) text: String,
    /// The choice as our own endpoint would say it, with whatever else was asked for.
    pub(crate) choice: Value,
    /// Why it ended.
    pub(crate) ending: Ending,
    /// What it took.
    pub(crate) usage: Usage,
}

/// How an API writes answers. Streams are texts of server-sent events.
pub(crate) trait Dialect: Send + 'static {
    /// The whole answer.
    fn whole(&self, prepared: &Prepared, answered: &Answered) -> Value;
    /// The beginning of a stream.
    fn start(&mut self, prepared: &Prepared) -> String;
    /// What became certain; may be nothing.
    fn update(&mut self, prepared: &Prepared, update: &Update) -> String;
    /// The end of a stream.
    fn end(&mut self, prepared: &Prepared, answered: &Answered) -> String;
    /// The end of a stream that broke.
    fn failed(&mut self, prepared: &Prepared, error: &ApiError) -> String;
    /// When the answer ends with what is there.
    fn deadline(&self) -> Option<Instant> {
        None
    }
}

/// Answers a request, or counts it as refused if it was never submitted.
pub(crate) async fn respond<D: Dialect>(
    state: &AppState,
    prepared: Result<(Prepared, D), ApiError>,
) -> Result<Response, ApiError> {
    let (prepared, dialect) = prepared.inspect_err(|_| state.metrics().refused())?;
    let mut running = Running { prepared, dialect, answer: Answer::default(), stage: Stage::Start };
    if !running.prepared.options.stream {
        while running.next().await?.is_some() {}
        let answered = running.answered();
        return Ok(Json(running.dialect.whole(&running.prepared, &answered)).into_response());
    }
    // An error before the first event still gets a status of its own.
    let first = running.next().await?;
    let start = running.dialect.start(&running.prepared);
    let start = start + &first.map(|u| running.say(&u)).unwrap_or_default();
    running.stage = Stage::Updates;
    Ok(event_stream(stream::unfold((Some(start), running), |(start, mut running)| async {
        let text = match start {
            Some(start) => Some(start),
            None => running.events().await,
        };
        text.map(|text| (text, (None, running)))
    })))
}

enum Stage {
    Start,
    Updates,
    Over,
}

struct Running<D> {
    prepared: Prepared,
    dialect: D,
    answer: Answer,
    stage: Stage,
}

impl<D: Dialect> Running<D> {
    /// The next update, or `None` once the answer or its time has ended.
    async fn next(&mut self) -> Result<Option<Update>, ApiError> {
        let deadline = self.dialect.deadline();
        let time_up = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => pending().await,
            }
        };
        let update = tokio::select! {
            biased;
            update = next_update(&mut self.prepared.choices) => update?,
            () = time_up => None,
        };
        if let Some(update) = &update {
            self.answer.add(update.clone());
        }
        Ok(update)
    }

    fn say(&mut self, update: &Update) -> String {
        self.dialect.update(&self.prepared, update)
    }

    fn answered(&mut self) -> Answered {
        let ending = match (self.answer.finish, self.prepared.choices.stop_string(0)) {
            (None, _) => Ending::Time,
            (Some(FinishReason::Length), _) => Ending::Length,
            (Some(FinishReason::Stop), Some(stop)) => Ending::StopString(stop.to_owned()),
            (Some(FinishReason::Stop), None) => Ending::EndToken,
        };
        let choice = self.answer.finish(0, &mut self.prepared);
        let usage = self.prepared.usage();
        Answered { text: self.answer.text.clone(), choice, ending, usage }
    }

    /// The next events of a stream; `None` at its end.
    async fn events(&mut self) -> Option<String> {
        if matches!(self.stage, Stage::Over) {
            return None;
        }
        loop {
            match self.next().await {
                Ok(Some(update)) => {
                    let text = self.say(&update);
                    if !text.is_empty() {
                        return Some(text);
                    }
                }
                Ok(None) => {
                    self.stage = Stage::Over;
                    let answered = self.answered();
                    return Some(self.dialect.end(&self.prepared, &answered));
                }
                Err(error) => {
                    self.stage = Stage::Over;
                    return Some(self.dialect.failed(&self.prepared, &error));
                }
            }
        }
    }
}

/// A named server-sent event.
pub(crate) fn named_event(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}
