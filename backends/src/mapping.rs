//! Memory that the system maps: files without a copy, and large pages.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};

use burn::tensor::{AllocationProperty, DType, TensorData};
use bytes::Bytes;
use memmap2::{Mmap, MmapMut, MmapOptions};

/// Maps `len` bytes from `offset` on, to be read only. Pages are read from disk as they are touched
/// and dropped with the last handle.
///
/// # Errors
/// When the file is shorter than that, or cannot be mapped.
pub fn map_file(file: &File, offset: u64, len: usize) -> io::Result<Bytes> {
    Ok(mapped(file, offset, len)?.map_or_else(Bytes::new, Bytes::from_owner))
}

/// The same for what is read whole, and often: in large pages, if the file system has them and the file
/// is not yet in memory in small ones.
///
/// # Errors
/// As [`map_file`].
pub fn map_weights(file: &File, offset: u64, len: usize) -> io::Result<Bytes> {
    let Some(mapped) = mapped(file, offset, len)? else { return Ok(Bytes::new()) };
    // Without them it is slower, nothing else.
    #[cfg(target_os = "linux")]
    let _ = mapped.advise(memmap2::Advice::HugePage);
    Ok(Bytes::from_owner(mapped))
}

/// Nothing of length 0 can be mapped.
fn mapped(file: &File, offset: u64, len: usize) -> io::Result<Option<Mmap>> {
    let size = file.metadata()?.len();
    if offset.checked_add(len as u64).is_none_or(|end| end > size) {
        let message = format!("{len} bytes from {offset} on are wanted, the file has {size}");
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
    }
    if len == 0 { Ok(None) } else { map(file, offset, len).map(Some) }
}

/// Bytes of a large page of x86, and of what is worth a mapping of its own.
const LARGE: usize = 2 << 20;

/// Words of memory, zero at first, in large pages where the system has them: looking up small ones
/// costs who reads gigabytes about a tenth of the time.
#[derive(Debug)]
pub(crate) enum WordMemory {
    /// Some pages.
    Mapped(MmapMut),
    /// Less than a large page, or what the system would not map.
    Allocated(Vec<u32>),
}

impl WordMemory {
    pub(crate) fn zeros(len: usize) -> Self {
        let size = len * size_of::<u32>();
        let mapped = (size >= LARGE).then(|| MmapMut::map_anon(size).ok()).flatten();
        let Some(mapped) = mapped else { return Self::Allocated(vec![0; len]) };
        #[cfg(target_os = "linux")]
        let _ = mapped.advise(memmap2::Advice::HugePage);
        Self::Mapped(mapped)
    }
}

impl Deref for WordMemory {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        match self {
            Self::Mapped(memory) => bytemuck::cast_slice(memory),
            Self::Allocated(words) => words,
        }
    }
}

impl DerefMut for WordMemory {
    fn deref_mut(&mut self) -> &mut [u32] {
        match self {
            Self::Mapped(memory) => bytemuck::cast_slice_mut(memory),
            Self::Allocated(words) => words,
        }
    }
}

/// Numbers of `dtype`, as many as `shape` has, without a copy if they lie as the CPU wants them.
///
/// # Panics
/// When there are fewer or more bytes than that.
#[must_use]
pub fn tensor_data<const D: usize>(bytes: Bytes, shape: [usize; D], dtype: DType) -> TensorData {
    let size = dtype.size();
    let bytes = if bytes.as_ptr().align_offset(size) == 0 {
        burn::tensor::Bytes::from_shared(bytes, AllocationProperty::File)
    } else {
        match size {
            8 => burn::tensor::Bytes::from_elems(bytemuck::pod_collect_to_vec::<u8, u64>(&bytes)),
            4 => burn::tensor::Bytes::from_elems(bytemuck::pod_collect_to_vec::<u8, u32>(&bytes)),
            _ => burn::tensor::Bytes::from_elems(bytemuck::pod_collect_to_vec::<u8, u16>(&bytes)),
        }
    };
    TensorData::from_bytes(bytes, shape, dtype)
}

#[expect(unsafe_code, reason = "the system call cannot promise that no one changes the file")]
fn map(file: &File, offset: u64, len: usize) -> io::Result<Mmap> {
    // SAFETY: the range was checked to lie inside the file, and the mapping is private and never
    // written. What is left is someone who shortens or overwrites a checkpoint that is in use; as
    // with every program that maps its weights, that must not be done, and README says so. Any
    // bytes are valid numbers, so a change of content harms answers only.
    unsafe { MmapOptions::new().offset(offset).len(len).map_copy_read_only(file) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn any_range_inside_is_mapped_and_none_outside() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&content).unwrap();
        for map in [map_file, map_weights] {
            for (offset, len) in [(0, 10_000), (0, 1), (9_999, 1), (4_096, 4_096), (4_097, 5_903)] {
                let mapped = map(&file, offset as u64, len).unwrap();
                assert_eq!(mapped[..], content[offset..offset + len]);
            }
            assert!(map(&file, 10_000, 0).unwrap().is_empty());
            for (offset, len) in [(0, 10_001), (9_999, 2), (10_001, 0), (u64::MAX, 1)] {
                let error = map(&file, offset, len).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{offset} {len}");
            }
        }
    }

    #[test]
    fn memory_of_any_size_is_zero_and_keeps_what_is_written() {
        for (len, is_mapped) in [(0, false), (LARGE / 4 - 1, false), (LARGE / 4, true)] {
            let mut memory = WordMemory::zeros(len);
            assert_eq!(matches!(memory, WordMemory::Mapped(_)), is_mapped, "{len}");
            assert!(memory.len() == len && memory.iter().all(|&word| word == 0), "{len}");
            memory.iter_mut().zip(1..).for_each(|(word, n)| *word = n);
            assert!(memory.iter().zip(1..).all(|(&word, n)| word == n), "{len}");
        }
    }

    #[test]
    fn numbers_are_read_wherever_they_lie() {
        let values: Vec<u8> = [1.5f32, -2.0, 3.25].iter().flat_map(|v| v.to_le_bytes()).collect();
        for offset in 0..8 {
            let padded = Bytes::from([vec![0; offset], values.clone()].concat());
            let data = tensor_data(padded.slice(offset..), [3], DType::F32);
            assert_eq!(data.as_slice::<f32>().unwrap(), [1.5, -2.0, 3.25], "{offset}");
        }
    }

    #[test]
    fn a_mapping_outlives_its_file() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"weights").unwrap();
        let mapped = map_file(&file, 2, 5).unwrap();
        drop(file);
        assert_eq!(&mapped[..], b"ights");
    }
}
