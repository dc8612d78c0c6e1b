//! The kernels as functions of tensors on Burn's flex backend.
//!
//! Callers in [`crate::ops`] made sure of the device and the dtype.

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Device, Tensor};
use half::{bf16, f16};

use super::attention::{AttentionPlan, KeysValues, attention};
use super::buffers::Buffer;
use super::elementwise::{self, Normal, Turns};
use super::packed::{Finish, multiply};
use super::share::Few;
use super::{PackedLinear, Stored, active_path};
use crate::ops::Epilogue;
use crate::rows::WriteRun;

/// Whether a tensor lives on the flex device, where the kernels run.
pub(crate) fn is_flex(device: &Device) -> bool {
    *device == Device::flex()
}

/// Whether it does and holds f32, which the kernels compute in.
pub(crate) fn is_flex_f32<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && is_flex(&x.device())
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

fn flex<const D: usize>(x: Tensor<D>) -> FlexTensor {
    match x.try_into_primitive::<Flex>() {
        Ok(x) => x,
        Err(e) => unreachable!("{e:?}"),
    }
}

fn contiguous<const D: usize>(x: Tensor<D>) -> FlexTensor {
    let x = flex(x);
    if x.is_contiguous() { x } else { x.to_contiguous() }
}

fn slice<T: Stored>(tensor: &FlexTensor) -> &[T] {
    match tensor.as_slice() {
        Some(values) => values,
        None => unreachable!("a contiguous {:?} tensor", T::dtype()),
    }
}

/// Projections of `x [rows, in]` to `[rows, out]` each.
pub(crate) fn packed_linears(
    x: Tensor<2>,
    layers: &[(&PackedLinear, &Epilogue)],
) -> Few<Tensor<2>> {
    let rows = x.dims()[0];
    let x = contiguous(x);
    let beside = layers.iter().map(|(_, epilogue)| match epilogue {
        Epilogue::Times(other) | Epilogue::Plus(other) => {
            Some(contiguous((**other).clone().cast(DType::F32)))
        }
        Epilogue::None | Epilogue::Gelu | Epilogue::Silu => None,
    });
    let beside: Few<Option<FlexTensor>> = beside.collect();
    let products = layers.iter().zip(&beside).map(|((layer, epilogue), beside)| {
        let others = || beside.as_ref().map_or(&[][..], slice);
        layer.product(match epilogue {
            Epilogue::None => Finish::Plain,
            Epilogue::Gelu => Finish::Gelu,
            Epilogue::Silu => Finish::Silu,
            Epilogue::Times(_) => Finish::Times(others()),
            Epilogue::Plus(_) => Finish::Plus(others()),
        })
    });
    let results = multiply(active_path(), &products.collect::<Few<_>>(), slice(&x));
    let shaped = results
        .into_iter()
        .zip(layers)
        .map(|(y, (layer, _))| Tensor::from_primitive::<Flex>(y.into_tensor([rows, layer.outs()])));
    shaped.collect()
}

/// LayerNorm with a bias, RMSNorm without: `x [rows, features]` to the same.
pub(crate) fn normalise(
    x: Tensor<2>,
    weight: &Tensor<1>,
    bias: Option<&Tensor<1>>,
    eps: f32,
) -> Tensor<2> {
    let shape = x.dims();
    let (x, weight) = (contiguous(x), contiguous(weight.clone()));
    let bias = bias.map(|bias| contiguous(bias.clone()));
    let weight = slice(&weight);
    let normal = match &bias {
        Some(bias) => Normal::Layer { weight, bias: slice(bias) },
        None => Normal::Rms { weight },
    };
    let y = elementwise::normalise(active_path(), slice(&x), normal, eps);
    Tensor::from_primitive::<Flex>(y.into_tensor(shape))
}

/// Turns heads: `x [rows, heads * head_dim]`, `angles` cosines and sines `[2, rows, half]`.
pub(crate) fn rotate(x: Tensor<2>, angles: &Tensor<3>, head_dim: usize) -> Tensor<2> {
    let (shape, half) = (x.dims(), angles.dims()[2]);
    let [x, angles] = [contiguous(x), contiguous(angles.clone())];
    let (cos, sin) = slice(&angles).split_at(shape[0] * half);
    let turns = Turns { cos, sin, half, head_dim };
    let y = elementwise::rotate(active_path(), slice(&x), turns, shape[0]);
    Tensor::from_primitive::<Flex>(y.into_tensor(shape))
}

/// Copies runs of rows of `source [rows, width]` to their slots of `pool [slots, width]`, rounded to
/// its dtype; in place if the pool's handle is the only one.
pub(crate) fn store_rows(pool: Tensor<2>, source: &Tensor<2>, runs: &[WriteRun]) -> Tensor<2> {
    let width = source.dims()[1];
    let (mut pool, source) = (flex(pool), contiguous(source.clone()));
    let source = slice(&source);
    match pool.dtype() {
        DType::BF16 => store::<bf16>(&mut pool, source, runs, width),
        DType::F16 => store::<f16>(&mut pool, source, runs, width),
        _ => store::<f32>(&mut pool, source, runs, width),
    }
    Tensor::from_primitive::<Flex>(pool)
}

fn store<T: Stored>(pool: &mut FlexTensor, source: &[f32], runs: &[WriteRun], width: usize) {
    let slots = pool.storage_mut::<T>();
    for run in runs {
        let from = &source[run.row * width..(run.row + run.len) * width];
        let to = &mut slots[run.slot * width..(run.slot + run.len) * width];
        elementwise::narrow(active_path(), from, to);
    }
}

/// Copies rows of `pool [slots, width]` to those from `to` on; in place if the pool's handle is the only one.
pub(crate) fn copy_rows(pool: Tensor<2>, from: Range<usize>, to: usize) -> Tensor<2> {
    let width = pool.dims()[1];
    let (from, to) = (from.start * width..from.end * width, to * width);
    let mut pool = flex(pool);
    match pool.dtype() {
        DType::BF16 => pool.storage_mut::<bf16>().copy_within(from, to),
        DType::F16 => pool.storage_mut::<f16>().copy_within(from, to),
        _ => pool.storage_mut::<f32>().copy_within(from, to),
    }
    Tensor::from_primitive::<Flex>(pool)
}

/// `query [rows, heads * head_dim]` over `own` rows and `pool` slots `[n, kv_heads * head_dim]`, keys
/// and values each; own ones are rounded to the pool's dtype.
pub(crate) fn paged_attention(
    query: Tensor<2>,
    own: [Tensor<2>; 2],
    pool: [Tensor<2>; 2],
    plan: &AttentionPlan,
) -> Tensor<2> {
    let shape = query.dims();
    let (query, own, pool) = (contiguous(query), own.map(contiguous), pool.map(contiguous));
    let operands = (slice(&query), own.each_ref().map(slice), &pool);
    let y = match pool[0].dtype() {
        DType::BF16 => attend::<bf16>(plan, operands),
        DType::F16 => attend::<f16>(plan, operands),
        _ => attend::<f32>(plan, operands),
    };
    Tensor::from_primitive::<Flex>(y.into_tensor(shape))
}

fn attend<T: Stored>(
    plan: &AttentionPlan,
    (query, own, pool): (&[f32], [&[f32]; 2], &[FlexTensor; 2]),
) -> Buffer {
    let path = active_path();
    let own = own.map(|from| {
        // Rows that are written are read from their pages.
        let mut to = vec![T::default(); if plan.reads_own_rows() { from.len() } else { 0 }];
        elementwise::narrow(path, &from[..to.len()], &mut to);
        to
    });
    let kv = KeysValues {
        own_keys: &own[0],
        own_values: &own[1],
        pool_keys: slice::<T>(&pool[0]),
        pool_values: slice(&pool[1]),
    };
    attention(path, plan, query, kv)
}
