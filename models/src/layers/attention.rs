use dfastllm_backends::Tensor;
use dfastllm_backends::ops::{
    AttentionHeads, Epilogue, Linear, Rope, attention, linear, linears, rotate_and_store,
};

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
    /// Adds what rows find in each other to the residual.
    ///
    /// # Shapes
    /// - `x`, `residual`: `[rows, hidden]`; returns the same
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        residual: Tensor<2>,
        pass: &mut Pass<'_, '_>,
    ) -> Tensor<2> {
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj];
        let projected = linears(x, projections.map(|layer| (layer, Epilogue::None)));
        self.attend(projected, residual, pass)
    }

    /// The same, and one more projection of `x`, which a device may compute with these.
    ///
    /// # Shapes
    /// - `x`, `residual`: `[rows, hidden]`; returns the same, and `[rows, out]` of `beside`
    pub(crate) fn forward_beside(
        &self,
        x: Tensor<2>,
        residual: Tensor<2>,
        beside: (&Linear, Epilogue),
        pass: &mut Pass<'_, '_>,
    ) -> [Tensor<2>; 2] {
        let [q, k, v] = [&self.q_proj, &self.k_proj, &self.v_proj].map(|l| (l, Epilogue::None));
        let [query, keys, values, beside] = linears(x, [q, k, v, beside]);
        [self.attend([query, keys, values], residual, pass), beside]
    }

    /// `projected`: `[rows, heads * head_dim]`, and `[rows, kv_heads * head_dim]` twice.
    fn attend(
        &self,
        projected: [Tensor<2>; 3],
        residual: Tensor<2>,
        pass: &mut Pass<'_, '_>,
    ) -> Tensor<2> {
        let [query, keys, values] = projected;
        pass.tap("q", &query);
        pass.tap("k", &keys);
        pass.tap("v", &values);
        let turn = (&self.rope, &pass.angles);
        let pages = (&mut *pass.cache, pass.layer);
        let (query, own) = rotate_and_store(query, [keys, values], turn, &pass.rows, pages);
        let pages = (&mut *pass.cache, pass.layer);
        let mixed = attention(query, own, &pass.rows, pages, self.heads);
        let out = linear(mixed, &self.out, Epilogue::Plus(Box::new(residual)));
        pass.tap("attended", &out);
        out
    }
}
