//! Which pages of the key/value pool are free. No tensors.

use dfastllm_models::PAGE_SIZE;

/// The free pages of a pool.
#[derive(Debug)]
pub(crate) struct FreePages {
    free: Vec<u32>,
    total: usize,
}

impl FreePages {
    pub(crate) fn new(total: usize) -> Self {
        let last = u32::try_from(total).unwrap_or(u32::MAX);
        Self { free: (0..last).rev().collect(), total: last as usize }
    }

    /// Pages that hold `positions`.
    pub(crate) fn needed(positions: usize) -> usize {
        positions.div_ceil(PAGE_SIZE)
    }

    /// Takes pages, or nothing if there are not enough.
    pub(crate) fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        let rest = self.free.len().checked_sub(count)?;
        Some(self.free.split_off(rest))
    }

    /// Gives pages back.
    pub(crate) fn give_back(&mut self, pages: Vec<u32>) {
        self.free.extend(pages);
        debug_assert!(self.free.len() <= self.total, "a page was given back twice");
    }

    /// Share of pages in use.
    pub(crate) fn usage(&self) -> f64 {
        if self.total == 0 { 0.0 } else { 1.0 - self.free.len() as f64 / self.total as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_taken_whole_or_not_at_all_and_come_back() {
        let mut pages = FreePages::new(5);
        assert_eq!(FreePages::needed(17), 2);
        let mut three = pages.take(3).unwrap();
        three.sort_unstable();
        assert_eq!(three, [0, 1, 2]);
        assert_eq!(pages.take(3), None);
        assert!((pages.usage() - 0.6).abs() < 1e-9);
        pages.give_back(three);
        assert_eq!(pages.take(5).map(|p| p.len()), Some(5));
        assert!((FreePages::new(0).usage()).abs() < 1e-9);
    }
}
