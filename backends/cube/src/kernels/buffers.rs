//! Burn's tensors as buffers of a device.

use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, kernel};
use cubecl::client::Client;
use cubecl::features::Plane;
use cubecl::ir::ElemType;
use dfastllm_backends::{DType, Int, Tensor};

/// The buffer of a tensor, its elements one after the other.
pub(super) fn buffer<const D: usize>(x: Tensor<D>) -> CubeTensor {
    match x.try_into_primitive::<CubeBackend>() {
        Ok(x) => kernel::into_contiguous(x),
        Err(e) => unreachable!("{e:?}"),
    }
}

/// The buffer of a tensor that is written where it is: what is written reaches every handle of it.
pub(super) fn buffer_in_place<const D: usize>(x: &Tensor<D>) -> CubeTensor {
    match x.clone().try_into_primitive::<CubeBackend>() {
        Ok(x) => {
            assert!(x.is_contiguous(), "a tensor with gaps would be written as a copy");
            x
        }
        Err(e) => unreachable!("{e:?}"),
    }
}

/// The same of integers.
pub(super) fn int_buffer<const D: usize>(x: Tensor<D, Int>) -> CubeTensor {
    match x.try_into_primitive::<CubeBackend>() {
        Ok(x) => kernel::into_contiguous(x),
        Err(e) => unreachable!("{e:?}"),
    }
}

/// The tensor of a buffer.
pub(super) fn tensor<const D: usize>(x: CubeTensor) -> Tensor<D> {
    Tensor::from_primitive::<CubeBackend>(x)
}

/// The integers of a buffer.
pub(super) fn int_tensor<const D: usize>(x: CubeTensor) -> Tensor<D, Int> {
    Tensor::from_primitive::<CubeBackend>(x)
}

/// Room for results beside `x`.
pub(super) fn room(
    x: &CubeTensor,
    shape: impl Into<burn::tensor::Shape>,
    dtype: DType,
) -> CubeTensor {
    empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), shape.into(), dtype)
}

/// What kernels call a float type.
pub(super) fn element(dtype: DType) -> ElemType {
    burn::backend::cubecl::dtype_to_elem_type(dtype)
}

/// Largest power of two of units a cube of this device can have, `most` at most.
pub(super) fn units(client: &Client, most: u32) -> u32 {
    let limit = client.properties().hardware.max_units_per_cube.clamp(1, most);
    1 << limit.ilog2()
}

/// Units of a plane, where they are always as many and add up.
pub(super) fn plane_size(client: &Client) -> Option<u32> {
    let properties = client.properties();
    let hardware = &properties.hardware;
    let adds_up = properties.features.plane.contains(Plane::Ops)
        && hardware.plane_size_min == hardware.plane_size_max;
    adds_up.then_some(hardware.plane_size_max)
}

/// Floats of a vector of at most 16 bytes that rows of some length are made of.
pub(super) fn vector_size(client: &Client, dtype: DType, len: usize) -> usize {
    let sizes = client.io_optimized_vector_sizes(dtype.size());
    let fits = |&size: &usize| size * dtype.size() <= 16 && len.is_multiple_of(size);
    sizes.into_iter().find(fits).unwrap_or(1)
}
