//! Request bodies. Every field is optional, and `null` is the same as absent.
//!
//! Doc comments of fields are their descriptions in `/openapi.json`; `value_type` says what a
//! `Value` has to be. Fields not named here arrive in `rest`; `convert.rs` ignores those that OpenAI's clients send
//! for bookkeeping and refuses the others by name.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::unique::Unique;
use crate::openapi::requests::{
    Diffusion, Logprobs, Message, Prompt, ResponseFormat, Stop, StructuredOutputs, Tool, ToolChoice,
};
use crate::{ApiError, BodyError};

/// Fields both generation endpoints share.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct Common {
    /// Name of a served model.
    #[schema(required, value_type = String, example = "builtin:tiny-llada")]
    pub(crate) model: Option<String>,
    /// Longest answer in tokens. Absent: 16 on completions; on chats the rest of the context, for
    /// diffusion models at most 256 of it. 0 only to score what `echo` repeats.
    #[schema(value_type = Option<u64>)]
    pub(crate) max_tokens: Option<Value>,
    /// Tokens before which the answer does not end by itself.
    #[schema(value_type = Option<u64>)]
    pub(crate) min_tokens: Option<Value>,
    /// Choices for every prompt; choice i draws with `seed` + i.
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 128)]
    pub(crate) n: Option<Value>,
    /// Randomness of the tokens; 0 takes the most probable one. Absent: the checkpoint's, else 1 for
    /// autoregressive models and 0 for diffusion models.
    #[schema(minimum = 0, maximum = 100)]
    pub(crate) temperature: Option<f64>,
    /// Draws among the most probable tokens that together have this probability.
    #[schema(minimum = 0, maximum = 1)]
    pub(crate) top_p: Option<f64>,
    /// Draws among this many most probable tokens; 0 and -1 are all.
    #[schema(value_type = Option<i64>, minimum = -1)]
    pub(crate) top_k: Option<Value>,
    /// Draws among tokens at least this share as probable as the most probable one.
    #[schema(minimum = 0, maximum = 1)]
    pub(crate) min_p: Option<f64>,
    /// Equal requests with equal seeds have equal answers.
    #[schema(value_type = Option<i64>)]
    pub(crate) seed: Option<Value>,
    /// Texts that end the answer and are not part of it.
    #[schema(value_type = Option<Stop>)]
    pub(crate) stop: Option<Value>,
    /// Tokens that end the answer.
    #[schema(value_type = Option<Vec<u32>>)]
    pub(crate) stop_token_ids: Option<Vec<Value>>,
    /// Goes on after an end token.
    pub(crate) ignore_eos: Option<bool>,
    /// Leaves special tokens out of the text; true unless told otherwise.
    pub(crate) skip_special_tokens: Option<bool>,
    /// Token ids, as text, to what is added to their logits: -100 to 100.
    #[schema(value_type = Option<std::collections::BTreeMap<String, f64>>)]
    pub(crate) logit_bias: Option<Map<String, Value>>,
    /// Requests of a lower number run first.
    pub(crate) priority: Option<i64>,
    /// Adds `token_ids` to the choices.
    pub(crate) return_token_ids: Option<bool>,
    /// Answers with server-sent events, the last of them `[DONE]`.
    pub(crate) stream: Option<bool>,
    /// What streams contain beside text.
    pub(crate) stream_options: Option<StreamOptions>,
    /// Taken off the logits of tokens that the answer has.
    #[schema(minimum = -2, maximum = 2)]
    pub(crate) presence_penalty: Option<f64>,
    /// Taken off the logits of tokens for every time the answer has them.
    #[schema(minimum = -2, maximum = 2)]
    pub(crate) frequency_penalty: Option<f64>,
    /// Divides the logits of tokens that prompt and answer have; 1 changes nothing.
    #[schema(minimum = 0.01, maximum = 100)]
    pub(crate) repetition_penalty: Option<f64>,
    /// Chats: whether log-probabilities are told. Completions: of how many tokens beside each, 0 to
    /// 20.
    #[schema(value_type = Option<Logprobs>)]
    pub(crate) logprobs: Option<Value>,
    /// Chats: most probable tokens told with each token; needs `logprobs`.
    #[schema(value_type = Option<u64>, maximum = 20)]
    pub(crate) top_logprobs: Option<Value>,
    /// How a diffusion model decodes.
    #[schema(value_type = Option<Diffusion>)]
    pub(crate) diffusion: Option<Map<String, Value>>,
    /// Choices generated for every prompt, of which the `n` of the highest mean log-probability are returned.
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 20)]
    pub(crate) best_of: Option<Value>,
    /// Keeps this many tokens of a longer prompt; -1 as many as fit beside the answer.
    #[schema(value_type = Option<i64>, minimum = -1)]
    pub(crate) truncate_prompt_tokens: Option<Value>,
    /// Which end of a prompt is cut: left or right.
    pub(crate) truncation_side: Option<String>,
    /// Whether the tokenizer adds its own special tokens; true on completions, false on chats.
    pub(crate) add_special_tokens: Option<bool>,
    /// Leaves the stop text in the answer.
    pub(crate) include_stop_str_in_output: Option<bool>,
    /// Words the answer never holds.
    pub(crate) bad_words: Option<Vec<String>>,
    /// The only tokens the answer may hold.
    #[schema(value_type = Option<Vec<u32>>)]
    pub(crate) allowed_token_ids: Option<Vec<Value>>,
    /// Writes tokens of log-probabilities as `token_id:17`.
    pub(crate) return_tokens_as_token_ids: Option<bool>,
    /// False; or true beside `skip_special_tokens`, where there is nothing to put spaces between.
    pub(crate) spaces_between_special_tokens: Option<bool>,
    /// Another name the request can be cancelled by.
    pub(crate) request_id: Option<String>,
    /// What form the answer has: any text, JSON, or JSON of a schema.
    #[schema(value_type = Option<ResponseFormat>)]
    pub(crate) response_format: Option<Value>,
    /// The same in vLLM's words, and more: a pattern, a choice, a grammar.
    #[schema(value_type = Option<StructuredOutputs>)]
    pub(crate) structured_outputs: Option<Value>,
    /// vLLM's settings of diffusion models.
    #[schema(value_type = Option<std::collections::BTreeMap<String, Value>>)]
    pub(crate) vllm_xargs: Option<Map<String, Value>>,
    #[serde(flatten)]
    pub(crate) rest: Map<String, Value>,
}

/// What streams contain beside text.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// A last chunk without choices that has `usage`.
    pub(crate) include_usage: Option<bool>,
    /// `usage` so far in every chunk.
    pub(crate) continuous_usage_stats: Option<bool>,
    /// Pads chunks of a stream so that their size tells nothing of the text.
    pub(crate) include_obfuscation: Option<bool>,
    #[serde(flatten)]
    pub(crate) rest: Map<String, Value>,
}

/// `POST /v1/completions`
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CompletionRequest {
    /// What is continued: a text, several, token ids, or several lists of them.
    #[schema(required, value_type = Prompt)]
    pub(crate) prompt: Option<Value>,
    /// Text behind the answer, for diffusion models.
    pub(crate) suffix: Option<String>,
    /// Repeats the prompt in front of the answer; with `logprobs` it is scored.
    pub(crate) echo: Option<bool>,
    #[serde(flatten)]
    pub(crate) common: Common,
}

/// `POST /v1/chat/completions`
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ChatRequest {
    /// The conversation so far.
    #[schema(required, value_type = Vec<Message>, min_items = 1, max_items = 10_000)]
    pub(crate) messages: Option<Vec<Value>>,
    /// The same as `max_tokens`.
    #[schema(value_type = Option<u64>)]
    pub(crate) max_completion_tokens: Option<Value>,
    /// Whether the template begins the answer; true unless told otherwise.
    pub(crate) add_generation_prompt: Option<bool>,
    /// Goes on with the last message instead of answering it.
    pub(crate) continue_final_message: Option<bool>,
    /// Functions the model may ask the client to call, at most 128.
    #[schema(value_type = Option<Vec<Tool>>)]
    pub(crate) tools: Option<Value>,
    /// `none`, `auto`, `required` or one of the tools.
    #[schema(value_type = Option<ToolChoice>)]
    pub(crate) tool_choice: Option<Value>,
    /// Whether an answer may hold several calls; true unless told otherwise.
    #[schema(value_type = Option<bool>)]
    pub(crate) parallel_tool_calls: Option<Value>,
    /// More variables for the chat template.
    #[schema(value_type = Option<std::collections::BTreeMap<String, Value>>)]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
    #[serde(flatten)]
    pub(crate) common: Common,
}

/// A request body, unless it could not be read.
pub(crate) type Body = Result<Bytes, BytesRejection>;

/// Bodies up to this size are parsed where they arrive; others take milliseconds, which other
/// requests need not wait for.
const SMALL_BODY_BYTES: usize = 16 << 10;

/// Parses a JSON body.
pub(crate) async fn parse<T: DeserializeOwned + Send + 'static>(
    headers: &HeaderMap,
    body: Body,
) -> Result<T, ApiError> {
    let body = body.map_err(|_| ApiError::Body(BodyError::TooLarge))?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|h| h.to_str().ok());
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::ContentType);
    }
    if body.len() <= SMALL_BODY_BYTES {
        return read(&body);
    }
    tokio::task::spawn_blocking(move || read(&body)).await.unwrap_or_else(|_| {
        let message = "the body could not be read".to_owned();
        Err(ApiError::Internal { code: "internal_error", message })
    })
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice::<Unique>(body).map_err(invalid)?;
    // First as any JSON: errors of flattened types do not say where they are.
    let value: Value = serde_json::from_slice(body).map_err(invalid)?;
    if !value.is_object() {
        let message = "invalid body: expected a JSON object".to_owned();
        return Err(ApiError::Invalid { param: None, code: None, message });
    }
    typed(&value)
}

/// A JSON object as a request; what does not fit is named.
pub(crate) fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, ApiError> {
    T::deserialize(value).map_err(|e| match wrong_field::<T>(value) {
        Some((field, reason)) => ApiError::invalid(&field, format!("{field}: {reason}")),
        None => invalid(e),
    })
}

fn invalid(error: serde_json::Error) -> ApiError {
    let message: String = error.to_string().chars().take(300).collect();
    ApiError::Invalid { param: None, code: None, message: format!("invalid body: {message}") }
}

/// The field that does not parse: errors of flattened types do not name it, so each is tried alone.
fn wrong_field<T: DeserializeOwned>(value: &Value) -> Option<(String, String)> {
    value.as_object()?.iter().find_map(|(name, value)| {
        let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
        let reason = T::deserialize(alone).err()?.to_string();
        Some((name.chars().take(64).collect(), reason.chars().take(200).collect()))
    })
}
