/// A request that cannot be run, with the parameter to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    /// The parameter, as clients spell it.
    pub param: &'static str,
    /// What was found and what is expected.
    pub message: String,
    /// Whether prompt and generated length exceed the context.
    pub context_exceeded: bool,
}

impl RequestError {
    /// A value out of range.
    #[must_use]
    pub fn new(param: &'static str, message: impl Into<String>) -> Self {
        Self { param, message: message.into(), context_exceeded: false }
    }
}

/// Why a valid request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue holds as many requests as it may.
    #[error("the queue is full: {capacity} requests are waiting")]
    QueueFull {
        /// Requests that may wait.
        capacity: usize,
    },
    /// The request needs more than all pages.
    #[error("{needed} tokens are more than the key/value cache holds, {positions}")]
    TooLong {
        /// Prompt and answer.
        needed: usize,
        /// Positions of the cache.
        positions: usize,
    },
    /// The engine is draining or has stopped.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The engine cannot go on.
    #[error("the engine has failed")]
    Failed,
}

/// Why a running request ended without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Its deadline passed.
    #[error("request timed out after {seconds} s")]
    Timeout {
        /// Seconds it was given from its arrival.
        seconds: u64,
    },
    /// It was asked to end.
    #[error("the request was cancelled")]
    Cancelled,
    /// The model produced NaN or infinity.
    #[error("the model produced values that are not finite")]
    Numerical,
    /// The answer's structure cannot be followed any further.
    #[error("the answer's structure cannot be followed: {reason}")]
    Structure {
        /// What stands in the way.
        reason: String,
    },
    /// A step failed.
    #[error("the forward pass failed")]
    StepFailed,
    /// The engine stopped before the request was finished.
    #[error("the server is shutting down")]
    Stopped,
}

/// Why an engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The operating system refuses the thread.
    #[error("cannot start the engine thread: {0}")]
    Thread(#[from] std::io::Error),
    /// A first pass failed or gave logits that say nothing.
    #[error(
        "a first pass gives no usable logits, or a long one other rows than short ones: the weights hold no \
         numbers, or the device fails"
    )]
    Device,
}
