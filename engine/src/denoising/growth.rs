//! Canvases that do not have their whole length from the start.

use std::sync::Arc;

use dfastllm_models::ops::RowScore;

use super::{Denoising, Scored};
use crate::InfillPart;
use crate::decoding::{Candidate, Canvas as Kind, DecodingConfig, HeadRows, Region};
use crate::plan::{Purpose, SpanPlan, StepPlan, Which};

/// Settings of DAEDAL (arXiv 2508.00819): positions at the start, looked at for the end, added at
/// once; and the probabilities that decide.
const INITIAL: usize = 64;
const TAIL: usize = 32;
const EXPANSION: usize = 8;
const LONG_ENOUGH: f64 = 0.5;
const SURELY_LONG_ENOUGH: f64 = 0.9;
const LOW_CONFIDENCE: f64 = 0.1;

/// Where a canvas that sizes itself stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Growth {
    /// DAEDAL's first stage: the length is being found.
    Sizing,
    /// Its second: the canvas may still grow where the model is unsure.
    Expanding,
}

impl Growth {
    /// For a canvas that may grow by `left` positions.
    pub(super) fn new(config: &DecodingConfig, left: usize) -> Option<Self> {
        (config.canvas == Kind::Daedal && left > 0).then_some(Self::Sizing)
    }
}

/// What of the canvas is there from the start.
pub(super) fn first_parts(config: &DecodingConfig, parts: &[InfillPart]) -> Vec<InfillPart> {
    let most = match (config.canvas, config.region) {
        (Kind::Fixed, _) => usize::MAX,
        (Kind::Grow, Region::Blocks(size)) => size,
        (Kind::Grow, _) => usize::MAX,
        (Kind::Daedal, Region::Blocks(size)) => INITIAL.max(size),
        (Kind::Daedal, _) => INITIAL,
    };
    let shorten = |part: &InfillPart| match part {
        &InfillPart::Gap { len, is_free } => InfillPart::Gap { len: len.min(most), is_free },
        given => given.clone(),
    };
    parts.iter().map(shorten).collect()
}

impl Denoising {
    /// Adds a block where the canvas grows by blocks and the answer has not ended.
    pub(super) fn grow(&mut self) -> bool {
        let left = self.length.saturating_sub(self.canvas.slots());
        let (Kind::Grow, Region::Blocks(size)) = (self.config.canvas, self.config.region) else {
            return false;
        };
        if left == 0 || (self.stops_early() && self.canvas.has_ended()) {
            return false;
        }
        self.canvas.append(size.min(left));
        self.next_block()
    }

    pub(super) fn is_sizing(&self) -> bool {
        self.growth == Some(Growth::Sizing)
    }

    /// Positions at the end of the canvas that tell whether the answer ends.
    fn tail(&self) -> impl Iterator<Item = usize> + use<> {
        let len = self.canvas.tokens().len() - self.canvas.prompt_len();
        len.saturating_sub(TAIL)..len
    }

    pub(super) fn size_plan(&self) -> StepPlan {
        let span =
            SpanPlan::whole(self.canvas.tokens().to_vec(), dfastllm_models::Attend::Bidirectional);
        let mut plan = StepPlan {
            model: Which::Main,
            spans: vec![span],
            wants: Vec::new(),
            every_head_row: self.config.heads == HeadRows::Every,
        };
        self.push_tail(&mut plan, 0);
        plan
    }

    /// Asks for the end's probability at the tail, as far as the pass computes it.
    pub(super) fn add_tail(&self, plan: &mut StepPlan) {
        if self.growth == Some(Growth::Expanding) {
            let region = self.region().first().copied().unwrap_or(0);
            self.push_tail(plan, region);
        }
    }

    fn push_tail(&self, plan: &mut StepPlan, from: usize) {
        let ends: Arc<[u32]> = self.request.end_ids.clone();
        for position in self.tail().filter(|&p| p >= from) {
            let mut want = self.want(position, Purpose::Tail);
            want.guidance = None;
            want.params.credit = None;
            want.params.allowed = self.request.allowed.clone();
            want.params.keep_row = false;
            want.params.previous = None;
            want.params.mass_of = ends.clone();
            plan.wants.push(want);
        }
    }

    /// Appends positions while the end is not in sight.
    pub(super) fn settle_size(&mut self, scores: &[RowScore]) {
        let left = self.length.saturating_sub(self.canvas.slots());
        if left == 0 || mean_mass(scores.iter()) >= LONG_ENOUGH {
            self.growth = Some(Growth::Expanding);
            return;
        }
        self.canvas.append(EXPANSION.min(left));
    }

    /// Makes room at the least sure position while the end is not surely in sight.
    pub(super) fn expand(&mut self, scored: &Scored<'_>, open: &[Candidate]) {
        if self.growth != Some(Growth::Expanding) {
            return;
        }
        let tail = scored.iter().filter(|(want, _)| want.purpose == Purpose::Tail);
        let left = self.length.saturating_sub(self.canvas.slots());
        if left == 0 || mean_mass(tail.map(|(_, score)| *score)) >= SURELY_LONG_ENOUGH {
            return;
        }
        let unsure = open.iter().filter(|c| c.confidence < LOW_CONFIDENCE);
        let Some(least) = unsure.min_by(|a, b| a.confidence.total_cmp(&b.confidence)) else {
            return;
        };
        // One position becomes eight.
        let added = (EXPANSION - 1).min(left);
        self.canvas.insert_after(least.position, added);
        self.block.slots.end += added;
        self.memory.clear();
        // What lies behind has moved.
        self.computed.forget();
    }
}

fn mean_mass<'a>(scores: impl Iterator<Item = &'a RowScore>) -> f64 {
    let (sum, count) = scores.fold((0.0, 0), |(sum, count), s| (sum + s.mass, count + 1));
    if count == 0 { 1.0 } else { sum / f64::from(count) }
}
