//! Figures as a table, or one JSON object a line.

use serde_json::{Map, Value};

use crate::cli::{Failure, print};

/// The value below which this share of the values lies; 0 of none.
pub(super) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (share * values.len() as f64).ceil() as usize;
    values.get(at.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// Prints rows as they come.
pub(super) struct Report {
    json: bool,
    has_head: bool,
}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        Self { json, has_head: false }
    }

    /// A row; every row of a report has the same columns.
    pub(super) fn row(&mut self, columns: &[(&str, Value)]) -> Result<(), Failure> {
        if self.json {
            let object: Map<String, Value> =
                columns.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            return print(&format!("{}\n", Value::Object(object)));
        }
        let mut text = String::new();
        if !std::mem::replace(&mut self.has_head, true) {
            text += &line(columns.iter().map(|(name, _)| (*name, (*name).replace('_', " "))));
        }
        text += &line(columns.iter().map(|(name, value)| (*name, shown(value))));
        print(&text)
    }
}

fn line<'a>(cells: impl Iterator<Item = (&'a str, String)>) -> String {
    let cells: Vec<String> =
        cells.map(|(name, cell)| format!("{cell:>width$}", width = name.len().max(8))).collect();
    format!("{}\n", cells.join("  "))
}

fn shown(value: &Value) -> String {
    match value.as_f64() {
        Some(x) if value.is_f64() && x.abs() >= 100.0 => format!("{x:.0}"),
        Some(x) if value.is_f64() && x.abs() >= 10.0 => format!("{x:.1}"),
        Some(x) if value.is_f64() => format!("{x:.2}"),
        _ => value.as_str().map_or_else(|| value.to_string(), str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let quantiles = [0.5, 0.99, 1.0].map(|share| quantile(&mut values, share));
        assert_eq!(quantiles, [50.0, 99.0, 100.0]);
        assert_eq!(quantile(&mut [3.0], 0.5), 3.0);
        assert_eq!(quantile(&mut [], 0.5), 0.0);
    }
}
