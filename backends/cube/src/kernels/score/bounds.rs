//! What filters leave of a row: everything from some key on, found without sorting.
//!
//! Top-k, top-p and min-p each keep the beginning of the row's order (largest key first, lowest index
//! first at a tie), so together they are one bound: a key, and how many of the indices that have just
//! that key. It is found by bisection; a pass counts and weighs what lies beyond the middle, and
//! leaves behind what no later one has to look at.

use cubecl::prelude::*;

use super::adjusted::float;
use super::layout::{
    ADJUSTED, BOUNDS, FLAG_MIN_P, FLAG_TOP_P, FLAG_TOP_P_FIRST, FLAGS, HEADER, KEPT, LOG_MIN_P,
    TEMPERATURE, TOP_K, TOP_P_HIGH, TOP_P_LOW,
};
use super::reduce::{Slices, best_of_slices, cube_mass};
use super::values::{
    LEAST, Mass, NONE, add, exponential, is_finite, key_of, mass_of, no_mass, outweighs, share_of,
    value_of,
};

/// The beginning of a row's order: larger keys than `key`, and `key` itself at indices below `index`.
#[derive(CubeType, CubeTypeMut, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct Bound {
    pub(super) key: u32,
    pub(super) index: u32,
}

/// A row of kept keys, and what divides its values.
#[derive(CubeType, CubeTypeMut, Clone, Copy)]
#[expand(derive(Clone, Copy))]
pub(super) struct Scaled {
    /// Its first word.
    pub(super) first: u32,
    pub(super) vocab: u32,
    pub(super) temperature: f32,
    /// The largest value, divided.
    pub(super) max: f32,
}

/// Whether something lies within a bound.
#[cube]
pub(super) fn is_within(bound: Bound, key: u32, index: u32) -> bool {
    key > bound.key || (key == bound.key && index < bound.index)
}

/// A row whose best key is given.
#[cube]
pub(super) fn scaled_row(asked: &[u32], header: u32, vocab: u32, best: u32) -> Scaled {
    let temperature = float(asked, header + TEMPERATURE);
    let first = asked[(header + KEPT) as usize] * vocab;
    let mut max = 0.0f32;
    if is_finite(best) {
        max = value_of(best) / temperature;
    }
    Scaled { first, vocab, temperature, max }
}

/// The key of a kept one divided by the temperature.
#[cube]
pub(super) fn scaled_key(key: u32, temperature: f32) -> u32 {
    let mut scaled = key;
    if is_finite(key) {
        scaled = key_of(value_of(key) / temperature);
    }
    scaled
}

/// The mass of a divided key.
#[cube]
pub(super) fn scaled_mass(key: u32, row: Scaled) -> Mass {
    let mut mass = no_mass();
    if is_finite(key) {
        mass = mass_of(exponential(max(value_of(key) - row.max, -88.0f32)));
    }
    mass
}

/// A unit's own tokens between two bounds: the `n`th has its key at `first + n * units`, and its id
/// `ids` words on.
#[derive(CubeType, CubeTypeMut, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct List {
    first: u32,
    ids: u32,
    count: u32,
}

/// Bounds that a search narrows: `inner` lies within `outer`.
#[derive(CubeType, CubeTypeMut, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Search {
    outer: Bound,
    inner: Bound,
    /// What lies within `inner`.
    base: Mass,
}

/// Lists what a bound holds of a row.
#[cube]
fn listed(
    kept: &[u32],
    work: &mut [u32],
    row: Scaled,
    bound: Bound,
    #[comptime] units: u32,
) -> List {
    let ids = row.vocab.div_ceil(units) * units;
    let first = row.first / row.vocab * 2 * ids + UNIT_POS;
    let mut count = 0u32.runtime();
    let mut id = UNIT_POS;
    while id < row.vocab {
        let key = scaled_key(kept[(row.first + id) as usize], row.temperature);
        if is_within(bound, key, id) {
            let at = (first + count * units) as usize;
            work[at] = key;
            work[at + ids as usize] = id;
            count += 1;
        }
        id += units;
    }
    List { first, ids, count }
}

/// The mass of what lies within a bound between those of a search, and the list without what the
/// search has left behind.
#[cube]
fn mass_within(
    work: &mut [u32],
    list: &mut List,
    row: Scaled,
    search: Search,
    bound: Bound,
    shared: &mut Shared<[u32]>,
    #[comptime] units: u32,
) -> Mass {
    let mut own = no_mass();
    let mut count = 0u32.runtime();
    let mut n = 0u32.runtime();
    while n < list.count {
        let from = (list.first + n * units) as usize;
        let key = work[from];
        let id = work[from + list.ids as usize];
        if is_within(search.outer, key, id) && !is_within(search.inner, key, id) {
            let to = (list.first + count * units) as usize;
            work[to] = key;
            work[to + list.ids as usize] = id;
            count += 1;
            if is_within(bound, key, id) {
                own = add(own, scaled_mass(key, row));
            }
        }
        n += 1;
    }
    list.count = count;
    add(search.base, cube_mass(own, shared, units))
}

/// A search through everything within a bound.
#[cube]
fn search_of(row: Scaled, bound: Bound) -> Search {
    Search { outer: bound, inner: from_key(key_of(row.max) + 1), base: no_mass() }
}

/// The bound with fewer in it.
#[cube]
fn tighter(a: Bound, b: Bound) -> Bound {
    let is_first = a.key > b.key || (a.key == b.key && a.index < b.index);
    Bound { key: select(is_first, a.key, b.key), index: select(is_first, a.index, b.index) }
}

/// Everything of at least `key`.
#[cube]
fn from_key(key: u32) -> Bound {
    Bound { key, index: NONE.runtime() }
}

/// The `k` largest and what ties with the smallest of them.
#[cube]
#[expect(clippy::too_many_arguments, reason = "part of a kernel")]
fn keep_top_k(
    kept: &[u32],
    work: &mut [u32],
    row: Scaled,
    bound: Bound,
    k: u32,
    shared: &mut Shared<[u32]>,
    #[comptime] units: u32,
) -> Bound {
    let mut list = listed(kept, work, row, bound, units);
    let mut search = search_of(row, bound);
    let all = mass_within(work, &mut list, row, search, bound, shared, units);
    let mut low = bound.key;
    let mut high = search.inner.key;
    if all.count <= k {
        high = low + 1;
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let mass = mass_within(work, &mut list, row, search, from_key(middle), shared, units);
        if mass.count >= k {
            low = middle;
            search.outer = from_key(low);
        } else {
            high = middle;
            search.inner = from_key(high);
            search.base = mass;
        }
        if mass.count == k {
            high = low + 1;
        }
    }
    tighter(bound, from_key(low))
}

/// The fewest of the most probable tokens that weigh more than their share, a fraction of 2^64.
#[cube]
#[expect(clippy::too_many_arguments, reason = "part of a kernel")]
fn keep_top_p(
    kept: &[u32],
    work: &mut [u32],
    row: Scaled,
    bound: Bound,
    fraction: (u32, u32),
    shared: &mut Shared<[u32]>,
    #[comptime] units: u32,
) -> Bound {
    let mut list = listed(kept, work, row, bound, units);
    let mut search = search_of(row, bound);
    let all = mass_within(work, &mut list, row, search, bound, shared, units);
    let wanted = share_of(all, fraction.0, fraction.1);
    // What lies within `outer` outweighs the share, what lies within `inner` does not. Where they
    // differ by one token, it is the last to stay.
    let mut count = all.count;
    let mut low = bound.key;
    let mut high = search.inner.key;
    while high - low > 1 && count - search.base.count > 1 {
        let middle = low + (high - low) / 2;
        let mass = mass_within(work, &mut list, row, search, from_key(middle), shared, units);
        if outweighs(mass, wanted) {
            low = middle;
            count = mass.count;
            search.outer = from_key(low);
        } else {
            high = middle;
            search.inner = from_key(high);
            search.base = mass;
        }
    }
    // Of those that tie, the lowest indices.
    let mut fewest = 0u32.runtime();
    let mut enough = row.vocab;
    while enough - fewest > 1 && count - search.base.count > 1 {
        let middle = fewest + (enough - fewest) / 2;
        let cut = Bound { key: low, index: middle };
        let mass = mass_within(work, &mut list, row, search, cut, shared, units);
        if outweighs(mass, wanted) {
            enough = middle;
            count = mass.count;
            search.outer = Bound { key: low, index: enough };
        } else {
            fewest = middle;
            search.inner = Bound { key: low, index: fewest };
            search.base = mass;
        }
    }
    tighter(bound, Bound { key: low, index: enough })
}

/// Finds the bounds of rows, `bounds [asked rows, BOUNDS]`, from `slices` and `kept`. `work` has room
/// for a key and an id of every kept token. A cube a row.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "what a kernel is given")]
pub(super) fn bounds_kernel(
    asked: &[u32],
    slices: &[u32],
    kept: &[u32],
    work: &mut [u32],
    bounds: &mut [u32],
    vocab: u32,
    slice_count: u32,
    stride: u32,
    #[comptime] units: u32,
) {
    let header = CUBE_POS_X * HEADER;
    let flags = asked[(header + FLAGS) as usize];
    if asked[(header + KEPT) as usize] == NONE {
        terminate!();
    }
    let mut shared = Shared::<[u32]>::new_slice(comptime!(4 * units as usize));
    let of_row =
        Slices { first: CUBE_POS_X * slice_count * stride + ADJUSTED, stride, count: slice_count };
    let best = best_of_slices(slices, of_row, &mut shared, units);
    let row = scaled_row(asked, header, vocab, best.key);
    let mut bound = from_key(LEAST + 1);
    let mut turn = 0u32.runtime();
    while turn < 2 {
        // Top-p in its turn only, top-k in the other.
        // Numbers, because CUDA C++ of this CubeCL has no equality of truth values.
        let p_turn = select(flags & FLAG_TOP_P_FIRST != 0, 0u32, 1u32);
        if turn == p_turn {
            if flags & FLAG_TOP_P != 0 {
                let high = asked[(header + TOP_P_HIGH) as usize];
                let low = asked[(header + TOP_P_LOW) as usize];
                bound = keep_top_p(kept, work, row, bound, (high, low), &mut shared, units);
            }
        } else {
            let k = asked[(header + TOP_K) as usize];
            if k > 0 {
                bound = keep_top_k(kept, work, row, bound, k, &mut shared, units);
            }
        }
        turn += 1;
    }
    if flags & FLAG_MIN_P != 0 {
        let least = key_of(row.max + float(asked, header + LOG_MIN_P));
        bound = tighter(bound, from_key(least));
    }
    if UNIT_POS == 0 {
        bounds[(CUBE_POS_X * BOUNDS) as usize] = bound.key;
        bounds[(CUBE_POS_X * BOUNDS + 1) as usize] = bound.index;
    }
}
