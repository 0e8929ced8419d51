//! What the jobs of one agent that thinks share, and why a job fails whose rows cannot be written.
use crate::{
    agent::{
        Definition,
        job::{permanent, retryable},
        kind::RunnerDeps,
    },
    llm::Provider,
    task::{Error, Failure, Schemas},
};
use std::sync::Arc;

/// The failure of a write that the rows do not permit.
pub(super) const FENCED: &str = "the assignment is over";

/// An agent of kind `llm` with tools.
pub(crate) struct Thinker {
    pub(crate) definition: Arc<Definition>,
    pub(crate) parts: RunnerDeps,
    pub(crate) provider: Provider,
    pub(crate) schemas: Schemas,
}

/// The failure of a job whose rows could not be written.
pub(super) fn unwritten(error: &Error) -> Failure {
    match error {
        Error::Fenced => retryable(FENCED),
        Error::Unstorable(_) => permanent(error.to_string()),
        error => retryable(error.to_string()),
    }
}
