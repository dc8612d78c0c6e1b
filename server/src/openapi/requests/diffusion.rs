//! The `diffusion` object.

use utoipa::ToSchema;

/// How a diffusion model decodes. Fields override those of the preset, and a parameter selects its
/// rule: `steps` the quota schedule, `threshold` the quota threshold. Combinations that cannot work
/// are refused by name, and so is the object on autoregressive models.
#[derive(ToSchema)]
pub(crate) struct Diffusion {
    /// `reference` is the published loop, `exact` its tokens without its wasted work, `fast` and
    /// `turbo` commit as many positions at once as keep their entropies within 4 or 6 nats.
    #[schema(inline)]
    preset: Option<Preset>,
    /// Passes over the canvas (schedule, bernoulli).
    #[schema(minimum = 1)]
    steps: Option<u64>,
    /// Positions of a block; selects region blocks.
    #[schema(minimum = 1)]
    block_length: Option<u64>,
    /// Last time of Dream's schedule (schedule, bernoulli).
    #[schema(exclusive_minimum = 0, exclusive_maximum = 1)]
    eps: Option<f64>,
    /// Where positions may be committed: anywhere, in blocks one after the other, or in a window from
    /// the first open position.
    #[schema(inline)]
    region: Option<Region>,
    /// Positions of the window; selects region window.
    #[schema(minimum = 1)]
    window: Option<u64>,
    /// Which position comes first.
    #[schema(inline)]
    score: Option<Score>,
    /// How many positions a pass commits.
    #[schema(inline)]
    quota: Option<Quota>,
    /// Least probability (threshold, hierarchical, stable).
    #[schema(minimum = 0, maximum = 1000)]
    threshold: Option<f64>,
    /// Fast-dLLM's factor (factor).
    #[schema(minimum = 0, maximum = 1_000_000)]
    factor: Option<f64>,
    /// Nats that the entropies of a pass's positions may sum to (entropy_bound).
    #[schema(minimum = 0, maximum = 1_000_000)]
    entropy_bound: Option<f64>,
    /// Least probability next to nothing committed (hierarchical).
    #[schema(minimum = 0)]
    low_threshold: Option<f64>,
    /// Most divergence between passes (stable).
    #[schema(minimum = 0)]
    stable_kl: Option<f64>,
    /// Passes a prediction has to last (stable).
    #[schema(minimum = 1)]
    stable_steps: Option<u64>,
    /// Weight of the diffusion model against the verifier (adaptive; needs `--draft-model`).
    #[schema(minimum = 0, maximum = 1)]
    draft_weight: Option<f64>,
    /// Randomness of the order.
    #[schema(minimum = 0)]
    order_temperature: Option<f64>,
    /// Strength of classifier-free guidance.
    #[schema(minimum = 0)]
    cfg_scale: Option<f64>,
    /// Which keys and values are used again.
    #[schema(inline)]
    cache: Option<Cache>,
    /// Passes between full ones.
    #[schema(minimum = 1)]
    refresh_every: Option<u64>,
    /// Positions left and right of the region that are computed again; selects cache vicinity.
    #[schema(min_items = 2, max_items = 2)]
    vicinity: Option<Vec<u64>>,
    /// Which committed positions open again.
    #[schema(inline)]
    remask: Option<Remask>,
    /// Probability below which a position opens again; selects remask below.
    #[schema(minimum = 0, maximum = 1)]
    remask_threshold: Option<f64>,
    /// Probability a committed position has to keep; selects remask wino.
    #[schema(minimum = 0, maximum = 1)]
    verify_threshold: Option<f64>,
    /// Raises what earlier passes favoured.
    credit: Option<bool>,
    /// How long the answer is: fixed, grown block by block, or found by the model.
    #[schema(inline)]
    canvas: Option<Canvas>,
    /// Later steps drafted by the model itself and verified in the same pass.
    speculate: Option<u64>,
    /// Adds `trace` to the choices: commits, pass by pass.
    trace: Option<bool>,
    /// Adds `denoising` to the chunks of a stream: every change of the canvas.
    progress: Option<bool>,
    /// An estimate of how likely the end of the prompt is, instead of an answer (completions).
    likelihood: Option<Likelihood>,
    /// Texts and gaps after the prompt: a number is a gap of that many tokens.
    #[schema(min_items = 1, max_items = 256)]
    infill: Option<Vec<InfillPart>>,
    /// `score` in the words of LLaDA's script: low_confidence, random.
    #[schema(deprecated)]
    remasking: Option<String>,
    /// `score` in the words of Dream's script: origin, maskgit_plus, topk_margin, entropy.
    #[schema(deprecated)]
    alg: Option<String>,
    /// `order_temperature` in Dream's script.
    #[schema(deprecated)]
    alg_temp: Option<f64>,
    /// `threshold` on the replaced server.
    #[schema(deprecated)]
    confidence_threshold: Option<f64>,
    /// On the replaced server: false commits one position a pass.
    #[schema(deprecated)]
    parallel_decoding: Option<bool>,
    /// `max_tokens` in LLaDA's script.
    #[schema(deprecated)]
    gen_length: Option<u64>,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum Preset {
    Reference,
    Exact,
    Fast,
    Turbo,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum Region {
    Canvas,
    Blocks,
    Window,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum Score {
    Probability,
    Margin,
    Entropy,
    Random,
    LeftToRight,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum Quota {
    Schedule,
    Bernoulli,
    Threshold,
    Factor,
    EntropyBound,
    Hierarchical,
    Stable,
    Adaptive,
    One,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum Cache {
    None,
    Prefix,
    Dual,
    Vicinity,
    Interval,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum Remask {
    None,
    Below,
    Wino,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum Canvas {
    Fixed,
    Grow,
    Daedal,
}

/// LLaDA's Monte-Carlo estimate.
#[derive(ToSchema)]
struct Likelihood {
    /// Tokens of the prompt before the part that is scored.
    answer_start: u64,
    /// Samples; 128 unless told otherwise.
    #[schema(minimum = 1)]
    samples: Option<u64>,
}

/// A text, or a gap.
#[derive(ToSchema)]
#[serde(untagged)]
enum InfillPart {
    /// A text that stays.
    Text(String),
    /// A gap of exactly so many tokens.
    Exact(u64),
    /// A gap that may end earlier.
    Open(OpenGap),
}

/// A gap that may end earlier.
#[derive(ToSchema)]
struct OpenGap {
    /// Its longest length in tokens.
    max_tokens: u64,
}
