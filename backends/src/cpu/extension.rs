//! The kernels as operations of Burn's flex backend, reached through its dispatch.

use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Bytes, DType, Device, Shape, Tensor};
use half::bf16;

use super::attention::{AttentionPlan, KeysValues, attention};
use super::linear::{Product, linear as product};
use super::{PackedLinear, Stored, active_path};

/// Operations this crate adds to backends. Listed backends have kernels; on any other the
/// portable default in [`crate::ops`] runs instead.
#[backend_extension(Flex)]
pub(crate) trait InferenceOps: Backend {
    /// `x [rows, in]`, `weight [out, in]` to `[rows, out]`.
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The same, plus `bias [out]`.
    fn linear_with_bias(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// `x [rows, in]` to `[rows, out]` with a packed weight.
    fn packed_linear(x: FloatTensor<Self>, layer: PackedLinear) -> FloatTensor<Self>;

    /// `query [rows, heads * dim]` over `own` rows and `pool` slots `[n, kv_heads * dim]`.
    fn paged_attention(
        query: FloatTensor<Self>,
        own_keys: FloatTensor<Self>,
        own_values: FloatTensor<Self>,
        pool_keys: FloatTensor<Self>,
        pool_values: FloatTensor<Self>,
        plan: AttentionPlan,
    ) -> FloatTensor<Self>;
}

impl InferenceOps for Flex {
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        flex_linear(&x, &weight, None)
    }

    fn linear_with_bias(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        flex_linear(&x, &weight, Some(&bias.to_contiguous()))
    }

    fn packed_linear(x: FloatTensor<Self>, layer: PackedLinear) -> FloatTensor<Self> {
        let x = x.to_contiguous();
        let shape = [x.layout().shape()[0], layer.matrix.outs()];
        wrap(layer.multiply(slice::<f32>(&x)), shape)
    }

    fn paged_attention(
        query: FloatTensor<Self>,
        own_keys: FloatTensor<Self>,
        own_values: FloatTensor<Self>,
        pool_keys: FloatTensor<Self>,
        pool_values: FloatTensor<Self>,
        plan: AttentionPlan,
    ) -> FloatTensor<Self> {
        let query = query.to_contiguous();
        let own = [own_keys.to_contiguous(), own_values.to_contiguous()];
        let pool = [pool_keys.to_contiguous(), pool_values.to_contiguous()];
        let shape = [query.layout().shape()[0], query.layout().shape()[1]];
        let q = slice::<f32>(&query);
        let y = match pool[0].dtype() {
            DType::BF16 => attention(active_path(), &plan, q, keys_values::<bf16>(&own, &pool)),
            _ => attention(active_path(), &plan, q, keys_values::<f32>(&own, &pool)),
        };
        wrap(y, shape)
    }
}

fn flex_linear(x: &FlexTensor, weight: &FlexTensor, bias: Option<&FlexTensor>) -> FlexTensor {
    let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
    let shape = [x.layout().shape()[0], weight.layout().shape()[0]];
    let k = x.layout().shape()[1];
    let (x, w, bias) = (slice::<f32>(&x), slice::<f32>(&weight), bias.map(slice::<f32>));
    wrap(product(active_path(), Product { x, w, bias, k }), shape)
}

fn keys_values<'a, T: Stored>(
    own: &'a [FlexTensor; 2],
    pool: &'a [FlexTensor; 2],
) -> KeysValues<'a, T> {
    KeysValues {
        own_keys: slice(&own[0]),
        own_values: slice(&own[1]),
        pool_keys: slice(&pool[0]),
        pool_values: slice(&pool[1]),
    }
}

fn slice<T: Stored>(tensor: &FlexTensor) -> &[T] {
    match tensor.as_slice() {
        Some(values) => values,
        // Callers made it contiguous and `ops` checked its dtype.
        None => unreachable!("a contiguous {:?} tensor", T::dtype()),
    }
}

fn wrap(values: Vec<f32>, shape: [usize; 2]) -> FlexTensor {
    let layout = Layout::contiguous(Shape::from(shape.to_vec()));
    FlexTensor::new(Bytes::from_elems(values), layout, DType::F32)
}

/// Whether a tensor lives on the flex device, where these operations exist.
pub(crate) fn is_flex(device: &Device) -> bool {
    *device == Device::flex()
}

/// Whether a tensor's memory is the host's, so that reading it is free.
pub(crate) fn is_host(device: &Device) -> bool {
    #[cfg(feature = "ndarray")]
    #[expect(deprecated, reason = "kept selectable for comparison until Burn removes it")]
    if *device == Device::ndarray() {
        return true;
    }
    is_flex(device)
}

/// The products of [`InferenceOps`] on high-level tensors.
pub(crate) fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(match bias {
        Some(bias) => Dispatch::linear_with_bias(x, weight, bias.into_dispatch()),
        None => Dispatch::linear(x, weight),
    })
}

/// [`InferenceOps::packed_linear`] on high-level tensors.
pub(crate) fn packed_linear(x: Tensor<2>, layer: PackedLinear) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::packed_linear(x.into_dispatch(), layer))
}

/// [`InferenceOps::paged_attention`] on high-level tensors; `own` and `pool` are keys, values.
pub(crate) fn paged_attention(
    query: Tensor<2>,
    own: [Tensor<2>; 2],
    pool: [Tensor<2>; 2],
    plan: AttentionPlan,
) -> Tensor<2> {
    let [own_keys, own_values] = own.map(Tensor::into_dispatch);
    let [pool_keys, pool_values] = pool.map(Tensor::into_dispatch);
    let query = query.into_dispatch();
    Tensor::from_dispatch(Dispatch::paged_attention(
        query,
        own_keys,
        own_values,
        pool_keys,
        pool_values,
        plan,
    ))
}
