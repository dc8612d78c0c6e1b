//! Reading `config.json` with the checkpoint's own keys and refusing what is not computed here.

use dfastllm_backends::WeightFormat;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::LoadError;

/// Bounds no published checkpoint comes near; they keep hostile files from sizing allocations.
const MAX_SIZE: usize = 1 << 20;
const MAX_LAYERS: usize = 1024;
const MAX_POSITIONS: usize = 1 << 24;

/// What every config says about itself.
#[derive(Deserialize)]
pub(crate) struct Header {
    pub(crate) model_type: String,
}

/// Reads a family's config struct.
pub(crate) fn read<T: DeserializeOwned>(config: &Value) -> Result<T, LoadError> {
    T::deserialize(config)
        .map_err(|e| LoadError::Json { file: "config.json".to_owned(), reason: e.to_string() })
}

/// `quant_method` of checkpoints that this program packed.
pub(crate) const PACKED_METHOD: &str = "dfastllm";
/// Their `layout`; another one gets another name.
pub(crate) const PACKED_LAYOUT: &str = "panels-32";

/// How projections are stored, if they are packed. Other quantisations are refused.
pub(crate) fn packed_format(config: &Value) -> Result<Option<WeightFormat>, LoadError> {
    let quantization = match config.get("quantization_config") {
        None | Some(Value::Null) => return Ok(None),
        Some(quantization) => quantization,
    };
    let text = |key: &str| quantization.get(key).and_then(Value::as_str).unwrap_or_default();
    let format = WeightFormat::named(text("format"));
    if format.is_none() || text("quant_method") != PACKED_METHOD || text("layout") != PACKED_LAYOUT
    {
        let expected = "none, or that of a checkpoint written by `dfastllm quantize`";
        let found = quantization.to_string();
        return Err(unsupported("quantization_config", found, expected.to_owned()));
    }
    Ok(format)
}

/// Refuses a value other than the one that is computed.
pub(crate) fn require<T>(field: &'static str, found: &T, expected: &T) -> Result<(), LoadError>
where
    T: PartialEq + std::fmt::Debug,
{
    if found == expected {
        return Ok(());
    }
    Err(unsupported(field, format!("{found:?}"), format!("{expected:?}")))
}

/// Refuses a value that has to be absent or null.
pub(crate) fn require_null(field: &'static str, found: Option<&Value>) -> Result<(), LoadError> {
    match found {
        None | Some(Value::Null) => Ok(()),
        Some(value) => Err(unsupported(field, value.to_string(), "null".to_owned())),
    }
}

/// Refuses sizes that are zero or absurd.
pub(crate) fn require_sizes(sizes: &[(&'static str, usize)]) -> Result<(), LoadError> {
    for &(field, size) in sizes {
        let limit = if field.contains("layers") {
            MAX_LAYERS
        } else if field.contains("position") || field.contains("sequence") {
            MAX_POSITIONS
        } else {
            MAX_SIZE
        };
        if size == 0 || size > limit {
            return Err(unsupported(field, size.to_string(), format!("1 to {limit}")));
        }
    }
    Ok(())
}

/// Refuses head counts that do not divide their widths.
pub(crate) fn require_heads(
    hidden: (&'static str, usize),
    heads: (&'static str, usize),
    kv_heads: (&'static str, usize),
) -> Result<usize, LoadError> {
    if !hidden.1.is_multiple_of(heads.1) {
        let expected = format!("a divisor of {} ({})", hidden.0, hidden.1);
        return Err(unsupported(heads.0, heads.1.to_string(), expected));
    }
    if !heads.1.is_multiple_of(kv_heads.1) {
        let expected = format!("a divisor of {} ({})", heads.0, heads.1);
        return Err(unsupported(kv_heads.0, kv_heads.1.to_string(), expected));
    }
    let head_dim = hidden.1 / heads.1;
    if !head_dim.is_multiple_of(2) {
        let expected =
            format!("heads of an even size, not {head_dim}: rotary embedding pairs them");
        return Err(unsupported(heads.0, heads.1.to_string(), expected));
    }
    Ok(head_dim)
}

pub(crate) fn unsupported(field: &'static str, found: String, expected: String) -> LoadError {
    LoadError::UnsupportedConfig { field, found, expected }
}

/// A JSON number of a norm or rotary setting that has to be positive and finite.
pub(crate) fn require_positive(field: &'static str, found: f64) -> Result<(), LoadError> {
    if found.is_finite() && found > 0.0 {
        return Ok(());
    }
    Err(unsupported(field, found.to_string(), "a positive number".to_owned()))
}
