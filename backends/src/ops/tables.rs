//! What a device's attention has to know of a pass, uploaded once for all layers.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::kernels::kernels;
use crate::RaggedRows;
use crate::rows::{Attend, KeySource, Span};

/// The rows of a pass, with tables on the device if its kernels read them.
#[derive(Debug)]
pub struct AttentionRows<'a> {
    rows: &'a RaggedRows,
    tables: Option<KeyTables>,
}

/// Rows and their keys, as integers on a device.
#[derive(Debug)]
pub struct KeyTables {
    /// `[keys, 2]`: the keys of all spans, one span after the other, in run order: where a key is (a
    /// slot of the pool, or `-1 - row` among the rows of this pass) and its position.
    pub keys: Tensor<2, Int>,
    /// `[rows, 4]`: the first key of the row's span, how many there are, what of them it sees (0 all,
    /// 1 those up to its position, 2 all but the cached one at its position), and its position.
    pub rows: Tensor<2, Int>,
    /// `[rows]`: the slot of the pool a row is written to, or -1.
    pub slots: Tensor<1, Int>,
    /// Most keys of a row.
    pub longest: usize,
}

impl<'a> AttentionRows<'a> {
    /// Prepares a pass on a device.
    #[must_use]
    pub fn new(rows: &'a RaggedRows, device: &Device) -> Self {
        let tables = kernels(device).map(|_| KeyTables::new(rows, device));
        Self { rows, tables }
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
        let (mut keys, mut of_rows) = (Vec::new(), Vec::new());
        let mut slots = vec![-1; rows.len()];
        for span in rows.spans().iter() {
            let first = keys.len() / 2;
            push_keys(&mut keys, span);
            let count = keys.len() / 2 - first;
            let sees = match span.attend {
                Attend::Bidirectional => 0,
                Attend::Causal => 1,
                Attend::Shadow => 2,
            };
            for &position in &rows.positions()[span.rows.clone()] {
                of_rows.extend([first, count, sees, position].map(index));
            }
            for run in &span.writes {
                for i in 0..run.len {
                    slots[run.row + i] = index(run.slot + i);
                }
            }
        }
        let longest = of_rows.chunks(4).map(|row| row[1] as usize).max().unwrap_or(0);
        let count = keys.len() / 2;
        Self {
            keys: ints(keys, [count, 2], device),
            rows: ints(of_rows, [rows.len(), 4], device),
            slots: ints(slots, [rows.len()], device),
            longest,
        }
    }
}

fn push_keys(keys: &mut Vec<i32>, span: &Span) {
    for run in &span.keys {
        for i in 0..run.len {
            let place = match run.source {
                KeySource::Pool { slot } => index(slot + i),
                KeySource::Rows { row } => -1 - index(row + i),
            };
            keys.extend([place, index(run.position + i)]);
        }
    }
}

/// Pools and positions are far smaller than what an index can hold.
fn index(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

fn ints<const D: usize>(values: Vec<i32>, shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::I32))
}
