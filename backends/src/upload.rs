//! Tensors whose rows follow each other without gaps.
//!
//! CUDA starts rows of tensors at aligned addresses and so leaves gaps behind rows of most lengths. A
//! kernel that takes a buffer as it is would get a copy without them: of all of a weight in every pass,
//! and of pages that are to be written where they are. One dimension has no gaps, and giving it other
//! dimensions moves nothing.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::cpu;
use crate::mapping::zero_data;

/// Puts floats on a device, in their dtype.
#[must_use]
pub fn upload<const D: usize>(data: TensorData, device: &Device) -> Tensor<D> {
    let (dims, data) = flat(data);
    let dtype = data.dtype();
    Tensor::<1>::from_data(data, (device, dtype)).reshape(dims)
}

/// The same of integers.
#[must_use]
pub fn upload_ints<const D: usize>(data: TensorData, device: &Device) -> Tensor<D, Int> {
    let (dims, data) = flat(data);
    let dtype = data.dtype();
    Tensor::<1, Int>::from_data(data, (device, dtype)).reshape(dims)
}

fn flat<const D: usize>(data: TensorData) -> ([usize; D], TensorData) {
    let (dims, dtype): ([usize; D], DType) = (data.shape().dims(), data.dtype());
    let len: usize = dims.iter().product();
    (dims, TensorData::from_bytes(data.into_bytes(), [len], dtype))
}

/// Zeros on a device.
pub(crate) fn zeros(dims: [usize; 2], dtype: DType, device: &Device) -> Tensor<2> {
    let len = dims[0] * dims[1];
    let of_pages = if cpu::is_flex(device) { zero_data(len, dtype) } else { None };
    let flat = match of_pages {
        Some(data) => Tensor::<1>::from_data(data, (device, dtype)),
        None => Tensor::zeros([len], (device, dtype)),
    };
    flat.reshape(dims)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_uploaded_keeps_its_place() {
        let device = Device::flex();
        let data = TensorData::new(vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3]);
        let x: Tensor<2> = upload(data.clone(), &device);
        assert_eq!(
            (x.dims(), x.into_data().try_to_vec::<f32>().unwrap()),
            ([2, 3], data.try_to_vec().unwrap())
        );
        let ints = TensorData::new(vec![7i32, 8], [1, 2]);
        let y: Tensor<2, Int> = upload_ints(ints, &device);
        assert_eq!((y.dims(), y.into_data().try_to_vec::<i32>().unwrap()), ([1, 2], vec![7, 8]));
    }
}
