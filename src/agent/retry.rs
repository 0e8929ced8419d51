//! Calls of the task store that are repeated while the database is away.
use crate::task::Error;
use std::{future::Future, time::Duration};
use tokio::time::{Instant, sleep};

/// How long an internal error is retried.
const INTERNAL_WITHIN: Duration = Duration::from_secs(10);
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Calls until the database answers, with exponential backoff; at `until` returns its error. An internal error is
/// retried for [`INTERNAL_WITHIN`] only: it may be a permanent bug.
pub(super) async fn again<T, F: Future<Output = Result<T, Error>>>(
    until: Instant,
    mut call: impl FnMut() -> F,
) -> Result<T, Error> {
    let mut pause = PAUSE_FIRST;
    let internal_until = until.min(Instant::now() + INTERNAL_WITHIN);
    loop {
        let next = Instant::now() + pause;
        match call().await {
            Err(Error::Unavailable(_)) if next < until => {}
            Err(Error::Internal(_)) if next < internal_until => {}
            answer => return answer,
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
