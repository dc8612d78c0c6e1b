//! What a cube of attention has to do, and the memory it shares.

use cubecl::prelude::*;
use dfastllm_backends::ops::KeyLayout;

use super::plan::Tile;

/// What hidden keys score: lower than any score, and WGSL has no infinity.
pub(super) const HIDDEN: f32 = -3.0e38;

/// Runtime numbers of a launch.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) rows: u32,
    pub(super) heads: u32,
    pub(super) kv_heads: u32,
    pub(super) pieces_at: u32,
    pub(super) tiles_at: u32,
    pub(super) splits: u32,
    pub(super) scale: f32,
}

/// What a cube has to do.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Work {
    /// Its first row, and how many there are.
    pub(super) row: usize,
    pub(super) rows: usize,
    /// Its first query head, and where those of the group end.
    pub(super) head: usize,
    pub(super) heads_end: usize,
    pub(super) kv_head: usize,
    /// Where the pieces of its span stand in the table, and the lanes of each.
    pub(super) pieces: usize,
    pub(super) lanes: usize,
    /// What rows see, as in [`KeyLayout`].
    pub(super) sees: i32,
    /// The lanes it visits.
    pub(super) begin: usize,
    pub(super) end: usize,
}

/// Shared memory of a cube.
#[derive(CubeType)]
pub(super) struct Memory<P: Float, N: Size> {
    /// `[queries, vectors]`, scaled; at the end what the cube found.
    pub(super) queries: Shared<[Vector<f32, N>]>,
    /// `[keys, vectors + 1]`: units that read neighbouring keys must not meet in a bank.
    pub(super) keys: Shared<[Vector<P, N>]>,
    /// `[keys, vectors]`
    pub(super) values: Shared<[Vector<P, N>]>,
    /// `[queries, parts, keys]`
    pub(super) scores: Shared<[f32]>,
    /// Positions of query vectors, -1 where there is none.
    pub(super) rows: Shared<[i32]>,
    /// Of query vectors: the largest score so far, the sum of what was added to the output, and
    /// what a new largest score makes of all that was added before.
    pub(super) max: Shared<[f32]>,
    pub(super) sum: Shared<[f32]>,
    pub(super) rescale: Shared<[f32]>,
    /// Of the present keys: slot or `-1 - row`, and position or -1.
    pub(super) places: Shared<[i32]>,
    pub(super) positions: Shared<[i32]>,
}

#[cube]
pub(super) fn entry(table: &[i32], at: usize) -> usize {
    u32::cast_from(table[at]) as usize
}

#[cube]
pub(super) fn work_of_cube(table: &[i32], sizes: &Sizes, #[comptime] tile: Tile) -> Work {
    let at = sizes.tiles_at as usize + CUBE_POS_X as usize * comptime!(KeyLayout::TILE);
    let lanes = entry(table, at + 4);
    let total = entry(table, at + 3) * lanes;
    let steps = total.div_ceil(comptime!(tile.keys));
    let part = steps.div_ceil(sizes.splits as usize) * comptime!(tile.keys);
    let begin = min(CUBE_POS_Z as usize * part, total);
    let group = (sizes.heads / sizes.kv_heads) as usize;
    let in_group = group.div_ceil(comptime!(tile.heads));
    let kv_head = CUBE_POS_Y as usize / in_group;
    Work {
        row: entry(table, at),
        rows: entry(table, at + 1),
        head: kv_head * group + CUBE_POS_Y as usize % in_group * comptime!(tile.heads),
        heads_end: kv_head * group + group,
        kv_head,
        pieces: sizes.pieces_at as usize + entry(table, at + 2) * comptime!(KeyLayout::PIECE),
        lanes,
        sees: table[at + 5],
        begin,
        end: min(begin + part, total),
    }
}

#[cube]
pub(super) fn new_memory<P: Float, N: Size>(#[comptime] tile: Tile) -> Memory<P, N> {
    Memory::<P, N> {
        queries: Shared::<[Vector<f32, N>]>::new_slice(comptime!(tile.queries * tile.vectors)),
        keys: Shared::<[Vector<P, N>]>::new_slice(comptime!(tile.keys * (tile.vectors + 1))),
        values: Shared::<[Vector<P, N>]>::new_slice(comptime!(tile.keys * tile.vectors)),
        scores: Shared::<[f32]>::new_slice(comptime!(tile.queries * tile.parts * tile.keys)),
        rows: Shared::<[i32]>::new_slice(comptime!(tile.queries)),
        max: Shared::<[f32]>::new_slice(comptime!(tile.queries)),
        sum: Shared::<[f32]>::new_slice(comptime!(tile.queries)),
        rescale: Shared::<[f32]>::new_slice(comptime!(tile.queries)),
        places: Shared::<[i32]>::new_slice(comptime!(tile.keys)),
        positions: Shared::<[i32]>::new_slice(comptime!(tile.keys)),
    }
}

/// Whether the tile has a query vector, and which row of all heads' vectors it is.
#[cube]
pub(super) fn query_row(
    work: &Work,
    sizes: &Sizes,
    query: usize,
    #[comptime] tile: Tile,
) -> (bool, usize) {
    let row = query / comptime!(tile.heads);
    let head = work.head + query % comptime!(tile.heads);
    let exists = row < work.rows && head < work.heads_end;
    (exists, (work.row + row) * sizes.heads as usize + head)
}

/// Of the sum of weights; 0 of a row that sees no key, which gets zeros.
#[cube]
pub(super) fn inverse(sum: f32) -> f32 {
    let mut inverse = f32::new(0.0);
    if sum != 0.0 {
        inverse = 1.0 / sum;
    }
    inverse
}
