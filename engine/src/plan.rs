//! What one request wants from a step, as plain data.

use std::ops::Range;

use dfastllm_models::Attend;
use dfastllm_models::ops::{RowParams, RowScore};

/// Consecutive positions of one sequence to feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SpanPlan {
    /// Tokens from `first_position` on.
    pub(crate) tokens: Vec<u32>,
    pub(crate) first_position: usize,
    pub(crate) attend: Attend,
    /// Whether keys and values are kept in the sequence's pages.
    pub(crate) write: bool,
    /// Positions `0..cached` are read from the pages.
    pub(crate) cached: usize,
}

/// A prediction to score.
#[derive(Debug, Clone)]
pub(crate) struct Want {
    /// The position predicted.
    pub(crate) position: usize,
    /// How; its row and guidance row are set by the runner.
    pub(crate) params: RowParams,
    /// Scale by which the second span of the plan guides the first.
    pub(crate) guidance_scale: Option<f32>,
}

/// One request's share of a step: a span, or two where the second guides the first.
#[derive(Debug, Clone)]
pub(crate) struct StepPlan {
    pub(crate) spans: Vec<SpanPlan>,
    pub(crate) wants: Vec<Want>,
}

impl StepPlan {
    /// Rows it adds to the pass.
    pub(crate) fn rows(&self) -> usize {
        self.spans.iter().map(|s| s.tokens.len()).sum()
    }
}

/// Values that are not finite reached a row whose token was to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotFinite;

/// How a kind of request turns steps into tokens.
pub(crate) trait Generation: Send {
    /// Prompt and answer so far, if its keys and values depend on what comes before only and may
    /// therefore be shared; `None` if it keeps none.
    fn causal_tokens(&self) -> Option<&[u32]>;

    /// Keys and values of the first `cached` positions are in its pages: it got its seat, or, with
    /// 0, lost it.
    fn start(&mut self, cached: usize);

    /// Positions whose keys and values are in its pages.
    fn cached(&self) -> usize;

    /// Decides on the next pass; the positions it will write. Once before [`Generation::plan`].
    fn writes(&mut self) -> Range<usize>;

    /// What it wants next in at most `budget` rows, or more if it cannot be cut; `None` if the
    /// budget does not do. Called again with the same answer until [`Generation::settle`].
    fn plan(&mut self, budget: usize) -> Option<StepPlan>;

    /// Whether its next rows come with a token of its own (decode, denoising), not prompt reading.
    fn is_decoding(&self) -> bool;

    /// Takes the scores of the planned wants, in order.
    fn settle(&mut self, plan: &StepPlan, scores: &[RowScore]) -> Result<(), NotFinite>;

    /// Tokens that became final since the last call.
    fn take_settled(&mut self) -> Vec<crate::SettledToken>;

    /// The end, once reached.
    fn finish(&self) -> Option<crate::FinishReason>;

    /// Passes whose logits it used.
    fn forwards(&self) -> usize;

    /// Commits step by step, if asked for.
    fn take_trace(&mut self) -> Vec<crate::TraceStep>;

    /// Tokens drafted so far, and how many of them were right.
    fn drafts(&self) -> (usize, usize) {
        (0, 0)
    }
}
