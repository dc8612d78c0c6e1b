//! `POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, as vLLM has them: what clients
//! without the checkpoint's files need.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use dfastllm_models::{ChatTemplate, SpecialTokens};
use serde_json::{Map, Value, json};

use crate::convert::check_model;
use crate::foreign::Fields;
use crate::openai::conversation::{Conversation, messages, template};
use crate::openai::types::Body;
use crate::openapi::answers::{Detokenized, Tokenized, TokenizerInfo};
use crate::openapi::errors::{LoadingErrors, ReadErrors};
use crate::openapi::requests::{DetokenizeRequest, TokenizeRequest};
use crate::prompting::{rendering, special_tokens};
use crate::tools::tools_of;
use crate::{ApiError, AppState, ServedModel};

/// Longest text to tokenise, bytes; many times the longest prompt.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// Most ids to turn into text; twice the longest context served.
const MAX_IDS: usize = 1 << 18;
/// Tokens with a meaning, which `tokenizer_config.json` gives as texts or as objects.
const SPECIAL: [&str; 7] =
    ["bos_token", "eos_token", "pad_token", "unk_token", "mask_token", "sep_token", "cls_token"];

/// Ids of a text, or of a chat as its template writes it.
#[utoipa::path(post, path = "/tokenize", tag = "Other APIs", operation_id = "tokenize",
    request_body = TokenizeRequest, responses(
        (status = 200, description = "Token ids", body = Tokenized), ReadErrors))]
pub(crate) async fn tokenize(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let served = state.require_model()?;
    let mut given = Fields::parse(&headers, body).await?;
    check_optional_model(&mut given, served)?;
    let wants_spellings = given.flag("return_token_strs")?.unwrap_or(false);
    let added = given.flag("add_special_tokens")?;
    let asked = match (given.text("prompt")?, given.list("messages")?) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid("messages", "messages does not go with prompt"));
        }
        (Some(text), None) => Asked::Text(text, special_tokens(added, SpecialTokens::Include)),
        (None, Some(list)) => {
            let template = template(served)?;
            let tools = tools_of(given.take("tools").as_ref(), None, None)?;
            let (begins, continues) =
                (given.flag("add_generation_prompt")?, given.flag("continue_final_message")?);
            let rendering = rendering(begins, continues, None)?;
            // A template writes all special tokens itself.
            let how = (rendering, special_tokens(added, SpecialTokens::Skip));
            let messages = messages(Some(list))?;
            let chat = Conversation::new(&messages, tools.as_ref(), &template, how);
            Asked::Chat(Box::new(chat), template)
        }
        (None, None) => return Err(ApiError::invalid("prompt", "prompt is missing")),
    };
    given.refuse_rest()?;
    let ids = asked.encode(served).await?;
    let tokenizer = &served.tokenizer;
    let spelling = |&id: &u32| tokenizer.spelling_of(id);
    let spellings = wants_spellings.then(|| ids.iter().map(spelling).collect::<Vec<_>>());
    Ok(Json(json!({
        "count": ids.len(),
        "max_model_len": served.limits.max_model_len,
        "tokens": ids,
        "token_strs": spellings,
    })))
}

/// What to tokenise.
enum Asked {
    Text(String, SpecialTokens),
    Chat(Box<Conversation>, ChatTemplate),
}

impl Asked {
    async fn encode(self, served: &ServedModel) -> Result<Vec<u32>, ApiError> {
        let tokenizer = served.tokenizer.clone();
        let (text, special) = match self {
            Self::Chat(conversation, template) => {
                return conversation.prompt(template, tokenizer).await;
            }
            Self::Text(text, special) => (text, special),
        };
        if text.len() > MAX_TEXT_BYTES {
            let message = format!("{} bytes of text, at most {MAX_TEXT_BYTES}", text.len());
            return Err(ApiError::invalid("prompt", message));
        }
        // Long texts take milliseconds: not on the threads that answer health checks.
        tokio::task::spawn_blocking(move || tokenizer.encode(&text, special))
            .await
            .map_err(|_| failed())?
            .map_err(|e| ApiError::invalid("prompt", e))
    }
}

/// Text of ids, special tokens included.
#[utoipa::path(post, path = "/detokenize", tag = "Other APIs", operation_id = "detokenize",
    request_body = DetokenizeRequest, responses(
        (status = 200, description = "The text", body = Detokenized), ReadErrors))]
pub(crate) async fn detokenize(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let served = state.require_model()?;
    let mut given = Fields::parse(&headers, body).await?;
    check_optional_model(&mut given, served)?;
    let list = given.list("tokens")?;
    let list = list.ok_or_else(|| ApiError::invalid("tokens", "tokens is missing"))?;
    given.refuse_rest()?;
    if list.len() > MAX_IDS {
        let message = format!("{} tokens, at most {MAX_IDS}", list.len());
        return Err(ApiError::invalid("tokens", message));
    }
    let vocab = served.limits.vocab;
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.filter(|&id| (id as usize) < vocab)
    };
    let ids: Option<Vec<u32>> = list.iter().map(id).collect();
    let ids = ids.ok_or_else(|| {
        ApiError::invalid("tokens", format!("tokens: expected token ids below {vocab}"))
    })?;
    let tokenizer = served.tokenizer.clone();
    let decode = move || tokenizer.decode(&ids, SpecialTokens::Include);
    let text = tokio::task::spawn_blocking(decode).await.map_err(|_| failed())?;
    Ok(Json(json!({"prompt": text})))
}

/// The checkpoint's `tokenizer_config.json` with special tokens as texts and the chat template in
/// service.
#[utoipa::path(get, path = "/tokenizer_info", tag = "Other APIs", operation_id = "tokenizer_info",
    responses((status = 200, description = "What the checkpoint says of its tokenizer",
        body = TokenizerInfo), LoadingErrors))]
pub(crate) async fn info(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    let served = state.require_model()?;
    let tokenizer = &served.tokenizer;
    let mut info: Map<String, Value> = tokenizer.config().as_object().cloned().unwrap_or_default();
    for name in SPECIAL {
        let given = info.get(name).unwrap_or(&Value::Null);
        let text = given.as_str().or_else(|| given["content"].as_str()).map(str::to_owned);
        info.insert(name.to_owned(), json!(text));
    }
    if info["eos_token"].is_null() {
        let end = served.limits.end_ids.first().and_then(|&id| tokenizer.spelling_of(id));
        info.insert("eos_token".to_owned(), json!(end));
    }
    info.entry("tokenizer_class").or_insert(json!("PreTrainedTokenizerFast"));
    info.insert("chat_template".to_owned(), json!(served.chat.as_ref().map(|c| c.source())));
    info.insert("model_max_length".to_owned(), json!(served.limits.max_model_len));
    Ok(Json(Value::Object(info)))
}

/// One model is in service: requests need not name it, but may name no other.
fn check_optional_model(given: &mut Fields, served: &ServedModel) -> Result<(), ApiError> {
    match given.text("model")? {
        Some(name) => check_model(Some(&name), served),
        None => Ok(()),
    }
}

fn failed() -> ApiError {
    let message = "tokenisation failed".to_owned();
    ApiError::Internal { code: "internal_error", message }
}
