//! What a reader who watches the canvas is told.

use std::collections::{BTreeMap, HashMap};

use crate::decoding::Candidate;
use crate::{Change, ChangeKind};

/// Changes since the reader was last told; the latest of each position.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Tokens shown at open positions.
    shown: HashMap<usize, u32>,
    pending: BTreeMap<usize, Change>,
}

impl Progress {
    /// Takes a pass: positions committed, opened again, and still open.
    pub(super) fn note(&mut self, committed: &[Candidate], reopened: &[usize], open: &[Candidate]) {
        for c in committed {
            self.shown.remove(&c.position);
            self.set(c, ChangeKind::Committed);
        }
        for c in open {
            if self.shown.insert(c.position, c.id) != Some(c.id) {
                self.set(c, ChangeKind::Tentative);
            }
        }
        for &position in reopened {
            let change = Change { position, id: None, confidence: 0.0, kind: ChangeKind::Remasked };
            self.pending.insert(position, change);
        }
    }

    fn set(&mut self, c: &Candidate, kind: ChangeKind) {
        let change =
            Change { position: c.position, id: Some(c.id), confidence: c.confidence, kind };
        self.pending.insert(c.position, change);
    }

    pub(super) fn has_changes(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(super) fn take(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.pending).into_values().collect()
    }
}
