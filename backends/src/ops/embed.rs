use burn::tensor::{DType, Int, Tensor, TensorData};

/// Rows of an embedding table.
///
/// # Shapes
/// - `table`: `[vocab, hidden]`; returns `[tokens, hidden]` in `dtype`
#[must_use]
pub fn embed(table: &Tensor<2>, tokens: &[u32], dtype: DType) -> Tensor<2> {
    let ids: Vec<usize> = tokens.iter().map(|&t| t as usize).collect();
    select_rows(table.clone(), &ids).cast(dtype)
}

/// The rows named, in the order named.
///
/// # Shapes
/// - `x`: `[n, features]`; returns `[rows, features]`
#[must_use]
pub fn select_rows(x: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let indices: Vec<i32> = rows.iter().map(|&r| i32::try_from(r).unwrap_or(i32::MAX)).collect();
    let indices = Tensor::<1, Int>::from_data(
        TensorData::new(indices, [rows.len()]),
        (&x.device(), DType::I32),
    );
    x.select(0, indices)
}
