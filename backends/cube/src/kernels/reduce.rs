//! Reductions over the units of a cube.

use cubecl::prelude::*;

/// The sum of a value of each unit, in all of them, always in the same order. `shared` has room for
/// `units`, a power of two; `plane`: units of a plane, where planes add up.
#[cube]
pub(super) fn cube_sum(
    value: f32,
    shared: &mut Shared<[f32]>,
    #[comptime] units: u32,
    #[comptime] plane: Option<u32>,
) -> f32 {
    // Whoever still reads an earlier result has to be done.
    sync_cube();
    let unit = UNIT_POS as usize;
    if comptime!(plane.is_some()) {
        let lanes = comptime!(plane.unwrap_or(units));
        let own = plane_sum(value);
        if UNIT_POS_PLANE == 0 {
            shared[PLANE_POS as usize] = own;
        }
        sync_cube();
        let mut sum = f32::new(0.0);
        for i in 0..comptime!((units / lanes) as usize) {
            sum += shared[i];
        }
        sum
    } else {
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
}
