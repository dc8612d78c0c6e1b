//! Reductions over the units of a cube.

use cubecl::prelude::*;

/// The sum of a value of each unit, in all of them, always in the same order. `shared` has room for
/// `units`, a power of two.
#[cube]
pub(super) fn cube_sum(value: f32, shared: &mut Shared<[f32]>, #[comptime] units: u32) -> f32 {
    let unit = UNIT_POS as usize;
    // Whoever still reads an earlier result has to be done.
    sync_cube();
    shared[unit] = value;
    sync_cube();
    let mut half = comptime!(units / 2).runtime();
    while half > 0 {
        if UNIT_POS < half {
            let other = shared[unit + half as usize];
            shared[unit] += other;
        }
        sync_cube();
        half /= 2;
    }
    shared[0]
}
