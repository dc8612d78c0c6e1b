//! How many prompt rows a step may read beside running streams without making them stutter.
//!
//! A step with prompt rows takes longer than one without. From the times of past steps the pacer
//! knows what a step costs without them and what one more row costs, and allows as many as keep a
//! step within [`STRETCH`] of the plain one. Because streams grow, and their steps with them, a
//! plain step is put in now and then to look again. Answers do not depend on any of this, only
//! waiting does.

/// A step with prompt rows may take this many times a step without.
const STRETCH: f64 = 1.6;
/// Rows allowed at least, so that prompts get read whatever the times say.
const MIN_ROWS: usize = 2;
/// Rows allowed while nothing is known.
const FIRST_ROWS: usize = 32;
/// Weight of a new time in the running means.
const WEIGHT: f64 = 0.3;
/// Steps with prompt rows after which one goes without.
const MIXED_STEPS: usize = 12;
/// Prompt rows from which a step without streams tells what a row costs.
const TELLING_ROWS: usize = 32;

/// Running means of step times, by powers of two of the rows that decode.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    /// Seconds of a step without prompt rows.
    plain: [Option<f64>; 16],
    /// Seconds of a prompt row.
    row: Option<f64>,
    /// Steps with prompt rows beside streams since the last one without.
    mixed: usize,
}

impl Pacer {
    /// Prompt rows allowed beside `decoding` rows, at most `budget`.
    pub(crate) fn allowed(&self, decoding: usize, budget: usize) -> usize {
        if decoding == 0 {
            return budget;
        }
        if self.mixed >= MIXED_STEPS {
            return 0;
        }
        let rows = match (self.plain(decoding), self.row) {
            (Some(plain), Some(row)) => ((STRETCH - 1.0) * plain / row) as usize,
            _ => FIRST_ROWS,
        };
        rows.max(MIN_ROWS).min(budget)
    }

    /// Takes the time of a step.
    pub(crate) fn observe(&mut self, decoding: usize, reading: usize, seconds: f64) {
        self.mixed = if decoding > 0 && reading > 0 { self.mixed + 1 } else { 0 };
        let row = match (decoding, reading) {
            (0, rows) if rows < TELLING_ROWS => return,
            (0, rows) => seconds / rows as f64,
            (_, 0) => return mean(&mut self.plain[bucket(decoding)], seconds),
            (_, rows) => {
                let Some(plain) = self.plain(decoding) else { return };
                (seconds - plain).max(0.0) / rows as f64
            }
        };
        mean(&mut self.row, row.max(1e-9));
    }

    /// The time of a step with about that many rows; the nearest known.
    fn plain(&self, decoding: usize) -> Option<f64> {
        let at = bucket(decoding);
        let known = self.plain.iter().enumerate().filter_map(|(i, t)| Some((i, (*t)?)));
        known.min_by_key(|(i, _)| i.abs_diff(at)).map(|(_, t)| t)
    }
}

fn bucket(rows: usize) -> usize {
    (rows.max(1).ilog2() as usize).min(15)
}

fn mean(value: &mut Option<f64>, new: f64) {
    *value = Some(value.map_or(new, |old| old + WEIGHT * (new - old)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_streams_the_whole_budget_is_read() {
        assert_eq!(Pacer::default().allowed(0, 2048), 2048);
    }

    #[test]
    fn rows_are_allowed_up_to_the_stretch_of_a_plain_step() {
        let mut pacer = Pacer::default();
        assert_eq!(pacer.allowed(4, 2048), FIRST_ROWS);
        pacer.observe(0, 500, 0.5);
        pacer.observe(4, 0, 0.100);
        assert_eq!(pacer.allowed(4, 2048), 60);
        assert_eq!(pacer.allowed(4, 20), 20);
        assert_eq!(pacer.allowed(16, 2048), 60, "the nearest known time serves");
        pacer.observe(16, 0, 0.200);
        assert_eq!(pacer.allowed(16, 2048), 120);
    }

    #[test]
    fn times_that_were_wrong_or_change_are_found_out() {
        let mut pacer = Pacer::default();
        pacer.observe(4, 0, 0.100);
        pacer.observe(0, 100, 0.100);
        for (plain, row, expected) in [(0.100, 0.004, 15), (0.200, 0.004, 30), (0.200, 0.002, 60)] {
            let mut without = 0;
            for _ in 0..200 {
                let rows = pacer.allowed(4, 2048);
                without += usize::from(rows == 0);
                pacer.observe(4, rows, plain + rows as f64 * row);
            }
            assert_eq!(without, 200 / (MIXED_STEPS + 1));
            pacer.observe(4, 0, plain);
            assert!(pacer.allowed(4, 2048).abs_diff(expected) <= 1, "{plain} {row}");
        }
    }
}
