//! What is remembered of open positions from pass to pass.

use std::collections::HashMap;
use std::sync::Arc;

use dfastllm_models::ops::{Credit, RowScore};

/// CreditDecoding's published settings (arXiv 2510.06133).
const CREDIT_DECAY: f32 = 0.8;
const CREDIT_ALPHA: f32 = 0.7;
const CREDIT_GAMMA: f32 = 0.2;
/// Credit below this changes no logit by more than f32 can tell, and is dropped.
const LEAST_CREDIT: f32 = 1e-6;

/// Rows and credits by position.
#[derive(Debug, Default)]
pub(super) struct Memory {
    rows: HashMap<usize, Arc<[f32]>>,
    credit: HashMap<usize, Vec<(u32, f32)>>,
}

impl Memory {
    /// The position's log-probabilities of the pass before.
    pub(super) fn row(&self, position: usize) -> Option<Arc<[f32]>> {
        self.rows.get(&position).cloned()
    }

    /// The position's credit, decayed by a pass.
    pub(super) fn credit(&self, position: usize) -> Credit {
        let held = self.credit.get(&position).into_iter().flatten();
        let earned = held.map(|&(id, credit)| (id, credit * CREDIT_DECAY)).collect();
        Credit { earned, alpha: CREDIT_ALPHA, gamma: CREDIT_GAMMA }
    }

    /// Takes what a pass said about open positions.
    pub(super) fn note(&mut self, positions: &[usize], scores: &[&RowScore]) {
        self.rows.clear();
        for (&position, score) in positions.iter().zip(scores) {
            if let Some(row) = &score.row {
                self.rows.insert(position, row.clone());
            }
            if let Some((id, earned)) = score.earned {
                let mut held = self.credit(position).earned;
                held.retain(|(_, credit)| *credit > LEAST_CREDIT);
                match held.iter_mut().find(|(held, _)| *held == id) {
                    Some((_, credit)) => *credit += earned,
                    None => held.push((id, earned)),
                }
                self.credit.insert(position, held);
            }
        }
    }

    pub(super) fn forget(&mut self, position: usize) {
        self.rows.remove(&position);
        self.credit.remove(&position);
    }

    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.credit.clear();
    }
}
