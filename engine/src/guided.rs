//! Answers that have to have a structure: which tokens may come next, while they settle.

use dfastllm_models::ops::TokenSet;
use dfastllm_models::{Guide, StructureError};

use crate::plan::Fault;

/// Most tokens that one pass puts because nothing else can follow.
const MAX_FORCED: usize = 16;

/// A guide, and what it says about the next positions.
#[derive(Debug)]
pub(crate) struct Guided {
    guide: Guide,
    /// What the next positions may hold: one token each where nothing else can follow, then
    /// whatever may be chosen, if the structure goes on.
    next: Vec<TokenSet>,
    fault: Option<StructureError>,
}

impl Guided {
    /// At the beginning of an answer.
    pub(crate) fn new(guide: Guide) -> Self {
        let mut this = Self { guide, next: Vec::new(), fault: None };
        this.look_ahead();
        this
    }

    /// What the position `ahead` of the settled ones may hold, where that is known.
    pub(crate) fn allowed(&self, ahead: usize) -> Option<&TokenSet> {
        self.next.get(ahead)
    }

    /// Tokens that come next whatever the model says, but for the one chosen behind them.
    pub(crate) fn forced(&self) -> Vec<u32> {
        let certain = &self.next[..self.next.len().saturating_sub(1)];
        certain.iter().filter_map(|set| set.ids().next()).collect()
    }

    /// Moves behind a token that was chosen among those allowed.
    pub(crate) fn follow(&mut self, token: u32) -> bool {
        let moved = self.guide.advance(token);
        self.note(moved).is_some()
    }

    /// Moves behind a token, if it may come next.
    pub(crate) fn take(&mut self, token: u32) -> bool {
        let moved = match self.guide.allows(token) {
            Ok(true) => self.guide.advance(token).map(|()| true),
            other => other,
        };
        self.note(moved).unwrap_or(false)
    }

    /// Finds out what may come next.
    pub(crate) fn look_ahead(&mut self) {
        self.next.clear();
        let mut ahead = self.guide.clone();
        while !ahead.has_ended() && self.next.len() <= MAX_FORCED {
            let next = next_set(&mut ahead);
            let Some((set, forced)) = self.note(next) else { return };
            self.next.push(set);
            if forced.is_none_or(|token| ahead.advance(token).is_err()) {
                return;
            }
        }
    }

    /// What the positions of a draft may hold, and the one behind it; the draft is cut where it
    /// leaves the structure. Where nothing else can follow no other draft comes as far as what is
    /// known of the next positions.
    pub(crate) fn along(&self, draft: &mut Vec<u32>) -> Vec<TokenSet> {
        let (mut ahead, mut sets) = (self.guide.clone(), Vec::new());
        while !ahead.has_ended() {
            let known = self.next.get(sets.len()).cloned();
            // What only a draft runs into is no fault of the answer.
            let next = known.or_else(|| next_set(&mut ahead).ok().map(|(set, _)| set));
            let Some(set) = next else { break };
            let token = draft.get(sets.len()).copied().filter(|&token| set.contains(token));
            sets.push(set);
            if token.is_none_or(|token| ahead.advance(token).is_err()) {
                break;
            }
        }
        // The last set is that of the token which the pass itself gives.
        draft.truncate(sets.len().saturating_sub(1));
        sets
    }

    /// Whether nothing may follow any more.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.guide.has_ended()
    }

    /// Why the structure cannot be followed, if it cannot.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        self.fault.as_ref().map_or(Ok(()), |error| Err(Fault::Structure(error.to_string())))
    }

    fn note<T>(&mut self, outcome: Result<T, StructureError>) -> Option<T> {
        outcome.map_err(|error| self.fault = Some(error)).ok()
    }
}

/// What may come next, and the token that has to.
fn next_set(guide: &mut Guide) -> Result<(TokenSet, Option<u32>), StructureError> {
    match guide.forced().first() {
        Some(&token) => Ok(([token].into_iter().collect(), Some(token))),
        None => Ok((guide.allowed()?, None)),
    }
}
