//! Inputs of steps, of one shape whatever the sequences are, overwritten in place from step to step:
//! what a recorded pass reads.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::attention::LARGEST_HEAD;
use super::embed::token_id;
use super::kernels::{DeviceKernels, kernels};
use super::tables::{index, lanes, push_pieces, row_section, sees, span_tiles};
use super::{AttentionRows, InputForm, KeyLayout, KeyTables, PassInputs, RopeAngles, TileClass};
use crate::rows::{Attend, KeySource, Span};
use crate::{PAGE_SIZE, RaggedRows, SpanRequest};

/// The widest pieces, those of a page.
const WIDEST: usize = KeyLayout::LANES[0];
/// The largest tiles, which spans of any length are cut into.
const LARGEST_TILE: usize = KeyLayout::TILE_ROWS[KeyLayout::TILE_ROWS.len() - 1];

/// The size of a step: every pass that fits into it runs the same launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepShape {
    /// Rows. Those that a step does not have write nothing and see nothing.
    pub rows: usize,
    /// Rows of a tile. Spans are cut only into the largest tiles there are; smaller ones have all of
    /// theirs.
    pub tile_rows: usize,
    /// Tiles, those of absent rows included.
    pub tiles: usize,
    /// Pieces of keys, of all spans together.
    pub pieces: usize,
    /// Whether rows may see rows of the step that are in no page.
    pub has_own_keys: bool,
}

impl StepShape {
    /// Steps of models that decode: up to so many sequences, each of one row that is written and sees
    /// up to `pages` pages.
    #[must_use]
    pub fn decode(rows: usize, pages: usize) -> Self {
        Self { rows, tile_rows: 1, tiles: rows, pieces: rows * pages, has_own_keys: false }
    }

    /// Steps of models that denoise: blocks of up to so many rows together, in sequences of up to
    /// `pages` pages.
    #[must_use]
    pub fn blocks(rows: usize, pages: usize) -> Self {
        // Tiles that are half full on average. More would let more short spans in, but devices share
        // their processors out among all tiles, and most steps have one block.
        let tiles = (2 * rows / LARGEST_TILE).max(2);
        // Cuts at the ends of what is visible leave pieces half full at worst, else they are narrower;
        // a row is a key of its own once.
        let pieces = 2 * tiles * pages + rows;
        Self { rows, tile_rows: LARGEST_TILE, tiles, pieces, has_own_keys: true }
    }

    /// Whether a pass fits.
    #[must_use]
    pub fn holds(&self, rows: &RaggedRows) -> bool {
        let spans = rows.spans();
        let sum = |of: &dyn Fn(&Span) -> usize| spans.iter().map(of).sum::<usize>();
        rows.len() <= self.rows
            && spans.iter().all(|span| self.takes(span))
            && self.absent_tiles(rows.len()) + sum(&|span| self.tiles_of(span.rows.len()))
                <= self.tiles
            && sum(&|span| self.pieces_of(span)) <= self.pieces
    }

    fn takes(&self, span: &Span) -> bool {
        let is_own = |source: KeySource| matches!(source, KeySource::Rows { .. });
        (span.rows.len() <= self.tile_rows || self.tile_rows == LARGEST_TILE)
            && (self.has_own_keys || !span.keys.iter().any(|run| is_own(run.source)))
    }

    fn tiles_of(&self, rows: usize) -> usize {
        rows.div_ceil(self.tile_rows)
    }

    /// Tiles of the rows that a step of `present` rows does not have.
    fn absent_tiles(&self, present: usize) -> usize {
        self.tiles_of(self.rows - present)
    }

    fn pieces_of(&self, span: &Span) -> usize {
        let lanes = self.lanes(span);
        span.keys.iter().map(|run| run.len.div_ceil(lanes)).sum()
    }

    fn lanes(&self, span: &Span) -> usize {
        // Where all keys are in pages only the last piece is not full.
        if self.has_own_keys { lanes(&span.keys) } else { WIDEST }
    }

    /// Rows, then tiles, then pieces: pieces come last because only they vary in number.
    fn layout(&self) -> KeyLayout {
        let at = self.rows * KeyLayout::ROW;
        let longest = self.pieces / self.tiles * WIDEST;
        let class = TileClass { rows: self.tile_rows, at, tiles: self.tiles, longest };
        KeyLayout {
            pieces_at: at + self.tiles * KeyLayout::TILE,
            classes: vec![class],
            long: Vec::new(),
            has_own_keys: self.has_own_keys,
        }
    }

    /// Integers of the longest table.
    fn capacity(&self) -> usize {
        self.layout().pieces_at + self.pieces * KeyLayout::PIECE
    }

    /// The table of a step, as far as it is used; without rows, of one that does nothing.
    fn table(&self, rows: Option<&RaggedRows>) -> Vec<i32> {
        let present = rows.map_or(0, RaggedRows::len);
        let mut table = rows.map(row_section).unwrap_or_default();
        table.extend([-1, 0].repeat(self.rows - present));
        let mut pieces = Vec::new();
        for (rows, span) in rows.iter().flat_map(|rows| rows.spans().iter().map(move |s| (rows, s)))
        {
            let (first, lanes) = (pieces.len() / KeyLayout::PIECE, self.lanes(span));
            let starts = push_pieces(&mut pieces, &span.keys, lanes);
            for [row, count, seen] in span_tiles(span, rows.positions(), self.tile_rows, &starts) {
                table.extend([row, count, first, seen, lanes, sees(span.attend)].map(index));
            }
        }
        let blind = |row: usize, count| [row, count, 0, 0, WIDEST, sees(Attend::Causal)].map(index);
        for row in (present..self.rows).step_by(self.tile_rows) {
            table.extend(blind(row, self.tile_rows.min(self.rows - row)));
        }
        let unused = self.layout().pieces_at.saturating_sub(table.len()) / KeyLayout::TILE;
        table.extend(blind(0, 0).repeat(unused));
        table.extend(pieces);
        table
    }
}

/// The inputs of steps of one shape.
pub struct StepInputs {
    shape: StepShape,
    kernels: &'static dyn DeviceKernels,
    /// As many rows, which no operation that has a kernel looks at.
    rows: RaggedRows,
    tokens: Tensor<1, Int>,
    angles: RopeAngles,
    tables: KeyTables,
}

impl std::fmt::Debug for StepInputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StepInputs").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl StepInputs {
    /// Inputs of absent rows; nothing where attention has no kernel.
    #[must_use]
    pub fn new(shape: StepShape, form: InputForm<'_>, device: &Device) -> Option<Self> {
        let fits = form.rope.shape().head_dim <= LARGEST_HEAD;
        let kernels = kernels(device).filter(|_| fits)?;
        let span = |row| SpanRequest {
            rows: row..row + 1,
            attend: Attend::Causal,
            write: false,
            visible: Vec::new(),
            pages: Vec::new(),
        };
        let spans = (0..shape.rows).map(span).collect();
        let zeros = vec![0; shape.rows];
        let rows = RaggedRows::new(vec![0; shape.rows], zeros, spans, PAGE_SIZE).ok()?;
        let ints = |values: Vec<i32>| {
            let len = values.len();
            Tensor::from_data(TensorData::new(values, [len]), (device, DType::I32))
        };
        let mut table = shape.table(None);
        table.resize(shape.capacity(), 0);
        Some(Self {
            shape,
            kernels,
            tokens: ints(vec![0; shape.rows]),
            angles: form.rope.angles(rows.positions(), form.activations, device),
            tables: KeyTables { table: ints(table), layout: shape.layout() },
            rows,
        })
    }

    /// The shape.
    #[must_use]
    pub fn shape(&self) -> StepShape {
        self.shape
    }

    /// Overwrites the inputs with those of a step that the shape [holds](StepShape::holds).
    ///
    /// # Panics
    /// If it does not.
    pub fn fill(&self, rows: &RaggedRows, form: InputForm<'_>) {
        assert!(self.shape.holds(rows), "{} rows for {:?}", rows.len(), self.shape);
        let mut tokens: Vec<i32> = rows.tokens().iter().map(|&t| token_id(t)).collect();
        tokens.resize(self.shape.rows, 0);
        let mut positions = rows.positions().to_vec();
        positions.resize(self.shape.rows, 0);
        self.kernels.overwrite_ints(&self.tokens, &tokens);
        let angles = form.rope.angle_data(&positions, form.activations);
        self.kernels.overwrite(&self.angles.table, angles);
        self.kernels.overwrite_ints(&self.tables.table, &self.shape.table(Some(rows)));
    }

    /// The inputs, for a pass that is recorded.
    #[must_use]
    pub fn pass(&self) -> PassInputs<'_> {
        PassInputs {
            tokens: self.tokens.clone(),
            angles: self.angles.clone(),
            rows: AttentionRows::with_tables(&self.rows, self.tables.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: StepShape =
        StepShape { rows: 4, tile_rows: 1, tiles: 4, pieces: 12, has_own_keys: false };
    const BLOCKS: StepShape =
        StepShape { rows: 24, tile_rows: 16, tiles: 4, pieces: 9, has_own_keys: true };

    fn span(row: usize, visible: std::ops::Range<usize>, pages: &[u32]) -> SpanRequest {
        SpanRequest {
            rows: row..row + 1,
            attend: Attend::Causal,
            write: true,
            visible: vec![visible],
            pages: pages.to_vec(),
        }
    }

    fn rows(positions: Vec<usize>, spans: Vec<SpanRequest>) -> RaggedRows {
        RaggedRows::new(vec![9; positions.len()], positions, spans, 16).unwrap()
    }

    #[test]
    fn a_step_fills_the_beginning_of_a_table_of_one_layout() {
        let layout = SHAPE.layout();
        assert_eq!(layout.classes, [TileClass { rows: 1, at: 8, tiles: 4, longest: 48 }]);
        assert_eq!((layout.pieces_at, SHAPE.capacity()), (32, 68));
        let two = rows(vec![33, 4], vec![span(0, 0..33, &[5, 1, 7]), span(1, 0..4, &[2])]);
        assert!(SHAPE.holds(&two));
        let table = SHAPE.table(Some(&two));
        assert_eq!(table[..8], [113, 33, 36, 4, -1, 0, -1, 0]);
        assert_eq!(table[8..20], [0, 1, 0, 3, 16, 1, 1, 1, 3, 1, 16, 1]);
        assert_eq!(table[20..32], [2, 1, 0, 0, 16, 1, 3, 1, 0, 0, 16, 1]);
        assert_eq!(table[32..], [80, 0, 16, 16, 16, 16, 112, 32, 2, 32, 0, 5]);
    }

    #[test]
    fn before_the_first_step_nothing_is_written() {
        let none = [-1, 0, -1, 0, -1, 0, -1, 0, 0, 1, 0, 0, 16, 1, 1, 1, 0, 0, 16, 1];
        assert_eq!(SHAPE.table(None)[..20], none);
        assert_eq!(SHAPE.table(None).len(), 32);
    }

    #[test]
    fn the_largest_step_fills_the_table() {
        let spans = (0..4).map(|row| span(row, 0..40, &[0, 1, 2 + row as u32])).collect();
        let full = rows(vec![40; 4], spans);
        assert!(SHAPE.holds(&full));
        assert_eq!(SHAPE.table(Some(&full)).len(), SHAPE.capacity());
    }

    #[test]
    fn other_passes_are_no_decode_steps() {
        assert_eq!(StepShape::decode(4, 3), SHAPE);
        assert!(SHAPE.holds(&rows(vec![5], vec![span(0, 0..5, &[0])])));
        let unwritten = SpanRequest { write: false, ..span(0, 0..5, &[0]) };
        assert!(!SHAPE.holds(&rows(vec![5], vec![unwritten])), "it sees itself");
        let chunk = SpanRequest { rows: 0..2, ..span(0, 0..5, &[0]) };
        assert!(!SHAPE.holds(&rows(vec![5, 6], vec![chunk])));
        let long = || (0..4).map(|row| span(row, 0..40, &[0, 1, 2]));
        assert!(SHAPE.holds(&rows(vec![40; 4], long().collect())));
        let longer = long().take(3).chain([span(3, 0..48, &[0, 1, 2, 3])]);
        assert!(!SHAPE.holds(&rows(vec![40, 40, 40, 48], longer.collect())));
        let many = (0..5).map(|row| span(row, 0..5, &[row as u32])).collect();
        assert!(!SHAPE.holds(&rows(vec![5; 5], many)));
    }

    /// Rows of a block at these positions of a sequence of `len`.
    fn block(rows: std::ops::Range<usize>, write: bool, len: usize, pages: &[u32]) -> SpanRequest {
        SpanRequest {
            rows,
            attend: Attend::Bidirectional,
            write,
            visible: vec![0..len],
            pages: pages.to_vec(),
        }
    }

    #[test]
    fn blocks_are_cut_into_tiles_and_what_is_left_sees_nothing() {
        let layout = BLOCKS.layout();
        assert_eq!(layout.classes, [TileClass { rows: 16, at: 48, tiles: 4, longest: 32 }]);
        assert_eq!((layout.pieces_at, BLOCKS.capacity()), (72, 99));
        assert!(layout.has_own_keys);
        // Eighteen rows that stay with the pass amid a cache, and two that are written.
        let spans = vec![block(0..18, false, 40, &[5, 1, 7]), block(18..20, true, 6, &[2])];
        let two = rows((10..28).chain([3, 4]).collect(), spans);
        assert!(BLOCKS.holds(&two));
        let table = BLOCKS.table(Some(&two));
        assert_eq!(table[..4], [-1, 10, -1, 11]);
        assert_eq!(table[34..48], [-1, 27, 35, 3, 36, 4, -1, 0, -1, 0, -1, 0, -1, 0]);
        assert_eq!(table[48..60], [0, 16, 0, 5, 16, 0, 16, 2, 0, 5, 16, 0]);
        // The short sequence has narrow pieces; four rows are absent.
        assert_eq!(table[60..72], [18, 2, 5, 2, 4, 0, 20, 4, 0, 0, 16, 1]);
        let amid = [80, 0, 10, 28, 28, 4, 112, 32, 8, -1, 10, 6, -7, 16, 12];
        assert_eq!(table[72..87], amid);
        assert_eq!(table[87..], [32, 0, 4, 36, 4, 2]);
        let one = rows((10..28).collect(), vec![block(0..18, false, 40, &[5, 1, 7])]);
        let tiles = BLOCKS.table(Some(&one))[60..72].to_vec();
        assert_eq!(tiles, [18, 6, 0, 0, 16, 1, 0, 0, 0, 0, 16, 1], "no rows in the last tile");
    }

    #[test]
    fn blocks_fit_as_far_as_rows_tiles_and_pieces_go() {
        let holds = |spans: &[(usize, usize)]| {
            let mut first = 0;
            let requests = spans.iter().map(|&(count, len)| {
                first += count;
                let pages: Vec<u32> = (0..8).collect();
                block(first - count..first, false, len, &pages)
            });
            let requests = requests.collect();
            let positions = spans.iter().flat_map(|&(count, _)| 0..count).collect();
            BLOCKS.holds(&rows(positions, requests))
        };
        assert!(holds(&[(24, 0)]) && !holds(&[(25, 0)]));
        assert!(holds(&[(8, 0), (8, 0), (8, 0)]));
        assert!(holds(&[(8, 0), (4, 0), (4, 0)]), "the rest takes the last tile");
        assert!(!holds(&[(4, 0), (4, 0), (4, 0), (4, 0)]), "nothing is left for the rest");
        assert!(holds(&[(6, 0), (6, 0), (6, 0), (6, 0)]));
        // Eight pieces, and three more.
        assert!(holds(&[(16, 128)]) && !holds(&[(16, 128), (1, 31)]));
        let shadow = SpanRequest { attend: Attend::Shadow, ..block(0..2, false, 9, &[0]) };
        assert!(BLOCKS.holds(&rows(vec![2, 3], vec![shadow])));
    }

    #[test]
    fn shapes_of_blocks_have_room_for_the_longest() {
        let shape = StepShape::blocks(32, 4);
        let expected =
            StepShape { rows: 32, tile_rows: 16, tiles: 4, pieces: 64, has_own_keys: true };
        assert_eq!(shape, expected);
        assert_eq!(StepShape::blocks(8, 4).tiles, 2, "a block and the rest");
        let spans = (0..4).map(|i| block(8 * i..8 * i + 8, false, 64, &[0, 1, 2, 3])).collect();
        assert!(
            shape
                .holds(&rows([20..28, 3..11, 50..58, 0..8].into_iter().flatten().collect(), spans))
        );
    }
}
