//! Numbers in whole cache lines.

use std::ops::{Deref, DerefMut};

/// Bytes of a line of the cache.
pub(super) const CACHE_LINE: usize = 64;
/// Numbers of one.
const LINE: usize = CACHE_LINE / size_of::<f32>();

/// Numbers that begin where a cache line does. Memory as it comes may begin inside of one: then every vector
/// of the widest kind that is loaded from or stored to it takes two lines.
#[derive(Debug)]
pub(super) struct Aligned {
    numbers: Vec<f32>,
    first: usize,
}

impl Aligned {
    pub(super) fn zeros(len: usize) -> Self {
        let numbers = vec![0.0; len + LINE - 1];
        // The distance may be unknown; then it is slower, nothing else.
        let first = numbers.as_ptr().align_offset(CACHE_LINE).min(LINE - 1);
        Self { numbers, first }
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.numbers[self.first..self.numbers.len() + 1 + self.first - LINE]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        let end = self.numbers.len() + 1 + self.first - LINE;
        &mut self.numbers[self.first..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_count_begin_a_line() {
        for len in [0, 1, 15, 16, 17, 1000] {
            // Kept side by side, so that not all have the same address.
            let mut many: Vec<Aligned> = (0..10).map(|_| Aligned::zeros(len)).collect();
            for some in &mut many {
                assert_eq!((some.len(), some.as_ptr() as usize % CACHE_LINE), (len, 0));
                some.iter_mut().zip(1u16..).for_each(|(x, n)| *x = f32::from(n));
                assert!(some.iter().zip(1u16..).all(|(&x, n)| x == f32::from(n)));
            }
        }
    }
}
