//! What a pass reads besides weights and pages, put on its device at once.

use burn::tensor::{DType, Device, Int, Tensor};

use super::embed::token_ids;
use super::{AttentionRows, Rope, RopeAngles};
use crate::RaggedRows;

/// How a model's inputs are made.
#[derive(Debug, Clone, Copy)]
pub struct InputForm<'a> {
    /// What turns its heads.
    pub rope: &'a Rope,
    /// Dtype of its hidden states.
    pub activations: DType,
}

/// The inputs of one pass.
#[derive(Debug)]
pub struct PassInputs<'a> {
    /// Token ids: `[rows]`.
    pub tokens: Tensor<1, Int>,
    /// Sines and cosines of the rows.
    pub angles: RopeAngles,
    /// What attention has to know.
    pub rows: AttentionRows<'a>,
}

impl<'a> PassInputs<'a> {
    /// Uploads what a pass over `rows` reads.
    #[must_use]
    pub fn new(rows: &'a RaggedRows, form: InputForm<'_>, device: &Device) -> Self {
        Self {
            tokens: token_ids(rows.tokens(), device),
            angles: form.rope.angles(rows.positions(), form.activations, device),
            rows: AttentionRows::new(rows, device),
        }
    }
}
