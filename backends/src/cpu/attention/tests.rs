use std::ops::Range;

use half::bf16;

use super::super::{active_path, testing};
use super::*;
use crate::rows::{Attend, RaggedRows, SpanRequest};

const HEADS: usize = 3;

/// Far enough apart for a softmax that is not flat.
fn values(n: usize, seed: u32) -> Vec<f32> {
    testing::values(n, seed).iter().map(|x| 2.0 * x).collect()
}

/// A causal sequence cut into chunks of these lengths, over pages in no order. Keys and values have room
/// for `pages` of them.
fn chunks<T: Stored>(
    path: CpuPath,
    pages: usize,
    lengths: &[usize],
    [keys, vals]: [&[T]; 2],
) -> Vec<f32> {
    let (width, mut out, mut start) = (keys.len() / (pages * PAGE_SIZE), Vec::new(), 0);
    for &len in lengths {
        let span = SpanRequest {
            rows: 0..len,
            attend: Attend::Causal,
            write: true,
            visible: vec![0..start],
            pages: (0..pages as u32).rev().collect(),
        };
        let positions = (start..start + len).collect();
        let rows = RaggedRows::new(vec![0; len], positions, vec![span], PAGE_SIZE).unwrap();
        let query = &values(lengths.iter().sum::<usize>() * width, 9);
        let query = &query[start * width..(start + len) * width];
        let kv = KeysValues { own_keys: &[], own_values: &[], pool_keys: keys, pool_values: vals };
        out.extend_from_slice(&attention(path, &plan(&rows, width / HEADS), query, kv));
        start += len;
    }
    out
}

fn plan(rows: &RaggedRows, head_dim: usize) -> AttentionPlan {
    AttentionPlan {
        spans: rows.spans().clone(),
        positions: rows.positions().clone(),
        heads: HEADS,
        kv_heads: HEADS,
        head_dim,
    }
}

#[test]
fn every_path_agrees_and_turned_keys_give_the_same_bits_as_stored_ones() {
    let half = |v: &[f32]| v.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
    let widened = |v: &[f32]| half(v).iter().map(|x| x.to_f32()).collect::<Vec<_>>();
    // Less than a vector, every number of vectors side by side, and what is left beside them.
    for dim in [3, 20, 64, 80, 100, 128, 144] {
        let (keys, vals) = (values(48 * HEADS * dim, 1), values(48 * HEADS * dim, 2));
        let reference = chunks(CpuPath::Portable, 3, &[40], [&keys, &vals]);
        for path in CpuPath::available() {
            let whole = chunks(path, 3, &[40], [&keys, &vals]);
            for (a, b) in whole.iter().zip(&reference) {
                assert!((a - b).abs() < 1e-5, "{path}: {a} {b}");
            }
            let one_by_one = chunks(path, 3, &[1; 40], [&keys, &vals]);
            assert!(whole == one_by_one, "{path}, {dim}: one row at a time");
            let uneven = chunks(path, 3, &[7, 33], [&keys, &vals]);
            assert!(whole == uneven, "{path}, {dim}: uneven chunks");
            let narrow = chunks(path, 3, &[40], [&half(&keys), &half(&vals)]);
            let wide = chunks(path, 3, &[40], [&widened(&keys), &widened(&vals)]);
            assert!(narrow == wide, "{path}, {dim}: bf16 widens exactly");
        }
    }
}

fn with_threads<R: Send>(threads: usize, run: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
}

#[test]
fn what_only_later_rows_see_cannot_spoil_a_row() {
    for dim in [3, 64, 80] {
        let width = HEADS * dim;
        let (keys, vals) = (values(PAGE_SIZE * width, 1), values(PAGE_SIZE * width, 2));
        for path in CpuPath::available() {
            // Few queries of a head and many.
            for rows in [5, 9] {
                let mut spoilt = [keys.clone(), vals.clone()];
                for numbers in &mut spoilt {
                    numbers[(rows - 1) * width..].fill(f32::NAN);
                }
                let out = chunks(path, 1, &[rows], spoilt.each_ref().map(Vec::as_slice));
                let (before, last) = out.split_at((rows - 1) * width);
                let clean = chunks(path, 1, &[rows], [&keys, &vals]);
                assert_eq!(before, &clean[..before.len()], "{path}, {rows} rows of {dim}");
                assert!(last.iter().all(|x| x.is_nan()), "{path}, {rows} rows of {dim}");
            }
        }
    }
}

#[test]
fn chunks_are_joined_alike_by_one_thread_and_by_many() {
    // Two chunks and the beginning of a third; enough to be shared.
    let (pages, len, dim) = (2 * CHUNK_PARTS + 1, 2 * CHUNK_PARTS * PAGE_SIZE + 5, 128);
    let numbers = |seed| values(pages * PAGE_SIZE * HEADS * dim, seed);
    let (keys, vals) = (numbers(1), numbers(2));
    let decode: Vec<usize> = [vec![len - 6], vec![1; 6]].concat();
    for path in CpuPath::available() {
        let run = |lengths: &[usize]| chunks(path, pages, lengths, [&keys, &vals]);
        let whole = with_threads(1, || run(&[len]));
        // Sixteen threads have a head of a chunk each, one has them all.
        for threads in [1, 2, 16] {
            assert!(whole == with_threads(threads, || run(&[len])), "{path}: {threads} threads");
            let one_by_one = with_threads(threads, || run(&decode));
            assert!(whole == one_by_one, "{path}: one by one, {threads} threads");
        }
        let exact = last_row(&keys, &vals, len, dim);
        for (a, b) in whole[whole.len() - exact.len()..].iter().zip(&exact) {
            assert!((f64::from(*a) - b).abs() < 1e-5, "{path}: {a} {b}");
        }
    }
}

#[test]
fn a_group_of_heads_gives_the_same_bits_alone_and_in_a_span() {
    // Heads of any size, and of a known one.
    for dim in [20, 64] {
        compare_a_group_of_heads(dim);
    }
}

fn compare_a_group_of_heads(dim: usize) {
    // One row of seven queries a key head is scored as keys are stored, nine rows are not.
    let (kv_heads, group, pages) = (2, 7, 20);
    let (width, kv_width) = (kv_heads * group * dim, kv_heads * dim);
    let [keys, vals] = [1, 2].map(|seed| values(pages * PAGE_SIZE * kv_width, seed));
    let (query, own) = (values(9 * width, 3), values(9 * kv_width, 4));
    let run = |attend, rows: Range<usize>, threads: usize| {
        let span = SpanRequest {
            rows: 0..rows.len(),
            attend,
            // Shadows look at what is beside them, the others at pages only.
            write: attend == Attend::Bidirectional,
            visible: vec![0..300],
            pages: (0..pages as u32).rev().collect(),
        };
        let positions = rows.clone().map(|row| 40 + row).collect();
        let of_pass =
            RaggedRows::new(vec![0; rows.len()], positions, vec![span], PAGE_SIZE).unwrap();
        let plan = AttentionPlan { heads: kv_heads * group, kv_heads, ..plan(&of_pass, dim) };
        let query = &query[rows.start * width..rows.end * width];
        let kv =
            KeysValues { own_keys: &own, own_values: &own, pool_keys: &keys, pool_values: &vals };
        with_threads(threads, || attention(active_path(), &plan, query, kv).to_vec())
    };
    for attend in [Attend::Bidirectional, Attend::Shadow] {
        assert!(run(attend, 0..9, 1) == run(attend, 0..9, 16), "{attend:?}");
        assert!(run(attend, 0..1, 1) == run(attend, 0..1, 16), "{attend:?}, one row");
    }
    let alone = (0..9).flat_map(|row| run(Attend::Bidirectional, row..row + 1, 16));
    assert!(run(Attend::Bidirectional, 0..9, 1) == alone.collect::<Vec<f32>>());
}

#[test]
fn keys_whose_scores_are_minus_infinity_weigh_nothing() {
    // All of the second chunk, which is one key.
    let (pages, dim) = (CHUNK_PARTS + 1, 20);
    let len = CHUNK_PARTS * PAGE_SIZE + 1;
    let (mut keys, vals) =
        (values(pages * PAGE_SIZE * HEADS * dim, 1), values(pages * PAGE_SIZE * HEADS * dim, 2));
    let query = &values(len * HEADS * dim, 9)[(len - 1) * HEADS * dim..];
    // Pages are in reverse, so the last one's key is the first slot.
    for (key, query) in keys[..HEADS * dim].iter_mut().zip(query) {
        *key = if *query == 0.0 { 0.0 } else { -query.signum() * f32::MAX };
    }
    for path in CpuPath::available() {
        let got = chunks(path, pages, &[len - 1, 1], [&keys, &vals]);
        let row = &got[(len - 1) * HEADS * dim..];
        for (a, b) in row.iter().zip(last_row(&keys, &vals, len, dim)) {
            assert!((f64::from(*a) - b).abs() < 1e-5, "{path}: {a} {b}");
        }
    }
}

/// The last row of a sequence by the definition, in f64.
fn last_row(keys: &[f32], vals: &[f32], len: usize, dim: usize) -> Vec<f64> {
    let width = HEADS * dim;
    let query = &values(len * width, 9)[(len - 1) * width..];
    let pages = keys.len() / width / PAGE_SIZE;
    let slot = |key: usize| (pages - 1 - key / PAGE_SIZE) * PAGE_SIZE + key % PAGE_SIZE;
    let mut out = vec![0.0; width];
    for head in 0..HEADS {
        let at = |key: usize, d: usize| slot(key) * width + head * dim + d;
        let product =
            |key: usize, d: usize| f64::from(query[head * dim + d]) * f64::from(keys[at(key, d)]);
        let score =
            |key: usize| (0..dim).map(|d| product(key, d)).sum::<f64>() / (dim as f64).sqrt();
        let weights: Vec<f64> = (0..len).map(|key| score(key).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for d in 0..dim {
            let mixed = (0..len).map(|key| weights[key] * f64::from(vals[at(key, d)])).sum::<f64>();
            out[head * dim + d] = mixed / sum;
        }
    }
    out
}
