//! Operations that treat every row alone.

use dfastllm_backends::ops::{self, Rope, RopePrecision};
use dfastllm_backends::{DType, Device, Int, Tensor, TensorData, upload_ints};

use crate::lane::{Pair, lanes, noise};

#[test]
fn norms() {
    for lane in lanes("layer_norm and rms_norm") {
        // One load a unit, some, and so many that their loop is none of the compiler's.
        for (rows, features) in [(1, 5), (3, 64), (4, 129), (2, 2560), (2, 8200), (1, 4611)] {
            // Off centre, as residual streams are.
            let x: Vec<f32> = noise(1, rows * features).iter().map(|x| 3.0 * x + 0.5).collect();
            let x = lane.pair(&x, [rows, features]);
            let weight = lane.noise(2, [features]);
            let bias = lane.noise(3, [features]);
            let norm = |x: &Tensor<2>, weight, bias| ops::layer_norm(x.clone(), weight, bias, 1e-5);
            let tested = norm(&x.tested, &weight.tested, &bias.tested);
            let reference = norm(&x.reference, &weight.reference, &bias.reference);
            lane.check(&format!("layer_norm {rows}x{features}"), &tested, &reference);
            let norm = |x: &Tensor<2>, weight| ops::rms_norm(x.clone(), weight, 1e-6);
            let tested = norm(&x.tested, &weight.tested);
            let reference = norm(&x.reference, &weight.reference);
            lane.check(&format!("rms_norm {rows}x{features}"), &tested, &reference);
        }
    }
}

#[test]
fn rope() {
    for lane in lanes("rope") {
        for precision in [RopePrecision::Float32, RopePrecision::Activations] {
            // Part of a head as in Phi, all of it, and one pair.
            for (heads, head_dim, rotary, positions) in [
                (3, 80, 32, vec![0, 1, 2047]),
                (2, 16, 16, vec![5]),
                (1, 6, 2, vec![9, 3, 3, 100, 7]),
            ] {
                let rope = Rope::new(head_dim, rotary, 10_000.0, precision);
                let x = lane.noise(1, [positions.len(), heads * head_dim]);
                let turn = |x: &Tensor<2>, dtype: DType, device: &Device| {
                    rope.apply(x.clone(), &rope.angles(&positions, dtype, device))
                };
                let tested = turn(&x.tested, lane.dtype, &lane.device);
                let reference = turn(&x.reference, DType::F32, &Device::flex());
                let what = format!("rope {precision:?}, {rotary} of {head_dim}, {positions:?}");
                lane.check(&what, &tested, &reference);
            }
        }
    }
}

#[test]
fn gelu() {
    for lane in lanes("gelu_new") {
        for (rows, features) in [(1, 1), (1, 8), (3, 129)] {
            // Far enough out for both tails.
            let wide: Vec<f32> = noise(1, rows * features).iter().map(|x| 12.0 * x).collect();
            let x = lane.pair(&wide, [rows, features]);
            let what = format!("gelu_new {rows}x{features}");
            lane.check(&what, &ops::gelu_new(x.tested), &ops::gelu_new(x.reference));
        }
    }
}

fn ids(tokens: &[u32], device: &Device) -> Tensor<1, Int> {
    let ids: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
    upload_ints(TensorData::new(ids, [tokens.len()]), device)
}

#[test]
fn rows_by_index() {
    for lane in lanes("embed and select_rows") {
        let table: Pair<2> = lane.noise(1, [11, 5]);
        for tokens in [vec![0], vec![10, 0, 10, 3], (0..11).rev().collect::<Vec<u32>>()] {
            let tested = ops::embed(&table.tested, ids(&tokens, &lane.device), lane.dtype);
            let reference = ops::embed(&table.reference, ids(&tokens, &Device::flex()), DType::F32);
            lane.check(&format!("embed {tokens:?}"), &tested, &reference);
            let indices: Vec<usize> = tokens.iter().map(|&t| t as usize).collect();
            let tested = ops::select_rows(table.tested.clone(), &indices);
            lane.check(&format!("select_rows {tokens:?}"), &tested, &reference);
        }
        // Activations may be wider than the table.
        assert_eq!(
            ops::embed(&table.tested, ids(&[1], &lane.device), DType::F32).dtype(),
            DType::F32
        );
    }
}
