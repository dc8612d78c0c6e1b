//! Safetensors files of a checkpoint, single or sharded, memory-mapped by burn-store.

use std::collections::BTreeMap;

use burn_store::burn_pack::Tensor as StoredTensor;
use burn_store::{ModuleStore, SafetensorsStore};
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

/// All tensors by name, unread, with the file each is in.
pub(crate) type StoredTensors = BTreeMap<String, (StoredTensor, String)>;

/// Finds and opens the safetensors files of a checkpoint.
pub(crate) fn open(files: &ModelFiles) -> Result<StoredTensors, LoadError> {
    let mut tensors = StoredTensors::new();
    for shard in shards(files)? {
        let path = files.path_of(&shard);
        for (name, tensor) in open_file(files, &shard)? {
            if let Some((_, other)) = tensors.insert(name.clone(), (tensor, path.clone())) {
                let reason = format!("tensor {name} is also in {other}");
                return Err(LoadError::Damaged { file: path, reason });
            }
        }
    }
    Ok(tensors)
}

/// File names of the shards, checked to be plain names inside the folder.
fn shards(files: &ModelFiles) -> Result<Vec<String>, LoadError> {
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

fn open_file(files: &ModelFiles, shard: &str) -> Result<BTreeMap<String, StoredTensor>, LoadError> {
    let mut store = match files {
        ModelFiles::Folder(folder) => {
            let path = folder.join(shard);
            if !path.is_file() {
                return Err(files.missing(shard, &missing_hint(folder, shard)));
            }
            SafetensorsStore::from_file(path)
        }
        ModelFiles::Builtin { .. } => {
            let content = files.read(shard)?.ok_or_else(|| files.missing(shard, ""))?;
            SafetensorsStore::from_bytes(Some(content.into_owned()))
        }
    };
    match store.get_all_tensors() {
        Ok(tensors) => Ok(tensors.clone()),
        Err(e) => {
            let reason = format!("not a valid safetensors file: {e}");
            Err(LoadError::Damaged { file: files.path_of(shard), reason })
        }
    }
}

fn missing_hint(folder: &std::path::Path, shard: &str) -> String {
    if !folder.is_dir() {
        return " (the folder does not exist)".to_owned();
    }
    if shard == SINGLE { format!(" and no {INDEX}") } else { format!(", which {INDEX} names") }
}
