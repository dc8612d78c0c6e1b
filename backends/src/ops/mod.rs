//! The inference operations, one file each: contract, portable default, dispatch.
//!
//! A model calls these and cannot know which device or kernel answers. Every operation works on
//! ragged rows `[rows, features]`; a fast path is allowed only with a test that compares it with
//! the portable default next to it.

mod activation;
mod adjust;
mod attention;
mod blocks;
mod embed;
mod inputs;
pub(crate) mod kernels;
mod linear;
mod norm;
pub mod philox;
mod record;
mod rope;
mod row_params;
mod sample;
mod score;
mod step;
mod tables;
mod token_set;

pub use activation::gelu_new;
pub use attention::{AttentionHeads, LayerPages, attention, portable_attention, rotate_and_store};
pub use blocks::{BlockFormat, Blocks};
pub use embed::{embed, select_rows};
pub use inputs::{InputForm, PassInputs};
pub use kernels::{DeviceKernels, DeviceLinear, install_kernels, warm_up_rows};
pub use linear::{DeviceWeight, Epilogue, Linear, linear, linears, portable_linear};
pub use norm::{Normal, layer_norm, rms_norm};
pub use record::{RecordedPass, record, records};
pub use rope::{Rope, RopeAngles, RopePrecision, RopeShape};
pub use row_params::{
    ConfidenceOf, Credit, Draw, FilterOrder, Filters, Guidance, Mix, Penalties, RowParams,
};
pub use score::{RowScore, score_rows};
pub use step::{StepInputs, StepShape};
pub use tables::{AttentionRows, KeyLayout, KeyTables, LongSpan, TileClass};
pub use token_set::TokenSet;
