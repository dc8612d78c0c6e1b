//! Inputs of decode steps, of one shape whatever the sequences are, overwritten in place from step to
//! step: what a recorded pass reads.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::attention::LARGEST_HEAD;
use super::embed::token_id;
use super::kernels::{DeviceKernels, kernels};
use super::tables::{index, push_pieces, row_section, sees, span_tiles};
use super::{AttentionRows, InputForm, KeyLayout, KeyTables, PassInputs, RopeAngles, TileClass};
use crate::rows::{Attend, KeySource, Span};
use crate::{RaggedRows, SpanRequest};

/// Lanes of every piece: those of a page.
const LANES: usize = KeyLayout::LANES[0];

/// The size of a decode step: rows of as many sequences, each written and causal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeShape {
    /// Rows; those that a step does not have write nothing and see nothing.
    pub rows: usize,
    /// Pages that a row may see.
    pub pages: usize,
}

impl DecodeShape {
    /// Whether a pass is such a step: every span one causal row that is written and reads pages only.
    #[must_use]
    pub fn holds(&self, rows: &RaggedRows) -> bool {
        let is_decode = |span: &Span| {
            let pieces: usize = span.keys.iter().map(|run| run.len.div_ceil(LANES)).sum();
            span.rows.len() == 1
                && span.attend == Attend::Causal
                && span.writes.len() == 1
                && pieces <= self.pages
                && span.keys.iter().all(|run| matches!(run.source, KeySource::Pool { .. }))
        };
        rows.len() <= self.rows && rows.spans().iter().all(is_decode)
    }

    /// Rows, then tiles, then pieces: pieces come last because only they vary in number.
    fn layout(&self) -> KeyLayout {
        let at = self.rows * KeyLayout::ROW;
        let class = TileClass { rows: 1, at, tiles: self.rows, longest: self.pages * LANES };
        KeyLayout {
            pieces_at: at + self.rows * KeyLayout::TILE,
            classes: vec![class],
            long: Vec::new(),
            has_own_keys: false,
        }
    }

    /// Integers of the longest table.
    fn capacity(&self) -> usize {
        self.layout().pieces_at + self.rows * self.pages * KeyLayout::PIECE
    }

    /// The table of a step, as far as it is used; without rows, of one that does nothing.
    fn table(&self, rows: Option<&RaggedRows>) -> Vec<i32> {
        let present = rows.map_or(0, RaggedRows::len);
        let mut table = rows.map(row_section).unwrap_or_default();
        table.extend([-1, 0].repeat(self.rows - present));
        let mut pieces = Vec::new();
        for (rows, span) in rows.iter().flat_map(|rows| rows.spans().iter().map(move |s| (rows, s)))
        {
            let first = pieces.len() / KeyLayout::PIECE;
            let starts = push_pieces(&mut pieces, &span.keys, LANES);
            for [row, count, seen] in span_tiles(span, rows.positions(), 1, &starts) {
                table.extend([row, count, first, seen, LANES, sees(span.attend)].map(index));
            }
        }
        let absent = |row: usize| [row, 1, 0, 0, LANES, sees(Attend::Causal)].map(index);
        table.extend((present..self.rows).flat_map(absent));
        table.extend(pieces);
        table
    }
}

/// The inputs of decode steps of one shape.
pub struct DecodeInputs {
    shape: DecodeShape,
    kernels: &'static dyn DeviceKernels,
    /// As many rows, which no operation that has a kernel looks at.
    rows: RaggedRows,
    tokens: Tensor<1, Int>,
    angles: RopeAngles,
    tables: KeyTables,
}

impl std::fmt::Debug for DecodeInputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DecodeInputs").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl DecodeInputs {
    /// Inputs of absent rows; nothing where attention has no kernel.
    #[must_use]
    pub fn new(shape: DecodeShape, form: InputForm<'_>, device: &Device) -> Option<Self> {
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
        let rows = RaggedRows::new(vec![0; shape.rows], zeros, spans, LANES).ok()?;
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
    pub fn shape(&self) -> DecodeShape {
        self.shape
    }

    /// Overwrites the inputs with those of a step that the shape [holds](DecodeShape::holds).
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

    const SHAPE: DecodeShape = DecodeShape { rows: 4, pages: 3 };

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
        assert!(SHAPE.holds(&rows(vec![5], vec![span(0, 0..5, &[0])])));
        let changed = |change: &dyn Fn(&mut SpanRequest)| {
            let mut span = span(0, 0..5, &[0]);
            change(&mut span);
            rows(vec![5], vec![span])
        };
        assert!(!SHAPE.holds(&changed(&|span| span.write = false)));
        assert!(!SHAPE.holds(&changed(&|span| span.attend = Attend::Bidirectional)));
        let chunk = SpanRequest { rows: 0..2, ..span(0, 0..5, &[0]) };
        assert!(!SHAPE.holds(&rows(vec![5, 6], vec![chunk])));
        let long = span(0, 0..48, &[0, 1, 2, 3]);
        assert!(!SHAPE.holds(&rows(vec![48], vec![long])));
        let many = (0..5).map(|row| span(row, 0..5, &[row as u32])).collect();
        assert!(!SHAPE.holds(&rows(vec![5; 5], many)));
    }
}
