//! What a checkpoint computes.
//!
//! [`load`] turns a folder or a built-in model into a [`LoadedModel`]: a [`LanguageModel`] that
//! maps ragged rows to hidden rows and hidden rows to logits, its [`Tokenizer`], its
//! [`ChatTemplate`] and the ids and defaults the checkpoint brings.
//!
//! A family is one file (`phi.rs`, `llada.rs`, `dream.rs`) over the shared `layers`, plus one line
//! in `registry.rs`. Absent on purpose: sampling, requests, threads, device choice. `forward`
//! takes `&self`; all mutable state, the key/value pool, is an argument.

mod builtin;
mod chat;
mod checkpoint;
mod config;
mod dream;
mod error;
mod files;
mod layers;
mod llada;
mod model;
mod phi;
mod quantize;
mod recorded;
mod registry;
mod special;
mod structure;
mod synth;
mod tokenizer;
mod weights;

pub use builtin::{BUILTIN_MODELS, builtin_files};
pub use chat::{ChatError, ChatTemplate, Rendering};
pub use checkpoint::shard_names;
pub use dfastllm_backends::ops;
pub use dfastllm_backends::{
    Attend, DType, DTypeChoice, Device, KvPool, KvShape, OpenDevice, PAGE_SIZE, Precision,
    RaggedRows, RowsError, SpanRequest, Tensor, run_on,
};
pub use error::LoadError;
pub use files::ModelFiles;
pub use model::{Alignment, Halves, LanguageModel, ModelShape, Probe, Tap, unobserved};
pub use quantize::write_packed;
pub use recorded::{NotRecorded, RecordedSteps, difference};
pub use registry::{LoadedModel, family_name, load};
pub use special::{GenerationDefaults, ReferenceLoop, SpecialIds};
pub use structure::{Guide, Structure, StructureCompiler, StructureError, TokenSet};
pub use synth::{SynthTensor, shape_config, shape_names, synth_tensors, write_synth};
pub use tokenizer::{SpecialTokens, TokenStream, Tokenizer};
pub use weights::Projections;
