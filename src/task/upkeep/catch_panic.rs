//! Confines a panic to the batch in which it happened.
use crate::task::{Error, TaskContext, storage::rows};
use futures_util::FutureExt as _;
use std::panic::AssertUnwindSafe;

/// Runs the work for a batch. A panic becomes an error of the batch, and is counted.
pub(in crate::task) async fn catch_panic<T>(
    context: &TaskContext,
    doing: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
        context.metrics.panics.inc();
        tracing::error!(doing, "panic in a batch of tasks");
        Err(rows::Unreadable::new("task", "internal error").into())
    })
}
