//! Keeps a number of requests running and notes when their tokens come.

use std::time::{Duration, Instant};

use dfastllm_engine::{EngineHandle, Event, GenerationRequest, Running, Usage};

use crate::cli::Failure;

/// How often events are looked for: what a time is exact to.
const POLL: Duration = Duration::from_micros(300);

/// One request as its reader saw it.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) submitted: Instant,
    /// When tokens came.
    pub(super) tokens_at: Vec<Instant>,
    pub(super) usage: Usage,
}

impl Sample {
    /// Seconds to the first token.
    pub(super) fn first_token(&self) -> Option<f64> {
        self.tokens_at.first().map(|at| (*at - self.submitted).as_secs_f64())
    }

    /// Seconds between tokens, with the moment each wait ended.
    pub(super) fn gaps(&self) -> impl Iterator<Item = (Instant, f64)> + '_ {
        self.tokens_at.windows(2).map(|pair| (pair[1], (pair[1] - pair[0]).as_secs_f64()))
    }
}

/// A request that runs.
pub(super) struct Watched {
    running: Running,
    pub(super) sample: Sample,
    pub(super) is_done: bool,
}

impl Watched {
    pub(super) fn submit(
        engine: &EngineHandle,
        request: GenerationRequest,
    ) -> Result<Self, Failure> {
        Ok(Self::submit_all(engine, vec![request])?.remove(0))
    }

    /// Submits requests that arrive as one.
    fn submit_all(
        engine: &EngineHandle,
        requests: Vec<GenerationRequest>,
    ) -> Result<Vec<Self>, Failure> {
        let submitted = Instant::now();
        let running =
            engine.submit_choices(requests).map_err(|e| Failure::failed(e.to_string()))?;
        let watched = |running| {
            let sample = Sample { submitted, tokens_at: Vec::new(), usage: Usage::default() };
            Self { running, sample, is_done: false }
        };
        Ok(running.into_iter().map(watched).collect())
    }

    /// Takes what has happened since the last look.
    pub(super) fn look(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        loop {
            match self.running.events.try_recv() {
                Ok(Event::Settled { usage, .. }) => {
                    self.sample.tokens_at.push(now);
                    self.sample.usage = usage;
                }
                Ok(Event::Scored(_)) => {}
                Ok(Event::Finished { usage, .. }) => {
                    self.sample.usage = usage;
                    self.is_done = true;
                }
                Ok(Event::Failed(error)) => return Err(Failure::failed(error.to_string())),
                Err(_) if self.is_done || !self.running.events.is_disconnected() => return Ok(()),
                Err(_) => return Err(Failure::failed("the engine stopped")),
            }
        }
    }
}

/// Runs all requests, `concurrency` at a time.
pub(super) fn drive(
    engine: &EngineHandle,
    requests: Vec<GenerationRequest>,
    concurrency: usize,
) -> Result<Vec<Sample>, Failure> {
    let mut requests = requests.into_iter();
    let first = requests.by_ref().take(concurrency).collect();
    let (mut watched, mut samples) = (Watched::submit_all(engine, first)?, Vec::new());
    loop {
        while watched.len() < concurrency {
            let Some(request) = requests.next() else { break };
            watched.push(Watched::submit(engine, request)?);
        }
        if watched.is_empty() {
            return Ok(samples);
        }
        watch(&mut watched)?;
        let (done, open) = watched.into_iter().partition(|w| w.is_done);
        watched = open;
        samples.extend(Vec::into_iter(done).map(|w| w.sample));
    }
}

/// Waits a moment and looks at all of them.
#[expect(
    clippy::disallowed_methods,
    reason = "looking now and then disturbs what is measured less than waking for every event"
)]
pub(super) fn watch(watched: &mut [Watched]) -> Result<(), Failure> {
    std::thread::sleep(POLL);
    watched.iter_mut().try_for_each(Watched::look)
}
