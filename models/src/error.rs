use dfastllm_backends::{DType, DeviceError};

/// Why a model could not be loaded. Every message names the file and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is missing.
    #[error("{folder}: no {file}{hint}")]
    Missing {
        /// Where it was looked for.
        folder: String,
        /// Its name.
        file: String,
        /// What else was tried.
        hint: String,
    },
    /// A file could not be read.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// A file is larger than such a file can sensibly be.
    #[error("{file}: {bytes} bytes, expected at most {limit}")]
    TooLarge {
        /// The file.
        file: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A JSON file does not have the expected form.
    #[error("{file}: {reason}")]
    Json {
        /// The file.
        file: String,
        /// The parser's word, with line and column.
        reason: String,
    },
    /// `model_type` names no family served here.
    #[error("config.json: model_type '{found}' is not supported, expected one of {expected}")]
    UnknownFamily {
        /// What the config says.
        found: String,
        /// The families.
        expected: String,
    },
    /// A config value this implementation does not compute.
    #[error("config.json: {field} is {found}, expected {expected}")]
    UnsupportedConfig {
        /// The key.
        field: &'static str,
        /// Its value.
        found: String,
        /// What is supported.
        expected: String,
    },
    /// A safetensors file or its index is damaged.
    #[error("{file}: {reason}")]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The checkpoint's tensors are not those of the configured model.
    #[error("checkpoint does not fit config.json: {problems}")]
    Tensors {
        /// Missing, unused and misshapen tensors.
        problems: String,
    },
    /// The tokenizer cannot be built.
    #[error("{file}: {reason}")]
    Tokenizer {
        /// The file.
        file: String,
        /// The library's word.
        reason: String,
    },
    /// The tokenizer knows more tokens than the model.
    #[error("tokenizer has {tokens} tokens, more than the model's vocabulary of {vocab}")]
    TokenizerTooLarge {
        /// Highest token id plus one.
        tokens: usize,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// A mask token is needed and named nowhere.
    #[error("{family} needs mask_token_id in config.json, found none")]
    NoMaskToken {
        /// The family.
        family: &'static str,
    },
    /// A special id lies outside the vocabulary.
    #[error("{name} is {id}, outside the vocabulary of {vocab}")]
    SpecialId {
        /// Which id.
        name: &'static str,
        /// Its value.
        id: u64,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// The chat template does not compile.
    #[error("chat template: {0}")]
    ChatTemplate(String),
    /// Weights of a dtype that is not a float.
    #[error("{tensor}: dtype {dtype:?}, expected f32, bf16 or f16")]
    WeightDType {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: DType,
    },
    /// A packed checkpoint holds one format and no other.
    #[error("the checkpoint is packed as {found}; {asked} needs the one it was made from")]
    Packed {
        /// Its format.
        found: &'static str,
        /// What was asked for.
        asked: String,
    },
    /// The device refuses the precision.
    #[error(transparent)]
    Device(#[from] DeviceError),
}
