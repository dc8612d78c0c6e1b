//! Answers of `/tokenize`, `/detokenize` and `/tokenizer_info`.

use std::collections::BTreeMap;

use utoipa::ToSchema;

/// Answer of `/tokenize`.
#[derive(ToSchema)]
pub(crate) struct Tokenized {
    /// How many tokens there are.
    count: u64,
    /// The context, in tokens.
    max_model_len: u64,
    /// Their ids.
    tokens: Vec<u64>,
    /// With `return_token_strs`: how the vocabulary spells them.
    #[schema(required)]
    token_strs: Option<Vec<Option<String>>>,
}

/// Answer of `/detokenize`.
#[derive(ToSchema)]
pub(crate) struct Detokenized {
    /// The text, special tokens included.
    prompt: String,
}

/// Answer of `/tokenizer_info`: the checkpoint's `tokenizer_config.json`, with these fields in any
/// case.
#[derive(ToSchema)]
pub(crate) struct TokenizerInfo {
    /// Begins texts.
    #[schema(required)]
    bos_token: Option<String>,
    /// Ends answers.
    #[schema(required)]
    eos_token: Option<String>,
    /// Fills up.
    #[schema(required)]
    pad_token: Option<String>,
    /// Stands for what has no token.
    #[schema(required)]
    unk_token: Option<String>,
    /// Stands for what is to be filled in.
    #[schema(required)]
    mask_token: Option<String>,
    /// Stands between texts.
    #[schema(required)]
    sep_token: Option<String>,
    /// Stands for the class of a text.
    #[schema(required)]
    cls_token: Option<String>,
    /// The name that Python's library has for it.
    tokenizer_class: String,
    /// The chat template in service.
    #[schema(required)]
    chat_template: Option<String>,
    /// The context, in tokens.
    model_max_length: u64,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}
