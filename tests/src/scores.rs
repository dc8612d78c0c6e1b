//! Running requests that only score a text.

use dfastllm_engine::{Event, Likelihood, PromptScores, RequestParams, Running, SettledToken};

use crate::engine::Served;

/// Waits for the scores; nothing may be generated before them.
fn scores_of(running: &Running) -> PromptScores {
    let mut found = None;
    loop {
        match running.events.recv().unwrap() {
            Event::Settled { tokens, .. } => assert!(tokens.is_empty()),
            Event::Scored(scores) => assert!(found.replace(scores).is_none()),
            Event::Finished { usage, .. } => {
                assert_eq!(usage.completion_tokens, 0);
                return found.unwrap();
            }
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

fn scored(served: &Served, params: impl IntoIterator<Item = RequestParams>) -> Vec<PromptScores> {
    let running: Vec<Running> = params.into_iter().map(|p| served.submit(p)).collect();
    running.iter().map(scores_of).collect()
}

/// Runs requests for likelihoods.
#[must_use]
pub fn likelihoods(
    served: &Served,
    params: impl IntoIterator<Item = RequestParams>,
) -> Vec<Likelihood> {
    let likelihood = |scores| match scores {
        PromptScores::Likelihood(likelihood) => likelihood,
        PromptScores::Tokens(_) => panic!("an estimate was asked for"),
    };
    scored(served, params).into_iter().map(likelihood).collect()
}

/// Runs requests to score prompts: all tokens but the first.
#[must_use]
pub fn tokens(
    served: &Served,
    params: impl IntoIterator<Item = RequestParams>,
) -> Vec<Vec<SettledToken>> {
    let tokens = |scores| match scores {
        PromptScores::Tokens(tokens) => tokens,
        PromptScores::Likelihood(_) => panic!("tokens were asked for"),
    };
    scored(served, params).into_iter().map(tokens).collect()
}
