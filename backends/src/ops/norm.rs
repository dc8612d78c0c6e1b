use burn::tensor::{DType, Tensor};

/// LayerNorm over the features, statistics in f32, `eps` inside the root.
///
/// # Shapes
/// - `x`: `[rows, features]`; `weight`, `bias`: `[features]`; returns the shape and dtype of `x`
#[must_use]
pub fn layer_norm(x: Tensor<2>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f64) -> Tensor<2> {
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1); // [rows, 1]
    let normal = centred / (variance + eps).sqrt();
    let scaled = normal * weight.clone().cast(DType::F32).unsqueeze();
    (scaled + bias.clone().cast(DType::F32).unsqueeze()).cast(dtype)
}

/// RMSNorm over the features: f32 statistics, rounded to the dtype of `x`, then times the weight,
/// in the order of the LLaDA and Qwen2 code.
///
/// # Shapes
/// - `x`: `[rows, features]`; `weight`: `[features]`; returns the shape and dtype of `x`
#[must_use]
pub fn rms_norm(x: Tensor<2>, weight: &Tensor<1>, eps: f64) -> Tensor<2> {
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let variance = x.clone().square().mean_dim(1); // [rows, 1]
    let normal = x / (variance + eps).sqrt();
    normal.cast(dtype) * weight.clone().unsqueeze()
}
