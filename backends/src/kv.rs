//! The pool of cached keys and values: page tensors, written in place.

use burn::tensor::{DType, Device, Tensor};

use crate::RaggedRows;
use crate::cpu;
use crate::ops::kernels::kernels;
use crate::rows::WriteRun;
use crate::upload::zeros;

/// Sizes of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Transformer layers.
    pub layers: usize,
    /// Key/value heads times head size.
    pub width: usize,
    /// Positions a page holds.
    pub page_size: usize,
    /// Number of pages. A pool of 0 pages serves passes that keep nothing.
    pub pages: usize,
}

impl KvShape {
    /// Bytes of all pages in `dtype`.
    #[must_use]
    pub fn bytes(&self, dtype: DType) -> u64 {
        let slots = self.pages as u64 * self.page_size as u64;
        2 * self.layers as u64 * slots * self.width as u64 * dtype.size() as u64
    }
}

/// Keys and values of all sequences. Who owns which page is not known here: the block tables
/// arrive with the rows.
#[derive(Debug)]
pub struct KvPool {
    shape: KvShape,
    dtype: DType,
    device: Device,
    keys: Vec<Tensor<2>>,
    values: Vec<Tensor<2>>,
}

impl KvPool {
    /// Reserves all pages at once. On CPU the system gives memory as they are first written, some
    /// milliseconds of a pass now and then: the start does not wait for gigabytes that are cleared.
    #[must_use]
    pub fn new(shape: KvShape, dtype: DType, device: &Device) -> Self {
        // A tensor needs at least one row, also when no page is ever used.
        let slots = (shape.pages * shape.page_size).max(1);
        let zeros = || zeros([slots, shape.width], dtype, device);
        let layers = 0..shape.layers;
        Self {
            shape,
            dtype,
            device: device.clone(),
            keys: layers.clone().map(|_| zeros()).collect(),
            values: layers.map(|_| zeros()).collect(),
        }
    }

    /// Where the pages are.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.shape.pages
    }

    /// Float type of the entries.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Copies the rows of writing spans into their slots, in place.
    ///
    /// # Shapes
    /// - `keys`, `values`: `[rows, width]`, rounded to the pool's dtype
    pub(crate) fn write(
        &mut self,
        layer: usize,
        rows: &RaggedRows,
        keys: &Tensor<2>,
        values: &Tensor<2>,
    ) {
        if cpu::is_flex_f32(keys) && cpu::is_flex_f32(values) {
            let runs: Vec<WriteRun> =
                rows.spans().iter().flat_map(|span| span.writes.iter().copied()).collect();
            // In place because the pool holds the only handle between calls.
            self.keys[layer].inplace(|pages| cpu::store_rows(pages, keys, &runs));
            self.values[layer].inplace(|pages| cpu::store_rows(pages, values, &runs));
            return;
        }
        for run in rows.spans().iter().flat_map(|span| &span.writes) {
            let (from, to) = (run.row..run.row + run.len, run.slot..run.slot + run.len);
            for (store, source) in
                [(&mut self.keys[layer], keys), (&mut self.values[layer], values)]
            {
                let part = source.clone().slice([from.clone()]).cast(self.dtype);
                store.inplace(|pages| pages.slice_assign([to.clone(), 0..self.shape.width], part));
            }
        }
    }

    /// Copies all layers of page `from` to page `to`.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        let size = self.shape.page_size;
        if from == to {
            return;
        }
        if let Some(kernels) = kernels(&self.device) {
            for store in self.keys.iter_mut().chain(&mut self.values) {
                kernels.copy_rows(store, from as usize * size, to as usize * size, size);
            }
            return;
        }
        let [from, to] = [from, to].map(|page| page as usize * size..(page as usize + 1) * size);
        if cpu::is_flex(&self.device) {
            for store in self.keys.iter_mut().chain(&mut self.values) {
                store.inplace(|pages| cpu::copy_rows(pages, from.clone(), to.start));
            }
            return;
        }
        for store in self.keys.iter_mut().chain(&mut self.values) {
            let part = store.clone().slice([from.clone()]);
            store.inplace(|pages| pages.slice_assign([to.clone(), 0..self.shape.width], part));
        }
    }

    /// Keys and values of one layer, to be written in place: `[slots, width]` each.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> [&mut Tensor<2>; 2] {
        [&mut self.keys[layer], &mut self.values[layer]]
    }

    /// Keys and values of one layer: `[slots, width]` each.
    #[must_use]
    pub fn layer(&self, layer: usize) -> (&Tensor<2>, &Tensor<2>) {
        (&self.keys[layer], &self.values[layer])
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::{TensorData, bf16};

    use super::*;

    fn page_of(pool: &KvPool, page: usize) -> Vec<f32> {
        let slots = page * pool.shape.page_size..(page + 1) * pool.shape.page_size;
        pool.keys[0].clone().slice([slots]).into_data().iter::<f32>().collect()
    }

    fn address(pool: &KvPool) -> *const bf16 {
        let keys = pool.keys[0].clone().try_into_primitive::<Flex>().unwrap();
        keys.as_slice::<bf16>().unwrap().as_ptr()
    }

    #[test]
    fn pages_are_copied_and_stay_where_they_are() {
        // Tensors of 2 MiB, which have large pages.
        let shape = KvShape { layers: 1, width: 64, page_size: 16, pages: 1024 };
        let mut pool = KvPool::new(shape, DType::BF16, &Device::flex());
        let begin = address(&pool);
        assert_eq!(begin.align_offset(4096), 0, "pages of the system");
        let values: Vec<f32> = (0..16 * 64).map(|i| (i % 251) as f32).collect();
        let data = TensorData::new(values.clone(), [16, 64]).convert::<bf16>();
        let written = Tensor::from_data(data, (&Device::flex(), DType::BF16));
        pool.keys[0].inplace(|pages| pages.slice_assign([48..64, 0..64], written));
        pool.copy_page(3, 1023);
        pool.copy_page(1023, 0);
        pool.copy_page(3, 3);
        for page in [0, 3, 1023] {
            assert_eq!(page_of(&pool, page), values, "page {page}");
        }
        for page in [1, 2, 4, 1022] {
            assert_eq!(page_of(&pool, page), [0.0; 16 * 64], "page {page}");
        }
        assert_eq!(address(&pool), begin);
    }
}
