//! What this machine can do at most: how fast it reads memory and multiplies.

use std::hint::black_box;
use std::time::Instant;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use aligned_vec::AVec;
use rayon::prelude::*;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::CACHE_LINE;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::isa::amx::{Amx, COLUMNS, TILE_ROWS, TILE_WORDS, TileSums};
use super::isa::{Isa, Kernel, active_path, dispatch};
use super::packed::WeightFormat;
use crate::mapping::WordMemory;

/// Numbers to read (512 MiB): far more than any cache keeps.
const READ_NUMBERS: usize = 128 << 20;
/// Times a rate is measured; the best counts, for nothing but a disturbance makes one slower.
const ROUNDS: usize = 5;

/// Reads memory with all threads, again and again.
#[derive(Debug)]
pub struct ReadTest {
    numbers: WordMemory,
}

impl ReadTest {
    /// Takes 512 MiB.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it is no cheap default")]
    pub fn new() -> Self {
        Self::of(READ_NUMBERS)
    }

    fn of(len: usize) -> Self {
        let mut numbers = WordMemory::zeros(len);
        // Written, because untouched pages are one and the same page of zeros.
        numbers.par_chunks_mut(1 << 20).for_each(|chunk| chunk.fill(1f32.to_bits()));
        Self { numbers }
    }

    /// Bytes a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let numbers: &[f32] = bytemuck::cast_slice(&self.numbers);
        let each = numbers.len().div_ceil(rayon::current_num_threads());
        best(|| {
            let sum: f32 = numbers.par_chunks(each).map(|n| dispatch(active_path(), Add(n))).sum();
            assert!(sum > 0.0, "sums of ones");
            size_of_val(numbers) as f64
        })
    }
}

/// What a second of the fastest round did.
fn best(mut round: impl FnMut() -> f64) -> f64 {
    let rate = |_| {
        let begun = Instant::now();
        let done = round();
        done / begun.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(rate).fold(0.0, f64::max)
}

struct Add<'a>(&'a [f32]);

impl Kernel for Add<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        let mut sums = [isa.zero(); 4];
        for chunk in self.0.chunks_exact(4 * I::LANES) {
            // As the kernels do at one row: the hardware alone does not look far enough ahead.
            for n in 0..4 {
                isa.prefetch_once(chunk, 2048 + n * I::LANES);
            }
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = isa.add(*sum, isa.load(&chunk[n * I::LANES..]));
            }
        }
        sums.map(|sum| isa.sum(sum)).iter().sum()
    }
}

/// Operations a second of all threads with the instructions that multiply weights of a format, as far as
/// possible from registers: a multiplication and an addition each.
#[must_use]
pub fn multiply_rate(format: WeightFormat) -> f64 {
    best(|| rayon::broadcast(|_| multiply(format, black_box(1))).iter().sum())
}

/// Operations done.
fn multiply(format: WeightFormat, seed: u32) -> f64 {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if let (WeightFormat::Bf16, Some(amx)) = (format, Amx::of(active_path())) {
        return multiply_tiles(amx, seed);
    }
    dispatch(active_path(), Multiply { format, seed })
}

/// From the nearest cache: the unit has no room for more than it works with.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn multiply_tiles(amx: Amx, seed: u32) -> f64 {
    const STEPS: usize = 8;
    let weights = AVec::<u32>::from_iter(CACHE_LINE, [seed; STEPS * TILE_WORDS * COLUMNS]);
    let x = AVec::<u32>::from_iter(CACHE_LINE, [seed; 2 * STEPS * TILE_ROWS * TILE_WORDS]);
    let mut sums = TileSums::ZERO;
    for _ in 0..TIMES / 100 {
        amx.add_pairs::<0>((&weights, false), x.split_at(x.len() / 2).into(), &mut sums);
    }
    black_box(sums);
    (TIMES / 100 * 2 * 2 * TILE_ROWS * COLUMNS * STEPS * 2 * TILE_WORDS) as f64
}

/// Sums that are kept going, to hide what one takes.
const SUMS: usize = 12;
const TIMES: usize = 400_000;

struct Multiply {
    format: WeightFormat,
    seed: u32,
}

impl Kernel for Multiply {
    /// Operations.
    type Output = f64;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f64 {
        let (w, v) = (isa.splat_word(self.seed as i32), isa.splat(1.0 + self.seed as f32));
        let (mut sums, mut words) = ([isa.zero(); SUMS], [w; SUMS]);
        let in_a_lane = match self.format {
            WeightFormat::F32 | WeightFormat::F16 => {
                for _ in 0..TIMES {
                    for sum in &mut sums {
                        *sum = isa.madd(v, v, *sum);
                    }
                }
                1
            }
            WeightFormat::Bf16 => {
                for _ in 0..TIMES {
                    for sum in &mut sums {
                        *sum = isa.dot_bf16(*sum, w, self.seed);
                    }
                }
                2
            }
            WeightFormat::Int8 | WeightFormat::Int4 => {
                for _ in 0..TIMES {
                    for sum in &mut words {
                        *sum = isa.dot_bytes(*sum, w, self.seed);
                    }
                }
                4
            }
        };
        for n in 0..SUMS {
            black_box((isa.sum(sums[n]), isa.sum(isa.to_f32(words[n]))));
        }
        (2 * in_a_lane * TIMES * SUMS * I::LANES) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_a_machine() {
        // From an old laptop to a server of the next years, per thread and for all.
        assert!((1e8..1e13).contains(&ReadTest::of(1 << 20).rate()));
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
            assert!((1e7..1e15).contains(&multiply_rate(format)), "{format:?}");
        }
    }
}
