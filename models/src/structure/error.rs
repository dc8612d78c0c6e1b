//! Why a structure is refused, or cannot go on.

/// A structure cannot be used, or an answer cannot go on in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StructureError {
    /// The structure is damaged, contradicts itself or uses what is not supported. `path` is a JSON
    /// pointer into a schema, and empty elsewhere.
    #[error("{}{reason}", if path.is_empty() { String::new() } else { format!("at {path}: ") })]
    Invalid {
        /// Where in the schema.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Larger than what is compiled.
    #[error("{what} is {found}, the limit is {limit}")]
    TooLarge {
        /// What was counted.
        what: &'static str,
        /// How much there is.
        found: usize,
        /// How much there may be.
        limit: usize,
    },
    /// Compiling took too long and was given up.
    #[error("the structure takes longer than {0} s to compile")]
    TooSlow(u64),
    /// Too many structures are being compiled.
    #[error("too many structures are being compiled; try again later")]
    Busy,
    /// The tokenizer's tokens are no texts that could be followed.
    #[error("this model's tokenizer cannot follow structures: {0}")]
    Tokenizer(String),
    /// A token that may not come next.
    #[error("token {0} may not come next")]
    NotAllowed(u32),
    /// The answer cannot go on in its structure.
    #[error("the structure cannot be followed further: {0}")]
    Stuck(String),
}

impl StructureError {
    /// Damaged or unsupported, without a place.
    pub(super) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid { path: String::new(), reason: reason.into() }
    }
}
