use dfastllm_backends::ops::{
    AttentionRows, Epilogue, InputForm, Linear, PassInputs, Rope, RopeAngles, embed, linear,
};
use dfastllm_backends::{Attend, DType, KvPool, RaggedRows, Tensor};

use super::{GatedMlp, Norm, SelfAttention};
use crate::model::{Alignment, Halves, LanguageModel, ModelShape, Probe, Tap};

/// What is the same for all layers of one pass.
pub(crate) struct Pass<'a, 'p> {
    pub(crate) rows: AttentionRows<'a>,
    pub(crate) cache: &'a mut KvPool,
    pub(crate) angles: RopeAngles,
    pub(crate) layer: usize,
    probe: &'a mut Probe<'p>,
}

impl Pass<'_, '_> {
    /// Shows a tensor of the current layer to the probe.
    pub(crate) fn tap(&mut self, name: &'static str, tensor: &Tensor<2>) {
        (self.probe)(Tap { layer: Some(self.layer), name }, tensor);
    }
}

/// One transformer layer: `[rows, hidden]` to the same.
pub(crate) trait Layer: Send + Sync {
    fn forward(&self, x: Tensor<2>, pass: &mut Pass<'_, '_>) -> Tensor<2>;
}

/// Embedding, layers, final norm and head: the frame every family here shares.
#[derive(Debug)]
pub(crate) struct Decoder<L> {
    /// `[vocab, hidden]`
    pub(crate) embedding: Tensor<2>,
    pub(crate) layers: Vec<L>,
    pub(crate) final_norm: Norm,
    pub(crate) head: Linear,
    pub(crate) rope: Rope,
    pub(crate) activations: DType,
    pub(crate) shape: ModelShape,
    pub(crate) alignment: Alignment,
    pub(crate) attend: Attend,
}

impl<L: Layer> LanguageModel for Decoder<L> {
    fn shape(&self) -> ModelShape {
        self.shape
    }

    fn alignment(&self) -> Alignment {
        self.alignment
    }

    fn attend(&self) -> Attend {
        self.attend
    }

    fn forward(&self, rows: &RaggedRows, cache: &mut KvPool, probe: &mut Probe<'_>) -> Tensor<2> {
        let inputs = PassInputs::new(rows, self.input_form(), &self.embedding.device());
        self.run(inputs, cache, probe)
    }

    fn halves(&self) -> Option<&dyn Halves> {
        Some(self)
    }

    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        linear(hidden, &self.head, Epilogue::None)
    }
}

impl<L: Layer> Halves for Decoder<L> {
    fn input_form(&self) -> InputForm<'_> {
        InputForm { rope: &self.rope, activations: self.activations }
    }

    fn run(&self, inputs: PassInputs<'_>, cache: &mut KvPool, probe: &mut Probe<'_>) -> Tensor<2> {
        let PassInputs { tokens, angles, rows } = inputs;
        let mut x = embed(&self.embedding, tokens, self.activations); // [rows, hidden]
        probe(Tap { layer: None, name: "embed" }, &x);
        let mut pass = Pass { rows, cache, angles, layer: 0, probe };
        for (i, layer) in self.layers.iter().enumerate() {
            pass.layer = i;
            x = layer.forward(x, &mut pass);
            pass.tap("out", &x);
        }
        let x = self.final_norm.forward(x);
        (pass.probe)(Tap { layer: None, name: "final_norm" }, &x);
        x
    }
}

/// The common pre-norm layer: attention, then a gated MLP, each with its own norm and residual.
#[derive(Debug)]
pub(crate) struct PreNormLayer {
    pub(crate) attention_norm: Norm,
    pub(crate) attention: SelfAttention,
    pub(crate) mlp_norm: Norm,
    pub(crate) mlp: GatedMlp,
}

impl Layer for PreNormLayer {
    fn forward(&self, x: Tensor<2>, pass: &mut Pass<'_, '_>) -> Tensor<2> {
        let normal = self.attention_norm.forward(x.clone()); // [rows, hidden]
        pass.tap("norm_in", &normal);
        let x = self.attention.forward(normal, x, pass);
        self.mlp.forward(self.mlp_norm.forward(x.clone()), x)
    }
}
