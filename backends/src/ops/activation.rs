use burn::tensor::{DType, Tensor, activation};

/// GELU in its tanh form: `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`, computed in f32.
///
/// Written as `x · sigmoid(2u)`, which is the same function in fewer operations; Burn's own
/// `gelu_approximate` raises to a power and is many times slower.
///
/// # Shapes
/// - any; returns the shape and dtype of `x`
#[must_use]
pub fn gelu_new(x: Tensor<2>) -> Tensor<2> {
    const TWO_ROOT_2_OVER_PI: f64 = 1.595_769_121_605_730_7;
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let cubic = x.clone().square() * 0.044_715 + 1.0;
    let u = x.clone() * cubic * TWO_ROOT_2_OVER_PI;
    (x * activation::sigmoid(u)).cast(dtype)
}
