//! Phi 1, 1.5 and 2 (`model_type: phi`), autoregressive.
//!
//! Checkpoints: microsoft/phi-1, phi-1_5, phi-2. Follows `PhiForCausalLM` of transformers 4.46
//! (`models/phi/modeling_phi.py`). What differs from a plain pre-norm decoder: attention and MLP
//! read the same LayerNorm and are added to the residual together; rotary embedding turns only the
//! first `partial_rotary_factor` of each head; every projection, the head included, has a bias.

use dfastllm_backends::ops::{AttentionHeads, Epilogue, Linear, Rope, RopePrecision, linear};
use dfastllm_backends::{Attend, Tensor};
use serde::Deserialize;
use serde_json::Value;

use crate::layers::{Decoder, Layer, Norm, Pass, SelfAttention};
use crate::model::{Alignment, LanguageModel, ModelShape};
use crate::weights::{Bias, Weights};
use crate::{LoadError, config};

/// `config.json`, with its own keys.
#[derive(Debug, Deserialize)]
struct PhiConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    max_position_embeddings: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    rope_theta: f64,
    partial_rotary_factor: f64,
    #[serde(default)]
    qk_layernorm: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    rope_scaling: Option<Value>,
}

impl PhiConfig {
    /// Refuses what is not computed here; returns the head counts.
    fn heads(&self) -> Result<AttentionHeads, LoadError> {
        let kv_heads = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        config::require_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", kv_heads),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        config::require("hidden_act", &self.hidden_act.as_str(), &"gelu_new")?;
        config::require("qk_layernorm", &self.qk_layernorm, &false)?;
        config::require("tie_word_embeddings", &self.tie_word_embeddings, &false)?;
        config::require_null("rope_scaling", self.rope_scaling.as_ref())?;
        config::require_positive("layer_norm_eps", self.layer_norm_eps)?;
        config::require_positive("rope_theta", self.rope_theta)?;
        let head_dim = config::require_heads(
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", kv_heads),
        )?;
        if !(0.0..=1.0).contains(&self.partial_rotary_factor) || self.rotary_dims(head_dim) < 2 {
            let found = self.partial_rotary_factor.to_string();
            let expected = "a share of the head of at least two dimensions".to_owned();
            return Err(config::unsupported("partial_rotary_factor", found, expected));
        }
        Ok(AttentionHeads { heads: self.num_attention_heads, kv_heads, head_dim })
    }

    fn rotary_dims(&self, head_dim: usize) -> usize {
        (self.partial_rotary_factor * head_dim as f64) as usize / 2 * 2
    }
}

/// Builds a Phi model.
pub(crate) fn load(
    config: &Value,
    weights: &mut Weights,
) -> Result<Box<dyn LanguageModel>, LoadError> {
    let config: PhiConfig = config::read(config)?;
    let heads = config.heads()?;
    let (hidden, vocab, eps) = (config.hidden_size, config.vocab_size, config.layer_norm_eps);
    let rotary_dims = config.rotary_dims(heads.head_dim);
    let rope =
        Rope::new(heads.head_dim, rotary_dims, config.rope_theta, RopePrecision::Activations);
    Ok(Box::new(Decoder {
        embedding: weights.matrix("model.embed_tokens.weight", vocab, hidden),
        layers: (0..config.num_hidden_layers)
            .map(|i| PhiLayer::load(&config, heads, &rope, weights, i))
            .collect(),
        final_norm: Norm::layer(weights, "model.final_layernorm", hidden, eps),
        head: weights.linear("lm_head", vocab, hidden, Bias::Yes),
        activations: weights.activations(),
        rope,
        shape: ModelShape {
            vocab,
            max_positions: config.max_position_embeddings,
            layers: config.num_hidden_layers,
            kv_width: heads.kv_heads * heads.head_dim,
        },
        alignment: Alignment::Next,
        attend: Attend::Causal,
    }))
}

#[derive(Debug)]
struct PhiLayer {
    input_layernorm: Norm,
    self_attn: SelfAttention,
    fc1: Linear,
    fc2: Linear,
}

impl PhiLayer {
    fn load(
        config: &PhiConfig,
        heads: AttentionHeads,
        rope: &Rope,
        weights: &mut Weights,
        layer: usize,
    ) -> Self {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let kv_width = heads.kv_heads * heads.head_dim;
        let mut linear = |name: &str, out, inp| {
            weights.linear(&format!("model.layers.{layer}.{name}"), out, inp, Bias::Yes)
        };
        let self_attn = SelfAttention {
            q_proj: linear("self_attn.q_proj", hidden, hidden),
            k_proj: linear("self_attn.k_proj", kv_width, hidden),
            v_proj: linear("self_attn.v_proj", kv_width, hidden),
            out: linear("self_attn.dense", hidden, hidden),
            heads,
            rope: rope.clone(),
        };
        let fc1 = linear("mlp.fc1", inner, hidden);
        let fc2 = linear("mlp.fc2", hidden, inner);
        let norm = format!("model.layers.{layer}.input_layernorm");
        let input_layernorm = Norm::layer(weights, &norm, hidden, config.layer_norm_eps);
        Self { input_layernorm, self_attn, fc1, fc2 }
    }
}

impl Layer for PhiLayer {
    fn forward(&self, x: Tensor<2>, pass: &mut Pass<'_, '_>) -> Tensor<2> {
        let normal = self.input_layernorm.forward(x.clone()); // [rows, hidden]
        pass.tap("norm_in", &normal);
        let fc1 = (&self.fc1, Epilogue::Gelu);
        let [attended, inner] = self.self_attn.forward_beside(normal, x, fc1, pass);
        linear(inner, &self.fc2, Epilogue::Plus(Box::new(attended)))
    }
}
