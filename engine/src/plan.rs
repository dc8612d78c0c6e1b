//! What one request wants from a step, as plain data.

use std::ops::Range;

use dfastllm_models::Attend;
use dfastllm_models::ops::{RowParams, RowScore};

use crate::{Change, FinishReason, PromptScores, SettledToken, TraceStep, Usage};

/// Which of an engine's models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// The one that answers.
    Main,
    /// The causal one that checks what the main one drafts.
    Verifier,
}

/// Rows of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SpanPlan {
    pub(crate) tokens: Vec<u32>,
    /// Position of each, in order.
    pub(crate) positions: Vec<usize>,
    pub(crate) attend: Attend,
    /// Whether keys and values are kept in the sequence's pages.
    pub(crate) write: bool,
    /// Positions read from the pages besides its own.
    pub(crate) visible: Range<usize>,
    /// Where the sequence's pages begin among those of its request.
    pub(crate) first_page: usize,
}

impl SpanPlan {
    /// A whole sequence that keeps nothing.
    pub(crate) fn whole(tokens: Vec<u32>, attend: Attend) -> Self {
        let positions = (0..tokens.len()).collect();
        Self { tokens, positions, attend, write: false, visible: 0..0, first_page: 0 }
    }
}

/// What a prediction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be chosen from.
    Choose,
    /// Whether a committed token still stands.
    Recheck,
    /// Whether the answer ends here.
    Tail,
    /// What the exact pass says where another decides.
    Audit,
}

/// A prediction to score.
#[derive(Debug, Clone)]
pub(crate) struct Want {
    /// Span of the plan that gives the row.
    pub(crate) span: usize,
    /// The position predicted.
    pub(crate) position: usize,
    /// How; its row and guidance row are set by the runner.
    pub(crate) params: RowParams,
    /// Span that guides it, and by which scale.
    pub(crate) guidance: Option<(usize, f32)>,
    pub(crate) purpose: Purpose,
}

/// One request's share of a step.
#[derive(Debug, Clone)]
pub(crate) struct StepPlan {
    pub(crate) model: Which,
    pub(crate) spans: Vec<SpanPlan>,
    pub(crate) wants: Vec<Want>,
    /// Whether the head is computed for rows nobody asks for, too.
    pub(crate) every_head_row: bool,
}

impl StepPlan {
    /// Rows it adds to the pass.
    pub(crate) fn rows(&self) -> usize {
        self.spans.iter().map(|s| s.tokens.len()).sum()
    }

    /// Rows the head is computed for.
    pub(crate) fn head_rows(&self) -> usize {
        if self.every_head_row {
            return self.rows();
        }
        self.wants.iter().map(|w| 1 + usize::from(w.guidance.is_some())).sum()
    }
}

/// Why a request cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Values that are not finite reached a row whose token was to be used.
    NotFinite,
    /// The answer's structure cannot be followed any further.
    Structure(String),
}

/// [`Fault::NotFinite`] if one of the scores is.
pub(crate) fn check_finite(scores: &[RowScore]) -> Result<(), Fault> {
    if scores.iter().all(|s| s.finite) { Ok(()) } else { Err(Fault::NotFinite) }
}

/// How a kind of request turns steps into tokens.
pub(crate) trait Generation: Send {
    /// Prompt and answer so far, if its keys and values depend on what comes before only and may
    /// therefore be shared; `None` if it keeps none, or none that anyone else could use.
    fn causal_tokens(&self) -> Option<&[u32]> {
        None
    }

    /// Pages of its own that it needs from start to end, if it is not causal.
    fn own_pages(&self) -> usize {
        0
    }

    /// Keys and values of the first `cached` positions are in its pages: it got its seat, or, with
    /// 0, lost it.
    fn start(&mut self, _cached: usize) {}

    /// Positions whose keys and values are in its pages.
    fn cached(&self) -> usize {
        0
    }

    /// Decides on the next pass; the positions it will write beyond pages it has. Once before
    /// [`Generation::plan`].
    fn writes(&mut self) -> Range<usize> {
        0..0
    }

    /// What it wants next in at most `budget` rows, or more if it cannot be cut; `None` if the
    /// budget does not do. Called again with the same answer until [`Generation::settle`].
    fn plan(&mut self, budget: usize) -> Option<StepPlan>;

    /// Whether its next rows come with a token of its own (decode, denoising), not prompt reading.
    fn is_decoding(&self) -> bool {
        true
    }

    /// Takes the scores of the planned wants, in order.
    fn settle(&mut self, plan: &StepPlan, scores: &[RowScore]) -> Result<(), Fault>;

    /// Tokens that became final since the last call.
    fn take_settled(&mut self) -> Vec<SettledToken>;

    /// The end, once reached.
    fn finish(&self) -> Option<FinishReason>;

    /// Adds what it took so far to `usage`.
    fn count(&self, usage: &mut Usage);

    /// Commits step by step, if asked for.
    fn take_trace(&mut self) -> Vec<TraceStep> {
        Vec::new()
    }

    /// Whether positions have changed that nobody was told of.
    fn has_changes(&self) -> bool {
        false
    }

    /// Changed positions, if asked for.
    fn take_changes(&mut self) -> Vec<Change> {
        Vec::new()
    }

    /// Scores of a given text, at the end of a request that asked for them.
    fn take_scores(&mut self) -> Option<PromptScores> {
        None
    }

    /// Tokens drafted so far, and how many of them were right.
    fn drafts(&self) -> (usize, usize) {
        (0, 0)
    }
}
