//! How many questions an endpoint gets at once, and the pause that all its askers keep after a 429.
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

/// The gate of one endpoint. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Admission {
    places: Arc<Semaphore>,
    not_before: Arc<Mutex<Option<Instant>>>,
}

impl Admission {
    /// A gate with this many places.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places.max(1))), not_before: Arc::default() }
    }

    /// Waits for a place and for the end of the pause. Cancel safe: dropping it leaves the queue.
    pub async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        let place = self.places.clone().acquire_owned().await.ok();
        loop {
            let until = *self.not_before.lock();
            match until {
                Some(until) if until > Instant::now() => sleep_until(until).await,
                _ => return place,
            }
        }
    }

    /// Nobody enters for this long; a longer pause that is on already stays.
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
    async fn a_pause_holds_everyone() {
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
