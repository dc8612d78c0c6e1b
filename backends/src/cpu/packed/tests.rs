use ::bytes::Bytes;
use ::half::{bf16, f16};
use burn::tensor::{Device, TensorData};

use super::super::isa::active_path;
use super::super::testing::values;
use super::*;

const FORMATS: [WeightFormat; 5] = [
    WeightFormat::F32,
    WeightFormat::F16,
    WeightFormat::Bf16,
    WeightFormat::Int8,
    WeightFormat::Int4,
];

fn pack(format: WeightFormat, w: &[f32], k: usize) -> PackedMatrix {
    let row = |row: usize, to: &mut [f32]| to.copy_from_slice(&w[row * k..(row + 1) * k]);
    PackedMatrix::new(format, (w.len() / k, k), row)
}

/// One product.
fn biased(path: CpuPath, matrix: &PackedMatrix, x: &[f32], bias: Option<&[f32]>) -> Buffer {
    multiply(path, &[Product { matrix, bias, finish: Finish::Plain }], x).remove(0)
}

/// A product without bias.
fn product(path: CpuPath, matrix: &PackedMatrix, x: &[f32]) -> Buffer {
    biased(path, matrix, x, None)
}

/// What the kernels multiply with, stated anew: values of `k`, rounded as the format rounds.
fn rounded(format: WeightFormat, values: &[f32], is_weight: bool) -> Vec<f64> {
    let blocks = values.chunks(BLOCK);
    match format {
        WeightFormat::F32 => values.iter().map(|&v| f64::from(v)).collect(),
        WeightFormat::F16 if is_weight => {
            values.iter().map(|&v| f16::from_f32(v).to_f64()).collect()
        }
        WeightFormat::F16 => values.iter().map(|&v| f64::from(v)).collect(),
        WeightFormat::Bf16 => values.iter().map(|&v| bf16::from_f32(v).to_f64()).collect(),
        WeightFormat::Int4 if is_weight => blocks
            .flat_map(|block| {
                let key = |v: &&f32| v.abs().to_bits();
                let most = block.iter().rev().max_by_key(key).copied().unwrap_or(0.0);
                let scale = f16::from_f32(most / -8.0).to_f32();
                let stored = move |v: &f32| (v / scale).round_ties_even().clamp(-8.0, 7.0);
                block.iter().map(move |v| f64::from(stored(v)) * f64::from(scale))
            })
            .collect(),
        _ => blocks
            .flat_map(|block| {
                let most = block.iter().fold(0f32, |most, v| most.max(v.abs()));
                let scale = match is_weight {
                    true => f16::from_f32(most / 127.0).to_f32(),
                    false => most / 127.0,
                };
                let count = move |v: &f32| match is_weight {
                    true => (v / scale).round_ties_even().clamp(-127.0, 127.0),
                    false => (v * (127.0 / most)).round_ties_even(),
                };
                block.iter().map(move |v| f64::from(count(v)) * f64::from(scale))
            })
            .collect(),
    }
}

#[test]
fn every_path_and_format_matches_f64_over_odd_shapes() {
    for (rows, outs, k) in [
        (1, 1, 1),
        (1, 33, 31),
        (2, 40, 64),
        (3, 7, 97),
        (5, 65, 160),
        (13, 66, 130),
        // More blocks, and more rows, than tiles go through in turn.
        (8, 33, 290),
        (50, 34, 520),
        (129, 31, 64),
        // Threads quantise some blocks of all rows each, the last of them not whole.
        (8, 33, 4100),
        (9, 3, 4100),
    ] {
        let (x, w, b) = (values(rows * k, 1), values(outs * k, 2), values(outs, 3));
        for format in FORMATS {
            let matrix = pack(format, &w, k);
            let of = |values: &[f32], is_weight| -> Vec<Vec<f64>> {
                values.chunks(k).map(|row| rounded(format, row, is_weight)).collect()
            };
            let (exact_x, exact_w) = (of(&x, false), of(&w, true));
            for path in CpuPath::available() {
                let y = biased(path, &matrix, &x, Some(&b));
                for (index, got) in y.iter().enumerate() {
                    let (row, out) = (index / outs, index % outs);
                    let dot = exact_x[row].iter().zip(&exact_w[out]).map(|(x, w)| x * w);
                    let want = dot.sum::<f64>() + f64::from(b[out]);
                    // k products of size at most 1.1, each rounded to 2^-24 of the partial sum.
                    let error = (f64::from(*got) - want).abs();
                    assert!(error < k as f64 * 1.1e-7 + 1e-6, "{path} {format:?} {got} {want}");
                }
            }
        }
    }
}

#[test]
fn products_of_one_input_are_bitwise_those_of_each() {
    let (k, path) = (352, active_path());
    let bias = values(300, 3);
    // Shared by outputs, by rows, and not at all; matrices of other sizes, the last of another format.
    for rows in [1, 5, 67] {
        let x = values(rows * k, 1);
        let matrices =
            [(300, WeightFormat::Int8), (1, WeightFormat::Int8), (64, WeightFormat::Bf16)]
                .map(|(outs, format)| pack(format, &values(outs * k, 2 + outs as u32), k));
        for of in [&matrices[..2], &matrices[..]] {
            let products: Vec<Product<'_>> = of
                .iter()
                .map(|matrix| {
                    let bias = (matrix.outs() == 300).then_some(&bias[..]);
                    Product { matrix, bias, finish: Finish::Gelu }
                })
                .collect();
            let together = multiply(path, &products, &x);
            assert_eq!(together.len(), of.len());
            for (product, y) in products.iter().zip(&together) {
                assert!(y[..] == multiply(path, &[*product], &x)[0][..], "{rows} rows");
            }
        }
    }
    assert!(multiply(path, &[], &[]).is_empty());
}

#[test]
fn a_row_is_bitwise_the_same_alone_and_in_a_batch() {
    let (rows, outs, k) = (67, 300, 352);
    let (x, w) = (values(rows * k, 5), values(outs * k, 6));
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for format in FORMATS {
        let matrix = pack(format, &w, k);
        for path in CpuPath::available() {
            let all = product(path, &matrix, &x);
            // More rows than one thread keeps sums of.
            let on_one = one_thread.install(|| product(path, &matrix, &x));
            assert_eq!(on_one[..], all[..], "{path} {format:?}");
            for row in 0..rows {
                let one = product(path, &matrix, &x[row * k..(row + 1) * k]);
                assert_eq!(
                    one[..],
                    all[row * outs..(row + 1) * outs],
                    "{path} {format:?} row {row}"
                );
            }
            for count in [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 30] {
                let some = product(path, &matrix, &x[..count * k]);
                assert_eq!(some[..], all[..count * outs], "{path} {format:?} {count} rows");
            }
        }
    }
}

/// Several blocks of rows, groups of panels and chunks of steps, none of them whole, on one thread and on all.
#[test]
fn a_row_is_bitwise_the_same_among_more_than_go_together() {
    let (rows, outs, k) = (300, 170, 2100);
    let (x, w) = (values(rows * k, 5), values(outs * k, 6));
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let path = active_path();
    for format in [WeightFormat::Bf16, WeightFormat::Int8] {
        let matrix = pack(format, &w, k);
        let all = product(path, &matrix, &x);
        let on_one = one_thread.install(|| product(path, &matrix, &x));
        assert!(on_one[..] == all[..], "{format:?}");
        for row in [0, 31, 32, 100, 255, 256, 271, 272, 299] {
            let one = product(path, &matrix, &x[row * k..(row + 1) * k]);
            assert!(one[..] == all[row * outs..(row + 1) * outs], "{format:?} row {row}");
        }
    }
}

#[test]
fn quantised_sums_are_bitwise_the_same_on_all_paths_with_fused_arithmetic() {
    let (rows, outs, k) = (7, 100, 320);
    let (x, w) = (values(rows * k, 8), values(outs * k, 9));
    for format in [WeightFormat::Int8, WeightFormat::Int4] {
        let matrix = pack(format, &w, k);
        let fused = CpuPath::available().into_iter().filter(|p| *p != CpuPath::Portable);
        let all: Vec<Buffer> = fused.map(|path| product(path, &matrix, &x)).collect();
        assert!(all.windows(2).all(|pair| pair[0][..] == pair[1][..]), "{format:?}");
    }
}

/// The largest products there are: bytes must not saturate on the way.
#[test]
fn extremes_do_not_overflow() {
    let k = 4096;
    for format in FORMATS {
        for sign in [1.0, -1.0] {
            let matrix = pack(format, &vec![sign; k], k);
            for path in CpuPath::available() {
                let y = product(path, &matrix, &vec![-1.0; 2 * k]);
                let far = y.iter().map(|y| (y + sign * k as f32).abs()).fold(0.0, f32::max);
                // An f16 scale is off by at most 2^-11.
                assert!(far <= k as f32 / 2048.0, "{path} {format:?}: {y:?}");
            }
        }
    }
}

#[test]
fn zeros_stay_zero_and_what_is_no_number_stays_none() {
    let k = 64;
    for format in FORMATS {
        let zeros = pack(format, &vec![0.0; 3 * k], k);
        let mut bad = values(3 * k, 4);
        bad[k + 40] = f32::INFINITY;
        let bad = pack(format, &bad, k);
        for path in CpuPath::available() {
            assert_eq!(product(path, &zeros, &values(k, 2))[..], [0.0; 3], "{path} {format:?}");
            let tiny: Vec<f32> = values(k, 2).iter().map(|x| x * 1e-38).collect();
            let y = product(path, &pack(format, &values(k, 3), k), &tiny);
            assert!(y[0].abs() < 1e-36, "{path} {format:?}: {}", y[0]);
            let y = product(path, &bad, &values(k, 2));
            let finite: Vec<bool> = y.iter().map(|y| y.is_finite()).collect();
            assert_eq!(finite, [true, false, true], "{path} {format:?}");
            for not_finite in [f32::NAN, f32::INFINITY] {
                let mut x = values(k, 2);
                x[5] = not_finite;
                let y = product(path, &pack(format, &values(k, 3), k), &x);
                assert!(!y[0].is_finite(), "{path} {format:?}");
            }
        }
    }
}

#[test]
fn bytes_of_a_file_multiply_as_what_was_packed_wherever_they_lie() {
    let (outs, k) = (70, 97);
    let (x, w) = (values(3 * k, 1), values(outs * k, 2));
    for format in FORMATS {
        let data = TensorData::new(w.clone(), [outs, k]);
        let weight = Tensor::<2>::from_data(data, (&Device::flex(), DType::F32));
        let packed = PackedMatrix::pack(weight, format);
        let want = product(CpuPath::Portable, &packed, &x);
        for offset in 0..4 {
            let file = Bytes::from([&[0; 4][..offset], packed.as_bytes()].concat());
            let read = |bytes: Bytes| PackedMatrix::from_bytes(bytes, format, [outs, k]);
            let mapped = read(file.slice(offset..)).unwrap();
            assert_eq!(
                product(CpuPath::Portable, &mapped, &x)[..],
                want[..],
                "{format:?} {offset}"
            );
            assert!(read(file.slice(offset + 1..)).is_none(), "a byte is missing");
        }
    }
}
