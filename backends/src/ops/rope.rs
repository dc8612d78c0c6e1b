//! Rotary position embedding with half-split pairing: dimension `i` turns with `i + dims / 2`.

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::{cpu, upload};

/// Where rounding happens when activations are narrower than f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePrecision {
    /// Heads are widened, turned in f32 and rounded once (LLaDA with `rope_full_precision`).
    Float32,
    /// Angles are computed in f32 but sines and cosines are rounded to the activations' dtype,
    /// in which all arithmetic happens (Phi, Dream).
    Activations,
}

/// How heads are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RopeShape {
    /// Size of a head.
    pub head_dim: usize,
    /// Pairs of a head that turn: dimension `i` with `i + half`.
    pub half: usize,
    /// Where rounding happens.
    pub precision: RopePrecision,
}

/// The rotary embedding of one model.
#[derive(Debug, Clone)]
pub struct Rope {
    inverse_frequencies: Vec<f32>,
    head_dim: usize,
    precision: RopePrecision,
}

/// Sines and cosines of the rows of one pass, shared by its layers.
#[derive(Debug, Clone)]
pub struct RopeAngles {
    /// `[2, rows, half]`, cosines and then sines: f32, or the activations' dtype if they round there.
    pub table: Tensor<3>,
}

impl RopeAngles {
    /// Cosines and sines, `[rows, 1, half]` each.
    fn parts(&self) -> [Tensor<3>; 2] {
        let [_, rows, half] = self.table.dims();
        [0, 1].map(|i| self.table.clone().slice([i..i + 1]).reshape([rows, 1, half]))
    }
}

impl Rope {
    /// Turns the first `rotary_dims` of every head (all of them, or part as Phi does); `theta` is
    /// the base of the frequencies.
    #[must_use]
    pub fn new(head_dim: usize, rotary_dims: usize, theta: f64, precision: RopePrecision) -> Self {
        let inverse_frequencies = (0..rotary_dims / 2)
            .map(|i| (1.0 / theta.powf(2.0 * i as f64 / rotary_dims as f64)) as f32)
            .collect();
        Self { inverse_frequencies, head_dim, precision }
    }

    /// How it turns heads.
    #[must_use]
    pub fn shape(&self) -> RopeShape {
        let half = self.inverse_frequencies.len();
        RopeShape { head_dim: self.head_dim, half, precision: self.precision }
    }

    /// Sines and cosines for rows at `positions`, for activations of `dtype`.
    #[must_use]
    pub fn angles(&self, positions: &[usize], dtype: DType, device: &Device) -> RopeAngles {
        RopeAngles { table: upload(self.angle_data(positions, dtype), device) }
    }

    /// The same before it is uploaded.
    pub(crate) fn angle_data(&self, positions: &[usize], dtype: DType) -> TensorData {
        let part = |f: fn(f32) -> f32| {
            positions
                .iter()
                .flat_map(move |&p| self.inverse_frequencies.iter().map(move |w| f(p as f32 * w)))
        };
        let values: Vec<f32> = part(f32::cos).chain(part(f32::sin)).collect();
        let shape = [2, positions.len(), self.inverse_frequencies.len()];
        let dtype = match self.precision {
            RopePrecision::Float32 => DType::F32,
            RopePrecision::Activations => dtype,
        };
        // Rounded here, so that one copy is all the device has to do.
        TensorData::new(values, shape).convert_dtype(dtype)
    }

    /// Turns every head of every row.
    ///
    /// # Shapes
    /// - `x`: `[rows, heads * head_dim]`; returns the same
    #[must_use]
    pub fn apply(&self, x: Tensor<2>, angles: &RopeAngles) -> Tensor<2> {
        if cpu::is_flex_f32(&x) && angles.table.dtype() == DType::F32 {
            return cpu::rotate(x, &angles.table, self.head_dim);
        }
        self.portable_apply(x, angles)
    }

    /// The portable default of [`Rope::apply`].
    fn portable_apply(&self, x: Tensor<2>, angles: &RopeAngles) -> Tensor<2> {
        let [rows, width] = x.dims();
        let (dtype, half) = (x.dtype(), self.inverse_frequencies.len());
        let heads: Tensor<3> = x.reshape([rows, width / self.head_dim, self.head_dim]);
        let heads = match self.precision {
            RopePrecision::Float32 => heads.cast(DType::F32),
            RopePrecision::Activations => heads,
        };
        let part = |from: usize, to: usize| {
            heads.clone().slice([0..rows, 0..width / self.head_dim, from..to])
        };
        let (first, second) = (part(0, half), part(half, 2 * half)); // [rows, heads, half]
        let [cos, sin] = angles.parts();
        let turned_first = first.clone() * cos.clone() - second.clone() * sin.clone();
        let turned_second = second * cos + first * sin;
        let mut parts = vec![turned_first, turned_second];
        if 2 * half < self.head_dim {
            parts.push(part(2 * half, self.head_dim));
        }
        Tensor::cat(parts, 2).reshape([rows, width]).cast(dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turned(precision: RopePrecision, dtype: DType) -> Vec<f32> {
        let device = Device::flex();
        let rope = Rope::new(6, 4, 100.0, precision);
        let x: Vec<f32> = (0..12).map(|i| i as f32 / 7.0).collect();
        let x = Tensor::<2>::from_data(TensorData::new(x, [1, 12]), (&device, DType::F32));
        let y = rope.apply(x.cast(dtype), &rope.angles(&[3], dtype, &device));
        assert_eq!(y.dtype(), dtype);
        y.cast(DType::F32).into_data().try_to_vec().unwrap()
    }

    #[test]
    fn pairs_are_half_a_rotation_apart_and_the_rest_is_untouched() {
        let y = turned(RopePrecision::Float32, DType::F32);
        // Frequencies 1 and 100^(-2/4) = 0.1; position 3; second head starts at 6.
        let (a, b) = (6.0f32 / 7.0, 8.0f32 / 7.0);
        assert!((y[6] - (a * 3f32.cos() - b * 3f32.sin())).abs() < 1e-6);
        assert!((y[8] - (b * 3f32.cos() + a * 3f32.sin())).abs() < 1e-6);
        let (a, b) = (1.0f32 / 7.0, 3.0f32 / 7.0);
        assert!((y[1] - (a * 0.3f32.cos() - b * 0.3f32.sin())).abs() < 1e-6);
        assert_eq!(y[4..6], [4.0 / 7.0, 5.0 / 7.0]);
    }

    #[test]
    fn the_kernel_equals_the_portable_default() {
        let device = Device::flex();
        let rope = Rope::new(20, 8, 10_000.0, RopePrecision::Activations);
        let x: Vec<f32> = (0..67 * 60).map(|i| (i % 91) as f32 / 45.0 - 1.0).collect();
        let x = Tensor::<2>::from_data(TensorData::new(x, [67, 60]), (&device, DType::F32));
        let angles = rope.angles(&(100..167).collect::<Vec<_>>(), DType::F32, &device);
        let far = rope.apply(x.clone(), &angles) - rope.portable_apply(x, &angles);
        assert!(far.abs().max().into_scalar::<f32>() < 1e-6);
    }

    #[test]
    fn precision_decides_where_bf16_rounds() {
        let once = turned(RopePrecision::Float32, DType::BF16);
        let often = turned(RopePrecision::Activations, DType::BF16);
        let exact = turned(RopePrecision::Float32, DType::F32);
        let error =
            |y: &[f32]| y.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert_ne!(once, often);
        assert!(error(&once) < error(&often), "{once:?} {often:?} {exact:?}");
    }
}
