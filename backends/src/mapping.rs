//! Memory that the system maps: files without a copy, and large pages.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

use burn::tensor::{AllocationProperty, DType, TensorData};
use bytes::Bytes;
use cubecl_environment::bytes::{AccessError, AccessPolicy, AllocationController};
use memmap2::{Mmap, MmapMut, MmapOptions};

/// Maps `len` bytes from `offset` on, to be read only. Pages are read from disk as they are touched and
/// dropped with the last handle; on Linux they are large ones if the file system has them and the file is
/// not yet in memory in small ones.
///
/// # Errors
/// When the file is shorter than that, or cannot be mapped.
pub fn map_file(file: &File, offset: u64, len: usize) -> io::Result<Bytes> {
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
        zero_pages(len * size_of::<u32>())
            .map_or_else(|| Self::Allocated(vec![0; len]), Self::Mapped)
    }
}

/// Memory of its own, zero and untouched, in large pages where the system has them; `None` for less than
/// one, or if the system does not map it.
fn zero_pages(size: usize) -> Option<MmapMut> {
    let mapped = (size >= LARGE).then(|| MmapMut::map_anon(size).ok()).flatten()?;
    #[cfg(target_os = "linux")]
    let _ = mapped.advise(memmap2::Advice::HugePage);
    Some(mapped)
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

/// Numbers of `dtype` that are 0, `len` of them, in pages as [`WordMemory`] has them: what is cached of
/// sequences is read whole in every pass, too. The system gives memory as they are first written. `None`
/// where that is not to be had.
pub(crate) fn zero_data(len: usize, dtype: DType) -> Option<TensorData> {
    let pages = zero_pages(len * dtype.size())?;
    Some(TensorData::from_bytes(Pages(pages).into_bytes(), [len], dtype))
}

/// Pages as Burn holds the memory of a tensor. It never takes them over as a `Vec` ([`try_detach`] gives
/// none): they are the system's.
///
/// [`try_detach`]: AllocationController::try_detach
struct Pages(MmapMut);

impl Pages {
    #[expect(unsafe_code, reason = "whether all of the memory has a value is for us to know")]
    fn into_bytes(self) -> burn::tensor::Bytes {
        let len = self.0.len();
        // SAFETY: the system maps pages that are zero, so all `len` bytes have a value. Burn sends its
        // bytes to other threads, and a mapping may go there.
        unsafe { burn::tensor::Bytes::from_controller(Box::new(self), len) }
    }
}

impl AllocationController for Pages {
    fn alloc_align(&self) -> usize {
        // A copy is allocated with it: that of the largest number, and no more than Burn's own. Pages
        // themselves begin at rounder addresses.
        align_of::<u64>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    #[expect(unsafe_code, reason = "Burn's memory may be without a value")]
    unsafe fn memory_mut(
        &mut self,
        _: AccessPolicy,
    ) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let bytes: *mut [u8] = &mut self.0[..];
        // SAFETY: the same bytes, borrowed as `self` is; that they keep values is what the caller promises.
        Ok(unsafe { &mut *(bytes as *mut [MaybeUninit<u8>]) })
    }

    #[expect(unsafe_code, reason = "Burn's memory may be without a value")]
    fn memory(&self, _: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let bytes: *const [u8] = &self.0[..];
        // SAFETY: the same bytes, borrowed as `self` is; a byte with a value is one that may have none.
        Ok(unsafe { &*(bytes as *const [MaybeUninit<u8>]) })
    }
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

    use burn::tensor::{Device, Tensor, bf16};

    use super::*;

    #[test]
    fn any_range_inside_is_mapped_and_none_outside() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&content).unwrap();
        for (offset, len) in [(0, 10_000), (0, 1), (9_999, 1), (4_096, 4_096), (4_097, 5_903)] {
            let mapped = map_file(&file, offset as u64, len).unwrap();
            assert_eq!(mapped[..], content[offset..offset + len]);
        }
        assert!(map_file(&file, 10_000, 0).unwrap().is_empty());
        for (offset, len) in [(0, 10_001), (9_999, 2), (10_001, 0), (u64::MAX, 1)] {
            let error = map_file(&file, offset, len).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{offset} {len}");
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
    fn a_tensor_of_pages_is_zero_and_is_written_where_it_is() {
        let len = LARGE / 2;
        for dtype in [DType::F32, DType::BF16] {
            assert!(zero_data(LARGE / dtype.size() - 1, dtype).is_none(), "less than a page");
        }
        let data = zero_data(len, DType::BF16).unwrap();
        let address = data.as_bytes().as_ptr();
        assert_eq!((data.as_bytes().len(), address.align_offset(4096)), (2 * len, 0));
        assert!(data.as_slice::<bf16>().unwrap().iter().all(|&x| x == bf16::ZERO));
        let tensor = Tensor::<1>::from_data(data, (&Device::flex(), DType::BF16));
        let ones = Tensor::ones([1], (&Device::flex(), DType::BF16));
        let tensor = tensor.slice_assign([len - 1..len], ones);
        let copy = tensor.clone();
        let first = Tensor::ones([1], (&Device::flex(), DType::BF16));
        let other = tensor.slice_assign([0..1], first);
        let (copy, other) = (copy.into_data(), other.into_data());
        assert_eq!(copy.as_bytes().as_ptr(), address, "neither uploading nor writing moves it");
        let ends = |data: &TensorData| {
            let values = data.as_slice::<bf16>().unwrap();
            [values[0], values[1], values[len - 1]].map(bf16::to_f32)
        };
        assert_eq!((ends(&copy), ends(&other)), ([0.0, 0.0, 1.0], [1.0, 0.0, 1.0]));
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
