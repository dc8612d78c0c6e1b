use burn::tensor::{DType, Device, Int, Tensor, TensorData};

/// Rows of an embedding table, of token ids on its device.
///
/// # Shapes
/// - `table`: `[vocab, hidden]`; `ids`: `[tokens]`; returns `[tokens, hidden]` in `dtype`
#[must_use]
pub fn embed(table: &Tensor<2>, ids: Tensor<1, Int>, dtype: DType) -> Tensor<2> {
    table.clone().select(0, ids).cast(dtype)
}

/// Token ids on a device, as i32.
pub(crate) fn token_ids(tokens: &[u32], device: &Device) -> Tensor<1, Int> {
    let ids: Vec<i32> = tokens.iter().map(|&t| token_id(t)).collect();
    Tensor::from_data(TensorData::new(ids, [tokens.len()]), (device, DType::I32))
}

/// Vocabularies are far smaller than what an index can hold.
pub(crate) fn token_id(token: u32) -> i32 {
    i32::try_from(token).unwrap_or(i32::MAX)
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
