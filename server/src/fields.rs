//! Fields that clients know from elsewhere and that are not honoured here: values that ask for
//! nothing pass, others are refused with what to do instead.

use serde_json::Value;

use crate::ApiError;

/// Names, the values that ask for nothing, and why others are refused.
const REFUSED: [(&str, &[&str], &str); 13] = [
    ("length_penalty", &["1", "1.0"], "it weighs beams, and there is no beam search"),
    ("use_beam_search", &["false"], "there is no beam search"),
    ("early_stopping", &["false"], "there is no beam search"),
    (
        "prompt_logprobs",
        &[],
        "log-probabilities of a prompt come with echo and logprobs of /v1/completions",
    ),
    ("documents", &["[]"], "documents belong into the messages"),
    ("chat_template", &["\"\""], "templates are the server's: --chat-template FILE"),
    ("stream_interval", &["1"], "text is sent as it settles"),
    ("cache_salt", &[], "equal beginnings of prompts share their pages"),
    ("prompt_embeds", &[], "prompts are text or token ids"),
    ("logits_processors", &["[]"], "there are logit_bias, allowed_token_ids and bad_words"),
    ("stop_regex", &["[]"], "there are stop and stop_token_ids"),
    ("no_stop_trim", &["false"], "use include_stop_str_in_output"),
    ("lora_path", &["\"\""], "adapters are not served"),
];

/// The answer to a field that is known, but not honoured; `None` if nothing is known of it.
pub(crate) fn known(name: &str, value: &Value) -> Option<Result<(), ApiError>> {
    if let Some(kind) = name.strip_prefix("guided_") {
        let kind: String = kind.chars().take(32).collect();
        let message =
            format!("guided_{kind} was replaced by structured_outputs: {{\"{kind}\": …}}");
        return Some(Err(ApiError::unsupported(&format!("guided_{kind}"), message)));
    }
    let (_, neutral, reason) = REFUSED.iter().find(|(field, ..)| *field == name)?;
    if neutral.contains(&value.to_string().as_str()) {
        return Some(Ok(()));
    }
    Some(Err(ApiError::unsupported(name, format!("{name} is not supported: {reason}"))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn neutral_values_pass_and_removed_names_tell_their_successor() {
        assert_eq!(known("length_penalty", &json!(1.0)), Some(Ok(())));
        assert_eq!(known("documents", &json!([])), Some(Ok(())));
        assert_eq!(known("anything", &json!(1)), None);
        let message = |name, value| known(name, &value).unwrap().unwrap_err().message();
        assert!(message("length_penalty", json!(1.5)).contains("beam"));
        assert!(message("guided_regex", json!("a")).contains("structured_outputs: {\"regex\""));
    }
}
