//! Blocks that families share.

mod attention;
mod decoder;
mod mlp;
mod norm;

pub(crate) use attention::SelfAttention;
pub(crate) use decoder::{Decoder, Layer, Pass, PreNormLayer};
pub(crate) use mlp::GatedMlp;
pub(crate) use norm::Norm;
