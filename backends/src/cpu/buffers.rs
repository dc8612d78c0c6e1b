//! Memory of results that are no longer needed, for the results to come.
//!
//! A pass makes the same large tensors in every layer. Memory fresh from the system is cleared page
//! by page as it is first touched, which costs as much as a pass over it; memory that is used again
//! does not.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{AllocationProperty, Bytes, DType, Shape};

/// Numbers from which on memory is kept: the system's allocator is good at less.
const LEAST: usize = 1 << 14;
/// Most numbers kept in all (256 MiB).
const MOST_KEPT: usize = 64 << 20;

/// Buffers without a user, by length.
static FREE: Mutex<Free> = Mutex::new(Free { buffers: Vec::new(), kept: 0 });

struct Free {
    buffers: Vec<Vec<f32>>,
    kept: usize,
}

impl Free {
    fn lock() -> MutexGuard<'static, Self> {
        // Whoever panicked held whole buffers only.
        FREE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The smallest buffer of at least `len` and at most twice that.
    fn take(&mut self, len: usize) -> Option<Vec<f32>> {
        let at = self.buffers.partition_point(|b| b.len() < len);
        if self.buffers.get(at)?.len() > 2 * len {
            return None;
        }
        let buffer = self.buffers.remove(at);
        self.kept -= buffer.len();
        Some(buffer)
    }

    /// Keeps a buffer; lets go of the smallest ones if that is too much.
    fn give(&mut self, buffer: Vec<f32>) {
        if !(LEAST..=MOST_KEPT).contains(&buffer.len()) {
            return;
        }
        self.kept += buffer.len();
        let at = self.buffers.partition_point(|b| b.len() < buffer.len());
        self.buffers.insert(at, buffer);
        let mut surplus = 0;
        while self.kept > MOST_KEPT {
            self.kept -= self.buffers[surplus].len();
            surplus += 1;
        }
        self.buffers.drain(..surplus);
    }
}

/// `len` numbers of any value, to be written by a kernel. Dropped, they are kept for the next.
#[derive(Debug)]
pub(super) struct Buffer {
    /// At least `len` long.
    values: Vec<f32>,
    len: usize,
}

impl Buffer {
    pub(super) fn new(len: usize) -> Self {
        let reused = if len < LEAST { None } else { Free::lock().take(len) };
        Self { values: reused.unwrap_or_else(|| vec![0.0; len]), len }
    }

    /// As words of any value.
    pub(super) fn words(&self) -> &[u32] {
        bytemuck::cast_slice(&self.values[..self.len])
    }

    pub(super) fn words_mut(&mut self) -> &mut [u32] {
        bytemuck::cast_slice_mut(&mut self.values[..self.len])
    }

    /// A tensor of these values.
    pub(super) fn into_tensor(mut self, shape: [usize; 2]) -> FlexTensor {
        let layout = Layout::contiguous(Shape::new(shape));
        let bytes = if self.len < LEAST {
            Bytes::from_elems(std::mem::take(&mut self.values))
        } else {
            let owner = bytes::Bytes::from_owner(self);
            Bytes::from_shared(owner, AllocationProperty::Other)
        };
        FlexTensor::new(bytes, layout, DType::F32)
    }
}

impl std::ops::Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.len]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.values[..self.len])
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.values.len() >= LEAST {
            Free::lock().give(std::mem::take(&mut self.values));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free() -> Free {
        Free { buffers: Vec::new(), kept: 0 }
    }

    #[test]
    fn the_smallest_buffer_that_fits_is_used_again() {
        let mut free = free();
        for len in [5 * LEAST, LEAST, 3 * LEAST] {
            free.give(vec![0.0; len]);
        }
        assert_eq!(free.take(2 * LEAST).map(|b| b.len()), Some(3 * LEAST));
        assert_eq!(free.take(2 * LEAST), None, "five is more than twice two");
        assert_eq!(free.take(LEAST).map(|b| b.len()), Some(LEAST));
        assert_eq!(free.kept, 5 * LEAST);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut free = free();
        free.give(vec![0.0; LEAST - 1]);
        assert_eq!(free.kept, 0);
        for _ in 0..5 {
            free.give(vec![0.0; MOST_KEPT / 4]);
        }
        free.give(vec![0.0; LEAST]);
        assert!(free.kept <= MOST_KEPT);
        assert_eq!(free.kept, free.buffers.iter().map(Vec::len).sum::<usize>());
        assert_eq!(free.buffers.len(), 4);
    }

    #[test]
    fn a_tensors_memory_comes_back_when_it_is_dropped() {
        // Longer than any other test's, so that none takes what is given back here.
        let len = 3 << 20;
        let mut buffer = Buffer::new(len);
        buffer.fill(2.0);
        let address = buffer.as_ptr();
        let tensor = buffer.into_tensor([1, len]);
        assert_eq!(tensor.as_slice::<f32>().map(|v| v[len - 1]), Some(2.0));
        let copy = tensor.clone();
        drop(tensor);
        assert_ne!(Buffer::new(len).as_ptr(), address, "still in use");
        drop(copy);
        assert_eq!(Buffer::new(len).as_ptr(), address);
    }
}
