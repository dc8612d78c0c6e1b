//! Which pages of the key/value pool hold what, and who uses them. No tensors.
//!
//! A full page of a causal sequence is known by its tokens and by the page before it, and so, page
//! by page, by everything before it. Whoever needs the same beginning shares such pages; those
//! nobody uses stay known until their room is needed, the one unused longest going first.

use std::collections::{BTreeMap, HashMap};

use dfastllm_models::PAGE_SIZE;

/// The contents of a known page: its tokens, after the contents with the serial `parent`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    parent: Serial,
    tokens: [u32; PAGE_SIZE],
}

/// Names the contents of a page and of all before it. Never used twice, so that pages that follow
/// contents long evicted are not mistaken for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Serial(u64);

#[derive(Debug, Default)]
struct Page {
    users: u32,
    /// Set while the page is known.
    contents: Option<(Key, Serial)>,
    /// When its last user left it, if it is idle.
    left: u64,
}

/// All pages of a pool.
#[derive(Debug)]
pub(crate) struct Pages {
    pages: Vec<Page>,
    /// Unused and unknown.
    free: Vec<u32>,
    /// Unused and known, by the time their last user left.
    idle: BTreeMap<u64, u32>,
    known: HashMap<Key, u32>,
    last_serial: u64,
    clock: u64,
}

impl Pages {
    pub(crate) fn new(total: usize) -> Self {
        let last = u32::try_from(total).unwrap_or(u32::MAX);
        Self {
            pages: (0..last).map(|_| Page::default()).collect(),
            free: (0..last).rev().collect(),
            idle: BTreeMap::new(),
            known: HashMap::new(),
            last_serial: 0,
            clock: 0,
        }
    }

    /// Pages that hold `positions`.
    pub(crate) fn needed(positions: usize) -> usize {
        positions.div_ceil(PAGE_SIZE)
    }

    pub(crate) fn total(&self) -> usize {
        self.pages.len()
    }

    /// Pages that [`Pages::take`] can give out.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// An unused page; the contents idle longest are forgotten if there is no other.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let page = self.free.pop().or_else(|| {
            let (_, page) = self.idle.pop_first()?;
            self.forget(page);
            Some(page)
        })?;
        self.pages[page as usize].users = 1;
        Some(page)
    }

    /// Adds a user to a page that is in use or known.
    pub(crate) fn share(&mut self, page: u32) {
        let entry = &mut self.pages[page as usize];
        if entry.users == 0 {
            self.idle.remove(&entry.left);
        }
        entry.users += 1;
    }

    /// Takes a user from each page. The last pages are forgotten first: without its beginning a
    /// page is of no use.
    pub(crate) fn release(&mut self, pages: &[u32]) {
        for &page in pages.iter().rev() {
            self.clock += 1;
            let entry = &mut self.pages[page as usize];
            debug_assert!(entry.users > 0, "page {page} was given back twice");
            entry.users -= 1;
            if entry.users > 0 {
                continue;
            }
            entry.left = self.clock;
            if entry.contents.is_some() {
                self.idle.insert(self.clock, page);
            } else {
                self.free.push(page);
            }
        }
    }

    /// Whether writing to a page would change what another user reads.
    pub(crate) fn is_shared(&self, page: u32) -> bool {
        self.pages[page as usize].users > 1
    }

    /// Whether a page has no user.
    pub(crate) fn is_idle(&self, page: u32) -> bool {
        self.pages[page as usize].users == 0
    }

    /// The known pages that `tokens` begin with, with the serial of the last.
    pub(crate) fn lookup(&self, tokens: &[u32]) -> (Vec<u32>, Serial) {
        let (mut found, mut parent) = (Vec::new(), Serial::default());
        for tokens in tokens.as_chunks::<PAGE_SIZE>().0 {
            let Some(&page) = self.known.get(&Key { parent, tokens: *tokens }) else { break };
            let Some((_, serial)) = &self.pages[page as usize].contents else { break };
            parent = *serial;
            found.push(page);
        }
        (found, parent)
    }

    /// Makes a full page known by its tokens after those of `parent`. If another page with these
    /// contents is known already it stays the known one.
    pub(crate) fn publish(
        &mut self,
        page: u32,
        parent: Serial,
        tokens: [u32; PAGE_SIZE],
    ) -> Serial {
        let key = Key { parent, tokens };
        let known = self.known.get(&key).and_then(|&p| self.pages[p as usize].contents.as_ref());
        if let Some((_, serial)) = known {
            return *serial;
        }
        self.last_serial += 1;
        let serial = Serial(self.last_serial);
        self.known.insert(key.clone(), page);
        self.pages[page as usize].contents = Some((key, serial));
        serial
    }

    /// Makes a page unknown, in use or not: its contents are not to be trusted.
    pub(crate) fn withdraw(&mut self, page: u32) {
        if self.is_idle(page) && self.idle.remove(&self.pages[page as usize].left).is_some() {
            self.free.push(page);
        }
        self.forget(page);
    }

    fn forget(&mut self, page: u32) {
        if let Some((key, _)) = self.pages[page as usize].contents.take() {
            self.known.remove(&key);
        }
    }

    /// Share of pages in use.
    pub(crate) fn usage(&self) -> f64 {
        match self.total() {
            0 => 0.0,
            total => 1.0 - self.available() as f64 / total as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u32; PAGE_SIZE] = [1; PAGE_SIZE];
    const B: [u32; PAGE_SIZE] = [2; PAGE_SIZE];

    /// Takes and publishes a page each.
    fn published(pages: &mut Pages, contents: &[[u32; PAGE_SIZE]]) -> Vec<u32> {
        let mut parent = Serial::default();
        let mut publish = |&tokens: &[u32; PAGE_SIZE]| {
            let page = pages.take().unwrap();
            parent = pages.publish(page, parent, tokens);
            page
        };
        contents.iter().map(&mut publish).collect()
    }

    #[test]
    fn pages_are_counted_in_use_until_their_last_user_leaves() {
        let mut pages = Pages::new(4);
        assert_eq!(Pages::needed(17), 2);
        let page = pages.take().unwrap();
        pages.share(page);
        assert!(pages.is_shared(page));
        pages.release(&[page]);
        assert!((pages.usage() - 0.25).abs() < 1e-9);
        pages.release(&[page]);
        assert!(pages.usage().abs() < 1e-9);
        assert!(Pages::new(0).usage().abs() < 1e-9);
        for _ in 0..4 {
            assert!(pages.take().is_some());
        }
        assert_eq!(pages.take(), None);
    }

    #[test]
    fn a_page_is_found_after_the_same_pages_only() {
        let mut pages = Pages::new(4);
        let used = published(&mut pages, &[A, B]);
        assert_eq!(pages.lookup(&[A, B, A].concat()).0, used);
        assert_eq!(pages.lookup(&[A.as_slice(), &B[..15]].concat()).0, used[..1]);
        assert_eq!(pages.lookup(&[B, A].concat()).0, Vec::<u32>::new(), "B follows A only");
        // Someone else with the same contents builds on the known page.
        let twin = pages.take().unwrap();
        let serial = pages.publish(twin, Serial::default(), A);
        assert_eq!(pages.publish(twin, serial, B), pages.lookup(&[A, B].concat()).1);
    }

    #[test]
    fn contents_unused_longest_are_forgotten_first_and_ends_before_beginnings() {
        let mut pages = Pages::new(4);
        let old = published(&mut pages, &[A, B]);
        let new = published(&mut pages, &[B, A]);
        pages.release(&old);
        pages.release(&new);
        assert_eq!(pages.available(), 4);
        assert_eq!(pages.take(), Some(old[1]));
        assert_eq!(pages.lookup(&[A, B].concat()).0, old[..1]);
        pages.share(old[0]);
        assert_eq!((pages.take(), pages.take()), (Some(new[1]), Some(new[0])));
        assert_eq!(pages.take(), None, "a shared page is not evicted");
        assert_eq!(pages.lookup(&B).0, Vec::<u32>::new());
    }

    #[test]
    fn withdrawn_contents_are_not_found_and_the_page_is_free_once() {
        let mut pages = Pages::new(2);
        let used = published(&mut pages, &[A, B]);
        pages.release(&used[1..]);
        used.iter().for_each(|&p| pages.withdraw(p));
        assert_eq!(pages.lookup(&A).0, Vec::<u32>::new());
        pages.release(&used[..1]);
        assert_eq!(pages.available(), 2);
        assert_ne!(pages.take(), pages.take());
    }
}
