//! Dream 7B and its relatives (`model_type: Dream`), masked diffusion.
//!
//! Checkpoints: Dream-org/Dream-v0-Base-7B, Dream-v0-Instruct-7B (Ye et al., "Dream 7B", 2025).
//! Follows their `modeling_dream.py`: the Qwen2.5 layout with biases on q, k and v only, grouped
//! key/value heads and bidirectional attention. Logits keep the shift of the autoregressive model
//! they were trained from: row `i` predicts position `i + 1`.

use dfastllm_backends::Attend;
use dfastllm_backends::ops::{AttentionHeads, Rope, RopePrecision};
use serde::Deserialize;
use serde_json::Value;

use crate::layers::{Decoder, GatedMlp, Norm, PreNormLayer, SelfAttention};
use crate::model::{Alignment, LanguageModel, ModelShape};
use crate::weights::{Bias, Weights};
use crate::{LoadError, config};

/// `config.json`, with its own keys.
#[derive(Debug, Deserialize)]
struct DreamConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    max_position_embeddings: usize,
    hidden_act: String,
    rms_norm_eps: f64,
    rope_theta: f64,
    rope_scaling: Option<Value>,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
}

impl DreamConfig {
    /// Refuses what is not computed here; returns the head counts.
    fn heads(&self) -> Result<AttentionHeads, LoadError> {
        config::require_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        config::require("hidden_act", &self.hidden_act.as_str(), &"silu")?;
        config::require("tie_word_embeddings", &self.tie_word_embeddings, &false)?;
        config::require("use_sliding_window", &self.use_sliding_window, &false)?;
        config::require_null("rope_scaling", self.rope_scaling.as_ref())?;
        config::require_positive("rms_norm_eps", self.rms_norm_eps)?;
        config::require_positive("rope_theta", self.rope_theta)?;
        let head_dim = config::require_heads(
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
        )?;
        let kv_heads = self.num_key_value_heads;
        Ok(AttentionHeads { heads: self.num_attention_heads, kv_heads, head_dim })
    }
}

/// Builds a Dream model.
pub(crate) fn load(
    config: &Value,
    weights: &mut Weights,
) -> Result<Box<dyn LanguageModel>, LoadError> {
    let config: DreamConfig = config::read(config)?;
    let heads = config.heads()?;
    let (hidden, vocab, eps) = (config.hidden_size, config.vocab_size, config.rms_norm_eps);
    let (dim, theta) = (heads.head_dim, config.rope_theta);
    let rope = Rope::new(dim, dim, theta, RopePrecision::Activations);
    Ok(Box::new(Decoder {
        embedding: weights.matrix("model.embed_tokens.weight", vocab, hidden),
        layers: (0..config.num_hidden_layers)
            .map(|i| layer(&config, heads, &rope, weights, i))
            .collect(),
        final_norm: Norm::rms(weights, "model.norm", hidden, eps),
        head: weights.linear("lm_head", vocab, hidden, Bias::No),
        activations: weights.activations(),
        rope,
        shape: ModelShape {
            vocab,
            max_positions: config.max_position_embeddings,
            layers: config.num_hidden_layers,
            kv_width: heads.kv_heads * dim,
        },
        alignment: Alignment::Next,
        attend: Attend::Bidirectional,
    }))
}

fn layer(
    config: &DreamConfig,
    heads: AttentionHeads,
    rope: &Rope,
    weights: &mut Weights,
    layer: usize,
) -> PreNormLayer {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let kv_width = heads.kv_heads * heads.head_dim;
    let prefix = format!("model.layers.{layer}");
    let mut linear =
        |name: &str, out, inp, bias| weights.linear(&format!("{prefix}.{name}"), out, inp, bias);
    let attention = SelfAttention {
        q_proj: linear("self_attn.q_proj", hidden, hidden, Bias::Yes),
        k_proj: linear("self_attn.k_proj", kv_width, hidden, Bias::Yes),
        v_proj: linear("self_attn.v_proj", kv_width, hidden, Bias::Yes),
        out: linear("self_attn.o_proj", hidden, hidden, Bias::No),
        heads,
        rope: rope.clone(),
    };
    let mlp = GatedMlp {
        gate: linear("mlp.gate_proj", inner, hidden, Bias::No),
        up: linear("mlp.up_proj", inner, hidden, Bias::No),
        down: linear("mlp.down_proj", hidden, inner, Bias::No),
    };
    let mut norm =
        |name: &str| Norm::rms(weights, &format!("{prefix}.{name}"), hidden, config.rms_norm_eps);
    PreNormLayer {
        attention_norm: norm("input_layernorm"),
        attention,
        mlp_norm: norm("post_attention_layernorm"),
        mlp,
    }
}
