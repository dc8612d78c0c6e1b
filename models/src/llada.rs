//! LLaDA 8B, 1.5 (`model_type: llada`), masked diffusion.
//!
//! Checkpoints: GSAI-ML/LLaDA-8B-Base, LLaDA-8B-Instruct, LLaDA-1.5 (Nie et al., "Large Language
//! Diffusion Models", 2025). Follows their `modeling_llada.py`, `block_type: llama`. What differs
//! from a plain pre-norm decoder: attention is bidirectional and unmasked; `ff_proj` is the gate
//! and `up_proj` the other half; the MLP's down-projection and the head are both called `ff_out`;
//! rotary embedding is computed in f32 and rounded once.

use dfastllm_backends::Attend;
use dfastllm_backends::ops::{AttentionHeads, Rope, RopePrecision};
use serde::Deserialize;
use serde_json::Value;

use crate::layers::{Decoder, GatedMlp, Norm, PreNormLayer, SelfAttention};
use crate::model::{Alignment, LanguageModel, ModelShape};
use crate::weights::{Bias, Weights};
use crate::{LoadError, config};

/// `config.json`, with its own keys. Switches default to what the original's config class says.
#[derive(Debug, Deserialize)]
struct LladaConfig {
    vocab_size: usize,
    embedding_size: Option<usize>,
    d_model: usize,
    mlp_hidden_size: usize,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: Option<usize>,
    max_sequence_length: usize,
    rope_theta: f64,
    rms_norm_eps: f64,
    activation_type: String,
    block_type: String,
    layer_norm_type: String,
    #[serde(default = "yes")]
    rope: bool,
    #[serde(default = "yes")]
    rope_full_precision: bool,
    #[serde(default = "yes")]
    layer_norm_with_affine: bool,
    #[serde(default = "one")]
    block_group_size: usize,
    #[serde(default)]
    alibi: bool,
    #[serde(default)]
    attention_layer_norm: bool,
    #[serde(default)]
    include_bias: bool,
    #[serde(default)]
    include_qkv_bias: bool,
    #[serde(default)]
    bias_for_layer_norm: bool,
    #[serde(default)]
    input_emb_norm: bool,
    #[serde(default)]
    scale_logits: bool,
    #[serde(default)]
    weight_tying: bool,
}

fn yes() -> bool {
    true
}

fn one() -> usize {
    1
}

impl LladaConfig {
    /// Refuses what is not computed here; returns the head counts.
    fn heads(&self) -> Result<AttentionHeads, LoadError> {
        let kv_heads = self.n_kv_heads.unwrap_or(self.n_heads);
        config::require_sizes(&[
            ("vocab_size", self.vocab_size),
            ("embedding_size", self.rows()),
            ("d_model", self.d_model),
            ("mlp_hidden_size", self.mlp_hidden_size),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", kv_heads),
            ("max_sequence_length", self.max_sequence_length),
        ])?;
        config::require("activation_type", &self.activation_type.as_str(), &"silu")?;
        config::require("block_type", &self.block_type.as_str(), &"llama")?;
        config::require("layer_norm_type", &self.layer_norm_type.as_str(), &"rms")?;
        config::require("block_group_size", &self.block_group_size, &1)?;
        for (field, found, expected) in [
            ("rope", self.rope, true),
            ("layer_norm_with_affine", self.layer_norm_with_affine, true),
            ("alibi", self.alibi, false),
            ("attention_layer_norm", self.attention_layer_norm, false),
            ("include_bias", self.include_bias, false),
            ("include_qkv_bias", self.include_qkv_bias, false),
            ("bias_for_layer_norm", self.bias_for_layer_norm, false),
            ("input_emb_norm", self.input_emb_norm, false),
            ("scale_logits", self.scale_logits, false),
            ("weight_tying", self.weight_tying, false),
        ] {
            config::require(field, &found, &expected)?;
        }
        config::require_positive("rms_norm_eps", self.rms_norm_eps)?;
        config::require_positive("rope_theta", self.rope_theta)?;
        let head_dim = config::require_heads(
            ("d_model", self.d_model),
            ("n_heads", self.n_heads),
            ("n_kv_heads", kv_heads),
        )?;
        Ok(AttentionHeads { heads: self.n_heads, kv_heads, head_dim })
    }

    /// Rows of the embedding and the head.
    fn rows(&self) -> usize {
        self.embedding_size.unwrap_or(self.vocab_size)
    }
}

/// Builds a LLaDA model.
pub(crate) fn load(
    config: &Value,
    weights: &mut Weights,
) -> Result<Box<dyn LanguageModel>, LoadError> {
    let config: LladaConfig = config::read(config)?;
    let heads = config.heads()?;
    let (hidden, vocab, eps) = (config.d_model, config.rows(), config.rms_norm_eps);
    let precision = match config.rope_full_precision {
        true => RopePrecision::Float32,
        false => RopePrecision::Activations,
    };
    let rope = Rope::new(heads.head_dim, heads.head_dim, config.rope_theta, precision);
    Ok(Box::new(Decoder {
        embedding: weights.matrix("model.transformer.wte.weight", vocab, hidden),
        layers: (0..config.n_layers).map(|i| block(&config, heads, &rope, weights, i)).collect(),
        final_norm: Norm::rms(weights, "model.transformer.ln_f", hidden, eps),
        head: weights.linear("model.transformer.ff_out", vocab, hidden, Bias::No),
        activations: weights.activations(),
        rope,
        shape: ModelShape {
            vocab,
            max_positions: config.max_sequence_length,
            layers: config.n_layers,
            kv_width: heads.kv_heads * heads.head_dim,
        },
        alignment: Alignment::Same,
        attend: Attend::Bidirectional,
    }))
}

fn block(
    config: &LladaConfig,
    heads: AttentionHeads,
    rope: &Rope,
    weights: &mut Weights,
    block: usize,
) -> PreNormLayer {
    let (hidden, inner) = (config.d_model, config.mlp_hidden_size);
    let kv_width = heads.kv_heads * heads.head_dim;
    let prefix = format!("model.transformer.blocks.{block}");
    let mut linear =
        |name: &str, out, inp| weights.linear(&format!("{prefix}.{name}"), out, inp, Bias::No);
    let attention = SelfAttention {
        q_proj: linear("q_proj", hidden, hidden),
        k_proj: linear("k_proj", kv_width, hidden),
        v_proj: linear("v_proj", kv_width, hidden),
        out: linear("attn_out", hidden, hidden),
        heads,
        rope: rope.clone(),
    };
    let mlp = GatedMlp {
        gate: linear("ff_proj", inner, hidden),
        up: linear("up_proj", inner, hidden),
        down: linear("ff_out", hidden, inner),
    };
    let mut norm =
        |name: &str| Norm::rms(weights, &format!("{prefix}.{name}"), hidden, config.rms_norm_eps);
    PreNormLayer { attention_norm: norm("attn_norm"), attention, mlp_norm: norm("ff_norm"), mlp }
}
