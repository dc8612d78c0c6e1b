//! What changes a row of logits before a token is chosen, on the host.

use super::row_params::{Credit, Mix, Penalties};
use crate::cpu::softmax_sums;

pub(super) fn apply_mix(row: &mut [f32], mix: &Mix) {
    // Log-probabilities, so that the shares do not depend on what either model adds to its logits.
    let sums = softmax_sums(row);
    let log_sum = sums.max + sums.sum.ln() as f32;
    for (logit, other) in row.iter_mut().zip(mix.other.iter()) {
        let own = if mix.weight < 1.0 { (1.0 - mix.weight) * (*logit - log_sum) } else { 0.0 };
        *logit = mix.weight * other + own;
    }
}

/// Takes all other tokens out of the row.
pub(super) fn keep_only(row: &mut [f32], ids: &[u32]) {
    let kept: Vec<(usize, f32)> =
        ids.iter().filter_map(|&id| Some((id as usize, *row.get(id as usize)?))).collect();
    row.fill(f32::NEG_INFINITY);
    for (id, logit) in kept {
        row[id] = logit;
    }
}

pub(super) fn apply_penalties(row: &mut [f32], penalties: &Penalties) {
    for &id in &penalties.seen {
        if let Some(logit) = row.get_mut(id as usize) {
            let is_positive = *logit > 0.0;
            *logit *= if is_positive { penalties.repetition.recip() } else { penalties.repetition };
        }
    }
    for &(id, count) in &penalties.generated {
        if let Some(logit) = row.get_mut(id as usize) {
            *logit -= penalties.presence + penalties.frequency * count as f32;
        }
    }
}

/// Returns the token that earned credit in this row, and how much.
pub(super) fn apply_credit(row: &mut [f32], credit: &Credit) -> (u32, f32) {
    let sums = softmax_sums(row);
    let best = sums.argmax as u32;
    let earned = (sums.sum.recip() as f32).powf(credit.gamma);
    let held = credit.earned.iter().find(|(id, _)| *id == best).map_or(0.0, |(_, held)| *held);
    let others = credit.earned.iter().copied().filter(|(id, _)| *id != best);
    for (id, held) in others.chain([(best, held + earned)]) {
        if let Some(logit) = row.get_mut(id as usize) {
            *logit += credit.alpha * held.ln_1p();
        }
    }
    (best, earned)
}
