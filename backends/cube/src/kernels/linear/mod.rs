//! Projections: few rows by kernels of ours, one that reads weights of every kind and one for tensor
//! cores; more by the library's matrix product.

mod decode;
mod epilogue;
mod few;
mod job;
mod many;
mod mma;

use std::ops::Range;

use dfastllm_backends::ops::{DeviceLinear, DeviceWeight};
use dfastllm_backends::{KernelChoice, Tensor, kernel_options};

use self::decode::Format;
use self::epilogue::Finish;
use self::job::few;
use self::many::Target;
use super::buffers::{buffer, room, tensor};

/// Most rows of the kernels for few.
const FEW_ROWS: usize = 64;
/// Most projections of one launch.
const TOGETHER: usize = 4;
/// Most bytes of weights that are dequantised at a time for a product of many rows.
const DEQUANTISED: usize = 64 << 20;

/// Projections of one input.
pub(super) fn linears(x: Tensor<2>, layers: &[DeviceLinear<'_>]) -> Vec<Tensor<2>> {
    let [rows, _] = x.dims();
    if rows > FEW_ROWS {
        return layers.iter().map(|layer| many(x.clone(), layer)).collect();
    }
    let x = buffer(x);
    // Buffers of one launch: weight, scales, bias and result of each, `x`, and sizes.
    let most = (x.client.properties().hardware.max_bindings as usize).saturating_sub(2) / 4;
    let alike = layers.chunk_by(go_together);
    let launches = alike.flat_map(|alike| alike.chunks(most.clamp(1, TOGETHER)));
    launches.flat_map(|layers| few(&x, layers)).collect()
}

/// Whether one kernel can be compiled for both.
fn go_together(one: &DeviceLinear<'_>, other: &DeviceLinear<'_>) -> bool {
    let kind = |(weight, bias, epilogue): &DeviceLinear<'_>| {
        let format = match weight {
            DeviceWeight::Dense(weight) => (Format::Floats, weight.dtype()),
            DeviceWeight::Blocks(blocks) => (Format::Blocks(blocks.format), blocks.scales.dtype()),
        };
        let stands_alone = Finish::of(epilogue).0.has_other();
        (!stands_alone).then(|| (format, bias.is_some(), weight.dims()[1]))
    };
    kind(one).is_some_and(|one| kind(other) == Some(one))
}

/// A projection of many rows.
fn many(x: Tensor<2>, (weight, bias, epilogue): &DeviceLinear<'_>) -> Tensor<2> {
    let ([rows, _], dtype, [outs, inputs]) = (x.dims(), x.dtype(), weight.dims());
    let (finish, other) = Finish::of(epilogue);
    let most = match weight {
        DeviceWeight::Dense(_) => outs,
        // A multiple of what vectors hold.
        DeviceWeight::Blocks(_) => (DEQUANTISED / dtype.size() / inputs).max(8) & !7,
    };
    if outs <= most && finish == Finish::Plain && bias.is_none() {
        return product(x, weight, 0..outs);
    }
    let own = |x: Tensor<2>| buffer(x.cast(dtype));
    let bias = bias.map(|bias| buffer(bias.clone().cast(dtype)));
    let other = other.map(|other| own(other.clone()));
    let mut results = None;
    for first in (0..outs).step_by(most) {
        let products = own(product(x.clone(), weight, first..outs.min(first + most)));
        let results = results.get_or_insert_with(|| room(&products, [rows, outs], dtype));
        let (bias, other) = (bias.as_ref(), other.as_ref());
        many::finish(products, &Target { results, first, bias, finish, other });
    }
    results.map_or(x, tensor)
}

/// The products with some outputs of a weight, `[rows, outs]`.
fn product(x: Tensor<2>, weight: &DeviceWeight, outs: Range<usize>) -> Tensor<2> {
    let dtype = x.dtype();
    let weight: Tensor<2> = match weight {
        DeviceWeight::Dense(weight) => (**weight).clone(),
        DeviceWeight::Blocks(blocks) => tensor(many::dequantise(blocks, outs, dtype)),
    };
    let x = x.cast(weight.dtype());
    match kernel_options().choice {
        KernelChoice::Tuned => x.matmul(weight.transpose()),
        KernelChoice::Pinned => many::pinned_product(x, weight.transpose()),
    }
    .cast(dtype)
}
