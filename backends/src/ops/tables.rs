//! What a device's attention has to know of a pass, uploaded once for all layers.

use std::ops::Range;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::kernels::kernels;
use crate::RaggedRows;
use crate::rows::{Attend, KeyRun, KeySource, Span};

/// The rows of a pass, with tables on the device if its kernels read them.
#[derive(Debug)]
pub struct AttentionRows<'a> {
    rows: &'a RaggedRows,
    tables: Option<KeyTables>,
}

/// Rows and their keys, as integers on a device: one upload a pass.
#[derive(Debug, Clone)]
pub struct KeyTables {
    /// The sections of [`KeyLayout`], one after the other.
    pub table: Tensor<1, Int>,
    /// Where they are.
    pub layout: KeyLayout,
}

/// The sections of a [`KeyTables::table`]: rows from its beginning; pieces and tiles where it says.
///
/// - A row is [`ROW`](Self::ROW) integers: the slot of the pool it is written to or -1, and its
///   position.
/// - A piece, up to some lanes of consecutive keys, is [`PIECE`](Self::PIECE) integers: where its
///   first key is (a slot of the pool, or `-1 - row` among the rows of this pass), that key's
///   position, and how many there are. Pieces of a span stand together, in run order.
/// - A tile, consecutive rows of one span, is [`TILE`](Self::TILE) integers: its first row, how many
///   there are, the first piece of the span, how many pieces from there on the tile sees, lanes of
///   a piece, and what rows see of them (0 all, 1 keys up to their position, 2 all but the cached
///   one at their position).
/// - A place, one integer, is where a single key is, as in pieces. Long spans have one a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyLayout {
    /// Where the pieces begin.
    pub pieces_at: usize,
    /// The tiles by their size, those of long spans left out; no class is empty.
    pub classes: Vec<TileClass>,
    /// The long spans.
    pub long: Vec<LongSpan>,
    /// Whether some row attends to rows of this pass that are in no page.
    pub has_own_keys: bool,
}

/// Tiles of one size: long spans share the loads of their keys, short ones compute no empty rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TileClass {
    /// Rows that a tile has room for.
    pub rows: usize,
    /// Where its tiles begin in the table.
    pub at: usize,
    /// How many there are.
    pub tiles: usize,
    /// Most lanes that a tile has to visit, those of pieces that are not full included.
    pub longest: usize,
}

/// A span of so many rows that copying its keys together costs little beside what is computed with
/// them. Matrix products can take its attention then: which keys a row sees follows from their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LongSpan {
    /// Its rows.
    pub rows: Range<usize>,
    /// Whether the last keys are those of the rows and a row sees none after its own; else all rows
    /// see all keys.
    pub is_causal: bool,
    /// Number of keys.
    pub keys: usize,
    /// Where the places of its keys are in the table, in their order.
    pub places_at: usize,
    /// Its tiles, for devices that have no use for all this.
    pub tiles: TileClass,
}

impl KeyLayout {
    /// Integers of a row.
    pub const ROW: usize = 2;
    /// Integers of a piece.
    pub const PIECE: usize = 3;
    /// Integers of a tile.
    pub const TILE: usize = 6;
    /// Rows of tiles; a span gets the smallest that it fits into, or several of the largest.
    pub const TILE_ROWS: [usize; 3] = [1, 4, 16];
    /// Rows from which a span is long. It is far above what decoding and blocks have, and a power of
    /// two, so that the passes that warm kernels up have such a span.
    pub const LONG_ROWS: usize = 128;
    /// Lanes of pieces, powers of two. The widest is a page; scattered keys would leave it empty.
    pub(crate) const LANES: [usize; 3] = [16, 4, 1];
}

impl<'a> AttentionRows<'a> {
    /// Prepares a pass on a device.
    #[must_use]
    pub fn new(rows: &'a RaggedRows, device: &Device) -> Self {
        let tables = kernels(device).map(|_| KeyTables::new(rows, device));
        Self { rows, tables }
    }

    /// With tables that are on the device already.
    pub(super) fn with_tables(rows: &'a RaggedRows, tables: KeyTables) -> Self {
        Self { rows, tables: Some(tables) }
    }

    pub(crate) fn rows(&self) -> &RaggedRows {
        self.rows
    }

    pub(crate) fn tables(&self) -> Option<&KeyTables> {
        self.tables.as_ref()
    }
}

impl KeyTables {
    fn new(rows: &RaggedRows, device: &Device) -> Self {
        let (table, layout) = sections(rows);
        let len = table.len();
        let data = TensorData::new(table, [len]);
        Self { table: Tensor::from_data(data, (device, DType::I32)), layout }
    }
}

/// A tile before it has a place.
struct Tile {
    entry: [usize; KeyLayout::TILE],
    /// Lanes that it visits.
    lanes: usize,
}

fn sections(rows: &RaggedRows) -> (Vec<i32>, KeyLayout) {
    let mut table = row_section(rows);
    let pieces_at = table.len();
    let mut tiles = KeyLayout::TILE_ROWS.map(|_| Vec::new());
    let mut of_long = Vec::new();
    for span in rows.spans().iter() {
        let lanes = lanes(&span.keys);
        let first = (table.len() - pieces_at) / KeyLayout::PIECE;
        let starts = push_pieces(&mut table, &span.keys, lanes);
        let class = KeyLayout::TILE_ROWS.iter().position(|&room| span.rows.len() <= room);
        let class = class.unwrap_or(KeyLayout::TILE_ROWS.len() - 1);
        let in_span = span_tiles(span, rows.positions(), KeyLayout::TILE_ROWS[class], &starts);
        let in_span = in_span.map(|[row, count, seen]| Tile {
            entry: [row, count, first, seen, lanes, sees(span.attend)],
            lanes: seen * lanes,
        });
        if is_long(span, rows.positions()) {
            of_long.push((span, KeyLayout::TILE_ROWS[class], in_span.collect::<Vec<Tile>>()));
        } else {
            tiles[class].extend(in_span);
        }
    }
    let of_class = tiles.iter().zip(KeyLayout::TILE_ROWS).filter(|(tiles, _)| !tiles.is_empty());
    let classes = of_class.map(|(tiles, room)| push_tiles(&mut table, tiles, room)).collect();
    let long = of_long.iter().map(|(span, room, tiles)| {
        let tiles = push_tiles(&mut table, tiles, *room);
        push_long(&mut table, span, tiles)
    });
    let long = long.collect();
    let mut runs = rows.spans().iter().flat_map(|span| &span.keys);
    let has_own_keys = runs.any(|run| matches!(run.source, KeySource::Rows { .. }));
    (table, KeyLayout { pieces_at, classes, long, has_own_keys })
}

fn push_tiles(table: &mut Vec<i32>, tiles: &[Tile], room: usize) -> TileClass {
    let longest = tiles.iter().map(|tile| tile.lanes).max().unwrap_or(0);
    let class = TileClass { rows: room, at: table.len(), tiles: tiles.len(), longest };
    table.extend(tiles.iter().flat_map(|tile| tile.entry).map(index));
    class
}

/// Whether a span has many rows, and rows see their keys by order alone.
fn is_long(span: &Span, positions: &[usize]) -> bool {
    let are_in_order = || {
        let of_run = |run: &KeyRun| run.position..run.position + run.len;
        let keys: Vec<usize> = span.keys.iter().flat_map(of_run).collect();
        keys.is_sorted_by(|a, b| a < b) && keys.ends_with(&positions[span.rows.clone()])
    };
    span.rows.len() >= KeyLayout::LONG_ROWS
        && match span.attend {
            Attend::Bidirectional => true,
            Attend::Causal => are_in_order(),
            Attend::Shadow => false,
        }
}

fn push_long(table: &mut Vec<i32>, span: &Span, tiles: TileClass) -> LongSpan {
    let places_at = table.len();
    for run in &span.keys {
        table.extend((0..run.len).map(|i| place(run.source, i)));
    }
    LongSpan {
        rows: span.rows.clone(),
        is_causal: span.attend == Attend::Causal,
        keys: table.len() - places_at,
        places_at,
        tiles,
    }
}

/// Where the key `offset` keys behind the first is.
fn place(source: KeySource, offset: usize) -> i32 {
    match source {
        KeySource::Pool { slot } => index(slot + offset),
        KeySource::Rows { row } => -1 - index(row + offset),
    }
}

pub(super) fn row_section(rows: &RaggedRows) -> Vec<i32> {
    let mut table: Vec<i32> =
        rows.positions().iter().flat_map(|&position| [-1, index(position)]).collect();
    for run in rows.spans().iter().flat_map(|span| &span.writes) {
        for i in 0..run.len {
            table[(run.row + i) * KeyLayout::ROW] = index(run.slot + i);
        }
    }
    table
}

pub(super) fn sees(attend: Attend) -> usize {
    match attend {
        Attend::Bidirectional => 0,
        Attend::Causal => 1,
        Attend::Shadow => 2,
    }
}

/// The widest pieces that leave no more lanes empty than are full.
pub(super) fn lanes(runs: &[KeyRun]) -> usize {
    let keys: usize = runs.iter().map(|run| run.len).sum();
    let padded = |lanes| runs.iter().map(|run| run.len.next_multiple_of(lanes)).sum::<usize>();
    KeyLayout::LANES.into_iter().find(|&lanes| padded(lanes) <= 2 * keys).unwrap_or(1)
}

/// Cuts runs into pieces; returns the first position of each.
pub(super) fn push_pieces(table: &mut Vec<i32>, runs: &[KeyRun], lanes: usize) -> Vec<usize> {
    let mut starts = Vec::new();
    for run in runs {
        for from in (0..run.len).step_by(lanes) {
            let position = run.position + from;
            let place = place(run.source, from);
            table.extend([place, index(position), index(lanes.min(run.len - from))]);
            starts.push(position);
        }
    }
    starts
}

/// First row, number of rows and number of visible pieces of each tile of a span.
pub(super) fn span_tiles<'a>(
    span: &'a Span,
    positions: &'a [usize],
    room: usize,
    starts: &'a [usize],
) -> impl Iterator<Item = [usize; 3]> + 'a {
    span.rows.clone().step_by(room).map(move |row| {
        let count = room.min(span.rows.end - row);
        // What comes after the last key that a row may see is not visited.
        let last = positions[row..row + count].iter().max().copied().unwrap_or(0);
        let seen = match span.attend {
            Attend::Causal => starts.iter().rposition(|&start| start <= last).map_or(0, |i| i + 1),
            Attend::Bidirectional | Attend::Shadow => starts.len(),
        };
        [row, count, seen]
    })
}

/// Pools and positions are far smaller than what an index can hold.
pub(super) fn index(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SpanRequest;

    fn span(
        rows: std::ops::Range<usize>,
        attend: Attend,
        write: bool,
        visible: Vec<std::ops::Range<usize>>,
        pages: &[u32],
    ) -> SpanRequest {
        SpanRequest { rows, attend, write, visible, pages: pages.to_vec() }
    }

    fn layout(
        positions: Vec<usize>,
        spans: Vec<SpanRequest>,
        page: usize,
    ) -> (Vec<i32>, KeyLayout) {
        let rows = RaggedRows::new(vec![0; positions.len()], positions, spans, page).unwrap();
        sections(&rows)
    }

    #[test]
    fn rows_pieces_and_tiles_stand_one_after_the_other() {
        let spans = vec![
            span(0..1, Attend::Causal, true, vec![0..5], &[7, 2]),
            span(1..3, Attend::Bidirectional, false, vec![0..3], &[4]),
            span(3..4, Attend::Shadow, false, vec![0..3], &[4]),
        ];
        let (table, layout) = layout(vec![5, 1, 2, 0], spans, 4);
        // Slots and positions; only the first span writes.
        assert_eq!(table[..8], [9, 5, -1, 1, -1, 2, -1, 0]);
        assert_eq!(layout.pieces_at, 8);
        // Pages 7 and 2; what is left of page 4 and two own rows; page 4 and a row beside it.
        let pieces = [28, 0, 4, 8, 4, 2, 16, 0, 1, -2, 1, 1, -3, 2, 1, 16, 0, 3, -4, 0, 1];
        assert_eq!(table[8..29], pieces);
        let single = TileClass { rows: 1, at: 29, tiles: 2, longest: 8 };
        let several = TileClass { rows: 4, at: 41, tiles: 1, longest: 3 };
        assert_eq!(layout.classes, [single, several]);
        assert_eq!(table[29..], [0, 1, 0, 2, 4, 1, 3, 1, 5, 2, 4, 2, 1, 2, 2, 3, 1, 0]);
        assert!(layout.has_own_keys);
    }

    #[test]
    fn causal_tiles_stop_at_their_last_row() {
        let spans = vec![span(0..40, Attend::Causal, true, vec![0..20], &[3, 0, 2, 1])];
        let (table, layout) = layout((20..60).collect(), spans, 16);
        // 60 keys in four pages; tiles end at positions 35, 51 and 59.
        let [class] = layout.classes[..] else { panic!("{layout:?}") };
        assert_eq!((class.rows, class.tiles, class.longest), (16, 3, 64));
        let tile = |i| &table[class.at + i * KeyLayout::TILE..][..KeyLayout::TILE];
        assert_eq!(tile(0), [0, 16, 0, 3, 16, 1]);
        assert_eq!(tile(1), [16, 16, 0, 4, 16, 1]);
        assert_eq!(tile(2), [32, 8, 0, 4, 16, 1]);
        assert!(!layout.has_own_keys);
    }

    #[test]
    fn long_spans_have_their_own_tiles_and_a_place_for_each_key() {
        let spans = vec![
            span(0..1, Attend::Causal, true, vec![0..3], &[9]),
            span(1..129, Attend::Causal, true, vec![0..2], &[1, 0]),
            span(129..257, Attend::Bidirectional, false, vec![0..1, 3..4], &[5]),
        ];
        let positions = [3].into_iter().chain(2..130).chain(4..132).collect();
        let (table, layout) = layout(positions, spans, 128);
        // Only the first span's tile is in a class; keys of the second are on two pages.
        assert_eq!(layout.pieces_at, 257 * 2);
        let at = layout.pieces_at + KeyLayout::PIECE * (1 + 9 + 2 + 9);
        assert_eq!(layout.classes, [TileClass { rows: 1, at, tiles: 1, longest: 4 }]);
        let [causal, canvas] = &layout.long[..] else { panic!("{layout:?}") };
        let tiles = TileClass { rows: 16, at: at + 6, tiles: 8, longest: 9 * 16 };
        let places_at = at + 6 + 8 * 6;
        let expected = LongSpan { rows: 1..129, is_causal: true, keys: 130, places_at, tiles };
        assert_eq!(*causal, expected);
        let places: Vec<i32> = (128..256).chain([0, 1]).collect();
        assert_eq!(table[places_at..][..130], places);
        assert!(!canvas.is_causal);
        assert_eq!((canvas.rows.clone(), canvas.keys, canvas.tiles.tiles), (129..257, 130, 8));
        let places: Vec<i32> = [640, 643].into_iter().chain((129..257).map(|r| -1 - r)).collect();
        assert_eq!(table[canvas.places_at..], places);
    }

    #[test]
    fn rows_that_see_keys_out_of_order_are_no_long_span() {
        let long = |attend, rows: usize, positions: Vec<usize>| {
            let spans = vec![span(0..rows, attend, false, vec![0..8], &[0, 1, 2])];
            layout(positions, spans, 128).1.long.len()
        };
        assert_eq!(long(Attend::Causal, 128, (8..136).collect()), 1);
        assert_eq!(long(Attend::Causal, 127, (8..135).collect()), 0);
        // Keys after the last row, and rows that go back.
        assert_eq!(long(Attend::Causal, 128, (0..2).chain(9..135).collect()), 0);
        assert_eq!(long(Attend::Causal, 128, (8..136).rev().collect()), 0);
        assert_eq!(long(Attend::Bidirectional, 128, (8..136).rev().collect()), 1);
        assert_eq!(long(Attend::Shadow, 128, (8..136).collect()), 0);
    }

    #[test]
    fn scattered_keys_get_narrow_pieces() {
        let visible = (0..8).map(|i| 4 * i..4 * i + 1).collect();
        let spans = vec![span(0..1, Attend::Bidirectional, false, visible, &[0, 1])];
        let (table, layout) = layout(vec![31], spans, 16);
        assert_eq!(layout.classes, [TileClass { rows: 1, at: 29, tiles: 1, longest: 9 }]);
        assert_eq!(table[29..], [0, 1, 0, 9, 1, 0]);
    }

    #[test]
    fn the_table_is_uploaded_whole() {
        let rows = RaggedRows::single(&[1, 2, 3], Attend::Causal).unwrap();
        let tables = KeyTables::new(&rows, &Device::flex());
        let (expected, layout) = sections(&rows);
        assert_eq!(tables.layout, layout);
        assert_eq!(tables.table.into_data().iter::<i32>().collect::<Vec<_>>(), expected);
    }
}
