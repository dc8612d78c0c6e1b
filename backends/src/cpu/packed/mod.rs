//! Weights packed once at load, so that one kernel family serves one row, a few and many.
//!
//! Outputs are packed in panels of [`PANEL`]: a vector holds neighbouring outputs, and a step along
//! `k` multiplies it with one row's activations in all lanes. So the order of an output's sums
//! depends on its own row alone, whatever its neighbours, and a panel is one stream of memory.
//!
//! Activations are rounded to what the weights are multiplied with: bf16 beside bf16 weights, bytes
//! with a scale for every 32 beside quantised ones (as llama.cpp's `Q8_0` products do).

mod bytes;
mod pack;
mod pairs;

use std::sync::Arc;

use ::half::bf16;
use burn::tensor::{DType, Tensor};

use self::bytes::ByteTiles;
use self::pack::PackedMatrix;
use self::pairs::PairTiles;
use super::isa::{CpuPath, Isa, Kernel, active_path, dispatch};
use super::share::{Grid, share};
use crate::Quantize;

/// What a packed weight is kept as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightFormat {
    /// As it is.
    Bf16,
    /// A byte, with an f16 scale for every [`BLOCK`].
    Int8,
    /// Half a byte, with the same.
    Int4,
}

/// A packed weight with its bias.
#[derive(Debug, Clone)]
pub(crate) struct PackedLinear {
    pub(super) matrix: Arc<PackedMatrix>,
    /// `[outs]`
    bias: Option<Arc<[f32]>>,
}

impl PackedLinear {
    /// What weights of a dtype are packed as, if at all.
    pub(crate) fn format(dtype: DType, quantize: Quantize) -> Option<WeightFormat> {
        match quantize {
            Quantize::Int8 => Some(WeightFormat::Int8),
            Quantize::Int4 => Some(WeightFormat::Int4),
            Quantize::None => (dtype == DType::BF16).then_some(WeightFormat::Bf16),
        }
    }

    /// Packs `weight [outs, k]`.
    pub(crate) fn new(weight: Tensor<2>, bias: Option<Tensor<1>>, format: WeightFormat) -> Self {
        let [outs, k] = weight.dims();
        let data = weight.into_data();
        let matrix = match data.as_slice::<bf16>() {
            Ok(values) => PackedMatrix::new(format, (outs, k), |row, to| {
                to.iter_mut().zip(&values[row * k..]).for_each(|(to, v)| *to = v.to_f32());
            }),
            Err(_) => {
                let values: Vec<f32> = data.iter().collect();
                PackedMatrix::new(format, (outs, k), |row, to| {
                    to.copy_from_slice(&values[row * k..(row + 1) * k]);
                })
            }
        };
        let bias = bias.map(|bias| bias.into_data().iter::<f32>().collect());
        Self { matrix: Arc::new(matrix), bias }
    }

    /// `x [rows, k]` to `[rows, outs]`.
    pub(super) fn multiply(&self, x: &[f32]) -> Vec<f32> {
        multiply(active_path(), &self.matrix, x, self.bias.as_deref())
    }
}

/// Outputs of a panel.
const PANEL: usize = 32;
/// Weights that share a scale, along `k`.
const BLOCK: usize = 32;
/// Words that the first rows of a panel ask the memory for in advance: while they wait for none, the
/// sums of several rows cost no time of their own.
const AHEAD: usize = 2048;
/// From this many rows on, threads share the rows.
const SPLIT_ROWS: usize = 48;

/// Where a tile's results go.
struct Target<'a> {
    /// `[rows, stride]`
    y: &'a mut [f32],
    stride: usize,
    /// The first output that `y` has room for.
    first: usize,
    /// `[outs]`
    bias: Option<&'a [f32]>,
}

impl Target<'_> {
    /// Writes the lanes of a vector that are outputs of the matrix.
    #[inline(always)]
    fn put<I: Isa>(&mut self, isa: I, row: usize, out: usize, value: I::V) {
        let (from, end) = (out - self.first, self.stride);
        if from >= end {
            return;
        }
        let to = (from + I::LANES).min(end);
        let value = match self.bias {
            Some(bias) => {
                let bias = &bias[out..out + to - from];
                let bias = if to - from == I::LANES { isa.load(bias) } else { isa.load_part(bias) };
                isa.add(value, bias)
            }
            None => value,
        };
        isa.store(value, &mut self.y[row * self.stride + from..row * self.stride + to]);
    }
}

/// Products of some panels with some rows.
trait Tiles: Copy + Sync {
    /// Rows it has activations of.
    fn rows(&self) -> usize;
    /// The same with these rows only.
    fn with_rows(self, from: usize, to: usize) -> Self;
    /// Multiplies a panel with all rows.
    fn panel<I: Isa>(self, isa: I, panel: usize, target: &mut Target<'_>);
}

struct Panels<'a, T> {
    tiles: T,
    panels: std::ops::Range<usize>,
    target: Target<'a>,
}

impl<T: Tiles> Kernel for Panels<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        for panel in self.panels.clone() {
            self.tiles.panel(isa, panel, &mut self.target);
        }
    }
}

/// `x Wᵀ + b`: `x [rows, k]` to `[rows, outs]`.
pub(crate) fn multiply(
    path: CpuPath,
    matrix: &PackedMatrix,
    x: &[f32],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    match matrix.format() {
        WeightFormat::Bf16 => {
            let x = pairs::Pairs::new(path, x, matrix.k());
            spread(path, PairTiles::new(matrix, &x), matrix, bias)
        }
        WeightFormat::Int8 | WeightFormat::Int4 => {
            let x = bytes::Quantised::new(path, x, matrix.k());
            spread(path, ByteTiles::new(matrix, &x), matrix, bias)
        }
    }
}

/// Shares the work between threads.
fn spread<T: Tiles>(
    path: CpuPath,
    tiles: T,
    matrix: &PackedMatrix,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let grid = Grid {
        rows: tiles.rows(),
        outs: matrix.outs(),
        k: matrix.k(),
        split_rows: SPLIT_ROWS,
        tile_rows: pairs::TILE_ROWS,
        tile_outs: PANEL,
    };
    share(grid, |rows, outs, y| {
        let tiles = tiles.with_rows(rows.start, rows.end);
        let panels = outs.start / PANEL..outs.end.div_ceil(PANEL);
        let target = Target { y, stride: outs.len(), first: outs.start, bias };
        dispatch(path, Panels { tiles, panels, target });
    })
}

#[cfg(test)]
mod tests;
