//! How a prompt is made of what a request holds: special tokens, template variables, and what is
//! left of it where it is too long.

use dfastllm_models::{Rendering, SpecialTokens};
use serde_json::{Map, Value};

use crate::ApiError;
use crate::openai::types::Common;

/// Bytes of `chat_template_kwargs`, as JSON.
const MAX_VARIABLES: usize = 64 << 10;
/// Variables that are fields of their own, or the server's.
const RESERVED: [&str; 7] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "tokenize",
];

/// Which end of a prompt is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// What `truncate_prompt_tokens` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Truncation {
    /// Tokens that stay; `None` for as many as the answer leaves room for.
    keep: Option<usize>,
    side: Side,
}

impl Truncation {
    /// Reads `truncate_prompt_tokens` and `truncation_side`.
    pub(crate) fn new(common: &Common, context: usize) -> Result<Option<Self>, ApiError> {
        let side = match common.truncation_side.as_deref() {
            None | Some("left") => Side::Left,
            Some("right") => Side::Right,
            Some(_) => {
                let message = "truncation_side: expected left or right";
                return Err(ApiError::invalid("truncation_side", message));
            }
        };
        let Some(value) = common.truncate_prompt_tokens.as_ref().filter(|v| !v.is_null()) else {
            return match common.truncation_side {
                None => Ok(None),
                Some(_) => {
                    let message = "truncation_side needs truncate_prompt_tokens";
                    Err(ApiError::invalid("truncation_side", message))
                }
            };
        };
        let keep = match value.as_i64() {
            Some(-1) => None,
            Some(n) if n > 0 && n.unsigned_abs() <= context as u64 => {
                Some(n.unsigned_abs() as usize)
            }
            _ => {
                let expected = format!("-1 or 1 to {context}");
                return Err(ApiError::wrong("truncate_prompt_tokens", value, &expected));
            }
        };
        Ok(Some(Self { keep, side }))
    }

    /// How long a prompt is after the cut, where the answer leaves `room`.
    pub(crate) fn longest(self, prompt: usize, room: usize) -> usize {
        prompt.min(self.keep.unwrap_or(room))
    }

    /// The cut, where the answer leaves `room`.
    pub(crate) fn cut(self, room: usize) -> Cut {
        Cut { keep: self.keep.unwrap_or(room), side: self.side }
    }
}

/// Cuts prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    keep: usize,
    side: Side,
}

impl Cut {
    /// Takes off what is too much. A prompt for which there is no room at all stays, to be refused.
    pub(crate) fn apply(self, prompt: &mut Vec<u32>) {
        let surplus = prompt.len().saturating_sub(self.keep);
        if surplus == 0 || self.keep == 0 {
            return;
        }
        match self.side {
            Side::Left => drop(prompt.drain(..surplus)),
            Side::Right => prompt.truncate(self.keep),
        }
    }
}

/// Whether the tokenizer adds its special tokens.
pub(crate) fn special_tokens(asked: Option<bool>, default: SpecialTokens) -> SpecialTokens {
    match asked {
        None => default,
        Some(true) => SpecialTokens::Include,
        Some(false) => SpecialTokens::Skip,
    }
}

/// What a chat says about its template.
pub(crate) fn rendering(
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    variables: Option<Map<String, Value>>,
) -> Result<Rendering, ApiError> {
    let continues = continue_final_message.unwrap_or(false);
    if continues && add_generation_prompt == Some(true) {
        let message = "continue_final_message and add_generation_prompt exclude each other";
        return Err(ApiError::invalid("continue_final_message", message));
    }
    let param = "chat_template_kwargs";
    let variables = variables.unwrap_or_default();
    if let Some(name) = variables.keys().find(|name| RESERVED.contains(&name.as_str())) {
        let message = format!("{param}.{name} is no variable of the template's own");
        return Err(ApiError::invalid(param, message));
    }
    let bytes = serde_json::to_vec(&variables).map_or(usize::MAX, |json| json.len());
    if bytes > MAX_VARIABLES {
        let message = format!("{param} has {bytes} bytes, at most {MAX_VARIABLES}");
        return Err(ApiError::invalid(param, message));
    }
    Ok(Rendering {
        add_generation_prompt: add_generation_prompt.unwrap_or(!continues),
        continue_final_message: continues,
        variables,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_prompt_loses_the_side_that_is_named() {
        let cut = |keep: Value, side: Option<&str>, room: usize| {
            let common = Common {
                truncate_prompt_tokens: Some(keep),
                truncation_side: side.map(str::to_owned),
                ..Common::default()
            };
            let mut prompt = vec![1, 2, 3, 4, 5];
            Truncation::new(&common, 8).unwrap().unwrap().cut(room).apply(&mut prompt);
            prompt
        };
        assert_eq!(cut(json!(2), None, 8), [4, 5]);
        assert_eq!(cut(json!(2), Some("left"), 8), [4, 5]);
        assert_eq!(cut(json!(2), Some("right"), 8), [1, 2]);
        assert_eq!(cut(json!(-1), None, 3), [3, 4, 5]);
        assert_eq!(cut(json!(-1), None, 0), [1, 2, 3, 4, 5], "the request is refused as too long");
        assert_eq!(cut(json!(8), None, 1), [1, 2, 3, 4, 5]);
    }
}
