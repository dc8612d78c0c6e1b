//! Who runs, and who is served first in a step. Plain data, no tensors.

use std::collections::VecDeque;

use crate::pages::FreePages;

/// A request as the scheduler sees it.
#[derive(Debug)]
struct Entry {
    id: u64,
    priority: i64,
    pages: Vec<u32>,
    pages_needed: usize,
    /// The step that last served it.
    served: u64,
}

/// Admission and order.
///
/// Requests wait by priority, then by arrival; one is admitted when a seat is free and all the
/// pages it can ever need, so that a running request never waits for memory. Within a step those
/// served longest ago come first, so nobody starves under a token budget.
#[derive(Debug)]
pub(crate) struct Scheduler {
    waiting: VecDeque<Entry>,
    running: Vec<Entry>,
    pages: FreePages,
    max_running: usize,
    step: u64,
}

impl Scheduler {
    pub(crate) fn new(max_running: usize, pages: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            running: Vec::new(),
            pages: FreePages::new(pages),
            max_running,
            step: 0,
        }
    }

    /// Adds a request behind those of its priority.
    pub(crate) fn enqueue(&mut self, id: u64, priority: i64, pages_needed: usize) {
        let at = self.waiting.partition_point(|e| e.priority <= priority);
        let entry = Entry { id, priority, pages: Vec::new(), pages_needed, served: 0 };
        self.waiting.insert(at, entry);
    }

    /// Moves waiting requests to running ones while there is room; returns who was admitted.
    pub(crate) fn admit(&mut self) -> Vec<u64> {
        let mut admitted = Vec::new();
        while self.running.len() < self.max_running {
            let Some(first) = self.waiting.front() else { break };
            let Some(pages) = self.pages.take(first.pages_needed) else { break };
            let Some(entry) = self.waiting.pop_front() else { break };
            admitted.push(entry.id);
            self.running.push(Entry { pages, ..entry });
        }
        admitted
    }

    /// Forgets a request, waiting or running, and frees its pages.
    pub(crate) fn remove(&mut self, id: u64) {
        self.waiting.retain(|e| e.id != id);
        if let Some(at) = self.running.iter().position(|e| e.id == id) {
            self.pages.give_back(self.running.swap_remove(at).pages);
        }
    }

    /// Running requests with their pages: those that `is_decoding` before those that still read
    /// their prompt, and among them whoever was served longest ago.
    pub(crate) fn order(&self, is_decoding: impl Fn(u64) -> bool) -> Vec<u64> {
        let mut order: Vec<&Entry> = self.running.iter().collect();
        order.sort_by_key(|e| (!is_decoding(e.id), e.served, e.id));
        order.into_iter().map(|e| e.id).collect()
    }

    /// Notes who was served in a step.
    pub(crate) fn served(&mut self, ids: &[u64]) {
        self.step += 1;
        for entry in self.running.iter_mut().filter(|e| ids.contains(&e.id)) {
            entry.served = self.step;
        }
    }

    /// The block table of a running request.
    pub(crate) fn pages_of(&self, id: u64) -> &[u32] {
        self.running.iter().find(|e| e.id == id).map_or(&[], |e| &e.pages)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    pub(crate) fn kv_usage(&self) -> f64 {
        self.pages.usage()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_and_pages_bound_admission_and_come_back() {
        let mut s = Scheduler::new(2, 10);
        for (id, pages) in [(1, 6), (2, 6), (3, 1)] {
            s.enqueue(id, 0, pages);
        }
        assert_eq!(s.admit(), [1], "2 waits for pages and 3 does not overtake it");
        s.remove(1);
        assert_eq!(s.admit(), [2, 3]);
        assert_eq!((s.waiting(), s.running(), s.pages_of(2).len()), (0, 2, 6));
        s.remove(2);
        s.remove(3);
        assert!(s.is_idle());
        assert!(s.kv_usage().abs() < 1e-9);
    }

    #[test]
    fn priority_then_arrival() {
        let mut s = Scheduler::new(9, 0);
        for (id, priority) in [(1, 0), (2, -1), (3, 0), (4, -1)] {
            s.enqueue(id, priority, 0);
        }
        assert_eq!(s.admit(), [2, 4, 1, 3]);
    }

    #[test]
    fn whoever_was_served_longest_ago_is_first_and_decoding_before_reading() {
        let mut s = Scheduler::new(9, 0);
        for id in 1..=3 {
            s.enqueue(id, 0, 0);
        }
        s.admit();
        s.served(&[1]);
        s.served(&[3]);
        assert_eq!(s.order(|_| true), [2, 1, 3]);
        assert_eq!(s.order(|id| id == 3), [3, 2, 1]);
    }

    #[test]
    fn a_cancelled_waiting_request_is_forgotten() {
        let mut s = Scheduler::new(1, 0);
        s.enqueue(1, 0, 0);
        s.remove(1);
        assert_eq!(s.admit(), Vec::<u64>::new());
    }
}
