//! The rows of one forward pass: token rows of several sequences, concatenated without padding.

use std::ops::Range;
use std::sync::Arc;

/// Positions of one page, unless a pool was made with another size.
pub const PAGE_SIZE: usize = 16;

/// Which keys a row of a span may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attend {
    /// Keys at its own position and before.
    Causal,
    /// Every visible key.
    Bidirectional,
    /// Every visible key but the cached one at its own position: what the rest of the sequence says
    /// about a position that is filled already (WINO, arXiv 2507.18578). Such a span never writes.
    Shadow,
}

/// What a caller wants of one span: consecutive rows of one sequence.
#[derive(Debug, Clone)]
pub struct SpanRequest {
    /// The rows of the batch that belong to it.
    pub rows: Range<usize>,
    /// Causal or bidirectional.
    pub attend: Attend,
    /// Whether the rows' keys and values go into the sequence's pages.
    pub write: bool,
    /// Cached positions its rows may see besides their own.
    pub visible: Vec<Range<usize>>,
    /// The sequence's block table: page of positions `0..page_size`, of the next `page_size`, …
    pub pages: Vec<u32>,
}

/// Where a run of keys is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySource {
    /// In the pool, from this slot on.
    Pool {
        /// `page * page_size + offset`.
        slot: usize,
    },
    /// Among this pass's own rows, from this row on.
    Rows {
        /// Row of the batch.
        row: usize,
    },
}

/// Consecutive keys of one sequence that never cross a page boundary.
///
/// Attention visits runs in order, so the order of its sums depends on positions and pages only,
/// never on how a sequence was cut into passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRun {
    /// Where the first key is.
    pub source: KeySource,
    /// Absolute position of the first key.
    pub position: usize,
    /// Number of keys.
    pub len: usize,
}

/// Consecutive rows to copy into consecutive slots of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WriteRun {
    pub(crate) row: usize,
    pub(crate) slot: usize,
    pub(crate) len: usize,
}

/// One resolved span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The rows of the batch that belong to it.
    pub rows: Range<usize>,
    /// Causal or bidirectional.
    pub attend: Attend,
    /// The keys its rows attend to, in order.
    pub keys: Vec<KeyRun>,
    pub(crate) writes: Vec<WriteRun>,
}

/// Why rows and spans do not fit together. Always a bug of the caller, never of a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowsError {
    /// Token and position lists differ in length, or there is no row.
    #[error("{tokens} tokens but {positions} positions; at least one row is needed")]
    Length {
        /// Number of tokens.
        tokens: usize,
        /// Number of positions.
        positions: usize,
    },
    /// The spans do not partition the rows.
    #[error("span {span} covers rows {found:?}, expected a span that starts at row {expected}")]
    Partition {
        /// Index of the span.
        span: usize,
        /// Its rows.
        found: Range<usize>,
        /// The first row not covered yet.
        expected: usize,
    },
    /// A shadow span was to write its rows, over what it looks at.
    #[error("span {span} is a shadow and cannot write")]
    ShadowWrites {
        /// Index of the span.
        span: usize,
    },
    /// A position lies outside the sequence's pages.
    #[error("position {position} lies outside the {pages} pages of span {span}")]
    OutsidePages {
        /// Index of the span.
        span: usize,
        /// The position.
        position: usize,
        /// Pages in its block table.
        pages: usize,
    },
}

/// Rows of all scheduled sequences, with everything attention needs to know about them.
#[derive(Debug, Clone)]
pub struct RaggedRows {
    tokens: Vec<u32>,
    positions: Arc<[usize]>,
    spans: Arc<[Span]>,
}

impl RaggedRows {
    /// Resolves block tables into key runs.
    ///
    /// # Errors
    /// When the spans do not partition the rows or name positions outside their pages.
    pub fn new(
        tokens: Vec<u32>,
        positions: Vec<usize>,
        requests: Vec<SpanRequest>,
        page_size: usize,
    ) -> Result<Self, RowsError> {
        if tokens.len() != positions.len() || tokens.is_empty() {
            return Err(RowsError::Length { tokens: tokens.len(), positions: positions.len() });
        }
        let mut next_row = 0;
        let mut spans = Vec::with_capacity(requests.len());
        for (index, request) in requests.into_iter().enumerate() {
            let rows = request.rows.clone();
            if rows.start != next_row || rows.end <= rows.start || rows.end > tokens.len() {
                return Err(RowsError::Partition { span: index, found: rows, expected: next_row });
            }
            next_row = rows.end;
            spans.push(resolve(index, request, &positions, page_size)?);
        }
        if next_row != tokens.len() {
            let rows = next_row..tokens.len();
            return Err(RowsError::Partition {
                span: spans.len(),
                found: rows,
                expected: next_row,
            });
        }
        Ok(Self { tokens, positions: positions.into(), spans: spans.into() })
    }

    /// One sequence from position 0 that keeps nothing: a plain forward pass.
    ///
    /// # Errors
    /// When `tokens` is empty.
    pub fn single(tokens: &[u32], attend: Attend) -> Result<Self, RowsError> {
        let request = SpanRequest {
            rows: 0..tokens.len(),
            attend,
            write: false,
            visible: Vec::new(),
            pages: Vec::new(),
        };
        Self::new(tokens.to_vec(), (0..tokens.len()).collect(), vec![request], PAGE_SIZE)
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Never true: a pass has at least one row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Token id of each row.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Absolute position of each row in its sequence.
    #[must_use]
    pub fn positions(&self) -> &Arc<[usize]> {
        &self.positions
    }

    /// The spans, in row order.
    #[must_use]
    pub fn spans(&self) -> &Arc<[Span]> {
        &self.spans
    }
}

fn resolve(
    index: usize,
    request: SpanRequest,
    positions: &[usize],
    page_size: usize,
) -> Result<Span, RowsError> {
    let SpanRequest { rows, attend, write, mut visible, pages } = request;
    let own = &positions[rows.clone()];
    let slot = |position: usize| match pages.get(position / page_size) {
        Some(&page) => Ok(page as usize * page_size + position % page_size),
        None => Err(RowsError::OutsidePages { span: index, position, pages: pages.len() }),
    };
    let mut writes = Vec::new();
    if write && attend == Attend::Shadow {
        return Err(RowsError::ShadowWrites { span: index });
    }
    if write {
        visible.extend(own.iter().map(|&p| p..p + 1));
        for (i, &position) in own.iter().enumerate() {
            push_write(&mut writes, rows.start + i, slot(position)?);
        }
    } else if attend != Attend::Shadow {
        visible = own.iter().fold(visible, |ranges, &p| without(ranges, p));
    }
    let mut keys = Vec::new();
    for range in merged(visible) {
        let mut position = range.start;
        while position < range.end {
            let len = (page_size - position % page_size).min(range.end - position);
            keys.push(KeyRun { source: KeySource::Pool { slot: slot(position)? }, position, len });
            position += len;
        }
    }
    if !write {
        push_own_keys(&mut keys, rows.start, own, page_size);
    }
    Ok(Span { rows, attend, keys, writes })
}

fn push_write(writes: &mut Vec<WriteRun>, row: usize, slot: usize) {
    match writes.last_mut() {
        Some(run) if run.slot + run.len == slot => run.len += 1,
        _ => writes.push(WriteRun { row, slot, len: 1 }),
    }
}

/// Keys that stay with the pass: runs of consecutive positions, cut where pages would be.
fn push_own_keys(keys: &mut Vec<KeyRun>, first_row: usize, own: &[usize], page_size: usize) {
    let first_own = keys.len();
    for (i, &position) in own.iter().enumerate() {
        match keys[first_own..].last_mut() {
            Some(run) if run.position + run.len == position && position % page_size != 0 => {
                run.len += 1;
            }
            _ => keys.push(KeyRun {
                source: KeySource::Rows { row: first_row + i },
                position,
                len: 1,
            }),
        }
    }
}

/// Sorts ranges and joins those that touch or overlap.
fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.retain(|r| r.start < r.end);
    ranges.sort_by_key(|r| r.start);
    let mut out: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

/// `ranges` with `position` cut out: a row that is not written replaces its cached entry.
fn without(ranges: Vec<Range<usize>>, position: usize) -> Vec<Range<usize>> {
    if !ranges.iter().any(|r| r.contains(&position)) {
        return ranges;
    }
    ranges
        .into_iter()
        .flat_map(|r| {
            if r.contains(&position) {
                vec![r.start..position, position + 1..r.end]
            } else {
                vec![r]
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(slot: usize, position: usize, len: usize) -> KeyRun {
        KeyRun { source: KeySource::Pool { slot }, position, len }
    }

    #[test]
    fn a_chunk_reads_its_prefix_and_itself_in_page_order() {
        let span = SpanRequest {
            rows: 0..3,
            attend: Attend::Causal,
            write: true,
            visible: vec![0..5],
            pages: vec![7, 2],
        };
        let rows = RaggedRows::new(vec![1, 2, 3], vec![5, 6, 7], vec![span], 4).unwrap();
        assert_eq!(rows.spans()[0].keys, [pool(28, 0, 4), pool(8, 4, 4)]);
        assert_eq!(rows.spans()[0].writes, [WriteRun { row: 0, slot: 9, len: 3 }]);
    }

    #[test]
    fn rows_that_are_not_written_replace_their_cached_entries() {
        let span = SpanRequest {
            rows: 0..2,
            attend: Attend::Bidirectional,
            write: false,
            visible: vec![0..6],
            pages: vec![0, 1],
        };
        let rows = RaggedRows::new(vec![1, 2], vec![2, 3], vec![span], 4).unwrap();
        let own = KeyRun { source: KeySource::Rows { row: 0 }, position: 2, len: 2 };
        assert_eq!(rows.spans()[0].keys, [pool(0, 0, 2), pool(4, 4, 2), own]);
        assert!(rows.spans()[0].writes.is_empty());
    }

    #[test]
    fn shadows_stand_beside_the_cached_entries_of_their_positions() {
        let span = |write| SpanRequest {
            rows: 0..2,
            attend: Attend::Shadow,
            write,
            visible: vec![0..6],
            pages: vec![0, 1],
        };
        let new = |write| RaggedRows::new(vec![1, 2], vec![2, 3], vec![span(write)], 4);
        let own = KeyRun { source: KeySource::Rows { row: 0 }, position: 2, len: 2 };
        assert_eq!(new(false).unwrap().spans()[0].keys, [pool(0, 0, 4), pool(4, 4, 2), own]);
        assert_eq!(new(true).unwrap_err(), RowsError::ShadowWrites { span: 0 });
    }

    #[test]
    fn spans_must_partition_the_rows_and_stay_in_their_pages() {
        let span = |rows, pages| SpanRequest {
            rows,
            attend: Attend::Causal,
            write: true,
            visible: vec![],
            pages,
        };
        let new = |spans| RaggedRows::new(vec![1, 2], vec![0, 1], spans, 4).map(|r| r.len());
        assert!(matches!(new(vec![span(0..1, vec![0])]), Err(RowsError::Partition { .. })));
        assert!(matches!(new(vec![span(1..2, vec![0])]), Err(RowsError::Partition { .. })));
        assert!(matches!(new(vec![span(0..2, vec![])]), Err(RowsError::OutsidePages { .. })));
        assert_eq!(new(vec![span(0..1, vec![0]), span(1..2, vec![1])]), Ok(2));
        assert!(RaggedRows::single(&[], Attend::Causal).is_err());
    }
}
