//! How attention is cut into cubes, and a cube into units.

use cubecl::client::Client;
use dfastllm_backends::DType;
use dfastllm_backends::ops::{AttentionHeads, TileClass};

use super::super::buffers::units;

/// Bytes of shared memory that every device has and a cube may take.
const SHARED_BYTES: usize = 30 << 10;

/// Most keys that a cube holds at a time.
const MOST_KEYS: usize = 32;

/// Query heads of one row that share a cube.
const MOST_HEADS: usize = 8;

/// Cubes for each multiprocessor: enough loads under way to keep its memory busy.
const CUBES_EACH: usize = 4;

/// Multiprocessors of devices that do not tell.
const UNKNOWN_PROCESSORS: usize = 16;

/// Most parts of one row's keys.
const MOST_SPLITS: usize = 64;

/// Comptime numbers of a launch. A query vector is one head of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// Query heads of a row.
    pub(super) heads: usize,
    /// Query vectors.
    pub(super) queries: usize,
    /// Query vectors that a unit has at once; divides `queries`.
    pub(super) block: usize,
    /// Keys at a time.
    pub(super) keys: usize,
    /// Loads that make a head.
    pub(super) vectors: usize,
    /// Units of the cube.
    pub(super) units: usize,
    /// Units that share the dimensions of one block's score with one key.
    pub(super) parts: usize,
    /// Units that share the keys of one block's output.
    pub(super) key_parts: usize,
    /// Output vectors of a unit, `block` each.
    pub(super) items: usize,
}

/// The cubes of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) tile: Tile,
    /// Elements of a load.
    pub(super) vector: usize,
    /// Cubes for the heads of a tile of rows.
    pub(super) blocks: usize,
    /// Cubes for the keys of a tile of rows.
    pub(super) splits: usize,
}

impl Plan {
    /// `dtypes`: those of queries and of the pool.
    pub(super) fn new(
        client: &Client,
        class: &TileClass,
        heads: AttentionHeads,
        dtypes: [DType; 2],
    ) -> Self {
        let vector = vector_size(client, heads.head_dim, dtypes);
        let unit_count = units(client, 128) as usize;
        let group = heads.heads / heads.kv_heads;
        // Long tiles have enough rows to share a key; a group's heads find it in the cache.
        let most = if class.rows > MOST_HEADS { 1 } else { (16 / class.rows).min(MOST_HEADS) };
        let in_group = group.div_ceil(most);
        let tile_heads = group.div_ceil(in_group);
        let tile = Tile::new(
            (class.rows * tile_heads, tile_heads),
            (heads.head_dim, vector, dtypes[1].size()),
            unit_count,
        );
        let blocks = in_group * heads.kv_heads;
        let steps = class.longest.div_ceil(tile.keys);
        let splits = splits(processors(client) * CUBES_EACH, class.tiles * blocks, steps);
        Self { tile, vector, blocks, splits }
    }

    /// Units of a cube that joins the parts of one head of `vectors` loads.
    pub(super) fn join_units(&self, vectors: usize) -> u32 {
        vectors.next_power_of_two().min(self.tile.units) as u32
    }
}

/// Multiprocessors of a device.
pub(super) fn processors(client: &Client) -> usize {
    let told = client.properties().hardware.num_streaming_multiprocessors;
    told.map_or(UNKNOWN_PROCESSORS, |n| n as usize)
}

/// Parts for each tile's keys, which take `steps` at most, so that `cubes` become about `wanted`.
fn splits(wanted: usize, cubes: usize, steps: usize) -> usize {
    // Joining parts costs a launch, more than a few steps do.
    if steps <= 4 { 1 } else { (wanted / cubes).clamp(1, steps.min(MOST_SPLITS)) }
}

impl Tile {
    fn new(
        (queries, heads): (usize, usize),
        (head_dim, vector, size): (usize, usize, usize),
        units: usize,
    ) -> Self {
        let vectors = head_dim / vector;
        // Few enough for registers: their sums are vectors too.
        let most = if queries < MOST_HEADS { queries } else { 4 };
        let block = (1..=most).rev().find(|block| queries.is_multiple_of(*block)).unwrap_or(1);
        let blocks = queries / block;
        let parts = |keys: usize| (units / (keys * blocks)).clamp(1, vectors);
        let bytes = |keys: usize| {
            let stored = (2 * vectors + 1) * keys * vector * size;
            let scores = queries * keys * parts(keys);
            stored + 4 * (queries * head_dim + scores + 4 * queries + 2 * keys)
        };
        let mut keys = MOST_KEYS;
        while keys > 1 && bytes(keys) > SHARED_BYTES {
            keys /= 2;
        }
        let outputs = blocks * vectors;
        Self {
            heads,
            queries,
            block,
            keys,
            vectors,
            units,
            parts: parts(keys),
            key_parts: (units / outputs).clamp(1, keys),
            items: outputs.div_ceil(units),
        }
    }
}

/// Elements of the largest load that divides a head, in all of `dtypes`.
pub(super) fn vector_size(client: &Client, head_dim: usize, dtypes: [DType; 2]) -> usize {
    let hardware = &client.properties().hardware;
    let widest = hardware.load_width as usize
        / 8
        / dtypes.map(|dtype| dtype.size()).into_iter().max().unwrap_or(4);
    let widest = widest.clamp(1, hardware.max_vector_size.min(8));
    (0..=3).map(|i| 8 >> i).find(|&n| n <= widest && head_dim.is_multiple_of(n)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_into_the_shared_memory_of_any_device() {
        for (rows, head_dim, vector, size) in [
            (1, 128, 8, 2),
            (7, 128, 8, 2),
            (16, 128, 4, 4),
            (16, 80, 8, 2),
            (16, 256, 4, 4),
            (16, 255, 1, 4),
            (1, 5, 1, 2),
        ] {
            let tile = Tile::new((rows, 1), (head_dim, vector, size), 128);
            let stored = (2 * tile.vectors + 1) * tile.keys * vector * size;
            let scores = tile.queries * tile.keys * tile.parts;
            let bytes = stored + 4 * (tile.queries * head_dim + scores);
            assert!(bytes <= SHARED_BYTES, "{rows} rows of {head_dim}: {bytes}, {tile:?}");
            assert!(tile.queries.is_multiple_of(tile.block) && tile.keys >= 1, "{tile:?}");
        }
    }

    #[test]
    fn keys_are_split_only_where_a_card_would_idle() {
        // One sequence of 1000 keys with 32 key heads on 132 multiprocessors, then 40 of them.
        assert_eq!(splits(528, 32, 32), 16);
        assert_eq!(splits(528, 1280, 32), 1);
        // A few keys, and few heads.
        assert_eq!(splits(528, 1, 3), 1);
        assert_eq!(splits(528, 4, 32), 32);
    }
}
