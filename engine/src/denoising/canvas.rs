//! The positions a request fills, between text that is given.

use std::ops::Range;

use crate::{InfillPart, SettledToken};

/// What a position of the canvas holds. Openness is never read off the mask id: a prompt may spell
/// it.
#[derive(Debug, Clone, PartialEq)]
enum Cell {
    Open,
    /// Text of the request.
    Given,
    Filled(SettledToken),
    /// Behind the end of its gap: it will never be looked at.
    Surplus,
}

/// Consecutive positions to fill.
#[derive(Debug, Clone)]
struct Gap {
    positions: Range<usize>,
    /// Whether it may end before it is full.
    is_free: bool,
}

/// Positions count from the first after the prompt.
#[derive(Debug)]
pub(crate) struct Canvas {
    prompt_len: usize,
    mask_id: u32,
    /// Prompt and canvas; open positions hold the mask id.
    tokens: Vec<u32>,
    cells: Vec<Cell>,
    gaps: Vec<Gap>,
    /// Positions that are not given, in order.
    slots: Vec<usize>,
    /// Positions handed out.
    emitted: usize,
}

impl Canvas {
    /// A canvas of the parts, one after the other.
    pub(crate) fn new(prompt: Vec<u32>, parts: &[InfillPart], mask_id: u32) -> Self {
        let mut this = Self {
            prompt_len: prompt.len(),
            mask_id,
            tokens: prompt,
            cells: Vec::new(),
            gaps: Vec::new(),
            slots: Vec::new(),
            emitted: 0,
        };
        for part in parts {
            match part {
                InfillPart::Given(ids) => {
                    this.tokens.extend(ids);
                    this.cells.extend(ids.iter().map(|_| Cell::Given));
                }
                &InfillPart::Gap { len, is_free } => {
                    let start = this.cells.len();
                    this.gaps.push(Gap { positions: start..start, is_free });
                    this.append(len);
                }
            }
        }
        this
    }

    /// Adds open positions to the last gap, which is at the end.
    pub(crate) fn append(&mut self, count: usize) {
        let start = self.cells.len();
        self.slots.extend(start..start + count);
        self.cells.extend((0..count).map(|_| Cell::Open));
        self.tokens.extend((0..count).map(|_| self.mask_id));
        if let Some(gap) = self.gaps.last_mut() {
            gap.positions.end = start + count;
        }
    }

    /// Puts open positions behind `position`; what follows moves to the right.
    pub(crate) fn insert_after(&mut self, position: usize, count: usize) {
        let at = position + 1;
        self.cells.splice(at..at, (0..count).map(|_| Cell::Open));
        let absolute = self.prompt_len + at;
        self.tokens.splice(absolute..absolute, (0..count).map(|_| self.mask_id));
        self.slots.extend(self.slots.len()..self.slots.len() + count);
        if let Some(gap) = self.gaps.last_mut() {
            gap.positions.end += count;
        }
    }

    pub(crate) fn mask_id(&self) -> u32 {
        self.mask_id
    }

    pub(crate) fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// Prompt and canvas.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The same with the prompt hidden.
    pub(crate) fn without_prompt(&self, mut tokens: Vec<u32>) -> Vec<u32> {
        tokens[..self.prompt_len].fill(self.mask_id);
        tokens
    }

    /// Positions there are to fill, open or not.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Positions of some slots.
    pub(crate) fn positions(&self, slots: Range<usize>) -> &[usize] {
        &self.slots[slots]
    }

    /// How many positions to fill lie before this one.
    pub(crate) fn rank(&self, position: usize) -> usize {
        self.slots.partition_point(|&slot| slot < position)
    }

    pub(crate) fn is_open(&self, position: usize) -> bool {
        self.cells[position] == Cell::Open
    }

    pub(crate) fn has_open(&self) -> bool {
        self.first_open_slot() < self.slots.len()
    }

    /// The first slot that is open.
    pub(crate) fn first_open_slot(&self) -> usize {
        self.slots.iter().position(|&p| self.is_open(p)).unwrap_or(self.slots.len())
    }

    /// The token committed at a position.
    pub(crate) fn filled(&self, position: usize) -> Option<&SettledToken> {
        match &self.cells[position] {
            Cell::Filled(token) => Some(token),
            _ => None,
        }
    }

    /// Ids of committed tokens.
    pub(crate) fn committed(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.cells.len()).filter_map(|p| self.filled(p)).map(|t| t.id)
    }

    /// Whether an end token may be put there.
    pub(crate) fn takes_end(&self, position: usize) -> bool {
        self.gap_of(position).is_none_or(|gap| self.gaps[gap].is_free)
    }

    fn gap_of(&self, position: usize) -> Option<usize> {
        self.gaps.iter().position(|gap| gap.positions.contains(&position))
    }

    /// Commits a token.
    pub(crate) fn fill(&mut self, position: usize, token: SettledToken) {
        self.tokens[self.prompt_len + position] = token.id;
        self.cells[position] = Cell::Filled(token);
    }

    /// Opens a committed position again.
    pub(crate) fn reopen(&mut self, position: usize) {
        self.tokens[self.prompt_len + position] = self.mask_id;
        self.cells[position] = Cell::Open;
    }

    /// The first position that is open.
    fn settled_end(&self) -> usize {
        self.cells.iter().position(|cell| *cell == Cell::Open).unwrap_or(self.cells.len())
    }

    /// The end token of a gap, if nothing of the gap before it is open.
    fn end_of(&self, gap: &Gap) -> Option<usize> {
        let settled = gap.positions.clone().take_while(|&p| !self.is_open(p));
        settled.into_iter().find(|&p| self.filled(p).is_some_and(|t| t.is_end))
    }

    /// Gives up what is open behind the end of a gap.
    pub(crate) fn close_gaps(&mut self) {
        for index in 0..self.gaps.len() {
            let gap = self.gaps[index].clone();
            let Some(end) = self.end_of(&gap) else { continue };
            let fill = self.tokens[self.prompt_len + end];
            for position in end + 1..gap.positions.end {
                if self.is_open(position) {
                    self.tokens[self.prompt_len + position] = fill;
                    self.cells[position] = Cell::Surplus;
                }
            }
        }
    }

    /// Whether a gap came to an end token.
    pub(crate) fn has_ended(&self) -> bool {
        self.gaps.iter().any(|gap| self.end_of(gap).is_some())
    }

    /// Committed tokens before `limit` with nothing open before them, up to the end of each gap,
    /// that were not taken yet.
    pub(crate) fn take_settled(&mut self, limit: usize) -> Vec<SettledToken> {
        let end = self.settled_end().min(limit);
        let mut taken = Vec::new();
        for (index, gap) in self.gaps.iter().enumerate() {
            let last = self.end_of(gap).unwrap_or(gap.positions.end);
            let from = gap.positions.start.max(self.emitted);
            for position in from..end.min(gap.positions.end).min(last + 1) {
                if let Some(token) = self.filled(position) {
                    taken.push(SettledToken { gap: index, ..token.clone() });
                }
            }
        }
        self.emitted = self.emitted.max(end);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: u32 = 99;

    fn token(id: u32) -> SettledToken {
        SettledToken { id, logprob: 0.0, top: Vec::new(), is_end: id == 0, gap: 0 }
    }

    fn gap(len: usize, is_free: bool) -> InfillPart {
        InfillPart::Gap { len, is_free }
    }

    #[test]
    fn gaps_settle_from_the_left_and_leave_out_what_follows_their_end() {
        let parts = [gap(3, true), InfillPart::Given(vec![7, 8]), gap(2, false)];
        let mut canvas = Canvas::new(vec![1, MASK], &parts, MASK);
        assert_eq!(canvas.tokens(), [1, MASK, MASK, MASK, MASK, 7, 8, MASK, MASK]);
        assert_eq!(canvas.positions(0..5), [0, 1, 2, 5, 6]);
        assert_eq!([0, 2, 5, 6].map(|p| canvas.rank(p)), [0, 2, 3, 4]);
        assert_eq!([2, 5].map(|p| canvas.takes_end(p)), [true, false]);
        canvas.fill(5, token(4));
        canvas.fill(1, token(0));
        canvas.close_gaps();
        assert!(canvas.is_open(2), "something before the end is open");
        canvas.fill(0, token(3));
        canvas.close_gaps();
        assert!(!canvas.is_open(2) && canvas.has_open() && canvas.has_ended());
        let ids = |taken: Vec<SettledToken>| -> Vec<(usize, u32)> {
            taken.iter().map(|t| (t.gap, t.id)).collect()
        };
        assert_eq!(ids(canvas.take_settled(1)), [(0, 3)]);
        assert_eq!(ids(canvas.take_settled(usize::MAX)), [(0, 0), (1, 4)]);
        canvas.fill(6, token(5));
        assert_eq!(ids(canvas.take_settled(usize::MAX)), [(1, 5)]);
        canvas.reopen(6);
        assert_eq!((canvas.is_open(6), canvas.tokens()[8]), (true, MASK));
    }

    #[test]
    fn a_canvas_grows_at_its_end_and_in_its_middle() {
        let mut canvas = Canvas::new(vec![1], &[gap(2, true)], MASK);
        canvas.fill(1, token(5));
        canvas.insert_after(0, 2);
        canvas.append(1);
        assert_eq!(canvas.tokens(), [1, MASK, MASK, MASK, 5, MASK]);
        assert_eq!(canvas.positions(0..canvas.slots()), [0, 1, 2, 3, 4]);
        assert_eq!(canvas.filled(3).map(|t| t.id), Some(5));
        (0..5).filter(|p| *p != 3).for_each(|p| canvas.fill(p, token(p as u32 + 1)));
        assert_eq!(canvas.take_settled(usize::MAX).len(), 5);
    }
}
