//! The inference operations, one file each: contract, portable default, dispatch.
//!
//! A model calls these and cannot know which device or kernel answers. Every operation works on
//! ragged rows `[rows, features]`; a fast path is allowed only with a test that compares it with
//! the portable default next to it.

mod activation;
mod adjust;
mod attention;
mod embed;
mod linear;
mod norm;
pub mod philox;
mod rope;
mod row_params;
mod sample;
mod score;
mod sum;
mod token_set;

pub use activation::gelu_new;
pub use attention::{AttentionHeads, attention, portable_attention};
pub use embed::{embed, select_rows};
pub use linear::{Epilogue, Linear, linear, portable_linear};
pub use norm::{layer_norm, rms_norm};
pub use rope::{Rope, RopeAngles, RopePrecision};
pub use row_params::{
    ConfidenceOf, Credit, Draw, FilterOrder, Filters, Guidance, Mix, Penalties, RowParams,
};
pub use score::{RowScore, portable_scores, score_rows};
pub use sum::sum;
pub use token_set::TokenSet;
