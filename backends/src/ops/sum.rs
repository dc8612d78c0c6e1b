use burn::tensor::Tensor;

use crate::cpu;

/// The sum of tensors of one shape and dtype, added from left to right.
///
/// # Shapes
/// - every term: `[rows, features]`; returns the same
#[must_use]
pub fn sum<const N: usize>(terms: [Tensor<2>; N]) -> Tensor<2> {
    if terms.iter().all(cpu::is_flex_f32) {
        return cpu::sum(terms);
    }
    let mut terms = terms.into_iter();
    let Some(first) = terms.next() else { unreachable!("a sum of nothing") };
    terms.fold(first, |sum, term| sum + term)
}
