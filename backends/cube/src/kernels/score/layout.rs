//! Where kernels find what is asked of a row, and where they leave what they found: words of buffers
//! that hold all rows of a call.

use super::reduce::STATS;

/// Words of a row's header in the buffer of what is asked. Lists lie behind the headers of all rows;
/// what points at them counts words from the beginning.
pub(super) const HEADER: u32 = UNIFORM_LOW + 1;

/// Row of the logits.
pub(super) const ROW: u32 = 0;
/// Row that guides it, or `NONE`.
pub(super) const OTHER: u32 = 1;
/// Guidance scale plus 1, f32.
pub(super) const SCALE: u32 = 2;
/// Repetition penalty, f32.
pub(super) const REPETITION: u32 = 3;
/// Its reciprocal, f32.
pub(super) const RECIPROCAL: u32 = 4;
/// First of the edits, `id * 4 + kind` and an f32, by id and for one id in the order they apply.
pub(super) const EDITS: u32 = 5;
/// How many edits.
pub(super) const EDIT_COUNT: u32 = 6;
/// First word of the set of allowed tokens, or `NONE`.
pub(super) const ALLOWED: u32 = 7;
/// How many words it has.
pub(super) const ALLOWED_WORDS: u32 = 8;
/// What divides logits before filters, f32.
pub(super) const TEMPERATURE: u32 = 9;
/// The bits below.
pub(super) const FLAGS: u32 = 10;
/// Row of the adjusted logits that later kernels read, or `NONE`.
pub(super) const KEPT: u32 = 11;
/// The given token, or the low word of the seed.
pub(super) const SEED_LOW: u32 = 12;
/// High word of the seed.
pub(super) const SEED_HIGH: u32 = 13;
/// Position of the draw.
pub(super) const POSITION: u32 = 14;
/// Step of the draw.
pub(super) const STEP: u32 = 15;
/// Tokens to keep, 0 for all.
pub(super) const TOP_K: u32 = 16;
/// Probability to keep, times `2^64`.
pub(super) const TOP_P_HIGH: u32 = 17;
/// Its low word.
pub(super) const TOP_P_LOW: u32 = 18;
/// Logarithm of the least relative probability, f32.
pub(super) const LOG_MIN_P: u32 = 19;
/// First of the tokens whose mass is wanted.
pub(super) const ASKED: u32 = 20;
/// How many they are.
pub(super) const ASKED_COUNT: u32 = 21;
/// The uniform number of a categorical draw, times `2^64`.
pub(super) const UNIFORM_HIGH: u32 = 22;
/// Its low word.
pub(super) const UNIFORM_LOW: u32 = 23;

/// The row is measured after temperature and filters.
pub(super) const FLAG_FILTERED: u32 = 1;
/// Gumbel noise is drawn.
pub(super) const FLAG_GUMBEL: u32 = 2;
/// The token is drawn from the distribution.
pub(super) const FLAG_CATEGORICAL: u32 = 4;
/// The token is given.
pub(super) const FLAG_GIVEN: u32 = 8;
/// There is a top-p.
pub(super) const FLAG_TOP_P: u32 = 16;
/// Top-p comes before top-k.
pub(super) const FLAG_TOP_P_FIRST: u32 = 32;
/// There is a min-p.
pub(super) const FLAG_MIN_P: u32 = 64;

/// Kinds of edits: the repetition penalty,
pub(super) const EDIT_REPETITION: u32 = 0;
/// the value subtracted,
pub(super) const EDIT_SUBTRACT: u32 = 1;
/// the value added.
pub(super) const EDIT_ADD: u32 = 2;

/// What is left of a slice by the first kernel: statistics of the row as it came,
pub(super) const RAW: u32 = 0;
/// and after edits and sets; then the best of the raw ones, key and index.
pub(super) const ADJUSTED: u32 = STATS;
/// Where the best begin.
pub(super) const TOPS: u32 = 2 * STATS;

/// What is left of a slice by the draws: statistics after filters,
pub(super) const FILTERED: u32 = 0;
/// its mass,
pub(super) const MASS: u32 = STATS;
/// and the best two with noise.
pub(super) const NOISY: u32 = STATS + 3;
/// Words of it.
pub(super) const DRAWN: u32 = STATS + 7;

/// Bounds of a row: the least key the filters leave, and how many indices leave it if it is just that.
pub(super) const BOUNDS: u32 = 2;

/// The answer of a row: its token, or the two that might be it, each
/// with its raw, adjusted and measured key,
pub(super) const CANDIDATE: u32 = 4;
/// then the key of the best measured one and of the second,
pub(super) const BEST: u32 = 8;
/// sums of the measured row,
pub(super) const REST: u32 = 10;
/// with logarithms,
pub(super) const WEIGHTED: u32 = 11;
/// best key and sum of the raw row,
pub(super) const RAW_BEST: u32 = 12;
/// without it,
pub(super) const RAW_REST: u32 = 13;
/// exponentials of the tokens asked for,
pub(super) const ASKED_MASS: u32 = 14;
/// whether all that is finite,
pub(super) const FINITE: u32 = 15;
/// and the best raw ones, key and index.
pub(super) const ANSWER: u32 = 16;
