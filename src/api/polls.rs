//! Limits on concurrent long polls, in total and for each caller. Each poll holds a connection and repeats a
//! query.
use super::{caller::Caller, problem::Problem};
use axum::http::StatusCode;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Most waiting requests of all callers.
const ALL_MAX: usize = 2_000;
/// Most waiting requests of one caller.
const EACH_MAX: usize = 100;

/// Most waiting requests that query the database at the same time.
const QUERIES_MAX: usize = 2;

/// The waiting requests. Clones share the counts.
#[derive(Clone, Debug)]
pub struct Polls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    waiting: Mutex<Waiting>,
    queries: Semaphore,
}

impl Default for Polls {
    fn default() -> Self {
        Self(Arc::new(Inner { waiting: Mutex::default(), queries: Semaphore::new(QUERIES_MAX) }))
    }
}

#[derive(Debug, Default)]
struct Waiting {
    all: usize,
    each: HashMap<String, usize>,
}

/// A permit to wait; dropping it releases the place.
#[derive(Debug)]
pub(super) struct PollPermit {
    polls: Polls,
    name: String,
}

/// Returns a permit for a request that waits; `None` for one that does not wait, which needs none.
pub(super) fn permit(polls: &Polls, caller: &Caller, wait: Duration) -> Result<Option<PollPermit>, Problem> {
    if wait.is_zero() {
        return Ok(None);
    }
    polls.acquire(caller.identity()).map(Some)
}

impl Polls {
    fn acquire(&self, name: String) -> Result<PollPermit, Problem> {
        let mut waiting = self.0.waiting.lock();
        if waiting.all >= ALL_MAX {
            return Err(too_many(format!(
                "{ALL_MAX} requests are waiting already: try again later, or without wait"
            )));
        }
        let own = waiting.each.entry(name.clone()).or_default();
        if *own >= EACH_MAX {
            let detail = format!(
                "{EACH_MAX} requests of this caller are waiting already: wait until some of them end"
            );
            return Err(too_many(detail));
        }
        *own += 1;
        waiting.all += 1;
        Ok(PollPermit { polls: self.clone(), name })
    }
}

impl PollPermit {
    /// Waits for a permit to query the database.
    pub(super) async fn query(&self) -> Option<SemaphorePermit<'_>> {
        self.polls.0.queries.acquire().await.ok()
    }
}

impl Drop for PollPermit {
    fn drop(&mut self) {
        let mut waiting = self.polls.0.waiting.lock();
        waiting.all = waiting.all.saturating_sub(1);
        if let Some(own) = waiting.each.get_mut(&self.name) {
            *own -= 1;
            if *own == 0 {
                waiting.each.remove(&self.name);
            }
        }
    }
}

fn too_many(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "unavailable", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_cannot_hold_every_permit_and_permits_are_returned() {
        let polls = Polls::default();
        let mut permits: Vec<PollPermit> =
            (0..EACH_MAX).map(|_| polls.acquire("a".into()).unwrap()).collect();
        assert!(polls.acquire("a".into()).is_err());
        let other = polls.acquire("b".into()).unwrap();
        permits.pop();
        assert!(polls.acquire("a".into()).is_ok());
        drop((permits, other));
        assert!(polls.0.waiting.lock().each.is_empty() && polls.0.waiting.lock().all == 0);
    }
}
