use half::bf16;

use super::super::testing;
use super::*;
use crate::rows::{RaggedRows, SpanRequest};

const HEADS: usize = 3;

/// Far enough apart for a softmax that is not flat.
fn values(n: usize, seed: u32) -> Vec<f32> {
    testing::values(n, seed).iter().map(|x| 2.0 * x).collect()
}

/// A causal sequence cut into chunks of these lengths, over pages in no order.
fn chunks<T: Stored>(path: CpuPath, lengths: &[usize], [keys, vals]: [&[T]; 2]) -> Vec<f32> {
    let (width, mut out, mut start) = (keys.len() / 48, Vec::new(), 0);
    for &len in lengths {
        let span = SpanRequest {
            rows: 0..len,
            attend: Attend::Causal,
            write: true,
            visible: vec![0..start],
            pages: vec![2, 0, 1],
        };
        let positions = (start..start + len).collect();
        let rows = RaggedRows::new(vec![0; len], positions, vec![span], PAGE_SIZE).unwrap();
        let plan = AttentionPlan {
            spans: rows.spans().clone(),
            positions: rows.positions().clone(),
            heads: HEADS,
            kv_heads: HEADS,
            head_dim: width / HEADS,
        };
        let query = &values(40 * width, 9)[start * width..(start + len) * width];
        let kv = KeysValues { own_keys: &[], own_values: &[], pool_keys: keys, pool_values: vals };
        out.extend_from_slice(&attention(path, &plan, query, kv));
        start += len;
    }
    out
}

#[test]
fn every_path_agrees_and_turned_keys_give_the_same_bits_as_stored_ones() {
    let half = |v: &[f32]| v.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
    let widened = |v: &[f32]| half(v).iter().map(|x| x.to_f32()).collect::<Vec<_>>();
    // Less than a vector, every number of vectors side by side, and what is left beside them.
    for dim in [3, 20, 64, 80, 100, 128, 144] {
        let (keys, vals) = (values(48 * HEADS * dim, 1), values(48 * HEADS * dim, 2));
        let reference = chunks(CpuPath::Portable, &[40], [&keys, &vals]);
        for path in CpuPath::available() {
            let whole = chunks(path, &[40], [&keys, &vals]);
            for (a, b) in whole.iter().zip(&reference) {
                assert!((a - b).abs() < 1e-5, "{path}: {a} {b}");
            }
            let one_by_one = chunks(path, &[1; 40], [&keys, &vals]);
            assert!(whole == one_by_one, "{path}, {dim}: one row at a time");
            let uneven = chunks(path, &[7, 33], [&keys, &vals]);
            assert!(whole == uneven, "{path}, {dim}: uneven chunks");
            let narrow = chunks(path, &[40], [&half(&keys), &half(&vals)]);
            let wide = chunks(path, &[40], [&widened(&keys), &widened(&vals)]);
            assert!(narrow == wide, "{path}, {dim}: bf16 widens exactly");
        }
    }
}
