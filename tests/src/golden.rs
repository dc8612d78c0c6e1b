//! Golden records: what the original implementations computed with the parity checkpoints.
//! `fixtures/golden/README.md` says how they were made.

use std::collections::HashMap;
use std::fs;

use serde_json::Value;

use crate::fixtures::path;

/// One JSON object a line.
#[must_use]
pub fn records(file: &str) -> Vec<Value> {
    let text = fs::read_to_string(path("golden").join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A record's list of ids.
#[must_use]
pub fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{value}: {e}"))
}

/// A list of numbers.
#[must_use]
pub fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{value}: {e}"))
}

/// f32 tensors of a safetensors file by name.
#[must_use]
pub fn tensors(file: &str) -> HashMap<String, Vec<f32>> {
    let bytes = fs::read(path("golden").join(file)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(name, view)| {
            let values = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
            (name.to_owned(), values.collect())
        })
        .collect()
}

/// Largest absolute difference.
#[must_use]
pub fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
