//! The inference operations as CubeCL kernels, one file each: the kernel, its launch, and what the
//! device has to be able to do for it.
//!
//! They are compiled at run time for whatever device opened: CUDA C++ for NVIDIA, WGSL or Metal
//! elsewhere.

mod attention;
mod buffers;
mod graph;
mod linear;
mod norm;
mod reduce;
mod rotate;
mod score;

use dfastllm_backends::ops::{
    AttentionHeads, DeviceKernels, DeviceLinear, KeyTables, Normal, RecordedPass, RopeAngles,
    RopeShape, RowParams, RowScore,
};
use dfastllm_backends::{Device, Int, Tensor, TensorData};

/// All kernels of this package.
#[derive(Debug)]
pub(crate) struct CubeKernels;

impl DeviceKernels for CubeKernels {
    fn new_kernels_at(&self, most: usize) -> Vec<usize> {
        // Tiles of few rows, and the first number that is many; each doubling is tuned anew.
        let last = if cfg!(feature = "autotune") { most } else { most.min(128) };
        (0..).map(|i| 1 << i).take_while(|&rows| rows <= last).collect()
    }

    fn normalise(&self, x: Tensor<2>, normal: Normal<'_>, eps: f64) -> Tensor<2> {
        norm::normalise(x, normal, eps)
    }

    fn linears(&self, x: Tensor<2>, layers: &[DeviceLinear<'_>]) -> Vec<Tensor<2>> {
        linear::linears(x, layers)
    }

    fn rotate_and_store(
        &self,
        query: Tensor<2>,
        own: [Tensor<2>; 2],
        turn: (RopeShape, &RopeAngles),
        tables: &KeyTables,
        pool: [&mut Tensor<2>; 2],
    ) -> (Tensor<2>, [Tensor<2>; 2]) {
        rotate::rotate_and_store(query, own, turn, tables, pool)
    }

    fn attention(
        &self,
        query: Tensor<2>,
        own: [Tensor<2>; 2],
        pool: [&Tensor<2>; 2],
        tables: &KeyTables,
        heads: AttentionHeads,
    ) -> Tensor<2> {
        attention::attention(query, own, pool, tables, heads)
    }

    fn copy_rows(&self, x: &mut Tensor<2>, from: usize, to: usize, count: usize) {
        rotate::copy_rows(x, from, to, count);
    }

    fn overwrite_ints(&self, x: &Tensor<1, Int>, values: &[i32]) {
        graph::overwrite_ints(x, values);
    }

    fn overwrite(&self, x: &Tensor<3>, data: TensorData) {
        graph::overwrite(x, data);
    }

    fn has_graphs(&self, device: &Device) -> bool {
        graph::has_graphs(device)
    }

    fn record(
        &self,
        device: &Device,
        pass: &mut dyn FnMut() -> Tensor<2>,
    ) -> Result<Box<dyn RecordedPass>, String> {
        graph::record(device, pass)
    }

    fn score_rows(&self, logits: Tensor<2>, params: &[RowParams]) -> Vec<RowScore> {
        score::score_rows(logits, params)
    }
}
