//! Who runs, with which pages, and who is served first in a step. Plain data, no tensors.

use std::collections::VecDeque;
use std::ops::Range;

use dfastllm_models::PAGE_SIZE;

use crate::pages::{Pages, Serial};

/// After being overtaken this often by later requests of higher priority, a request comes before
/// all others.
const MAX_OVERTAKEN: u32 = 64;

/// What a waiting request needs to run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Demand<'a> {
    /// This many pages that nobody shares, from start to end.
    Own(usize),
    /// Pages for these tokens, read left to right; those of others with the same beginning do.
    Causal(&'a [u32]),
    /// The pages of another running request up to `positions`.
    Fork {
        /// The other request.
        of: u64,
        /// Positions they share.
        positions: usize,
    },
    /// Something that is not there yet; others may pass.
    Wait,
}

/// A request that got its seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Admitted {
    pub(crate) id: u64,
    /// Positions whose keys and values are in its pages already.
    pub(crate) cached: usize,
}

/// A page whose contents another page is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageCopy {
    pub(crate) from: u32,
    pub(crate) to: u32,
}

/// There is no page left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutOfPages;

/// A request as the scheduler sees it. Ids grow with arrival.
#[derive(Debug)]
struct Entry {
    id: u64,
    priority: i64,
    overtaken: u32,
    /// Page of positions `0..PAGE_SIZE`, of the next `PAGE_SIZE`, …
    table: Vec<u32>,
    /// Pages at the beginning of the table that are known, and the serial of the last.
    published: (usize, Serial),
    /// Whether its pages hold what cannot be computed again: it keeps them to its end.
    is_pinned: bool,
    /// The step that last served it.
    served: u64,
}

impl Entry {
    /// Smaller is sooner.
    fn order(&self) -> (bool, i64, u64) {
        (self.overtaken < MAX_OVERTAKEN, self.priority, self.id)
    }
}

/// Admission, pages and order.
///
/// Requests wait by priority, then by arrival, but are overtaken only so often. One is admitted
/// when a seat is free and pages for what it has so far, with a page to spare for everyone who
/// runs. Pages for what it generates come as it grows; when there are none, whoever would be
/// admitted last gives its own back and waits again. The first of all therefore always advances.
#[derive(Debug)]
pub(crate) struct Scheduler {
    waiting: VecDeque<Entry>,
    running: Vec<Entry>,
    pages: Pages,
    copies: Vec<PageCopy>,
    max_running: usize,
    step: u64,
}

impl Scheduler {
    pub(crate) fn new(max_running: usize, pages: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            running: Vec::new(),
            pages: Pages::new(pages),
            copies: Vec::new(),
            max_running,
            step: 0,
        }
    }

    /// Adds a request behind those of its priority.
    pub(crate) fn enqueue(&mut self, id: u64, priority: i64) {
        let (table, published) = (Vec::new(), Default::default());
        let entry =
            Entry { id, priority, overtaken: 0, table, published, is_pinned: false, served: 0 };
        self.wait(entry);
    }

    fn wait(&mut self, entry: Entry) {
        let at = self.waiting.partition_point(|e| e.order() <= entry.order());
        self.waiting.insert(at, entry);
    }

    /// Moves waiting requests to running ones while there is room.
    pub(crate) fn admit<'a>(&mut self, demand: impl Fn(u64) -> Demand<'a>) -> Vec<Admitted> {
        let mut admitted = Vec::new();
        while self.running.len() < self.max_running {
            let next = self.waiting.iter().enumerate().find_map(|(at, e)| match demand(e.id) {
                Demand::Wait => None,
                demand => Some((at, demand)),
            });
            let Some((at, demand)) = next else { break };
            let is_pinned = matches!(demand, Demand::Own(_));
            let Some((table, published, cached)) = self.pages_for(demand) else { break };
            let Some(entry) = self.waiting.remove(at) else { break };
            admitted.push(Admitted { id: entry.id, cached });
            self.count_overtaken(entry.id);
            self.running.push(Entry { table, published, is_pinned, ..entry });
        }
        admitted
    }

    /// A block table for a demand, what of it is known, and how many positions it holds already.
    fn pages_for(&mut self, demand: Demand<'_>) -> Option<(Vec<u32>, (usize, Serial), usize)> {
        let spare = self.running.iter().filter(|e| !e.is_pinned).count();
        let tokens = match demand {
            Demand::Wait => return Some(Default::default()),
            Demand::Own(count) => {
                if count + spare > self.pages.available() && count > 0 {
                    return None;
                }
                let table = (0..count).filter_map(|_| self.pages.take()).collect();
                return Some((table, Default::default(), 0));
            }
            Demand::Fork { of, positions } => {
                let leader = self.running.iter().find(|e| e.id == of)?;
                let count = Pages::needed(positions).min(leader.table.len());
                let table = leader.table[..count].to_vec();
                if self.pages.available() < spare {
                    return None;
                }
                table.iter().for_each(|&page| self.pages.share(page));
                let known = self.known_of(of, positions / PAGE_SIZE);
                return Some((table, known, positions));
            }
            Demand::Causal(tokens) => tokens,
        };
        // The last token is read anew: its row gives the next one.
        let (mut table, serial) = self.pages.lookup(&tokens[..tokens.len().saturating_sub(1)]);
        let idle = table.iter().filter(|&&page| self.pages.is_idle(page)).count();
        let missing = Pages::needed(tokens.len()).saturating_sub(table.len());
        if missing + idle + spare > self.pages.available() {
            return None;
        }
        let found = table.len();
        table.iter().for_each(|&page| self.pages.share(page));
        table.extend((0..missing).filter_map(|_| self.pages.take()));
        Some((table, (found, serial), found * PAGE_SIZE))
    }

    /// The known beginning of a running request, if it is exactly `count` pages or fewer.
    fn known_of(&self, id: u64, count: usize) -> (usize, Serial) {
        let known = self.running.iter().find(|e| e.id == id).map(|e| e.published);
        known.filter(|(published, _)| *published <= count).unwrap_or_default()
    }

    fn count_overtaken(&mut self, id: u64) {
        for entry in self.waiting.iter_mut().filter(|e| e.id < id) {
            entry.overtaken += 1;
        }
        self.waiting.make_contiguous().sort_by_key(Entry::order);
    }

    /// Gives a running request pages of its own for the positions it will write.
    pub(crate) fn reserve(&mut self, id: u64, writes: Range<usize>) -> Result<(), OutOfPages> {
        let Some(entry) = self.running.iter_mut().find(|e| e.id == id) else { return Ok(()) };
        while entry.table.len() < Pages::needed(writes.end) {
            entry.table.push(self.pages.take().ok_or(OutOfPages)?);
        }
        if writes.is_empty() {
            return Ok(());
        }
        for page in &mut entry.table[writes.start / PAGE_SIZE..Pages::needed(writes.end)] {
            if self.pages.is_shared(*page) {
                let to = self.pages.take().ok_or(OutOfPages)?;
                self.copies.push(PageCopy { from: *page, to });
                self.pages.release(&[std::mem::replace(page, to)]);
            }
        }
        Ok(())
    }

    /// Copies to make before the next pass, in order.
    pub(crate) fn take_copies(&mut self) -> Vec<PageCopy> {
        std::mem::take(&mut self.copies)
    }

    /// Makes the last running request that has pages wait again, without them.
    pub(crate) fn preempt_last(&mut self) -> Option<u64> {
        let with_pages =
            self.running.iter().enumerate().filter(|(_, e)| !e.table.is_empty() && !e.is_pinned);
        let (at, _) = with_pages.max_by_key(|(_, e)| e.order())?;
        let mut entry = self.running.swap_remove(at);
        self.pages.release(&std::mem::take(&mut entry.table));
        entry.published = Default::default();
        let id = entry.id;
        self.wait(entry);
        Some(id)
    }

    /// Makes the full pages of a running request known, whose keys and values are those of
    /// `tokens`.
    pub(crate) fn publish(&mut self, id: u64, tokens: &[u32]) {
        let Some(entry) = self.running.iter_mut().find(|e| e.id == id) else { return };
        let pages = tokens.as_chunks::<PAGE_SIZE>().0.iter().zip(&entry.table);
        for (tokens, page) in pages.skip(entry.published.0) {
            let serial = self.pages.publish(*page, entry.published.1, *tokens);
            entry.published = (entry.published.0 + 1, serial);
        }
    }

    /// Makes the pages of a running request unknown.
    pub(crate) fn withdraw(&mut self, id: u64) {
        if let Some(entry) = self.running.iter().find(|e| e.id == id) {
            entry.table.iter().for_each(|&page| self.pages.withdraw(page));
        }
    }

    /// Forgets a request, waiting or running, and gives its pages back.
    pub(crate) fn remove(&mut self, id: u64) {
        self.waiting.retain(|e| e.id != id);
        if let Some(at) = self.running.iter().position(|e| e.id == id) {
            self.pages.release(&self.running.swap_remove(at).table);
        }
    }

    /// Running requests, the first in order of admission first.
    pub(crate) fn seniority(&self) -> Vec<u64> {
        let mut entries: Vec<&Entry> = self.running.iter().collect();
        entries.sort_by_key(|e| e.order());
        entries.into_iter().map(|e| e.id).collect()
    }

    /// Running requests in the order a step serves them: those that `is_decoding`, whoever was
    /// served longest ago first, before those that read their prompt, in order of admission.
    pub(crate) fn order(&self, is_decoding: impl Fn(u64) -> bool) -> Vec<u64> {
        let mut order: Vec<(bool, u64, &Entry)> = self
            .running
            .iter()
            .map(|e| if is_decoding(e.id) { (false, e.served, e) } else { (true, 0, e) })
            .collect();
        order.sort_by_key(|(reads, served, e)| (*reads, *served, e.order()));
        order.into_iter().map(|(_, _, e)| e.id).collect()
    }

    /// Notes who was served in a step.
    pub(crate) fn served(&mut self, ids: impl Iterator<Item = u64>) {
        self.step += 1;
        for id in ids {
            if let Some(entry) = self.running.iter_mut().find(|e| e.id == id) {
                entry.served = self.step;
            }
        }
    }

    /// The block table of a running request.
    pub(crate) fn pages_of(&self, id: u64) -> &[u32] {
        self.running.iter().find(|e| e.id == id).map_or(&[], |e| &e.table)
    }

    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn is_running(&self, id: u64) -> bool {
        self.running.iter().any(|e| e.id == id)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    pub(crate) fn pages(&self) -> &Pages {
        &self.pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: [u32; 100] = [7; 100];

    fn scheduler(seats: usize, pages: usize, priorities: &[i64]) -> Scheduler {
        let mut s = Scheduler::new(seats, pages);
        for (i, &priority) in priorities.iter().enumerate() {
            s.enqueue(i as u64 + 1, priority);
        }
        s
    }

    fn ids(admitted: &[Admitted]) -> Vec<u64> {
        admitted.iter().map(|a| a.id).collect()
    }

    #[test]
    fn seats_and_pages_bound_admission_and_come_back() {
        let mut s = scheduler(2, 7, &[0, 0, 0]);
        let demand = |id: u64| Demand::Causal(if id == 3 { &TOKENS[..1] } else { &TOKENS[..90] });
        assert_eq!(ids(&s.admit(demand)), [1], "2 waits for pages and 3 does not overtake it");
        s.remove(1);
        assert_eq!(ids(&s.admit(demand)), [2]);
        assert_eq!(ids(&s.admit(demand)), [0; 0], "a page stays spare for 2 to grow");
        s.remove(2);
        s.remove(3);
        assert!(s.is_idle());
        assert_eq!(s.pages().available(), 7);
    }

    #[test]
    fn priority_then_arrival_but_nobody_is_overtaken_for_ever() {
        let mut s = scheduler(4, 0, &[0, -1, 0, -1]);
        assert_eq!(ids(&s.admit(|_| Demand::Own(0))), [2, 4, 1, 3]);
        let mut s = scheduler(1, 0, &[0]);
        for id in 2..=100 {
            s.enqueue(id, -1);
            let first = s.admit(|_| Demand::Own(0))[0].id;
            if first == 1 {
                assert_eq!(id, u64::from(MAX_OVERTAKEN) + 2);
                return;
            }
            s.remove(first);
        }
        panic!("overtaken a hundred times");
    }

    #[test]
    fn whoever_was_served_longest_ago_is_first_and_decoding_before_reading() {
        let mut s = scheduler(9, 0, &[0, 0, 0]);
        s.admit(|_| Demand::Own(0));
        s.served([1].into_iter());
        s.served([3].into_iter());
        assert_eq!(s.order(|_| true), [2, 1, 3]);
        assert_eq!(s.order(|id| id == 3), [3, 1, 2]);
    }

    #[test]
    fn a_known_beginning_is_shared_and_a_fork_is_copied_before_it_is_written() {
        let mut s = scheduler(9, 20, &[0, 0, 0]);
        let admitted = s.admit(|id| if id == 1 { Demand::Causal(&TOKENS) } else { Demand::Wait });
        assert_eq!(admitted, [Admitted { id: 1, cached: 0 }], "others may pass those who wait");
        s.publish(1, &TOKENS[..40]);
        let fork = Demand::Fork { of: 1, positions: 99 };
        let demand = |id| if id == 2 { Demand::Causal(&TOKENS[..33]) } else { fork };
        let admitted = s.admit(demand);
        assert_eq!(admitted, [Admitted { id: 2, cached: 32 }, Admitted { id: 3, cached: 99 }]);
        assert_eq!(s.pages_of(2)[..2], s.pages_of(1)[..2]);
        assert_eq!(s.pages_of(3), s.pages_of(1));
        s.reserve(3, 99..101).unwrap();
        assert_eq!(s.pages_of(3)[..6], s.pages_of(1)[..6]);
        let copy = PageCopy { from: s.pages_of(1)[6], to: s.pages_of(3)[6] };
        assert_eq!(s.take_copies(), [copy]);
        s.reserve(1, 99..101).unwrap();
        assert_eq!(s.take_copies(), [], "the page is its own again");
    }

    #[test]
    fn pages_of_its_own_are_there_from_the_start_and_never_taken_away() {
        let mut s = scheduler(9, 6, &[0, 0, 0]);
        let demand = |id| if id == 3 { Demand::Causal(&TOKENS[..10]) } else { Demand::Own(3) };
        assert_eq!(ids(&s.admit(demand)), [1, 2], "3 waits for a page");
        assert_eq!((s.pages_of(1).len(), s.pages().available()), (3, 0));
        assert_eq!(s.preempt_last(), None);
        s.remove(1);
        assert_eq!(ids(&s.admit(demand)), [3]);
        assert_eq!(s.preempt_last(), Some(3));
    }

    #[test]
    fn without_pages_the_last_gives_way_and_is_first_in_line() {
        let mut s = scheduler(9, 4, &[0, 0]);
        s.admit(|_| Demand::Causal(&TOKENS[..10]));
        s.enqueue(3, 0);
        s.reserve(1, 10..40).unwrap();
        assert_eq!(s.reserve(1, 40..60), Err(OutOfPages));
        assert_eq!(s.preempt_last(), Some(2));
        s.reserve(1, 40..60).unwrap();
        assert_eq!(s.admit(|_| Demand::Causal(&TOKENS[..10])), []);
        s.remove(1);
        assert_eq!(ids(&s.admit(|_| Demand::Causal(&TOKENS[..10]))), [2, 3]);
    }
}
