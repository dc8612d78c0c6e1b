//! Safetensors files of a checkpoint, single or sharded, mapped tensor by tensor, or whole if packed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use dfastllm_backends::{Bytes, DType, map_file};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::{LoadError, ModelFiles};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// More shards than any published checkpoint has.
const MAX_SHARDS: usize = 1000;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// A tensor in a file, unread.
#[derive(Debug, Clone)]
pub(crate) struct StoredTensor {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    /// Its file, for messages.
    pub(crate) file: String,
    source: Source,
    range: Range<usize>,
}

#[derive(Debug, Clone)]
enum Source {
    /// Each tensor is mapped by itself when it is wanted, so that those that are packed at load leave the
    /// memory one by one.
    Disk(Arc<File>),
    /// All of a file whose weights are used as they lie there: mapped in one piece, matrices have no
    /// beginnings and ends of their own, which would be in small pages.
    Whole(Bytes),
    Program(&'static [u8]),
}

impl StoredTensor {
    /// Whether it may be a packed weight.
    pub(crate) fn is_packed(&self) -> bool {
        self.dtype == DType::U32
    }

    /// Its bytes, not copied: pages stay in memory as long as the result lives.
    pub(crate) fn bytes(&self) -> Result<Bytes, LoadError> {
        let Range { start, end } = self.range;
        match &self.source {
            Source::Disk(file) => map_file(file, start as u64, end - start)
                .map_err(|source| LoadError::Io { file: self.file.clone(), source }),
            Source::Whole(content) => Ok(content.slice(start..end)),
            Source::Program(content) => Ok(Bytes::from_static(&content[start..end])),
        }
    }
}

/// All tensors by name.
pub(crate) type StoredTensors = BTreeMap<String, StoredTensor>;

/// Finds the safetensors files of a checkpoint and reads their headers.
pub(crate) fn open(files: &ModelFiles) -> Result<StoredTensors, LoadError> {
    let mut tensors = StoredTensors::new();
    for shard in shard_names(files)? {
        for (name, tensor) in open_file(files, &shard)? {
            let file = tensor.file.clone();
            if let Some(other) = tensors.insert(name.clone(), tensor) {
                let reason = format!("tensor {name} is also in {}", other.file);
                return Err(LoadError::Damaged { file, reason });
            }
        }
    }
    Ok(tensors)
}

/// File names of the weights: those the index names, checked to be plain names inside the folder,
/// else the one of a checkpoint without an index. Whether they are there is not looked at.
///
/// # Errors
/// When the index is damaged or leaves the folder.
pub fn shard_names(files: &ModelFiles) -> Result<Vec<String>, LoadError> {
    let Some(index) = files.json::<Index>(INDEX)? else { return Ok(vec![SINGLE.to_owned()]) };
    let mut shards: Vec<String> = index.weight_map.into_values().collect();
    shards.sort();
    shards.dedup();
    let damaged = |reason: String| LoadError::Damaged { file: files.path_of(INDEX), reason };
    if shards.is_empty() || shards.len() > MAX_SHARDS {
        return Err(damaged(format!("{} shards, expected 1 to {MAX_SHARDS}", shards.len())));
    }
    for shard in &shards {
        let plain = std::path::Path::new(shard).file_name().is_some_and(|n| n == shard.as_str());
        if !plain || shard.contains(['/', '\\', '\0']) {
            let reason = format!("shard '{shard}' does not name a file inside the folder");
            return Err(damaged(reason));
        }
    }
    Ok(shards)
}

fn open_file(files: &ModelFiles, shard: &str) -> Result<Vec<(String, StoredTensor)>, LoadError> {
    let path = files.path_of(shard);
    match files {
        ModelFiles::Folder(folder) => {
            let file = match File::open(folder.join(shard)) {
                Ok(file) => Arc::new(file),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Err(files.missing(shard, &missing_hint(folder, shard)));
                }
                Err(source) => return Err(LoadError::Io { file: path, source }),
            };
            let whole = file
                .metadata()
                .and_then(|data| map_file(&file, 0, data.len() as usize))
                .map_err(|source| LoadError::Io { file: path.clone(), source })?;
            let mut tensors = tensors_of(&whole, &path, &Source::Disk(file))?;
            if tensors.iter().any(|(_, tensor)| tensor.is_packed()) {
                for (_, tensor) in &mut tensors {
                    tensor.source = Source::Whole(whole.clone());
                }
            }
            Ok(tensors)
        }
        ModelFiles::Builtin { .. } => {
            let content = files.builtin(shard).ok_or_else(|| files.missing(shard, ""))?;
            tensors_of(content, &path, &Source::Program(content))
        }
    }
}

/// The tensors a file's header names.
fn tensors_of(
    content: &[u8],
    path: &str,
    source: &Source,
) -> Result<Vec<(String, StoredTensor)>, LoadError> {
    let damaged = |reason: String| LoadError::Damaged { file: path.to_owned(), reason };
    let (header, metadata) = SafeTensors::read_metadata(content)
        .map_err(|e| damaged(format!("not a valid safetensors file: {e}")))?;
    let first = size_of::<u64>() + header;
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let (start, end) = info.data_offsets;
        let dtype = match info.dtype {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            Dtype::U32 => DType::U32,
            other => return Err(damaged(format!("{name} is {other}, expected f32, bf16 or f16"))),
        };
        let tensor = StoredTensor {
            dtype,
            shape: info.shape.clone(),
            file: path.to_owned(),
            source: source.clone(),
            range: first + start..first + end,
        };
        Ok((name, tensor))
    });
    tensors.collect()
}

fn missing_hint(folder: &std::path::Path, shard: &str) -> String {
    if !folder.is_dir() {
        return " (the folder does not exist)".to_owned();
    }
    if shard == SINGLE { format!(" and no {INDEX}") } else { format!(", which {INDEX} names") }
}

#[cfg(test)]
mod tests {
    use dfastllm_backends::{DTypeChoice, Quantize, WeightChoice};

    use super::*;
    use crate::{builtin_files, synth_tensors, write_packed, write_synth};

    #[test]
    fn packed_weights_are_mapped_in_one_piece() {
        let (files, folder) = (builtin_files("tiny-phi").unwrap(), tempfile::tempdir().unwrap());
        let choice = WeightChoice { dtype: DTypeChoice::Auto, quantize: Quantize::Int8 };
        write_packed(&files, choice, folder.path(), &|_, _| {}).unwrap();
        let tensors = open(&ModelFiles::Folder(folder.path().to_owned())).unwrap();
        let begins = tensors.values().map(|tensor| {
            let bytes = tensor.bytes().unwrap();
            assert_eq!(bytes.len(), tensor.range.len());
            bytes.as_ptr() as usize - tensor.range.start
        });
        let begins: Vec<usize> = begins.collect();
        assert!(begins.len() > 10 && begins.iter().all(|&begin| begin == begins[0]));
    }

    #[test]
    fn what_is_packed_at_load_is_mapped_tensor_by_tensor() {
        let config = builtin_files("tiny-phi").unwrap().required_json("config.json").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let tensors = synth_tensors(&config, DType::BF16, 7).unwrap();
        write_synth(folder.path(), &config, tensors, &|_| {}).unwrap();
        let tensors = open(&ModelFiles::Folder(folder.path().to_owned())).unwrap();
        assert!(tensors.len() > 10);
        assert!(tensors.values().all(|tensor| matches!(tensor.source, Source::Disk(_))));
    }
}
