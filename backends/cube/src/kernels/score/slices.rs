//! The first look at rows of logits: a cube a slice of one.

use cubecl::prelude::*;

use super::adjusted::{adjust_tile, raw_key, source_of};
use super::layout::{ADJUSTED, HEADER, KEPT, RAW, TOPS};
use super::reduce::{Slices, cube_best, nobody, offer, put_stats, tile_stats};
use super::values::{BAD, NONE};

/// Reduces slices of `logits [rows, vocab]` to `slices [asked rows, slices, TOPS + 2 tops]`, and
/// writes adjusted rows that are needed again to `kept [kept rows, vocab]`. Cubes are
/// `(slices, asked rows)`.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "what a kernel is given")]
pub(super) fn slices_kernel<F: Float>(
    logits: &[F],
    asked: &[u32],
    slices: &mut [u32],
    kept: &mut [u32],
    vocab: u32,
    tops: u32,
    #[comptime] units: u32,
    #[comptime] len: u32,
    #[comptime] adjusts: bool,
    #[comptime] lists: bool,
    #[define(F)] _dtype: ElemType,
) {
    let header = CUBE_POS_Y * HEADER;
    let first = CUBE_POS_X * len;
    let source = source_of(asked, header, vocab);
    let mut tile = Shared::<[u32]>::new_slice(comptime!(len as usize));
    let mut ranked = Shared::<[u32]>::new_slice(comptime!(4 * units as usize));
    let mut summed = Shared::<[f32]>::new_slice(comptime!(3 * units as usize));
    let mut at = UNIT_POS;
    while at < len {
        let mut key = 0u32.runtime();
        if first + at < vocab {
            key = raw_key::<F>(logits, source, first + at);
        }
        tile[at as usize] = key;
        at += units;
    }
    let out = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * (TOPS + 2 * tops);
    let raw = tile_stats(&tile, first, &mut ranked, &mut summed, units, len);
    put_stats(slices, out + RAW, raw);
    if comptime!(lists) {
        let place = Slices { first: out + TOPS, stride: 2u32.runtime(), count: tops };
        put_tops(slices, place, &tile, first, &mut ranked, comptime!((units, len)));
    }
    if comptime!(adjusts) {
        sync_cube();
        adjust_tile(asked, header, &mut tile, first, vocab, comptime!((units, len)));
        let stats = tile_stats(&tile, first, &mut ranked, &mut summed, units, len);
        put_stats(slices, out + ADJUSTED, stats);
    } else {
        put_stats(slices, out + ADJUSTED, raw);
    }
    let row = asked[(header + KEPT) as usize];
    if row != NONE {
        let mut at = UNIT_POS;
        while at < len {
            if first + at < vocab {
                kept[row as usize * vocab as usize + (first + at) as usize] = tile[at as usize];
            }
            at += units;
        }
    }
}

/// Writes the best of a tile to their places, key and index, best first.
#[cube]
fn put_tops(
    words: &mut [u32],
    places: Slices,
    tile: &Shared<[u32]>,
    first: u32,
    ranked: &mut Shared<[u32]>,
    #[comptime] shape: (u32, u32),
) {
    let (units, len) = comptime!(shape);
    let mut last_key = BAD.runtime();
    let mut last_index = 0u32.runtime();
    let mut n = 0u32.runtime();
    while n < places.count {
        let mut own = nobody();
        let mut at = UNIT_POS;
        while at < len {
            let key = tile[at as usize];
            let index = first + at;
            if key < last_key || (key == last_key && key != BAD && index > last_index) {
                own = offer(own, key, index);
            }
            at += units;
        }
        let best = cube_best(own, ranked, units);
        if UNIT_POS == 0 {
            let at = (places.first + n * places.stride) as usize;
            words[at] = best.key;
            words[at + 1] = best.index;
        }
        last_key = best.key;
        last_index = best.index;
        n += 1;
    }
}
