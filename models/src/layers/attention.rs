use dfastllm_backends::Tensor;
use dfastllm_backends::ops::{AttentionHeads, Epilogue, Linear, Rope, attention, linear};

use super::Pass;

/// Multi-head or grouped-query self-attention with rotary positions.
#[derive(Debug)]
pub(crate) struct SelfAttention {
    pub(crate) q_proj: Linear,
    pub(crate) k_proj: Linear,
    pub(crate) v_proj: Linear,
    pub(crate) out: Linear,
    pub(crate) heads: AttentionHeads,
    pub(crate) rope: Rope,
}

impl SelfAttention {
    /// # Shapes
    /// - `x`: `[rows, hidden]`; returns the same
    pub(crate) fn forward(&self, x: Tensor<2>, pass: &mut Pass<'_, '_>) -> Tensor<2> {
        let query = linear(x.clone(), &self.q_proj, Epilogue::None); // [rows, heads * head_dim]
        let keys = linear(x.clone(), &self.k_proj, Epilogue::None); // [rows, kv_heads * head_dim]
        let values = linear(x, &self.v_proj, Epilogue::None);
        pass.tap("q", &query);
        pass.tap("k", &keys);
        pass.tap("v", &values);
        let query = self.rope.apply(query, &pass.angles);
        let keys = self.rope.apply(keys, &pass.angles);
        let cache = (&mut *pass.cache, pass.layer);
        let mixed = attention(query, [keys, values], pass.rows, cache, self.heads);
        let out = linear(mixed, &self.out, Epilogue::None);
        pass.tap("attn_out", &out);
        out
    }
}
