//! The last look: what the slices of a row left becomes its answer. A cube a row.

use cubecl::prelude::*;

use super::adjusted::{Source, adjusted_key, raw_key, source_of};
use super::bounds::{Bound, Scaled, scaled_mass, scaled_row};
use super::draws::{bound_of, filtered_key};
use super::layout::{
    ADJUSTED, ANSWER, ASKED, ASKED_COUNT, ASKED_MASS, BEST, CANDIDATE, DRAWN, FILTERED, FINITE,
    FLAG_CATEGORICAL, FLAG_FILTERED, FLAG_GIVEN, FLAG_GUMBEL, FLAGS, HEADER, MASS, NOISY, RAW,
    RAW_BEST, RAW_REST, REST, SEED_LOW, TOPS, UNIFORM_HIGH, UNIFORM_LOW, WEIGHTED,
};
use super::reduce::{
    Best, Slices, Stats, Sums, cube_best, cube_mass_until, cube_sums, nobody, offer, ranks,
    stats_of_slices, total_mass,
};
use super::values::{
    BAD, Mass, NONE, add, exponential, is_finite, no_mass, outweighs, share_of, subtract, value_of,
};

/// Writes `answers [asked rows, ANSWER + 2 tops]`.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "what a kernel is given")]
pub(super) fn answer_kernel<F: Float>(
    logits: &[F],
    asked: &[u32],
    slices: &[u32],
    kept: &[u32],
    bounds: &[u32],
    drawn: &[u32],
    answers: &mut [u32],
    vocab: u32,
    slice_count: u32,
    tops: u32,
    #[comptime] units: u32,
    #[comptime] len: u32,
    #[comptime] lists: bool,
    #[comptime] is_drawn: bool,
    #[comptime] is_bounded: bool,
    #[define(F)] _dtype: ElemType,
) {
    let header = CUBE_POS_X * HEADER;
    let flags = asked[(header + FLAGS) as usize];
    let mut ranked = Shared::<[u32]>::new_slice(comptime!(4 * units as usize));
    let mut summed = Shared::<[f32]>::new_slice(comptime!(3 * units as usize));
    let stride = TOPS + 2 * tops;
    let of_row = CUBE_POS_X * slice_count;
    let first = of_row * stride;
    let of_raw = Slices { first: first + RAW, stride, count: slice_count };
    let of_adjusted = Slices { first: first + ADJUSTED, stride, count: slice_count };
    let raw = stats_of_slices(slices, of_raw, &mut ranked, &mut summed, units);
    let adjusted = stats_of_slices(slices, of_adjusted, &mut ranked, &mut summed, units);
    let mut measured = adjusted;
    let mut id = adjusted.best.index;
    let mut other = NONE.runtime();
    let row = scaled_row(asked, header, vocab, adjusted.best.key);
    let bound = bound_of(bounds, CUBE_POS_X, is_bounded);
    if comptime!(is_drawn) {
        let of_drawn = Slices {
            first: of_row * DRAWN + FILTERED,
            stride: DRAWN.runtime(),
            count: slice_count,
        };
        let mut is_left = flags & FLAG_FILTERED != 0;
        while is_left {
            measured = stats_of_slices(drawn, of_drawn, &mut ranked, &mut summed, units);
            id = measured.best.index;
            is_left = false;
        }
        let choice = Choice { id, other };
        let chosen = drawn_choice(
            asked,
            header,
            drawn,
            of_drawn,
            kept,
            row,
            bound,
            choice,
            &mut ranked,
            comptime!((units, len)),
        );
        id = chosen.id;
        other = chosen.other;
    }
    if flags & FLAG_GIVEN != 0 {
        id = asked[(header + SEED_LOW) as usize];
    }
    let out = CUBE_POS_X * (ANSWER + 2 * tops);
    let source = source_of(asked, header, vocab);
    let best = measured.best.key;
    let mass = asked_mass::<F>(logits, asked, header, source, row, bound, best, &mut summed, units);
    put_answer(answers, out, raw, measured, mass);
    let id = select(UNIT_POS == 0, id, other);
    put_candidate::<F>(logits, asked, header, source, row, bound, id, answers, out);
    if comptime!(lists) {
        let tops_of_row = Slices { first: first + TOPS, stride, count: slice_count };
        let places = Slices { first: out + ANSWER, stride: 2u32.runtime(), count: tops };
        put_tops(answers, places, slices, tops_of_row, &mut ranked, units);
    }
}

/// Writes the first two units' candidates; the first is a token whatever the row, the second may be
/// `NONE`.
#[cube]
#[expect(clippy::too_many_arguments, reason = "part of a kernel")]
fn put_candidate<F: Float>(
    logits: &[F],
    asked: &[u32],
    header: u32,
    source: Source,
    row: Scaled,
    bound: Bound,
    candidate: u32,
    answers: &mut [u32],
    out: u32,
) {
    if UNIT_POS < 2 {
        let flags = asked[(header + FLAGS) as usize];
        let id = min(candidate, row.vocab - 1);
        let raw = raw_key::<F>(logits, source, id);
        let adjusted = adjusted_key::<F>(logits, asked, header, source, id);
        let at = (out + UNIT_POS * CANDIDATE) as usize;
        answers[at] = select(UNIT_POS == 0, id, candidate);
        answers[at + 1] = raw;
        answers[at + 2] = adjusted;
        answers[at + 3] = measured_key(adjusted, flags, row, bound, id);
    }
}

/// The token of a row, and the other one it might be.
#[derive(CubeType, CubeTypeMut, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Choice {
    id: u32,
    other: u32,
}

/// The choice of a row that is drawn from; that of others stays.
#[cube]
#[expect(clippy::too_many_arguments, reason = "part of a kernel")]
fn drawn_choice(
    asked: &[u32],
    header: u32,
    drawn: &[u32],
    of_drawn: Slices,
    kept: &[u32],
    row: Scaled,
    bound: Bound,
    choice: Choice,
    ranked: &mut Shared<[u32]>,
    #[comptime] shape: (u32, u32),
) -> Choice {
    let (units, len) = comptime!(shape);
    let flags = asked[(header + FLAGS) as usize];
    let mut id = choice.id;
    let mut other = choice.other;
    let mut is_left = flags & FLAG_GUMBEL != 0;
    while is_left {
        let noisy = noisiest(drawn, of_drawn, ranked, units);
        id = noisy.index;
        other = noisy.second_index;
        is_left = false;
    }
    is_left = flags & FLAG_CATEGORICAL != 0;
    while is_left {
        let slice = drawn_slice(asked, header, drawn, of_drawn, ranked, units);
        id = drawn_id(kept, row, bound, slice, ranked, comptime!((units, len)));
        if id == NONE {
            id = choice.id;
        }
        is_left = false;
    }
    Choice { id, other }
}

/// The exponentials of the tokens asked for, together.
#[cube]
#[expect(clippy::too_many_arguments, reason = "part of a kernel")]
fn asked_mass<F: Float>(
    logits: &[F],
    asked: &[u32],
    header: u32,
    source: Source,
    row: Scaled,
    bound: Bound,
    best: u32,
    summed: &mut Shared<[f32]>,
    #[comptime] units: u32,
) -> f32 {
    let flags = asked[(header + FLAGS) as usize];
    let mut own = 0.0f32;
    let list = asked[(header + ASKED) as usize];
    let mut at = UNIT_POS;
    while at < asked[(header + ASKED_COUNT) as usize] {
        let id = asked[(list + at) as usize];
        let adjusted = adjusted_key::<F>(logits, asked, header, source, id);
        let key = measured_key(adjusted, flags, row, bound, id);
        if is_finite(key) {
            own += exponential(max(value_of(key) - value_of(best), -88.0f32));
        }
        at += units;
    }
    let nothing = 0.0f32.runtime();
    let sums = Sums { rest: own, weighted: nothing, bad: nothing };
    cube_sums(sums, summed, units).rest
}

/// The key confidence is measured by, from the adjusted one.
#[cube]
fn measured_key(adjusted: u32, flags: u32, row: Scaled, bound: Bound, id: u32) -> u32 {
    let mut key = adjusted;
    if flags & FLAG_FILTERED != 0 {
        key = filtered_key(adjusted, row.temperature, bound, id);
    }
    key
}

/// Writes what a row amounts to.
#[cube]
fn put_answer(answers: &mut [u32], out: u32, raw: Stats, measured: Stats, mass: f32) {
    if UNIT_POS == 0 {
        let is_raw = is_finite(raw.best.key) && raw.sums.bad == 0.0f32;
        let is_measured = is_finite(measured.best.key) && measured.sums.bad == 0.0f32;
        answers[(out + BEST) as usize] = measured.best.key;
        answers[(out + BEST + 1) as usize] = measured.best.second;
        answers[(out + REST) as usize] = u32::reinterpret(measured.sums.rest);
        answers[(out + WEIGHTED) as usize] = u32::reinterpret(measured.sums.weighted);
        answers[(out + RAW_BEST) as usize] = raw.best.key;
        answers[(out + RAW_REST) as usize] = u32::reinterpret(raw.sums.rest);
        answers[(out + ASKED_MASS) as usize] = u32::reinterpret(mass);
        answers[(out + FINITE) as usize] = u32::cast_from(is_raw && is_measured);
    }
}

/// The best two of a row with noise.
#[cube]
fn noisiest(
    drawn: &[u32],
    of_row: Slices,
    ranked: &mut Shared<[u32]>,
    #[comptime] units: u32,
) -> Best {
    let mut own = nobody();
    let mut slice = UNIT_POS;
    while slice < of_row.count {
        let at = (of_row.first + slice * of_row.stride + NOISY) as usize;
        own = offer(own, drawn[at], drawn[at + 1]);
        own = offer(own, drawn[at + 2], drawn[at + 3]);
        slice += units;
    }
    cube_best(own, ranked, units)
}

/// A slice and how much it still has to bring.
#[derive(CubeType, CubeTypeMut, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct DrawnSlice {
    index: u32,
    /// What lies before it.
    before: Mass,
    /// Where the draw fell.
    wanted: Mass,
}

#[cube]
fn slice_mass(drawn: &[u32], of_row: Slices, slice: u32) -> Mass {
    let mut mass = no_mass();
    if slice < of_row.count {
        let at = (of_row.first + slice * of_row.stride + MASS) as usize;
        mass = Mass { count: drawn[at], high: drawn[at + 1], low: drawn[at + 2] };
    }
    mass
}

/// The slice in which the cumulative probability passes the row's uniform number.
#[cube]
fn drawn_slice(
    asked: &[u32],
    header: u32,
    drawn: &[u32],
    of_row: Slices,
    ranked: &mut Shared<[u32]>,
    #[comptime] units: u32,
) -> DrawnSlice {
    let mut found = Shared::<[u32]>::new_slice(3usize);
    let each = of_row.count.div_ceil(units);
    let first = UNIT_POS * each;
    let mut own = no_mass();
    let mut n = 0u32.runtime();
    while n < each {
        own = add(own, slice_mass(drawn, of_row, first + n));
        n += 1;
    }
    let until = cube_mass_until(own, ranked, units);
    let high = asked[(header + UNIFORM_HIGH) as usize];
    let low = asked[(header + UNIFORM_LOW) as usize];
    let wanted = share_of(total_mass(ranked, units), high, low);
    if UNIT_POS == 0 {
        found[0] = of_row.count;
        found[1] = 0u32.runtime();
        found[2] = 0u32.runtime();
    }
    sync_cube();
    let mut before = subtract(until, own);
    let mut n = 0u32.runtime();
    while n < each {
        let with = add(before, slice_mass(drawn, of_row, first + n));
        if outweighs(with, wanted) && !outweighs(before, wanted) {
            found[0] = first + n;
            found[1] = before.high;
            found[2] = before.low;
        }
        before = with;
        n += 1;
    }
    sync_cube();
    let before = Mass { count: 0u32.runtime(), high: found[1], low: found[2] };
    DrawnSlice { index: found[0], before, wanted }
}

/// The token of a slice at which the cumulative probability passes the draw, `NONE` if there is none.
#[cube]
fn drawn_id(
    kept: &[u32],
    row: Scaled,
    bound: Bound,
    slice: DrawnSlice,
    ranked: &mut Shared<[u32]>,
    #[comptime] shape: (u32, u32),
) -> u32 {
    let (units, len) = comptime!(shape);
    let each = comptime!(len / units).runtime();
    let mut found = Shared::<[u32]>::new_slice(1usize);
    let first = slice.index * len + UNIT_POS * each;
    let mut own = no_mass();
    let mut n = 0u32.runtime();
    while n < each {
        own = add(own, token_mass(kept, row, bound, first + n));
        n += 1;
    }
    let until = cube_mass_until(own, ranked, units);
    if UNIT_POS == 0 {
        found[0] = NONE.runtime();
    }
    sync_cube();
    let mut before = add(slice.before, subtract(until, own));
    let mut n = 0u32.runtime();
    while n < each {
        let with = add(before, token_mass(kept, row, bound, first + n));
        if outweighs(with, slice.wanted) && !outweighs(before, slice.wanted) {
            found[0] = first + n;
        }
        before = with;
        n += 1;
    }
    sync_cube();
    found[0]
}

#[cube]
fn token_mass(kept: &[u32], row: Scaled, bound: Bound, id: u32) -> Mass {
    let mut mass = no_mass();
    if id < row.vocab {
        let key = filtered_key(kept[(row.first + id) as usize], row.temperature, bound, id);
        mass = scaled_mass(key, row);
    }
    mass
}

/// Writes the best of a row to their places from the best of its slices.
#[cube]
fn put_tops(
    answers: &mut [u32],
    places: Slices,
    slices: &[u32],
    of_row: Slices,
    ranked: &mut Shared<[u32]>,
    #[comptime] units: u32,
) {
    let tops = places.count;
    let mut last_key = BAD.runtime();
    let mut last_index = NONE.runtime();
    let mut n = 0u32.runtime();
    while n < tops {
        let mut own = nobody();
        let mut at = UNIT_POS;
        while at < of_row.count * tops {
            let from = (of_row.first + at / tops * of_row.stride + at % tops * 2) as usize;
            if ranks(last_key, last_index, slices[from], slices[from + 1]) {
                own = offer(own, slices[from], slices[from + 1]);
            }
            at += units;
        }
        let best = cube_best(own, ranked, units);
        if UNIT_POS == 0 {
            let at = (places.first + n * places.stride) as usize;
            answers[at] = best.key;
            answers[at + 1] = best.index;
        }
        last_key = best.key;
        last_index = best.index;
        n += 1;
    }
}
