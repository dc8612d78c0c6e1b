//! The second look at rows that are divided by a temperature, filtered or drawn from: a cube a slice.

use cubecl::prelude::*;

use super::bounds::{Bound, is_within, scaled_key, scaled_mass, scaled_row};
use super::layout::{
    ADJUSTED, BOUNDS, DRAWN, FILTERED, FLAG_CATEGORICAL, FLAG_GUMBEL, FLAGS, HEADER, KEPT, MASS,
    NOISY, POSITION, SEED_HIGH, SEED_LOW, STEP,
};
use super::reduce::{
    Slices, best_of_slices, cube_best, cube_mass, nobody, offer, put_stats, tile_stats,
};
use super::values::{BAD, LEAST, NONE, add, gumbel_noise, is_finite, key_of, no_mass, value_of};

/// The bound of a row, which is wide where no row has filters.
#[cube]
pub(super) fn bound_of(bounds: &[u32], row: u32, #[comptime] is_bounded: bool) -> Bound {
    let mut bound = Bound { key: comptime!(LEAST + 1).runtime(), index: NONE.runtime() };
    if comptime!(is_bounded) {
        bound.key = bounds[(row * BOUNDS) as usize];
        bound.index = bounds[(row * BOUNDS + 1) as usize];
    }
    bound
}

/// A kept key, divided, or that of `-inf` if filters take it.
#[cube]
pub(super) fn filtered_key(kept: u32, temperature: f32, bound: Bound, id: u32) -> u32 {
    let mut key = scaled_key(kept, temperature);
    if !is_within(bound, key, id) && key != BAD {
        key = LEAST.runtime();
    }
    key
}

/// Reduces slices of `kept [kept rows, vocab]` to `drawn [asked rows, slices, DRAWN]`. Cubes are
/// `(slices, asked rows)`, as those that wrote `slices`.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "what a kernel is given")]
pub(super) fn draws_kernel(
    asked: &[u32],
    slices: &[u32],
    kept: &[u32],
    bounds: &[u32],
    drawn: &mut [u32],
    vocab: u32,
    stride: u32,
    #[comptime] units: u32,
    #[comptime] len: u32,
    #[comptime] is_bounded: bool,
) {
    let header = CUBE_POS_Y * HEADER;
    if asked[(header + KEPT) as usize] == NONE {
        terminate!();
    }
    let first = CUBE_POS_X * len;
    let mut tile = Shared::<[u32]>::new_slice(comptime!(len as usize));
    let mut ranked = Shared::<[u32]>::new_slice(comptime!(4 * units as usize));
    let mut summed = Shared::<[f32]>::new_slice(comptime!(3 * units as usize));
    let of_row = Slices {
        first: CUBE_POS_Y * CUBE_COUNT_X * stride + ADJUSTED,
        stride,
        count: CUBE_COUNT_X,
    };
    let best = best_of_slices(slices, of_row, &mut ranked, units);
    let row = scaled_row(asked, header, vocab, best.key);
    let bound = bound_of(bounds, CUBE_POS_Y, is_bounded);
    let mut mass = no_mass();
    let mut at = UNIT_POS;
    while at < len {
        let id = first + at;
        let mut key = 0u32.runtime();
        if id < vocab {
            key = filtered_key(kept[(row.first + id) as usize], row.temperature, bound, id);
            mass = add(mass, scaled_mass(key, row));
        }
        tile[at as usize] = key;
        at += units;
    }
    let out = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) * DRAWN;
    let stats = tile_stats(&tile, first, &mut ranked, &mut summed, units, len);
    put_stats(drawn, out + FILTERED, stats);
    let flags = asked[(header + FLAGS) as usize];
    let mut is_left = flags & FLAG_CATEGORICAL != 0;
    while is_left {
        let mass = cube_mass(mass, &mut ranked, units);
        if UNIT_POS == 0 {
            let at = (out + MASS) as usize;
            drawn[at] = mass.count;
            drawn[at + 1] = mass.high;
            drawn[at + 2] = mass.low;
        }
        is_left = false;
    }
    let mut is_left = flags & FLAG_GUMBEL != 0;
    while is_left {
        put_noisy(
            asked,
            header,
            drawn,
            out + NOISY,
            &tile,
            &mut ranked,
            first,
            comptime!((units, len)),
        );
        is_left = false;
    }
}

/// Writes the best two of a tile with Gumbel noise to `drawn[out..]`: keys and indices.
#[cube]
#[expect(clippy::too_many_arguments, reason = "part of a kernel")]
fn put_noisy(
    asked: &[u32],
    header: u32,
    drawn: &mut [u32],
    out: u32,
    tile: &Shared<[u32]>,
    ranked: &mut Shared<[u32]>,
    first: u32,
    #[comptime] shape: (u32, u32),
) {
    let (units, len) = comptime!(shape);
    let seed = (asked[(header + SEED_LOW) as usize], asked[(header + SEED_HIGH) as usize]);
    let place = (asked[(header + POSITION) as usize], asked[(header + STEP) as usize]);
    let mut own = nobody();
    let mut at = UNIT_POS;
    while at < len {
        let key = tile[at as usize];
        if is_finite(key) {
            let noisy = value_of(key) + gumbel_noise(first + at, seed, place);
            own = offer(own, key_of(noisy), first + at);
        }
        at += units;
    }
    let best = cube_best(own, ranked, units);
    if UNIT_POS == 0 {
        let out = out as usize;
        drawn[out] = best.key;
        drawn[out + 1] = best.index;
        drawn[out + 2] = best.second;
        drawn[out + 3] = best.second_index;
    }
}
