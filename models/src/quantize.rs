//! Checkpoints whose projections are stored as the CPU's kernels read them: mapped, not converted.
//! Other devices take them apart again.
//!
//! They differ from others in `config.json` (`quantization_config`) and in the projections' weights,
//! which are words of 32 bits in panels ([`PackedMatrix`]). What is quantised is quantised as at load.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use dfastllm_backends::{
    DType, Device, DeviceSpec, PackedMatrix, Precision, Tensor, WeightChoice, WeightFormat,
    tensor_data,
};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Value, json};

use crate::checkpoint::{self, StoredTensor, StoredTensors};
use crate::config::{self, PACKED_LAYOUT, PACKED_METHOD};
use crate::registry::{family_of, weight_dtype};
use crate::weights::{Missing, Weights};
use crate::{LoadError, ModelFiles};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
/// Tensors begin at a multiple of this: a vector of the widest instruction set never straddles two
/// lines of the cache.
const ALIGNMENT: usize = 64;

/// Writes a packed copy of a checkpoint into a folder. `progress` hears bytes written and bytes in
/// all.
///
/// # Errors
/// When the checkpoint does not fit its config, is packed already, or the folder cannot be written.
pub fn write_packed(
    files: &ModelFiles,
    choice: impl Into<WeightChoice>,
    folder: &Path,
    progress: &dyn Fn(u64, u64),
) -> Result<(), LoadError> {
    let choice = choice.into();
    let mut config: Value = files.required_json(CONFIG)?;
    if let Some(format) = config::packed_format(&config)? {
        let (found, asked) = (format.name(), "packing".to_owned());
        return Err(LoadError::Packed { found, asked });
    }
    let stored = checkpoint::open(files)?;
    let own = weight_dtype(&stored)?;
    let supported = [DType::F32, DType::BF16, DType::F16];
    let precision = Precision::resolve(choice, own, DeviceSpec::Cpu, &supported)?;
    let format = WeightFormat::of(precision.weights, precision.quantize);
    let entries = entries(&config, stored, format, precision.weights)?;
    config["quantization_config"] =
        json!({"quant_method": PACKED_METHOD, "layout": PACKED_LAYOUT, "format": format.name()});
    fs::create_dir_all(folder).map_err(|e| io_error(folder, e))?;
    for (name, content) in files.companions()? {
        let path = folder.join(name);
        fs::write(&path, content).map_err(|e| io_error(&path, e))?;
    }
    write_weights(&folder.join(WEIGHTS), &entries, progress)?;
    // Last: a folder that was not finished is not taken for a checkpoint.
    let path = folder.join(CONFIG);
    fs::write(&path, format!("{config:#}\n")).map_err(|e| io_error(&path, e))
}

fn io_error(path: &Path, source: io::Error) -> LoadError {
    LoadError::Io { file: path.display().to_string(), source }
}

/// A tensor to be written.
struct Entry {
    name: String,
    stored: StoredTensor,
    /// What it is converted to.
    dtype: DType,
    /// What a projection of `[out, in]` is packed as after that.
    packed: Option<(WeightFormat, [usize; 2])>,
}

/// The tensors the config asks for, projections first.
fn entries(
    config: &Value,
    mut stored: StoredTensors,
    format: WeightFormat,
    dtype: DType,
) -> Result<Vec<Entry>, LoadError> {
    let mut weights = Weights::new(StoredTensors::new(), Device::flex(), Precision::F32);
    // Every tensor is missing, and so gets listed; the model itself is not used.
    (family_of(config)?.load)(config, &mut weights)?;
    let (mut entries, mut problems) = (Vec::new(), Vec::new());
    for Missing { name, shape, is_projection } in weights.into_missing() {
        let Some(stored) = stored.remove(&name) else {
            problems.push(format!("missing: {name}"));
            continue;
        };
        if stored.shape != shape {
            problems.push(format!("{name} is {:?}, expected {shape:?}", stored.shape));
        }
        let packed = match shape[..] {
            [outs, k] if is_projection => Some((format, [outs, k])),
            _ => None,
        };
        entries.push(Entry { name, stored, dtype, packed });
    }
    problems.extend(stored.into_keys().map(|name| format!("unused: {name}")));
    if !problems.is_empty() {
        problems.truncate(4);
        return Err(LoadError::Tensors { problems: problems.join("; ") });
    }
    entries.sort_by_key(|entry| entry.packed.is_none());
    Ok(entries)
}

impl Entry {
    fn info(&self, from: usize) -> TensorInfo {
        let (dtype, shape) = match (self.packed, self.dtype) {
            (Some((format, shape)), _) => {
                (Dtype::U32, PackedMatrix::words_of(format, shape).to_vec())
            }
            (None, DType::BF16) => (Dtype::BF16, self.stored.shape.clone()),
            (None, DType::F16) => (Dtype::F16, self.stored.shape.clone()),
            (None, _) => (Dtype::F32, self.stored.shape.clone()),
        };
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        TensorInfo { dtype, shape, data_offsets: (from, from + bytes) }
    }

    /// Writes its bytes, converted and, if it is a projection, packed.
    fn write(&self, write: impl FnOnce(&[u8]) -> Result<(), LoadError>) -> Result<(), LoadError> {
        let count = self.stored.shape.iter().product();
        let data = tensor_data(self.stored.bytes()?, [count], self.stored.dtype);
        let data = data.convert_dtype(self.dtype);
        match self.packed {
            Some((format, shape)) => {
                let options = (&Device::flex(), self.dtype);
                let weight = Tensor::<1>::from_data(data, options).reshape(shape);
                write(PackedMatrix::pack(weight, format).as_bytes())
            }
            None => write(data.as_bytes()),
        }
    }
}

/// A safetensors file whose data begins at a multiple of [`ALIGNMENT`].
fn write_weights(
    path: &Path,
    entries: &[Entry],
    progress: &dyn Fn(u64, u64),
) -> Result<(), LoadError> {
    let mut total = 0;
    let mut infos = Vec::new();
    for entry in entries {
        let info = entry.info(total);
        total = info.data_offsets.1;
        infos.push((entry.name.clone(), info));
    }
    let ends: Vec<usize> = infos.iter().map(|(_, info)| info.data_offsets.1).collect();
    let other = |e: String| io_error(path, io::Error::other(e));
    let metadata = Metadata::new(None, infos).map_err(|e| other(e.to_string()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| other(e.to_string()))?;
    let whole = (size_of::<u64>() + header.len()).next_multiple_of(ALIGNMENT);
    header.resize(whole - size_of::<u64>(), b' ');
    let file = File::create(path).map_err(|e| io_error(path, e))?;
    let mut file = BufWriter::new(file);
    let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(|e| io_error(path, e));
    write(&(header.len() as u64).to_le_bytes())?;
    write(&header)?;
    for (entry, end) in entries.iter().zip(ends) {
        entry.write(&mut write)?;
        progress(end as u64, total as u64);
    }
    file.into_inner()
        .map_err(io::IntoInnerError::into_error)
        .and_then(|f| f.sync_all())
        .map_err(|e| io_error(path, e))
}

/// Names and contents of the files that go with the weights.
type Companions = Vec<(String, Cow<'static, [u8]>)>;

impl ModelFiles {
    /// Tokenizer, template and settings: all but the config and the weights.
    fn companions(&self) -> Result<Companions, LoadError> {
        let names: Vec<String> = match self {
            Self::Folder(folder) => fs::read_dir(folder)
                .and_then(|entries| {
                    entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect()
                })
                .map_err(|e| io_error(folder, e))?,
            Self::Builtin { files, .. } => files.iter().map(|(name, _)| (*name).into()).collect(),
        };
        let wanted = names.into_iter().filter(|name| {
            let is_text = [".json", ".jinja", ".txt", ".model"].iter().any(|e| name.ends_with(e));
            is_text && name != CONFIG && !name.ends_with(".index.json")
        });
        // What has no name of text is none of ours, and so is not found.
        let contents = wanted.map(|name| Ok(self.read(&name)?.map(|content| (name, content))));
        contents.filter_map(Result::transpose).collect()
    }
}

#[cfg(test)]
mod tests {
    use dfastllm_backends::{CpuProvider, DTypeChoice, DeviceProvider, Quantize};

    use super::*;
    use crate::{builtin_files, load, synth_tensors, unobserved, write_synth};

    /// Logits of a short prompt.
    fn logits(files: &ModelFiles, choice: WeightChoice) -> Vec<f32> {
        let device = CpuProvider.open(DeviceSpec::Cpu).unwrap().unwrap();
        let loaded = load(files, &device, choice).unwrap();
        let rows =
            dfastllm_backends::RaggedRows::single(&[5, 9, 300], loaded.model.attend()).unwrap();
        let shape = loaded.model.shape().kv_shape(0, dfastllm_backends::PAGE_SIZE);
        let mut pool = dfastllm_backends::KvPool::new(shape, loaded.precision.kv, &Device::flex());
        let hidden = loaded.model.forward(&rows, &mut pool, &mut unobserved);
        loaded.model.logits(hidden).into_data().try_to_vec().unwrap()
    }

    fn choice(dtype: DTypeChoice, quantize: Quantize) -> WeightChoice {
        WeightChoice { dtype, quantize }
    }

    #[test]
    fn a_packed_checkpoint_computes_the_same_bits() {
        let plain = choice(DTypeChoice::Auto, Quantize::None);
        for (name, choice) in [
            ("tiny-phi", choice(DTypeChoice::Auto, Quantize::Int8)),
            ("tiny-dream", choice(DTypeChoice::Auto, Quantize::Int4)),
            ("tiny-llada", choice(DTypeChoice::F32, Quantize::None)),
            ("tiny-llada", choice(DTypeChoice::Bf16, Quantize::None)),
            ("tiny-phi", choice(DTypeChoice::F16, Quantize::None)),
        ] {
            let (files, folder) = (builtin_files(name).unwrap(), tempfile::tempdir().unwrap());
            let seen = std::cell::Cell::new((0, 0));
            write_packed(&files, choice, folder.path(), &|done, all| seen.set((done, all)))
                .unwrap();
            assert!(seen.get().0 > 0 && seen.get().0 == seen.get().1, "{:?}", seen.get());
            let packed = ModelFiles::Folder(folder.path().to_owned());
            assert_eq!(logits(&packed, plain), logits(&files, choice), "{name} {choice:?}");
            let again = write_packed(&packed, plain, folder.path(), &|_, _| {}).unwrap_err();
            assert!(again.to_string().contains("packed as"), "{again}");
        }
    }

    #[test]
    fn weights_are_rounded_to_the_dtype_before_they_are_quantised_as_at_load() {
        let config: Value =
            builtin_files("tiny-phi").unwrap().required_json("config.json").unwrap();
        let (wide, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tensors = synth_tensors(&config, DType::F32, 7).unwrap();
        write_synth(wide.path(), &config, tensors, &|_| {}).unwrap();
        let files = ModelFiles::Folder(wide.path().to_owned());
        let choice = choice(DTypeChoice::Bf16, Quantize::Int8);
        write_packed(&files, choice, folder.path(), &|_, _| {}).unwrap();
        let packed = ModelFiles::Folder(folder.path().to_owned());
        assert_eq!(logits(&packed, WeightChoice::default()), logits(&files, choice));
    }

    #[test]
    fn a_packed_checkpoint_refuses_what_it_is_not() {
        let (files, folder) = (builtin_files("tiny-phi").unwrap(), tempfile::tempdir().unwrap());
        let int8 = choice(DTypeChoice::Auto, Quantize::Int8);
        write_packed(&files, int8, folder.path(), &|_, _| {}).unwrap();
        let packed = ModelFiles::Folder(folder.path().to_owned());
        let device = CpuProvider.open(DeviceSpec::Cpu).unwrap().unwrap();
        let int4 = choice(DTypeChoice::Auto, Quantize::Int4);
        let error = load(&packed, &device, int4).err().unwrap().to_string();
        assert!(error.contains("packed as int8") && error.contains("int4"), "{error}");
        assert_eq!(load(&packed, &device, int8).unwrap().precision.quantize, Quantize::Int8);
        let elsewhere = dfastllm_backends::OpenDevice { spec: DeviceSpec::NdArray, ..device };
        let error = load(&packed, &elsewhere, int8).err().unwrap().to_string();
        assert!(error.contains("'ndarray' has no int8 weights"), "{error}");
        for (found, word) in [
            (json!({"quant_method": "gptq"}), "gptq"),
            (json!({"quant_method": PACKED_METHOD, "layout": "rows", "format": "int8"}), "rows"),
            (
                json!({"quant_method": PACKED_METHOD, "layout": PACKED_LAYOUT}),
                "quantization_config",
            ),
        ] {
            let error = config::packed_format(&json!({"quantization_config": found})).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
