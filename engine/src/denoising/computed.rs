//! What the pages hold, and which rows the next pass computes.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::decoding::{Cache, CacheRule, CacheView, DecodingConfig, Pass, Region};

/// What a pass is about. Positions are those of the sequence.
pub(super) struct Scene<'a> {
    /// Prompt and canvas.
    pub(super) len: usize,
    /// From the first to the last position that competes.
    pub(super) region: Range<usize>,
    /// Open positions of the region, in order.
    pub(super) open: &'a [usize],
    /// How far to the left of a position lies the row that predicts it.
    pub(super) lead: usize,
}

#[derive(Debug)]
pub(super) struct Computed {
    /// Passes since everything was computed, that one included; 0 if that never happened.
    passes: usize,
    /// Where the region began then.
    fresh_from: usize,
    /// Positions whose token has changed since they were computed.
    changed: BTreeSet<usize>,
    /// Whether the region has had no pass yet.
    begins: bool,
}

impl Computed {
    pub(super) fn nothing() -> Self {
        Self { passes: 0, fresh_from: 0, changed: BTreeSet::new(), begins: true }
    }

    /// Another region is decoded from now on.
    pub(super) fn enter_region(&mut self) {
        self.begins = true;
    }

    /// Positions have moved: nothing that was computed is where it belongs.
    pub(super) fn forget(&mut self) {
        self.begins = true;
        self.changed.clear();
    }

    /// A position has another token.
    pub(super) fn change(&mut self, position: usize) {
        self.changed.insert(position);
    }

    /// The rows of the next pass.
    pub(super) fn next_pass(
        &self,
        config: &DecodingConfig,
        rule: &dyn CacheRule,
        scene: Scene<'_>,
    ) -> Pass {
        let changed: Vec<usize> = self.changed.iter().copied().collect();
        let view = CacheView {
            len: scene.len,
            region: scene.region,
            fresh_from: self.fresh_from,
            open: scene.open,
            changed: &changed,
            begins: self.begins,
            moves: matches!(config.region, Region::Window(_)),
            lead: scene.lead,
        };
        let every = config.refresh_every.unwrap_or(usize::MAX);
        let is_due = self.passes == 0 || self.passes >= every;
        match config.cache {
            Cache::None => rule.pass(&view),
            _ if is_due => Pass::Whole { keep: true },
            _ => rule.pass(&view),
        }
    }

    /// Takes note of a pass over a region that begins at `region_start`; whether it computed
    /// everything for later passes.
    pub(super) fn note(&mut self, pass: &Pass, region_start: usize) -> bool {
        self.begins = false;
        match pass {
            Pass::Whole { keep } => {
                self.fresh_from = region_start;
                self.changed.clear();
                self.passes = 1;
                *keep
            }
            Pass::Part { rows, .. } => {
                self.changed.retain(|p| rows.binary_search(p).is_err());
                self.passes += 1;
                false
            }
        }
    }
}
