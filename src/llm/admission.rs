//! Concurrency limit of an endpoint, and the pause of all its callers after a 429.
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

/// The limit of one endpoint. Clones share it.
#[derive(Clone, Debug)]
pub struct Admission {
    places: Arc<Semaphore>,
    not_before: Arc<Mutex<Option<Instant>>>,
}

impl Admission {
    /// A limit of `places` concurrent requests, at least one.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places.max(1))), not_before: Arc::default() }
    }

    /// Waits for a permit and for the end of the pause. Cancel safe: dropping the future leaves the queue.
    pub async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        let place = self.places.clone().acquire_owned().await.ok();
        // Read again after each sleep: another caller may have extended the pause.
        loop {
            let until = *self.not_before.lock();
            match until {
                Some(until) if until > Instant::now() => sleep_until(until).await,
                _ => return place,
            }
        }
    }

    /// Holds every `enter` for this long; a longer pause in progress stays.
    pub fn pause(&self, wait: Duration) {
        let until = Instant::now() + wait;
        let mut not_before = self.not_before.lock();
        if not_before.is_none_or(|before| before < until) {
            *not_before = Some(until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pause_holds_every_caller() {
        let gate = Admission::new(2);
        gate.pause(Duration::from_secs(3));
        gate.pause(Duration::from_secs(1));
        let began = Instant::now();
        let other = gate.clone();
        let _both = tokio::join!(gate.enter(), other.enter());
        assert_eq!(began.elapsed().as_secs(), 3);
        let third = tokio::time::timeout(Duration::from_secs(1), gate.enter()).await;
        assert!(third.is_err(), "both places are taken");
    }
}
