//! `vllm_xargs`: what vLLM's servers of diffusion models call their knobs.

use serde_json::{Map, Value};

use crate::ApiError;

/// Moves what has a meaning here into the `diffusion` object. Returns how many steps each block has,
/// if that is asked for: how many blocks there are is not known yet.
pub(crate) fn collect_xargs(
    given: Option<&Map<String, Value>>,
    denoises: bool,
    diffusion: &mut Map<String, Value>,
) -> Result<Option<usize>, ApiError> {
    let mut steps = None;
    for (name, value) in given.into_iter().flatten().filter(|(_, v)| !v.is_null()) {
        let is_off = value.as_u64() == Some(0) || *value == Value::Bool(false);
        match name.as_str() {
            "diffusion_read_only" | "diffusion_constrained" if is_off => {}
            "diffusion_canvas_length" if denoises => {
                let length = positive(name, value)?;
                let before = diffusion.insert("block_length".to_owned(), length.into());
                if before.is_some_and(|b| !b.is_null() && b != length) {
                    return Err(refuse(name, "it is another one than diffusion.block_length"));
                }
            }
            "diffusion_max_steps" if denoises => {
                if diffusion.get("steps").is_some_and(|s| !s.is_null()) {
                    return Err(refuse(name, "diffusion.steps is given, for all blocks together"));
                }
                steps = Some(positive(name, value)?);
            }
            "diffusion_canvas_length" | "diffusion_max_steps" => {
                return Err(refuse(name, "this model is autoregressive"));
            }
            "diffusion_seed_canvas" | "diffusion_pinned" => {
                return Err(refuse(name, "texts around gaps are diffusion.infill"));
            }
            "diffusion_read_only" => {
                return Err(refuse(name, "use ignore_eos and a canvas of max_tokens"));
            }
            _ => return Err(refuse(name, "nothing here has this name")),
        }
    }
    Ok(steps)
}

fn positive(name: &str, value: &Value) -> Result<usize, ApiError> {
    let number = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
    number.ok_or_else(|| refuse(name, "expected a whole number of at least 1"))
}

fn refuse(name: &str, reason: &str) -> ApiError {
    let name: String = name.chars().take(64).collect();
    let param = format!("vllm_xargs.{name}");
    ApiError::unsupported(&param, format!("{param}: {reason}"))
}
