//! Which rows a pass computes, and which it reads from the pages.

use std::ops::Range;

use super::Cache;

/// What a cache rule may know about the next pass. Positions are those of the sequence.
#[derive(Debug, Clone)]
pub struct CacheView<'a> {
    /// Prompt and canvas.
    pub len: usize,
    /// From the first to the last position that competes.
    pub region: Range<usize>,
    /// Where the region began when everything was last computed.
    pub fresh_from: usize,
    /// Open positions of the region, in order.
    pub open: &'a [usize],
    /// Positions whose token has changed since they were last computed, in order.
    pub changed: &'a [usize],
    /// Whether no pass has been made for this region yet.
    pub begins: bool,
    /// Whether the region moves on while what lies outside it stays cached, as a window does.
    pub moves: bool,
    /// How far to the left of a position lies the row that predicts it.
    pub lead: usize,
}

/// The rows of a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pass {
    /// All of them.
    Whole {
        /// Whether their keys and values are kept.
        keep: bool,
    },
    /// Some of them.
    Part {
        /// Their positions, in order.
        rows: Vec<usize>,
        /// Whether their keys and values are kept.
        keep: bool,
        /// Cached positions they see besides each other.
        visible: Range<usize>,
    },
}

/// Decides on the rows of a pass. The answer depends on the view alone.
pub trait CacheRule: Send {
    /// The next pass.
    fn pass(&self, view: &CacheView<'_>) -> Pass;
}

/// The rule of a knob value.
#[must_use]
pub fn cache_rule(cache: Cache) -> Box<dyn CacheRule> {
    Box::new(cache)
}

impl CacheRule for Cache {
    fn pass(&self, view: &CacheView<'_>) -> Pass {
        let Range { start, end } = view.region;
        let near = |left: usize, right: usize| {
            // A window leaves positions behind whose token is newer than their keys and values.
            let first = view.changed.first().map_or(start, |&first| first.min(start));
            let rows = first.saturating_sub(left)..end.saturating_add(right).min(view.len);
            // A region that stays is computed in each of its passes: nobody would read what is kept.
            // Passes that verify drafts, which keep nothing, then sum in the same order.
            Pass::Part { rows: rows.collect(), keep: view.moves, visible: 0..view.len }
        };
        match *self {
            Self::None => Pass::Whole { keep: false },
            Self::Prefix | Self::Dual | Self::Vicinity { .. } if view.begins => {
                Pass::Whole { keep: true }
            }
            Self::Prefix => {
                let first = view.fresh_from.saturating_sub(view.lead);
                let rows = (first..view.len).collect();
                Pass::Part { rows, keep: false, visible: 0..first }
            }
            Self::Dual => near(view.lead, 0),
            Self::Vicinity { left, right } => near(left.max(view.lead), right),
            Self::Interval => {
                let predicting = view.open.iter().map(|p| p.saturating_sub(view.lead));
                let mut rows: Vec<usize> =
                    predicting.chain(view.open.iter().chain(view.changed).copied()).collect();
                // A step of a schedule that is left with nothing to do is still a pass.
                if rows.is_empty() {
                    rows.push(start);
                }
                rows.sort_unstable();
                rows.dedup();
                Pass::Part { rows, keep: true, visible: 0..view.len }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(rows: impl IntoIterator<Item = usize>, keep: bool, visible: Range<usize>) -> Pass {
        Pass::Part { rows: rows.into_iter().collect(), keep, visible }
    }

    #[test]
    fn each_cache_computes_what_it_says() {
        let view = CacheView {
            len: 40,
            region: 16..24,
            fresh_from: 16,
            open: &[18, 21],
            changed: &[20],
            begins: false,
            moves: false,
            lead: 0,
        };
        let shifted = CacheView { lead: 1, ..view.clone() };
        let wide = Cache::Vicinity { left: 3, right: 100 };
        assert_eq!(Cache::None.pass(&view), Pass::Whole { keep: false });
        assert_eq!(Cache::Prefix.pass(&view), part(16..40, false, 0..16));
        assert_eq!(Cache::Prefix.pass(&shifted), part(15..40, false, 0..15));
        assert_eq!(Cache::Dual.pass(&view), part(16..24, false, 0..40));
        assert_eq!(Cache::Dual.pass(&shifted), part(15..24, false, 0..40));
        assert_eq!(wide.pass(&view), part(13..40, false, 0..40));
        assert_eq!(Cache::Interval.pass(&view), part([18, 20, 21], true, 0..40));
        assert_eq!(Cache::Interval.pass(&shifted), part([17, 18, 20, 21], true, 0..40));
        let begins = CacheView { begins: true, ..view.clone() };
        for cache in [Cache::Prefix, Cache::Dual, wide] {
            assert_eq!(cache.pass(&begins), Pass::Whole { keep: true });
        }
        let idle = CacheView { open: &[], changed: &[], ..view.clone() };
        assert_eq!(Cache::Interval.pass(&idle), part([16], true, 0..40), "never an empty pass");
        // What a window left behind is computed once more.
        let moved = CacheView { changed: &[12, 14], moves: true, ..view };
        assert_eq!(Cache::Dual.pass(&moved), part(12..24, true, 0..40));
        assert_eq!(
            Cache::Prefix.pass(&CacheView { fresh_from: 10, ..moved }),
            part(10..40, false, 0..10)
        );
    }
}
