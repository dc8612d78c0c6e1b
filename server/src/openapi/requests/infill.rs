//! `POST /infill`

use utoipa::ToSchema;

use super::Stop;
use super::shared::SharedFields;

/// `POST /infill`, for diffusion models. `input_prefix` and `prompt` together are not empty.
#[derive(ToSchema)]
pub(crate) struct InfillRequest {
    /// Name of the served model; may be left out.
    #[schema(example = "builtin:tiny-llada")]
    model: Option<String>,
    /// Text before the gap.
    input_prefix: Option<String>,
    /// More text before the gap, behind `input_prefix`.
    prompt: Option<String>,
    /// Text behind the gap.
    input_suffix: Option<String>,
    /// Texts from elsewhere, in front of everything.
    #[schema(max_items = 1024)]
    input_extra: Option<Vec<ExtraText>>,
    /// Longest gap in tokens; absent or -1: what the context leaves, at most 128.
    #[schema(minimum = -1)]
    n_predict: Option<i64>,
    /// Texts that end the gap and are not part of it.
    stop: Option<Stop>,
    /// `repetition_penalty`.
    #[schema(minimum = 0.01, maximum = 100)]
    repeat_penalty: Option<f64>,
    /// Adds the ids of the gap's tokens.
    return_tokens: Option<bool>,
    /// Milliseconds after which the answer ends with what is there; none below 1.
    t_max_predict_ms: Option<i64>,
    /// Parts of the answer that are wanted, `a/b` for `b` in `a`; all if there are none. Names of
    /// nothing are left out.
    #[schema(max_items = 64)]
    response_fields: Option<Vec<String>>,
    /// Samplers in use; others are off. Their order is the server's.
    samplers: Option<Vec<InfillSampler>>,
    /// 0: `/v1/completions` tells log-probabilities.
    #[schema(minimum = 0, maximum = 0)]
    n_probs: Option<u64>,
    /// 0: texts are not cut by their indentation.
    #[schema(minimum = 0, maximum = 0)]
    n_indent: Option<u64>,
    #[serde(flatten)]
    shared: SharedFields,
}

/// A text from elsewhere.
#[derive(ToSchema)]
struct ExtraText {
    /// The text.
    text: String,
    /// What it is called; `snippet` unless told otherwise.
    filename: Option<String>,
}

/// A sampler.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum InfillSampler {
    Penalties,
    TopK,
    TopP,
    MinP,
    Temperature,
    Infill,
}
