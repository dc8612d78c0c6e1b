//! Projections: every kernel for them, of few rows and of many, with weights of every format.

use burn::tensor::f16;
use dfastllm_backends::ops::{self, Epilogue, Linear};
use dfastllm_backends::{DType, Device, PackedMatrix, Quantize, Tensor, TensorData, WeightFormat};

use crate::lane::{Lane, Pair, lanes, noise};

const BLOCK: usize = 32;

/// Noise scaled as weights are, so that sums stay near one.
fn weight(salt: usize, [outs, inputs]: [usize; 2]) -> Vec<f32> {
    let scale = (inputs as f32).sqrt().recip();
    noise(salt, outs * inputs).iter().map(|w| w * scale).collect()
}

fn data(values: Vec<f32>, shape: [usize; 2]) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), (&Device::flex(), DType::F32))
}

/// A row of weights as the format keeps it, stated anew.
fn kept(quantize: Quantize, row: &[f32]) -> Vec<f64> {
    let block = |block: &[f32]| -> Vec<f64> {
        let key = |v: &&f32| v.abs().to_bits();
        let most = block.iter().rev().max_by_key(key).copied().unwrap_or(0.0);
        let (divisor, [least, largest]) = match quantize {
            Quantize::Int4 => (most / -8.0, [-8.0, 7.0]),
            _ => (most.abs() / 127.0, [-127.0, 127.0]),
        };
        let scale = f16::from_f32(divisor).to_f32();
        let count = |v: &f32| match scale {
            0.0 => 0.0,
            _ => (v / scale).round_ties_even().clamp(least, largest),
        };
        block.iter().map(|v| f64::from(count(v)) * f64::from(scale)).collect()
    };
    match quantize {
        Quantize::None => row.iter().map(|&v| f64::from(v)).collect(),
        _ => row.chunks(BLOCK).flat_map(block).collect(),
    }
}

/// What is multiplied on both sides.
struct Case {
    x: Pair<2>,
    bias: Pair<1>,
    other: Pair<2>,
    /// The tested projections without and with a bias.
    layers: [Linear; 2],
    /// `x Wᵀ` from the weights as they are kept, summed in f64.
    sums: Vec<f64>,
}

impl Case {
    fn new(lane: &Lane, quantize: Quantize, [rows, inputs, outs]: [usize; 3]) -> Self {
        let x: Pair<2> = lane.noise(1, [rows, inputs]);
        let weight = lane.pair(&weight(2, [outs, inputs]), [outs, inputs]);
        let (bias, other) = (lane.noise(3, [outs]), lane.noise(4, [rows, outs]));
        let layer = |bias| Linear::new(weight.tested.clone(), bias, quantize);
        let layers = [layer(None), layer(Some(bias.tested.clone()))];
        let values = |t: Tensor<2>| t.into_data().iter::<f32>().collect::<Vec<_>>();
        let (x_values, weight) = (values(x.reference.clone()), values(weight.reference));
        let weight: Vec<_> = weight.chunks(inputs).map(|row| kept(quantize, row)).collect();
        let dot = |row: &[f32], w: &[f64]| row.iter().zip(w).map(|(x, w)| f64::from(*x) * w).sum();
        let rows = x_values.chunks(inputs);
        let sums = rows.flat_map(|row| weight.iter().map(move |w| dot(row, w))).collect();
        Self { x, bias, other, layers, sums }
    }

    /// Compares one epilogue with the same of the sums in f64.
    fn check(&self, lane: &Lane, what: &str, with_bias: bool, epilogue: &str) {
        let other = || Box::new(self.other.tested.clone());
        let tested = match epilogue {
            "gelu" => Epilogue::Gelu,
            "silu" => Epilogue::Silu,
            "times" => Epilogue::Times(other()),
            "plus" => Epilogue::Plus(other()),
            _ => Epilogue::None,
        };
        let layer = &self.layers[usize::from(with_bias)];
        let tested = ops::linear(self.x.tested.clone(), layer, tested);
        let values = |t: Vec<f32>| t.into_iter().map(f64::from).collect::<Vec<_>>();
        let bias = values(self.bias.reference.to_data().iter::<f32>().collect());
        let other = values(self.other.reference.to_data().iter::<f32>().collect());
        let finished = |(i, sum): (usize, &f64)| {
            let value = if with_bias { sum + bias[i % bias.len()] } else { *sum };
            let root = (2.0 / std::f64::consts::PI).sqrt();
            (match epilogue {
                "gelu" => {
                    let u = root * (value + 0.044_715 * value.powi(3));
                    0.5 * value * (1.0 + u.tanh())
                }
                "silu" => value / (1.0 + (-value).exp()),
                "times" => value * other[i],
                "plus" => value + other[i],
                _ => value,
            }) as f32
        };
        let reference = self.sums.iter().enumerate().map(finished).collect();
        let reference = data(reference, self.other.reference.dims());
        let what = format!("{what} {epilogue}, bias {with_bias}");
        // Sums of up to 256 products in f32 are within 2^-24 · 256 of theirs; the rest is rounding
        // to the lane's dtype, of results and, for many rows, of weights.
        lane.check_product(&what, &tested, &reference);
    }
}

const SHAPES: [[usize; 3]; 20] = [
    // Rows, inputs, outputs: odd ones, whole vectors, tiles that are not full.
    [1, 1, 1],
    [2, 7, 33],
    [3, 33, 7],
    [5, 65, 130],
    [8, 64, 65],
    [9, 130, 33],
    [17, 96, 64],
    [32, 256, 96],
    [33, 64, 130],
    [64, 33, 65],
    [1, 256, 256],
    // Outputs enough for several a group.
    [1, 64, 2051],
    [2, 33, 2050],
    [3, 40, 4101],
    [19, 64, 2102],
    // Outputs enough for two sixteens a cube, and for fewer planes.
    [33, 128, 4100],
    [9, 64, 8195],
    // More than the kernel for few takes.
    [65, 96, 65],
    [130, 65, 64],
    [66, 7, 1],
];

#[test]
fn weights_of_every_format() {
    for lane in lanes("linear, every format") {
        for quantize in [Quantize::None, Quantize::Int8, Quantize::Int4] {
            for shape in SHAPES {
                let what = format!("{quantize} {shape:?}");
                Case::new(&lane, quantize, shape).check(&lane, &what, true, "none");
            }
        }
    }
}

#[test]
fn epilogues_with_and_without_a_bias() {
    for lane in lanes("linear, every epilogue") {
        for rows in [9, 65] {
            let case = Case::new(&lane, Quantize::None, [rows, 40, 35]);
            for epilogue in ["none", "gelu", "silu", "times", "plus"] {
                for with_bias in [false, true] {
                    case.check(&lane, &format!("{rows} rows"), with_bias, epilogue);
                }
            }
        }
    }
}

fn projection(lane: &Lane, salt: usize, shape: [usize; 2], quantize: Quantize) -> Linear {
    let weight = lane.pair(&weight(salt, shape), shape).tested;
    let bias: Pair<1> = lane.noise(salt + 1, [shape[0]]);
    Linear::new(weight, Some(bias.tested), quantize)
}

fn bits(x: &Tensor<2>) -> Vec<u32> {
    x.to_data().iter::<f32>().map(f32::to_bits).collect()
}

/// Rows so long that units and planes go round several times, with some left over.
#[test]
fn long_sums() {
    let shapes = [[1, 9000, 40], [2, 2560, 40], [5, 2176, 40], [40, 1120, 40], [32, 1088, 4100]];
    for lane in lanes("linear, long sums") {
        for [rows, inputs, outs] in shapes {
            let x: Pair<2> = lane.noise(1, [rows, inputs]);
            let weight = lane.pair(&weight(2, [outs, inputs]), [outs, inputs]);
            let layer = Linear::new(weight.tested, None, Quantize::None);
            let tested = ops::linear(x.tested, &layer, Epilogue::None);
            let reference = x.reference.matmul(weight.reference.transpose());
            lane.check_product(&format!("{rows} {inputs} {outs}"), &tested, &reference);
        }
    }
}

#[test]
fn projections_together_are_those_alone() {
    for lane in lanes("linears") {
        for (quantize, rows) in [
            (Quantize::None, vec![1, 3, 20, 40]),
            (Quantize::Int8, vec![2, 5]),
            (Quantize::Int4, vec![3, 65]),
        ] {
            for rows in rows {
                let x: Pair<2> = lane.noise(1, [rows, 64]);
                // All together few enough outputs to be cut as each alone.
                let [q, k, v, inner] = [(2, 64), (4, 32), (6, 33), (8, 48)]
                    .map(|(salt, outs)| projection(&lane, salt, [outs, 64], quantize));
                let plain = |layer| (layer, Epilogue::None);
                let layers = || [plain(&q), plain(&k), plain(&v), (&inner, Epilogue::Gelu)];
                let together = ops::linears(x.tested.clone(), layers());
                for (i, ((layer, epilogue), together)) in
                    layers().into_iter().zip(&together).enumerate()
                {
                    let alone = ops::linear(x.tested.clone(), layer, epilogue);
                    lane.assert_eq(&bits(together), &bits(&alone), || {
                        format!("{quantize} {rows} rows, {i}")
                    });
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_alone_and_among_few() {
    for lane in lanes("linear, a row alone") {
        // No multiple of 32 inputs for floats: tensor cores, from three rows on, have an order of their own.
        for (quantize, inputs) in
            [(Quantize::None, 136), (Quantize::Int8, 130), (Quantize::Int4, 2080)]
        {
            let layer = projection(&lane, 2, [19, inputs], quantize);
            let x = lane.noise::<2>(1, [33, inputs]).tested;
            let all = bits(&ops::linear(x.clone(), &layer, Epilogue::Gelu));
            for rows in [1, 2, 3, 8] {
                let some = x.clone().slice([25..25 + rows]);
                let some = bits(&ops::linear(some, &layer, Epilogue::Gelu));
                let all = &all[25 * 19..(25 + rows) * 19];
                lane.assert_eq(&some[..], all, || format!("{quantize}, {rows} rows"));
            }
        }
    }
}

#[test]
fn zeros_stay_zero_and_what_is_no_number_stays_none() {
    for lane in lanes("linear, zeros and NaN") {
        for quantize in [Quantize::Int8, Quantize::Int4] {
            for (rows, bad) in [(2, f32::NAN), (2, f32::INFINITY), (70, f32::NAN)] {
                let mut values = weight(2, [3, 40]);
                values[..40].fill(0.0);
                values[40 + 35] = bad;
                let weight = lane.pair(&values, [3, 40]).tested;
                let layer = Linear::new(weight, None, quantize);
                let x: Pair<2> = lane.noise(1, [rows, 40]);
                let y = ops::linear(x.tested, &layer, Epilogue::None);
                for row in y.to_data().iter::<f32>().collect::<Vec<_>>().chunks(3) {
                    let what = format!("{quantize} {rows} rows, {bad}: {row:?}");
                    let finite = [row[0] == 0.0, row[1].is_finite(), row[2].is_finite()];
                    lane.assert_eq(&finite, &[true, false, true], || what);
                }
            }
        }
    }
}

#[test]
fn what_is_packed_serves_as_what_it_was_packed_from() {
    for lane in lanes("linear, packed") {
        let (shape, x) = ([35, 70], lane.noise::<2>(1, [4, 70]).tested);
        let weight = lane.pair(&weight(2, shape), shape).reference;
        for (quantize, dtype) in [
            (Quantize::None, lane.dtype),
            // Whether or not the device computes in it.
            (Quantize::None, DType::BF16),
            (Quantize::Int8, lane.dtype),
            (Quantize::Int4, DType::F32),
        ] {
            let format = WeightFormat::of(dtype, quantize);
            let matrix = PackedMatrix::pack(weight.clone(), format);
            let packed = Linear::packed(matrix, None, (&lane.device, lane.dtype));
            let rounded = weight.clone().cast(dtype).to_data().convert_dtype(lane.dtype);
            let own = Tensor::from_data(rounded, (&lane.device, lane.dtype));
            let own = Linear::new(own, None, quantize);
            let [packed, own] =
                [packed, own].map(|l| bits(&ops::linear(x.clone(), &l, Epilogue::None)));
            lane.assert_eq(&packed, &own, || format!("{quantize} of {dtype:?}"));
        }
    }
}

#[test]
fn more_outputs_than_cubes_along_an_axis_and_more_than_are_dequantised_at_a_time() {
    for lane in lanes("linear, many outputs").into_iter().filter(|lane| lane.dtype == DType::F32) {
        // 64 MiB of f32 are 65536 outputs of 256; two outputs and two groups a cube would be more
        // than 65535 cubes from 262140 outputs on.
        for (inputs, outs, rows) in [(4, 280_003, 1), (256, 66_001, 65)] {
            let weight = weight(2, [outs, inputs]);
            let tested = lane.pair(&weight, [outs, inputs]).tested;
            let layer = Linear::new(tested, None, Quantize::Int4);
            let x: Pair<2> = lane.noise(1, [rows, inputs]);
            let y = ops::linear(x.tested, &layer, Epilogue::None);
            let y: Vec<f32> = y.to_data().iter::<f32>().collect();
            let x: Vec<f32> = x.reference.to_data().iter::<f32>().collect();
            for out in [0, 1, 65_535, 65_536, 65_537, outs - 1] {
                let row = kept(Quantize::Int4, &weight[out * inputs..][..inputs]);
                let last = &x[(rows - 1) * inputs..];
                let want: f64 = last.iter().zip(&row).map(|(x, w)| f64::from(*x) * w).sum();
                let got = f64::from(y[(rows - 1) * outs + out]);
                lane.assert_eq(&lane.is_product(got, want), &true, || {
                    format!("{outs}, {out}: {got} for {want}")
                });
            }
        }
    }
}
