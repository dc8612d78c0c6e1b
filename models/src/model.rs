//! What every family offers.

use dfastllm_backends::ops::{InputForm, PassInputs};
use dfastllm_backends::{Attend, KvPool, KvShape, RaggedRows, Tensor};

/// Which position a row of logits predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alignment {
    /// Its own (LLaDA).
    Same,
    /// The next one (autoregressive models, and Dream).
    Next,
}

/// Sizes an engine needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelShape {
    /// Rows of the embedding and columns of the logits.
    pub vocab: usize,
    /// Longest sequence the checkpoint was configured for, in tokens.
    pub max_positions: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Key/value heads times head size.
    pub kv_width: usize,
}

impl ModelShape {
    /// A key/value pool for this model.
    #[must_use]
    pub fn kv_shape(&self, pages: usize, page_size: usize) -> KvShape {
        KvShape { layers: self.layers, width: self.kv_width, page_size, pages }
    }
}

/// A place in the network where hidden states can be watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tap {
    /// The layer, or `None` outside the layers.
    pub layer: Option<usize>,
    /// `embed`, `norm_in`, `q`, `k`, `v`, `attended` (the residual after attention), `out` or
    /// `final_norm`.
    pub name: &'static str,
}

/// Sees hidden states as they are computed.
pub type Probe<'a> = dyn FnMut(Tap, &Tensor<2>) + 'a;

/// A probe that watches nothing.
pub fn unobserved(_: Tap, _: &Tensor<2>) {}

/// A loaded model.
pub trait LanguageModel: Send + Sync {
    /// Sizes.
    fn shape(&self) -> ModelShape;

    /// Which position a row of logits predicts.
    fn alignment(&self) -> Alignment;

    /// How rows see each other: causal models generate left to right, bidirectional ones denoise.
    fn attend(&self) -> Attend;

    /// One pass over ragged rows. The same input gives the same output; `cache` holds all state.
    ///
    /// # Shapes
    /// - returns hidden rows after the final norm: `[rows, hidden]`
    fn forward(&self, rows: &RaggedRows, cache: &mut KvPool, probe: &mut Probe<'_>) -> Tensor<2>;

    /// The halves of [`forward`](Self::forward), if it has some: passes of others are not recorded.
    fn halves(&self) -> Option<&dyn Halves> {
        None
    }

    /// The language-model head, for the rows that are asked for.
    ///
    /// # Shapes
    /// - `hidden`: `[n, hidden]`; returns `[n, vocab]`
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2>;
}

/// A pass in two: what it reads is put on the device, and then only kernels are launched.
pub trait Halves {
    /// How inputs are made.
    fn input_form(&self) -> InputForm<'_>;

    /// One pass over inputs on the device of `cache`.
    ///
    /// # Shapes
    /// - returns hidden rows after the final norm: `[rows, hidden]`
    fn run(&self, inputs: PassInputs<'_>, cache: &mut KvPool, probe: &mut Probe<'_>) -> Tensor<2>;
}
