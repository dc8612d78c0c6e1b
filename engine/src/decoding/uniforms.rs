//! Where rules get their uniform numbers from.

use dfastllm_models::ops::philox::{Counter, uniform};

/// A source of uniform numbers in `[0, 1)`, asked in order of positions.
pub trait Uniforms: Send + std::fmt::Debug {
    /// The number for a counter.
    fn draw(&mut self, counter: Counter) -> f64;
}

/// Philox keyed by the request's seed: the number depends on the counter alone.
#[derive(Debug, Clone, Copy)]
pub struct Seeded(pub u64);

impl Uniforms for Seeded {
    fn draw(&mut self, counter: Counter) -> f64 {
        uniform(self.0, counter)
    }
}
