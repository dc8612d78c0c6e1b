//! Reductions over the units of a cube, and what rows are reduced to.

use cubecl::prelude::*;

use super::values::{BAD, LEAST, Mass, NONE, add, exponential, is_finite, value_of};

/// The best two of a row: the largest keys, the lowest index first at a tie. Key 0 is nobody.
#[derive(CubeType, CubeTypeMut, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct Best {
    pub(super) key: u32,
    pub(super) index: u32,
    pub(super) second: u32,
    pub(super) second_index: u32,
}

/// Nobody.
#[cube]
pub(super) fn nobody() -> Best {
    Best {
        key: 0u32.runtime(),
        index: NONE.runtime(),
        second: 0u32.runtime(),
        second_index: NONE.runtime(),
    }
}

/// Whether the first comes before the second.
#[cube]
pub(super) fn ranks(key: u32, index: u32, other_key: u32, other_index: u32) -> bool {
    key > other_key || (key == other_key && index < other_index)
}

/// The best two of these and one more.
#[cube]
pub(super) fn offer(best: Best, key: u32, index: u32) -> Best {
    let is_best = ranks(key, index, best.key, best.index);
    let is_second = ranks(key, index, best.second, best.second_index);
    Best {
        key: select(is_best, key, best.key),
        index: select(is_best, index, best.index),
        second: select(is_best, best.key, select(is_second, key, best.second)),
        second_index: select(is_best, best.index, select(is_second, index, best.second_index)),
    }
}

#[cube]
fn load_best(shared: &mut Shared<[u32]>, at: usize, #[comptime] units: u32) -> Best {
    let n = comptime!(units as usize);
    Best {
        key: shared[at],
        index: shared[at + n],
        second: shared[at + 2 * n],
        second_index: shared[at + 3 * n],
    }
}

#[cube]
fn store_best(shared: &mut Shared<[u32]>, at: usize, best: Best, #[comptime] units: u32) {
    let n = comptime!(units as usize);
    shared[at] = best.key;
    shared[at + n] = best.index;
    shared[at + 2 * n] = best.second;
    shared[at + 3 * n] = best.second_index;
}

/// The best two of all units, in all of them. `shared` has room for four words a unit.
#[cube]
pub(super) fn cube_best(own: Best, shared: &mut Shared<[u32]>, #[comptime] units: u32) -> Best {
    let unit = UNIT_POS as usize;
    // Whoever still reads an earlier result has to be done.
    sync_cube();
    store_best(shared, unit, own, units);
    sync_cube();
    let mut half = comptime!(units / 2).runtime();
    while half > 0 {
        if UNIT_POS < half {
            let other = load_best(shared, unit + half as usize, units);
            let mine = load_best(shared, unit, units);
            let best = offer(mine, other.key, other.index);
            store_best(shared, unit, offer(best, other.second, other.second_index), units);
        }
        sync_cube();
        half /= 2;
    }
    load_best(shared, 0usize, units)
}

/// The masses of all units together, in all of them. `shared` has room for three words a unit.
#[cube]
pub(super) fn cube_mass(own: Mass, shared: &mut Shared<[u32]>, #[comptime] units: u32) -> Mass {
    let unit = UNIT_POS as usize;
    sync_cube();
    store_mass(shared, unit, own, units);
    sync_cube();
    let mut half = comptime!(units / 2).runtime();
    while half > 0 {
        if UNIT_POS < half {
            let other = load_mass(shared, unit + half as usize, units);
            let mine = load_mass(shared, unit, units);
            store_mass(shared, unit, add(mine, other), units);
        }
        sync_cube();
        half /= 2;
    }
    load_mass(shared, 0usize, units)
}

/// The masses of all units up to and with this one.
#[cube]
pub(super) fn cube_mass_until(
    own: Mass,
    shared: &mut Shared<[u32]>,
    #[comptime] units: u32,
) -> Mass {
    let unit = UNIT_POS as usize;
    sync_cube();
    store_mass(shared, unit, own, units);
    sync_cube();
    let mut step = 1u32.runtime();
    while step < units {
        let mut sum = load_mass(shared, unit, units);
        if UNIT_POS >= step {
            sum = add(sum, load_mass(shared, unit - step as usize, units));
        }
        sync_cube();
        store_mass(shared, unit, sum, units);
        sync_cube();
        step *= 2;
    }
    load_mass(shared, unit, units)
}

/// What all units together put into [`cube_mass_until`].
#[cube]
pub(super) fn total_mass(shared: &mut Shared<[u32]>, #[comptime] units: u32) -> Mass {
    load_mass(shared, comptime!(units as usize - 1), units)
}

#[cube]
fn load_mass(shared: &mut Shared<[u32]>, at: usize, #[comptime] units: u32) -> Mass {
    let n = comptime!(units as usize);
    Mass { count: shared[at], high: shared[at + n], low: shared[at + 2 * n] }
}

#[cube]
fn store_mass(shared: &mut Shared<[u32]>, at: usize, mass: Mass, #[comptime] units: u32) {
    let n = comptime!(units as usize);
    shared[at] = mass.count;
    shared[at + n] = mass.high;
    shared[at + 2 * n] = mass.low;
}

/// Sums of exponentials relative to the best key, itself left out: its exponential is 1, and beside
/// it a small rest would lose its digits.
#[derive(CubeType, CubeTypeMut, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct Sums {
    /// `Σ e`, where `e = exp(x - max)`
    pub(super) rest: f32,
    /// `Σ e (x - max)`
    pub(super) weighted: f32,
    /// How many are neither finite nor `-inf`, or just that there are some.
    pub(super) bad: f32,
}

/// The sums of all units, in all of them, always in the same order. `shared` has room for three
/// words a unit.
#[cube]
pub(super) fn cube_sums(own: Sums, shared: &mut Shared<[f32]>, #[comptime] units: u32) -> Sums {
    let unit = UNIT_POS as usize;
    let n = comptime!(units as usize);
    sync_cube();
    shared[unit] = own.rest;
    shared[unit + n] = own.weighted;
    shared[unit + 2 * n] = own.bad;
    sync_cube();
    let mut half = comptime!(units / 2).runtime();
    while half > 0 {
        if UNIT_POS < half {
            let other = unit + half as usize;
            let rest = shared[other];
            let weighted = shared[other + n];
            let bad = shared[other + 2 * n];
            shared[unit] += rest;
            shared[unit + n] += weighted;
            shared[unit + 2 * n] += bad;
        }
        sync_cube();
        half /= 2;
    }
    Sums { rest: shared[0], weighted: shared[n], bad: shared[2 * n] }
}

/// Words of [`Stats`] in a buffer.
pub(super) const STATS: u32 = 6;

/// What a row or a slice of it is reduced to.
#[derive(CubeType, CubeTypeMut, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct Stats {
    pub(super) best: Best,
    pub(super) sums: Sums,
}

/// Statistics of the first `len` keys of a tile that begins at index `first`; units look at every
/// `units`th. Key 0 does not count.
#[cube]
pub(super) fn tile_stats(
    tile: &Shared<[u32]>,
    first: u32,
    ranked: &mut Shared<[u32]>,
    summed: &mut Shared<[f32]>,
    #[comptime] units: u32,
    #[comptime] len: u32,
) -> Stats {
    let mut own = nobody();
    let mut bad = 0.0f32;
    let mut at = UNIT_POS;
    while at < len {
        let key = tile[at as usize];
        if key == BAD {
            bad = 1.0f32;
        } else {
            own = offer(own, key, first + at);
        }
        at += units;
    }
    let best = cube_best(own, ranked, units);
    let mut rest = 0.0f32;
    let mut weighted = 0.0f32;
    let mut at = UNIT_POS;
    while at < len {
        let key = tile[at as usize];
        if is_finite(key) && first + at != best.index {
            let shifted = max(value_of(key) - value_of(best.key), -88.0f32);
            let e = exponential(shifted);
            rest += e;
            weighted += e * shifted;
        }
        at += units;
    }
    let sums = cube_sums(Sums { rest, weighted, bad }, summed, units);
    Stats { best, sums }
}

/// Writes statistics to `words[at..]`.
#[cube]
pub(super) fn put_stats(words: &mut [u32], at: u32, stats: Stats) {
    if UNIT_POS == 0 {
        let at = at as usize;
        words[at] = stats.best.key;
        words[at + 1] = stats.best.index;
        words[at + 2] = stats.best.second;
        words[at + 3] = u32::reinterpret(stats.sums.rest);
        words[at + 4] = u32::reinterpret(stats.sums.weighted);
        words[at + 5] = u32::cast_from(stats.sums.bad > 0.0f32);
    }
}

/// Where things of a kind are, such as the statistics of a row's slices: `words[first + n * stride..]`.
#[derive(CubeType, CubeTypeMut, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct Slices {
    pub(super) first: u32,
    pub(super) stride: u32,
    pub(super) count: u32,
}

/// The best of all slices.
#[cube]
pub(super) fn best_of_slices(
    words: &[u32],
    slices: Slices,
    shared: &mut Shared<[u32]>,
    #[comptime] units: u32,
) -> Best {
    let mut own = nobody();
    let mut slice = UNIT_POS;
    while slice < slices.count {
        let at = (slices.first + slice * slices.stride) as usize;
        own = offer(own, words[at], words[at + 1]);
        own = offer(own, words[at + 2], NONE);
        slice += units;
    }
    cube_best(own, shared, units)
}

/// The statistics of a row from those of its slices.
#[cube]
pub(super) fn stats_of_slices(
    words: &[u32],
    slices: Slices,
    ranked: &mut Shared<[u32]>,
    summed: &mut Shared<[f32]>,
    #[comptime] units: u32,
) -> Stats {
    let best = best_of_slices(words, slices, ranked, units);
    let mut rest = 0.0f32;
    let mut weighted = 0.0f32;
    let mut bad = 0.0f32;
    let mut slice = UNIT_POS;
    while slice < slices.count {
        let at = (slices.first + slice * slices.stride) as usize;
        bad += f32::cast_from(words[at + 5]);
        if words[at] > LEAST {
            let own_rest = f32::reinterpret(words[at + 3]);
            let own_weighted = f32::reinterpret(words[at + 4]);
            if words[at + 1] == best.index {
                rest += own_rest;
                weighted += own_weighted;
            } else {
                let shift = max(value_of(words[at]) - value_of(best.key), -88.0f32);
                let scale = exponential(shift);
                rest += scale * (1.0f32 + own_rest);
                weighted += scale * (own_weighted + shift * (1.0f32 + own_rest));
            }
        }
        slice += units;
    }
    let sums = cube_sums(Sums { rest, weighted, bad }, summed, units);
    Stats { best, sums }
}
