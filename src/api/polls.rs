//! How many requests may wait at the same time, of all callers and of one: whoever waits costs a connection
//! and now and then a look at the database, and nobody's waiting may keep others from either.
use super::{caller::Caller, problem::Problem};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Requests that wait, of all callers.
const ALL_MAX: usize = 2_000;
/// Of one caller.
const EACH_MAX: usize = 100;

/// Of those that wait, how many look at the database at the same time.
const LOOKS_MAX: usize = 2;

/// Who waits. Clones are the same list.
#[derive(Clone, Debug)]
pub struct Polls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    waiting: Mutex<Waiting>,
    looks: Semaphore,
}

impl Default for Polls {
    fn default() -> Self {
        Self(Arc::new(Inner { waiting: Mutex::default(), looks: Semaphore::new(LOOKS_MAX) }))
    }
}

#[derive(Debug, Default)]
struct Waiting {
    all: usize,
    each: HashMap<String, usize>,
}

/// A request that waits; its end frees the place.
#[derive(Debug)]
pub(super) struct Place {
    polls: Polls,
    name: String,
}

/// A place for a request that would wait so long; none is needed for one that does not.
pub(super) fn place(polls: &Polls, caller: &Caller, wait: Duration) -> Result<Option<Place>, Problem> {
    if wait.is_zero() {
        return Ok(None);
    }
    polls.take(caller.identity()).map(Some)
}

impl Polls {
    fn take(&self, name: String) -> Result<Place, Problem> {
        let mut waiting = self.0.waiting.lock();
        if waiting.all >= ALL_MAX {
            return Err(Problem::too_many(format!(
                "{ALL_MAX} requests wait already: try again, or without wait"
            )));
        }
        let own = waiting.each.entry(name.clone()).or_default();
        if *own >= EACH_MAX {
            let detail =
                format!("{EACH_MAX} requests of this caller wait already: let some of them end first");
            return Err(Problem::too_many(detail));
        }
        *own += 1;
        waiting.all += 1;
        Ok(Place { polls: self.clone(), name })
    }
}

impl Place {
    /// Waits until this request may look at the database again.
    pub(super) async fn look(&self) -> Option<SemaphorePermit<'_>> {
        self.polls.0.looks.acquire().await.ok()
    }
}

impl Drop for Place {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_cannot_take_all_places_and_gives_them_back() {
        let polls = Polls::default();
        let mut places: Vec<Place> = (0..EACH_MAX).map(|_| polls.take("a".into()).unwrap()).collect();
        assert!(polls.take("a".into()).is_err());
        let other = polls.take("b".into()).unwrap();
        places.pop();
        assert!(polls.take("a".into()).is_ok());
        drop((places, other));
        assert!(polls.0.waiting.lock().each.is_empty() && polls.0.waiting.lock().all == 0);
    }
}
