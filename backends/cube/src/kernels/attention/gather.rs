//! What flash attention reads and writes: rows beside each other, in floats that tensor cores take.

use cubecl::prelude::*;

/// Largest number of an f16.
const LARGEST: f32 = 65504.0;

/// A load in another type. What f16 cannot hold becomes the largest that it can, because one infinite
/// score or value would make a whole row meaningless; what is not a number stays so.
#[cube]
fn converted<F: Float, O: Float, N: Size>(
    value: Vector<F, N>,
    #[comptime] is_to_f16: bool,
) -> Vector<O, N> {
    let mut value = Vector::<f32, N>::cast_from(value);
    if comptime!(is_to_f16) {
        value = clamp_nan(value, Vector::new(-LARGEST), Vector::new(LARGEST));
    }
    Vector::cast_from(value)
}

/// Keys and values of a span in the order of their places, `[places, vectors]`; zeros after the last.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and sizes of a kernel")]
pub(super) fn gather_kernel<P: Float, O: Float, N: Size>(
    keys: &[Vector<P, N>],
    values: &[Vector<P, N>],
    own_keys: &[Vector<P, N>],
    own_values: &[Vector<P, N>],
    table: &[i32],
    to_keys: &mut [Vector<O, N>],
    to_values: &mut [Vector<O, N>],
    places_at: u32,
    places: u32,
    vectors: u32,
    #[define(P)] _dtype: ElemType,
    #[define(O)] _to_dtype: ElemType,
) {
    if ABSOLUTE_POS < to_keys.len() {
        let vectors = vectors as usize;
        let key = ABSOLUTE_POS / vectors;
        let mut k = Vector::<O, N>::new(O::from_int(0));
        let mut v = Vector::<O, N>::new(O::from_int(0));
        if key < places as usize {
            let place = table[places_at as usize + key];
            let row = u32::cast_from(max(place, i32::new(-1) - place)) as usize;
            let at = row * vectors + ABSOLUTE_POS % vectors;
            if place < 0 {
                k = converted::<P, O, N>(own_keys[at], true);
                v = converted::<P, O, N>(own_values[at], true);
            } else {
                k = converted::<P, O, N>(keys[at], true);
                v = converted::<P, O, N>(values[at], true);
            }
        }
        to_keys[ABSOLUTE_POS] = k;
        to_values[ABSOLUTE_POS] = v;
    }
}

/// `all` vectors to another place in another type; zeros after the first `present`.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "buffers and sizes of a kernel")]
pub(super) fn convert_kernel<F: Float, O: Float, N: Size>(
    from: &[Vector<F, N>],
    to: &mut [Vector<O, N>],
    from_at: u32,
    to_at: u32,
    present: u32,
    all: u32,
    #[comptime] is_to_f16: bool,
    #[define(F)] _dtype: ElemType,
    #[define(O)] _to_dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < all as usize {
        let mut value = Vector::<O, N>::new(O::from_int(0));
        if i < present as usize {
            value = converted::<F, O, N>(from[from_at as usize + i], is_to_f16);
        }
        to[to_at as usize + i] = value;
    }
}
