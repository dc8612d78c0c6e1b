//! Weights packed once at load, so that one kernel family serves one row, a few and many.
//!
//! Outputs are packed in panels of [`PANEL`]: a vector holds neighbouring outputs, and a step along
//! `k` multiplies it with one row's activations in all lanes. So the order of an output's sums
//! depends on its own row alone, whatever its neighbours, and a panel is one stream of memory.
//!
//! Activations are rounded to what the weights are multiplied with: bf16 beside bf16 weights, bytes
//! with a scale for every 32 beside quantised ones (as llama.cpp's `Q8_0` products do).

mod bytes;
mod columns;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod ordered;
mod pack;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiled;
mod unpack;

use std::ops::Range;
use std::sync::Arc;

use ::half::f16;
use burn::tensor::{DType, Tensor};

use self::bytes::{ByteTiles, Quantised};
pub(super) use self::columns::rounded;
use self::columns::{Columns, Pairs};
pub use self::pack::PackedMatrix;
pub(crate) use self::unpack::BlockRows;
use super::buffers::Buffer;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::isa::amx::Amx;
use super::isa::{CpuPath, Isa, Kernel, dispatch};
use super::share::{Few, Grid, share};
use super::vector::{gelu, silu};
use crate::Quantize;

/// What a packed weight is kept as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// Single precision.
    F32,
    /// Half precision, widened as it is read.
    F16,
    /// bfloat16, in pairs.
    Bf16,
    /// A byte, with an f16 scale for every 32.
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

impl WeightFormat {
    /// What weights of a float type are packed as.
    #[must_use]
    pub fn of(dtype: DType, quantize: Quantize) -> Self {
        match (quantize, dtype) {
            (Quantize::Int8, _) => Self::Int8,
            (Quantize::Int4, _) => Self::Int4,
            (Quantize::None, DType::BF16) => Self::Bf16,
            (Quantize::None, DType::F16) => Self::F16,
            (Quantize::None, _) => Self::F32,
        }
    }

    /// The float type or the quantisation it is made of.
    #[must_use]
    pub fn made_of(self) -> (Option<DType>, Quantize) {
        match self {
            Self::F32 => (Some(DType::F32), Quantize::None),
            Self::F16 => (Some(DType::F16), Quantize::None),
            Self::Bf16 => (Some(DType::BF16), Quantize::None),
            Self::Int8 => (None, Quantize::Int8),
            Self::Int4 => (None, Quantize::Int4),
        }
    }

    /// Its name in a file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// The format of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::F32, Self::F16, Self::Bf16, Self::Int8, Self::Int4];
        all.into_iter().find(|format| format.name() == name)
    }
}

impl PackedLinear {
    pub(crate) fn new(matrix: PackedMatrix, bias: Option<Tensor<1>>) -> Self {
        let bias = bias.map(|bias| bias.into_data().iter::<f32>().collect());
        Self { matrix: Arc::new(matrix), bias }
    }

    pub(super) fn outs(&self) -> usize {
        self.matrix.outs()
    }

    /// To be finished so.
    pub(super) fn product<'a>(&'a self, finish: Finish<'a>) -> Product<'a> {
        Product { matrix: &self.matrix, bias: self.bias.as_deref(), finish }
    }
}

/// What is done to a sum, its bias included, before it is written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Finish<'a> {
    /// Nothing.
    Plain,
    /// [`gelu`]
    Gelu,
    /// [`silu`]
    Silu,
    /// Multiplied with these `[rows, outs]`.
    Times(&'a [f32]),
    /// Added to these `[rows, outs]`.
    Plus(&'a [f32]),
}

/// Outputs of a panel.
const PANEL: usize = 32;
/// Weights that share a scale, along `k`.
const BLOCK: usize = 32;
/// Words that tiles ask the memory for in advance: while they wait for none, the sums of several rows
/// cost no time of their own.
const AHEAD: usize = 2048;
/// From this many rows on, threads share the rows.
const SPLIT_ROWS: usize = 48;

/// Where a tile's results go.
struct Target<'a> {
    /// `[rows, outs]`
    y: &'a mut [f32],
    /// The rows and outputs that `y` has room for.
    rows: Range<usize>,
    outs: Range<usize>,
    /// `[outs]` of the whole matrix.
    bias: Option<&'a [f32]>,
    finish: Finish<'a>,
    /// Rows of the whole result.
    all_rows: usize,
}

impl<'a> Target<'a> {
    /// What stands beside `n` results in `others [rows, outs]`, whole rows of the matrix of which `y`
    /// may be a part.
    #[inline(always)]
    fn beside(&self, others: &'a [f32], row: usize, out: usize, n: usize) -> &'a [f32] {
        let width = others.len() / self.all_rows;
        let at = (self.rows.start + row) * width + out;
        &others[at..at + n]
    }

    /// Writes the lanes of a vector that are outputs of the matrix.
    #[inline(always)]
    fn put<I: Isa>(&mut self, isa: I, row: usize, out: usize, value: I::V) {
        let (from, stride) = (out - self.outs.start, self.outs.len());
        if from >= stride {
            return;
        }
        let to = (from + I::LANES).min(stride);
        let is_whole = to - from == I::LANES;
        let lanes = |from: &[f32]| if is_whole { isa.load(from) } else { isa.load_part(from) };
        let value = match self.bias {
            Some(bias) => isa.add(value, lanes(&bias[out..out + to - from])),
            None => value,
        };
        let value = match self.finish {
            Finish::Plain => value,
            Finish::Gelu => gelu(isa, value),
            Finish::Silu => silu(isa, value),
            Finish::Times(others) => {
                isa.mul(value, lanes(self.beside(others, row, out, to - from)))
            }
            Finish::Plus(others) => isa.add(value, lanes(self.beside(others, row, out, to - from))),
        };
        isa.store(value, &mut self.y[row * stride + from..row * stride + to]);
    }

    /// Writes the sums `[rows, PANEL]` of some rows from `row` on and of the panel that begins at `first`.
    #[inline(always)]
    fn put_rows<I: Isa>(
        &mut self,
        isa: I,
        sums: &[f32],
        (row, rows, first): (usize, usize, usize),
    ) {
        for r in 0..rows {
            let mut lane = 0;
            while lane < PANEL {
                let value = isa.load(&sums[r * PANEL + lane..]);
                self.put(isa, row + r, first + lane, value);
                lane += I::LANES;
            }
        }
    }
}

/// Products of some panels with some rows.
trait Tiles: Copy + Sync {
    /// Rows that are computed together and not cut apart.
    const TILE_ROWS: usize;

    /// Rows it has activations of.
    fn rows(&self) -> usize;
    /// The same with these rows only, from the first of a tile on.
    fn with_rows(self, from: usize, to: usize) -> Self;
    /// Multiplies some panels with all rows.
    fn panels<I: Isa>(self, isa: I, panels: Range<usize>, target: &mut Target<'_>);
}

struct Panels<'a, T> {
    tiles: T,
    panels: Range<usize>,
    target: Target<'a>,
}

impl<T: Tiles> Kernel for Panels<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        self.tiles.panels(isa, self.panels, &mut self.target);
    }
}

/// `x Wᵀ + b`, finished.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    matrix: &'a PackedMatrix,
    /// `[outs]`
    bias: Option<&'a [f32]>,
    finish: Finish<'a>,
}

/// Products of one `x [rows, k]`, `[rows, outs]` each: threads start and wait for each other once.
pub(super) fn multiply(path: CpuPath, products: &[Product<'_>], x: &[f32]) -> Few<Buffer> {
    let Some(first) = products.first() else { return Few::new() };
    let (k, format) = (first.matrix.k(), first.matrix.format());
    assert!(products.iter().all(|product| product.matrix.k() == k), "matrices of one width");
    if products.iter().any(|product| product.matrix.format() != format) {
        return products.iter().flat_map(|product| multiply(path, &[*product], x)).collect();
    }
    match format {
        WeightFormat::F32 => spread(path, products, |matrix| Columns::<f32>::new(matrix, x, k)),
        WeightFormat::F16 => spread(path, products, |matrix| Columns::<f16>::new(matrix, x, k)),
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        WeightFormat::Bf16 if let Some(amx) = Amx::of(path) => {
            tiled::multiply((amx, path), products, x, k)
        }
        WeightFormat::Bf16 => {
            let x = columns::pairs(path, x, k);
            let steps = k.div_ceil(2);
            spread(path, products, |matrix| Columns::<Pairs>::new(matrix, x.words(), steps))
        }
        WeightFormat::Int8 | WeightFormat::Int4 => {
            let x = Quantised::new(path, x, k, format);
            spread(path, products, |matrix| ByteTiles::new(matrix, &x))
        }
    }
}

/// Shares the work between threads.
fn spread<'a, T: Tiles>(
    path: CpuPath,
    products: &[Product<'a>],
    tiles: impl Fn(&'a PackedMatrix) -> T,
) -> Few<Buffer> {
    let tiles: Few<T> = products.iter().map(|product| tiles(product.matrix)).collect();
    let grid = |(product, tiles): (&Product<'_>, &T)| Grid {
        rows: tiles.rows(),
        outs: product.matrix.outs(),
        k: product.matrix.k(),
        split_rows: SPLIT_ROWS,
        tile_rows: T::TILE_ROWS,
        tile_outs: PANEL,
    };
    let grids: Few<Grid> = products.iter().zip(&tiles).map(grid).collect();
    share(&grids, |i, rows, outs, y| {
        let Product { bias, finish, .. } = products[i];
        let tiles = tiles[i].with_rows(rows.start, rows.end);
        let panels = outs.start / PANEL..outs.end.div_ceil(PANEL);
        let target = Target { y, rows, outs, bias, finish, all_rows: grids[i].rows };
        dispatch(path, Panels { tiles, panels, target });
    })
}

#[cfg(test)]
mod tests;
