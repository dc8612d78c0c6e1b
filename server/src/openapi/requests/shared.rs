//! Fields that mean the same on OpenAI's endpoints and on those of other APIs (`foreign.rs`).

use std::collections::BTreeMap;

use utoipa::ToSchema;

use super::Diffusion;

/// Fields of `/v1/completions` and `/v1/chat/completions` that other APIs take under the same names.
#[derive(ToSchema)]
pub(crate) struct SharedFields {
    /// Randomness of the tokens; 0 takes the most probable one. Absent: the checkpoint's, else 1 for
    /// autoregressive models and 0 for diffusion models.
    #[schema(minimum = 0, maximum = 100)]
    temperature: Option<f64>,
    /// Draws among the most probable tokens that together have this probability.
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// Draws among this many most probable tokens; 0 and -1 are all.
    #[schema(minimum = -1)]
    top_k: Option<i64>,
    /// Draws among tokens at least this share as probable as the most probable one.
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f64>,
    /// Equal requests with equal seeds have equal answers.
    seed: Option<i64>,
    /// Tokens that end the answer.
    stop_token_ids: Option<Vec<u32>>,
    /// Tokens before which the answer does not end by itself.
    min_tokens: Option<u64>,
    /// Goes on after an end token.
    ignore_eos: Option<bool>,
    /// Leaves special tokens out of the text; true unless told otherwise.
    skip_special_tokens: Option<bool>,
    /// Token ids, as text, to what is added to their logits: -100 to 100.
    logit_bias: Option<BTreeMap<String, f64>>,
    /// Taken off the logits of tokens that the answer has.
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f64>,
    /// Taken off the logits of tokens for every time the answer has them.
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f64>,
    /// Divides the logits of tokens that prompt and answer have; 1 changes nothing.
    #[schema(minimum = 0.01, maximum = 100)]
    repetition_penalty: Option<f64>,
    /// Requests of a lower number run first.
    priority: Option<i64>,
    /// Answers with server-sent events.
    stream: Option<bool>,
    /// How a diffusion model decodes. What only OpenAI's endpoints could answer is refused by name:
    /// `progress`, and on messages and gaps `trace` and `infill` too.
    diffusion: Option<Diffusion>,
    /// `diffusion.remasking`.
    #[schema(deprecated)]
    remasking: Option<String>,
    /// `diffusion.alg`.
    #[schema(deprecated)]
    alg: Option<String>,
    /// `diffusion.alg_temp`.
    #[schema(deprecated)]
    alg_temp: Option<f64>,
    /// `diffusion.parallel_decoding`.
    #[schema(deprecated)]
    parallel_decoding: Option<bool>,
    /// `diffusion.confidence_threshold`.
    #[schema(deprecated)]
    confidence_threshold: Option<f64>,
}
