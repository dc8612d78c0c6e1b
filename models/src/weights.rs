//! From stored tensors to tensors on a device, checking names and shapes on the way.

use dfastllm_backends::ops::Linear;
use dfastllm_backends::{DType, Device, Precision, Tensor, TensorData};

use crate::LoadError;
use crate::checkpoint::StoredTensors;

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
    missing: Vec<(String, Vec<usize>)>,
    misshapen: Vec<String>,
    unreadable: Option<LoadError>,
}

impl Weights {
    pub(crate) fn new(stored: StoredTensors, device: Device, precision: Precision) -> Self {
        let (missing, misshapen) = (Vec::new(), Vec::new());
        Self { stored, device, precision, missing, misshapen, unreadable: None }
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
        let weight = self.matrix(&format!("{prefix}.weight"), out, inp);
        let bias = (bias == Bias::Yes).then(|| self.vector(&format!("{prefix}.bias"), out));
        Linear::new(weight, bias, self.precision.quantize)
    }

    fn tensor<const D: usize>(&mut self, name: &str, shape: [usize; D], dtype: DType) -> Tensor<D> {
        let read = match self.stored.remove(name) {
            None => {
                self.missing.push((name.to_owned(), shape.to_vec()));
                None
            }
            Some((stored, file)) if stored.shape.to_vec() != shape => {
                let found = stored.shape.to_vec();
                self.misshapen.push(format!("{name} in {file} is {found:?}, expected {shape:?}"));
                None
            }
            Some((stored, file)) => match stored.to_bytes() {
                Ok(bytes) => Some(TensorData::from_bytes(bytes, shape, stored.dtype)),
                Err(e) => {
                    self.unreadable = Some(LoadError::Damaged { file, reason: e.to_string() });
                    None
                }
            },
        };
        match read {
            // Converted here, because a device need not know the checkpoint's dtype: wgpu has no bf16.
            Some(data) => Tensor::<D>::from_data(data.convert_dtype(dtype), (&self.device, dtype)),
            None => Tensor::<D>::zeros([1; D], (&self.device, dtype)),
        }
    }

    /// Names and shapes of what was asked for and is not there.
    pub(crate) fn into_missing(self) -> Vec<(String, Vec<usize>)> {
        self.missing
    }

    /// # Errors
    /// Everything that did not fit, in one message.
    pub(crate) fn finish(self) -> Result<(), LoadError> {
        if let Some(error) = self.unreadable {
            return Err(error);
        }
        let missing: Vec<String> = self.missing.into_iter().map(|(name, _)| name).collect();
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
