//! Random traffic through the scheduler with a scripted model, whose pool remembers for every slot
//! which text led to it: a page leaked, overwritten or shared wrongly is seen by whoever reads it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use dfastllm_models::ops::RowScore;
use dfastllm_models::{Alignment, PAGE_SIZE};
use proptest::prelude::*;

use crate::batch::{Batch, Step};
use crate::handle::{Cancel, Submission};
use crate::plan::StepPlan;
use crate::stats::EngineStats;
use crate::{EngineConfig, EngineError, Event, GenerationRequest, ModelLimits, RequestParams};

/// Few tokens, so that texts meet and repeat themselves.
const VOCAB: u32 = 6;
const MAX_LEN: usize = 96;
const END: u32 = 5;

/// Stands for a text: two texts have the same only if they are the same.
type Text = u64;

fn extend(text: Text, token: u32) -> Text {
    (text ^ u64::from(token + 1)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

/// What the scripted model says after a text: often what it said before, so that drafts succeed.
fn next(text: Text, last: u32) -> u32 {
    if text.is_multiple_of(4) { (text >> 32) as u32 % VOCAB } else { (last + 1) % (VOCAB - 1) }
}

/// The answer to a prompt, from the model alone.
fn alone(prompt: &[u32], max_tokens: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    while tokens.len() < prompt.len() + max_tokens {
        let text = tokens.iter().fold(0, |text, &t| extend(text, t));
        let id = next(text, tokens[tokens.len() - 1]);
        tokens.push(id);
        if id == END {
            break;
        }
    }
    tokens.split_off(prompt.len())
}

/// Keys and values of every slot: its token, and the text up to and with it.
struct ScriptedDevice {
    slots: HashMap<usize, (Text, u32)>,
}

fn slot(pages: &[u32], position: usize) -> usize {
    pages[position / PAGE_SIZE] as usize * PAGE_SIZE + position % PAGE_SIZE
}

impl ScriptedDevice {
    fn compute(&mut self, batch: &Batch, step: &Step) -> Vec<Vec<RowScore>> {
        for copy in &step.copies {
            for i in 0..PAGE_SIZE {
                let [from, to] = [copy.from, copy.to].map(|p| p as usize * PAGE_SIZE + i);
                if let Some(&entry) = self.slots.get(&from) {
                    self.slots.insert(to, entry);
                }
            }
        }
        // As on a device: all rows are written before any is read.
        for (id, plan) in &step.plans {
            let (pages, span) = (batch.pages_of(*id), &plan.spans[0]);
            let mut text = match span.positions[0] {
                0 => 0,
                first => self.slots[&slot(pages, first - 1)].0,
            };
            for (i, &token) in span.tokens.iter().enumerate() {
                text = extend(text, token);
                self.slots.insert(slot(pages, span.positions[i]), (text, token));
            }
        }
        let read = |(id, plan): &(u64, StepPlan)| self.read(batch.pages_of(*id), plan);
        step.plans.iter().map(read).collect()
    }

    /// Reads all positions a span sees, each of which has to follow from the one before.
    fn read(&self, pages: &[u32], plan: &StepPlan) -> Vec<RowScore> {
        let span = &plan.spans[0];
        let mut text = 0;
        let texts: Vec<(Text, u32)> = (0..span.positions[0] + span.tokens.len())
            .map(|position| {
                let (stored, token) = self.slots[&slot(pages, position)];
                text = extend(text, token);
                assert_eq!(stored, text, "position {position} holds another text's");
                (text, token)
            })
            .collect();
        let score = |position: usize| {
            let (text, last) = texts[position - 1];
            scored(next(text, last))
        };
        plan.wants.iter().map(|want| score(want.position)).collect()
    }
}

fn scored(id: u32) -> RowScore {
    RowScore {
        id,
        confidence: 1.0,
        entropy: 0.0,
        margin: 1.0,
        logprob: 0.0,
        finite: true,
        top: Vec::new(),
        mass: 0.0,
        divergence: None,
        earned: None,
        row: None,
    }
}

/// One request of the traffic.
#[derive(Debug, Clone)]
struct Arrival {
    /// Step at which it arrives.
    step: usize,
    prompt: Vec<u32>,
    max_tokens: usize,
    choices: usize,
    priority: i64,
    max_draft: usize,
    /// Steps after which it is cancelled.
    patience: Option<usize>,
}

fn arrival() -> impl Strategy<Value = Arrival> {
    // Prompts are beginnings of two texts, with an end of their own.
    let prompt = (0u32..2, 0usize..50, prop::collection::vec(0..VOCAB - 1, 1..6)).prop_map(
        |(story, shared, own)| {
            let shared = (0..shared as u32).map(|i| (i * (story + 2) / 3) % (VOCAB - 1));
            shared.chain(own).collect::<Vec<u32>>()
        },
    );
    let patience = prop::option::weighted(0.2, 0usize..40);
    (0usize..60, prompt, 1usize..40, 1usize..4, -1i64..2, 0usize..6, patience).prop_map(
        |(step, prompt, max_tokens, choices, priority, max_draft, patience)| Arrival {
            step,
            prompt,
            max_tokens,
            choices,
            priority,
            max_draft,
            patience,
        },
    )
}

struct Client {
    arrival: Arrival,
    events: flume::Receiver<Event>,
    cancel: Cancel,
    tokens: Vec<u32>,
    ended: Option<Result<(), EngineError>>,
}

impl Client {
    /// Reads its events and checks them.
    fn read(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            assert!(self.ended.is_none(), "an event after the end");
            match event {
                Event::Settled { tokens, .. } => self.tokens.extend(tokens.iter().map(|t| t.id)),
                Event::Finished { .. } => self.ended = Some(Ok(())),
                Event::Scored(_) => panic!("nobody asked for scores"),
                Event::Failed(error) => self.ended = Some(Err(error)),
            }
        }
    }

    fn check(&self) {
        let whole = alone(&self.arrival.prompt, self.arrival.max_tokens);
        match &self.ended {
            Some(Ok(())) => assert_eq!(self.tokens, whole),
            Some(Err(EngineError::Cancelled)) if self.arrival.patience.is_some() => {
                assert!(whole.starts_with(&self.tokens));
            }
            other => panic!("ended as {other:?}"),
        }
    }
}

fn params(arrival: &Arrival) -> RequestParams {
    RequestParams {
        priority: arrival.priority,
        max_draft: arrival.max_draft,
        ..RequestParams::new(arrival.prompt.clone(), arrival.max_tokens)
    }
}

fn submit(batch: &mut Batch, stats: &EngineStats, arrival: &Arrival, id: u64) -> Vec<Client> {
    let limits = ModelLimits {
        vocab: VOCAB as usize,
        max_model_len: MAX_LEN,
        end_ids: vec![END],
        mask_id: None,
        reference: None,
        alignment: Alignment::Next,
        has_verifier: false,
    };
    let choices = 0..arrival.choices as u64;
    let client = |choice: u64| {
        let request = GenerationRequest::new(params(arrival), &limits).unwrap();
        let (sender, events) = flume::bounded(arrival.max_tokens + 1);
        let cancel = Cancel::default();
        stats.queued.fetch_add(1, Relaxed);
        batch.accept(Submission {
            id: id + choice,
            leader: (choice > 0).then_some(id),
            events: sender,
            cancel: cancel.clone(),
            request,
        });
        let arrival = arrival.clone();
        Client { arrival, events, cancel, tokens: Vec::new(), ended: None }
    };
    choices.map(client).collect()
}

/// Runs traffic to its end; returns the preemptions and cached prompt tokens it saw.
fn simulate(mut arrivals: Vec<Arrival>, seats: usize, pages: usize, budget: usize) -> (u64, u64) {
    let config = EngineConfig {
        warm_up: false,
        max_num_seqs: seats,
        max_num_batched_tokens: budget,
        max_queue: 1000,
        kv_cache_tokens: pages * PAGE_SIZE,
    };
    let stats = Arc::new(EngineStats::default());
    let mut batch = Batch::new(config, stats.clone());
    let mut device = ScriptedDevice { slots: HashMap::new() };
    let (mut clients, mut next_id) = (Vec::<Client>::new(), 1);
    arrivals.sort_by_key(|a| a.step);
    // Far more steps than all requests one after the other would take.
    let limit = 60 + arrivals.iter().map(|a| a.choices * (a.max_tokens + 60)).sum::<usize>();
    for now in 0..=limit {
        for arrival in arrivals.iter().filter(|a| a.step == now) {
            clients.extend(submit(&mut batch, &stats, arrival, next_id));
            next_id += arrival.choices as u64;
        }
        for client in &clients {
            if client.arrival.patience.is_some_and(|p| client.arrival.step + p <= now) {
                client.cancel.request();
            }
        }
        batch.sweep(Instant::now());
        let step = batch.plan();
        assert!(step.plans.is_empty() == batch.is_idle(), "work is left and nobody is served");
        if !step.plans.is_empty() {
            let scores = device.compute(&batch, &step);
            batch.settle(&step, scores, Duration::from_millis(step.plans.len() as u64));
        }
        batch.publish();
        clients.iter_mut().for_each(Client::read);
        let snapshot = stats.snapshot();
        assert!(snapshot.running <= seats);
        if batch.is_idle() && now > 60 {
            break;
        }
    }
    assert!(batch.is_idle(), "not done after {limit} steps");
    clients.iter().for_each(Client::check);
    let snapshot = stats.snapshot();
    assert_eq!((snapshot.queued, snapshot.running), (0, 0));
    assert!(snapshot.kv_usage.abs() < 1e-9, "{} of the pages are in use", snapshot.kv_usage);
    (snapshot.totals.preemptions, snapshot.totals.prefix_hits)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Every request ends exactly once, with the answer it has alone, in bounded time, and no page
    /// stays behind.
    #[test]
    fn traffic_of_any_kind_ends_well(
        arrivals in prop::collection::vec(arrival(), 1..25),
        seats in 1usize..8,
        pages in 6usize..24,
        budget in 1usize..40,
    ) {
        simulate(arrivals, seats, pages, budget);
    }
}

#[test]
fn the_traffic_meets_what_it_is_meant_to() {
    let arrival = |i: usize| Arrival {
        step: i,
        prompt: (0..30).map(|i| i % 5).chain([i as u32 % 5]).collect(),
        max_tokens: 39,
        choices: 2,
        priority: 0,
        max_draft: 4,
        patience: None,
    };
    let (preemptions, hits) = simulate((0..12).map(arrival).collect(), 6, 12, 64);
    assert!(preemptions > 0 && hits > 0, "{preemptions} {hits}");
}
