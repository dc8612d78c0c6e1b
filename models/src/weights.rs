//! From stored tensors to tensors on a device, checking names and shapes on the way.

use dfastllm_backends::ops::Linear;
use dfastllm_backends::{
    Bytes, DType, Device, PackedMatrix, Precision, Quantize, Tensor, WeightFormat, tensor_data,
    upload,
};

use crate::LoadError;
use crate::checkpoint::{StoredTensor, StoredTensors};

/// Names listed in an error before it says "and n more".
const LISTED: usize = 4;

/// Whether a projection has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bias {
    Yes,
    No,
}

/// Hands out the tensors of a checkpoint by name.
///
/// A family asks for everything it needs; problems are collected, placeholders stand in, and
/// [`Weights::finish`] reports all of them at once, together with tensors nobody asked for.
pub(crate) struct Weights {
    stored: StoredTensors,
    device: Device,
    precision: Precision,
    /// How projections are stored, if they are packed already.
    packed: Option<WeightFormat>,
    projections: Projections,
    missing: Vec<Missing>,
    misshapen: Vec<String>,
    unreadable: Option<LoadError>,
}

/// What all projections of a model, its head included, come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Projections {
    /// Weights: a row that passes all of them takes as many multiplications.
    pub parameters: u64,
    /// Their size in memory.
    pub bytes: u64,
}

/// A tensor that was asked for and is not there.
#[derive(Debug, Clone)]
pub(crate) struct Missing {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    /// Whether it is the weight of a projection.
    pub(crate) is_projection: bool,
}

impl Weights {
    pub(crate) fn new(stored: StoredTensors, device: Device, precision: Precision) -> Self {
        let (missing, misshapen) = (Vec::new(), Vec::new());
        Self {
            stored,
            device,
            precision,
            packed: None,
            projections: Projections::default(),
            missing,
            misshapen,
            unreadable: None,
        }
    }

    /// The same where projections are stored packed.
    pub(crate) fn with_packed(self, packed: Option<WeightFormat>) -> Self {
        Self { packed, ..self }
    }

    /// Dtype of activations, norms and biases.
    pub(crate) fn activations(&self) -> DType {
        self.precision.activations
    }

    /// A matrix in the weights' dtype.
    pub(crate) fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Tensor<2> {
        self.tensor(name, [rows, columns], self.precision.weights)
    }

    /// A vector in the activations' dtype.
    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Tensor<1> {
        self.tensor(name, [len], self.precision.activations)
    }

    /// `{prefix}.weight` of `[out, inp]` and, if it has one, `{prefix}.bias`.
    pub(crate) fn linear(&mut self, prefix: &str, out: usize, inp: usize, bias: Bias) -> Linear {
        self.count(out, inp);
        let name = format!("{prefix}.weight");
        let (device, Precision { weights: dtype, quantize, .. }) =
            (self.device.clone(), self.precision);
        let matrix = if let Some(format) = self.packed {
            let shape = PackedMatrix::words_of(format, [out, inp]);
            let bytes = self.read(&name, &shape, StoredTensor::is_packed);
            bytes.and_then(|bytes| PackedMatrix::from_bytes(bytes, format, [out, inp]))
        } else if quantize != Quantize::None {
            // Quantised by the host, whatever the device.
            let weight = self.projection(&name, [out, inp], &Device::flex());
            Some(PackedMatrix::pack(weight, WeightFormat::of(dtype, quantize)))
        } else {
            let weight = self.projection(&name, [out, inp], &device);
            let bias = self.bias(prefix, out, bias);
            return Linear::new(weight, bias, quantize);
        };
        let bias = self.bias(prefix, out, bias);
        match matrix {
            Some(matrix) => Linear::packed(matrix, bias, (&device, dtype)),
            None => Linear::new(Tensor::zeros([1; 2], (&device, dtype)), bias, Quantize::None),
        }
    }

    /// The weight of a projection, in the weights' dtype.
    fn projection(&mut self, name: &str, shape: [usize; 2], device: &Device) -> Tensor<2> {
        let weight = self.tensor_on(name, shape, (device, self.precision.weights));
        if let Some(missing) = self.missing.last_mut().filter(|m| m.name == name) {
            missing.is_projection = true;
        }
        weight
    }

    fn bias(&mut self, prefix: &str, out: usize, bias: Bias) -> Option<Tensor<1>> {
        (bias == Bias::Yes).then(|| self.vector(&format!("{prefix}.bias"), out))
    }

    fn count(&mut self, out: usize, inp: usize) {
        let Precision { weights, quantize, .. } = self.precision;
        let format = self.packed.unwrap_or(WeightFormat::of(weights, quantize));
        let words: usize = PackedMatrix::words_of(format, [out, inp]).iter().product();
        self.projections.parameters += (out * inp) as u64;
        self.projections.bytes += (words * size_of::<u32>()) as u64;
    }

    /// What was handed out so far.
    pub(crate) fn projections(&self) -> Projections {
        self.projections
    }

    fn tensor<const D: usize>(&mut self, name: &str, shape: [usize; D], dtype: DType) -> Tensor<D> {
        let device = self.device.clone();
        self.tensor_on(name, shape, (&device, dtype))
    }

    fn tensor_on<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        (device, dtype): (&Device, DType),
    ) -> Tensor<D> {
        let mut own = dtype;
        let read = self.read(name, &shape, |stored| {
            own = stored.dtype;
            own.is_float()
        });
        match read {
            // Converted here, because a device need not know the checkpoint's dtype: wgpu has no bf16.
            Some(bytes) => upload(tensor_data(bytes, shape, own).convert_dtype(dtype), device),
            None => Tensor::zeros([1; D], (device, dtype)),
        }
    }

    /// The bytes of a stored tensor of this shape whose dtype is accepted; notes what is wrong.
    fn read(
        &mut self,
        name: &str,
        shape: &[usize],
        mut accepts: impl FnMut(&StoredTensor) -> bool,
    ) -> Option<Bytes> {
        let Some(stored) = self.stored.remove(name) else {
            let (name, shape) = (name.to_owned(), shape.to_vec());
            self.missing.push(Missing { name, shape, is_projection: false });
            return None;
        };
        let StoredTensor { file, shape: found, dtype, .. } = &stored;
        if found != shape {
            self.misshapen.push(format!("{name} in {file} is {found:?}, expected {shape:?}"));
            return None;
        }
        if !accepts(&stored) {
            self.misshapen.push(format!("{name} in {file} is of dtype {dtype:?}"));
            return None;
        }
        match stored.bytes() {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.unreadable = Some(error);
                None
            }
        }
    }

    /// What was asked for and is not there.
    pub(crate) fn into_missing(self) -> Vec<Missing> {
        self.missing
    }

    /// # Errors
    /// Everything that did not fit, in one message.
    pub(crate) fn finish(self) -> Result<(), LoadError> {
        if let Some(error) = self.unreadable {
            return Err(error);
        }
        let missing: Vec<String> = self.missing.into_iter().map(|m| m.name).collect();
        let unused: Vec<String> = self.stored.into_keys().collect();
        let problems: Vec<String> = [
            listed("missing", &missing),
            listed("misshapen", &self.misshapen),
            listed("unused", &unused),
        ]
        .into_iter()
        .flatten()
        .collect();
        if problems.is_empty() {
            return Ok(());
        }
        Err(LoadError::Tensors { problems: problems.join("; ") })
    }
}

fn listed(what: &str, names: &[String]) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    let shown = names.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
    let more = match names.len().saturating_sub(LISTED) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    Some(format!("{} {what}: {shown}{more}", names.len()))
}
