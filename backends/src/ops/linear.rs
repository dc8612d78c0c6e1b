use burn::tensor::{DType, Device, Tensor, TensorData, activation};

use super::blocks::Blocks;
use super::gelu_new;
use super::kernels::kernels;
use crate::cpu::{self, Few, PackedLinear};
use crate::{PackedMatrix, Quantize, WeightFormat, upload};

/// A projection.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    /// `[out]`, in the activations' dtype.
    bias: Option<Tensor<1>>,
}

#[derive(Debug, Clone)]
enum Weight {
    /// For the CPU's kernels; the bias is with it.
    Packed(PackedLinear),
    Device(DeviceWeight),
}

/// A projection's weight on a device other than the CPU.
#[derive(Debug, Clone)]
pub enum DeviceWeight {
    /// `[out, in]`, of a float type.
    Dense(Box<Tensor<2>>),
    /// Quantised.
    Blocks(Box<Blocks>),
}

impl DeviceWeight {
    /// `[out, in]`
    #[must_use]
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.dims(),
            Self::Blocks(blocks) => [blocks.scales.dims()[0], blocks.inputs],
        }
    }
}

impl Linear {
    /// A projection of `weight [out, in]` and `bias [out]`. On CPU the weight is packed for its
    /// kernels, one copy in memory; elsewhere it stays as it is unless it is to be quantised.
    #[must_use]
    pub fn new(weight: Tensor<2>, bias: Option<Tensor<1>>, quantize: Quantize) -> Self {
        let (device, dtype) = (weight.device(), weight.dtype());
        if cpu::is_flex(&device) || quantize != Quantize::None {
            let matrix = PackedMatrix::pack(weight, WeightFormat::of(dtype, quantize));
            return Self::packed(matrix, bias, (&device, dtype));
        }
        Self { weight: Weight::Device(DeviceWeight::Dense(Box::new(weight))), bias }
    }

    /// A projection of a weight that is packed already, on a device. Elsewhere than on CPU it is
    /// taken apart again: floats become floats of a type, what is quantised is not rounded again.
    #[must_use]
    pub fn packed(
        matrix: PackedMatrix,
        bias: Option<Tensor<1>>,
        (device, dtype): (&Device, DType),
    ) -> Self {
        if cpu::is_flex(device) {
            return Self { weight: Weight::Packed(PackedLinear::new(matrix, bias)), bias: None };
        }
        let weight = match Blocks::new(&matrix, device) {
            Some(blocks) => DeviceWeight::Blocks(Box::new(blocks)),
            None => {
                let data = TensorData::new(matrix.rows(), matrix.dims()).convert_dtype(dtype);
                DeviceWeight::Dense(Box::new(upload(data, device)))
            }
        };
        Self { weight: Weight::Device(weight), bias }
    }
}

/// What is done to a projection's result on its way to memory.
#[derive(Debug, Clone)]
pub enum Epilogue {
    /// Nothing.
    None,
    /// [`gelu_new`].
    Gelu,
    /// `x · sigmoid(x)`.
    Silu,
    /// Multiplied with `[rows, out]`: the other half of a gated MLP.
    Times(Box<Tensor<2>>),
    /// Added to `[rows, out]`: the residual.
    Plus(Box<Tensor<2>>),
}

/// `epilogue(x Wᵀ + b)`.
///
/// On CPU a row's result is bitwise the same for any number of rows; beside bf16 weights
/// activations are rounded to bf16, beside quantised ones to bytes in blocks of 32.
///
/// # Shapes
/// - `x`: `[rows, in]`; returns `[rows, out]` in the dtype of `x`
#[must_use]
pub fn linear(x: Tensor<2>, layer: &Linear, epilogue: Epilogue) -> Tensor<2> {
    let [y] = linears(x, [(layer, epilogue)]);
    y
}

/// Several projections of one input, each as [`linear`]: a device may compute them together.
///
/// # Shapes
/// - `x`: `[rows, in]`; returns `[rows, out]` of each in the dtype of `x`
#[must_use]
pub fn linears<const N: usize>(x: Tensor<2>, layers: [(&Linear, Epilogue); N]) -> [Tensor<2>; N] {
    let results: Few<Tensor<2>> = if let Some(kernels) = kernels(&x.device()) {
        let layers = layers.each_ref().map(|(layer, epilogue)| match &layer.weight {
            Weight::Device(weight) => (weight, layer.bias.as_ref(), epilogue.clone()),
            Weight::Packed(_) => unreachable!("packed weights are made for the CPU"),
        });
        kernels.linears(x, &layers).into()
    } else if let Some(packed) = packed(&layers) {
        let dtype = x.dtype();
        let results = cpu::packed_linears(x.cast(DType::F32), &packed);
        results.into_iter().map(|y| y.cast(dtype)).collect()
    } else {
        layers
            .map(|(layer, epilogue)| match &layer.weight {
                Weight::Device(weight) => {
                    portable_linear(x.clone(), weight, layer.bias.as_ref(), epilogue)
                }
                Weight::Packed(_) => unreachable!("a device has weights of one kind"),
            })
            .into_iter()
            .collect()
    };
    let mut results = results.into_iter();
    std::array::from_fn(|_| match results.next() {
        Some(result) => result,
        None => unreachable!("a result for each projection"),
    })
}

/// Projections whose weights are all packed for the CPU.
fn packed<'a>(layers: &'a [(&Linear, Epilogue)]) -> Option<Few<(&'a PackedLinear, &'a Epilogue)>> {
    let packed = layers.iter().map(|(layer, epilogue)| match &layer.weight {
        Weight::Packed(packed) => Some((packed, epilogue)),
        Weight::Device(_) => None,
    });
    packed.collect()
}

/// The portable default of [`linear`]: multiplied in the weight's dtype, quantised weights in that
/// of `x`.
#[must_use]
pub fn portable_linear(
    x: Tensor<2>,
    weight: &DeviceWeight,
    bias: Option<&Tensor<1>>,
    epilogue: Epilogue,
) -> Tensor<2> {
    let dtype = x.dtype();
    let weight = match weight {
        DeviceWeight::Dense(weight) => (**weight).clone(),
        DeviceWeight::Blocks(blocks) => blocks.dequantised(dtype),
    };
    let y = x.cast(weight.dtype()).matmul(weight.transpose()).cast(dtype);
    let y = match bias {
        Some(bias) => y + bias.clone().unsqueeze(),
        None => y,
    };
    match epilogue {
        Epilogue::None => y,
        Epilogue::Gelu => gelu_new(y),
        Epilogue::Silu => activation::silu(y),
        Epilogue::Times(other) => y * *other,
        Epilogue::Plus(other) => y + *other,
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    fn tensor<const D: usize>(shape: [usize; D], seed: usize) -> Tensor<D> {
        let n = shape.iter().product::<usize>();
        let values: Vec<f32> =
            (0..n).map(|i| ((i * 37 + seed * 11) % 101) as f32 / 25.0 - 2.0).collect();
        Tensor::from_data(TensorData::new(values, shape), (&Device::flex(), DType::F32))
    }

    #[test]
    fn every_epilogue_equals_its_portable_default() {
        // Outputs and rows beside panels and tiles; the last is shared between threads.
        for (rows, k, out) in [(1, 24, 33), (5, 40, 70), (60, 33, 130)] {
            let (x, w, b) = (tensor([rows, k], 1), tensor([out, k], 2), tensor([out], 3));
            let layer = Linear::new(w.clone(), Some(b.clone()), Quantize::None);
            let weight = DeviceWeight::Dense(Box::new(w));
            let other = Box::new(tensor([rows, out], 4));
            for epilogue in [
                Epilogue::None,
                Epilogue::Gelu,
                Epilogue::Silu,
                Epilogue::Times(other.clone()),
                Epilogue::Plus(other.clone()),
            ] {
                let got = linear(x.clone(), &layer, epilogue.clone());
                let want = portable_linear(x.clone(), &weight, Some(&b), epilogue.clone());
                // Sums of at most 40 products of at most 4, then a function of slope about 1, or a
                // factor of at most 2.
                let far: f32 = (got - want).abs().max().into_scalar();
                assert!(far < 1e-4, "{epilogue:?} {rows} rows: {far}");
            }
        }
    }

    #[test]
    fn blocks_are_the_weights_that_were_quantised() {
        for (outs, k) in [(1, 1), (33, 31), (5, 64), (7, 97)] {
            let w = tensor([outs, k], 5);
            for format in [WeightFormat::Int8, WeightFormat::Int4] {
                let matrix = PackedMatrix::pack(w.clone(), format);
                let blocks = Blocks::new(&matrix, &Device::flex()).unwrap();
                assert_eq!(DeviceWeight::Blocks(Box::new(blocks.clone())).dims(), [outs, k]);
                let got: Vec<f32> =
                    blocks.dequantised(DType::F32).into_data().try_to_vec().unwrap();
                assert_eq!(got, matrix.rows(), "{format:?} {outs}x{k}");
            }
        }
        let dense = PackedMatrix::pack(tensor([2, 2], 1), WeightFormat::F16);
        assert!(Blocks::new(&dense, &Device::flex()).is_none());
    }
}
