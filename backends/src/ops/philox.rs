//! Counter-based random numbers: a draw depends only on its key and counter, never on how many
//! draws came before, so results do not depend on batching or on skipped steps.
//!
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

/// What a draw is for; part of the counter, so that purposes never share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Choosing a token.
    Token,
    /// Choosing which positions to commit.
    Order,
    /// Whether a position is revealed.
    Reveal,
    /// Which positions of an answer are masked to estimate its likelihood.
    Mask,
}

/// Where in a request's randomness a draw stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    /// Position in the sequence.
    pub position: u32,
    /// Step index of the reference algorithm; 0 for autoregressive draws.
    pub step: u32,
    /// What the draw is for.
    pub purpose: Purpose,
    /// Index among draws of the same purpose.
    pub draw: u32,
}

/// A uniform number in `[0, 1)` with 53 random bits.
#[must_use]
pub fn uniform(seed: u64, counter: Counter) -> f64 {
    let Counter { position, step, purpose, draw } = counter;
    let block =
        philox4x32([position, step, purpose as u32, draw], [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(block[0]) << 32 | u64::from(block[1])) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

/// Ten rounds of Philox4x32.
fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for _ in 0..10 {
        let first = MULTIPLIERS[0] * u64::from(counter[0]);
        let second = MULTIPLIERS[1] * u64::from(counter[2]);
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (`kat_vectors`).
    #[test]
    fn matches_the_published_vectors() {
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniforms_are_in_range_and_average_to_a_half() {
        let draws: Vec<f64> = (0..4000)
            .map(|draw| uniform(7, Counter { position: 3, step: 1, purpose: Purpose::Order, draw }))
            .collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = draws.iter().sum::<f64>() / 4000.0;
        // Standard error 0.0046; four of them.
        assert!((mean - 0.5).abs() < 0.018, "{mean}");
    }
}
