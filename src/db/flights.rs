//! Deduplicates concurrent calls: those with the same key share one execution ("single flight").
use futures_util::future::{BoxFuture, FutureExt, Shared};
use parking_lot::Mutex;
use std::{collections::HashMap, fmt, hash::Hash, sync::Arc};

type Flight<V> = Shared<BoxFuture<'static, V>>;

/// The calls in progress, by key. Clones share them. Results are not cached.
pub struct Flights<K, V>(Arc<Mutex<HashMap<K, Flight<V>>>>);

/// A result, and whether its call began before the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlightResult<V> {
    /// The result.
    pub answer: V,
    /// The call was in progress already, so the result may be older than the caller's own call.
    pub was_under_way: bool,
}

/// One waiter of a call. The last waiter removes the entry, whether the call has ended or was abandoned.
struct Waiter<'a, K: Eq + Hash, V: Clone> {
    flights: &'a Flights<K, V>,
    key: K,
    flight: Flight<V>,
}

impl<K: Clone + Eq + Hash, V: Clone> Flights<K, V> {
    /// Returns the result of the call in progress for `key`, or else starts `ask`. Cancel safe: other waiters
    /// keep the call alive.
    pub async fn ask(&self, key: K, ask: impl FnOnce() -> BoxFuture<'static, V>) -> FlightResult<V> {
        let (flight, was_under_way) = {
            let mut flights = self.0.lock();
            match flights.get(&key) {
                Some(flight) => (flight.clone(), true),
                None => {
                    let flight = ask().shared();
                    flights.insert(key.clone(), flight.clone());
                    (flight, false)
                }
            }
        };
        let waiter = Waiter { flights: self, key, flight };
        let answer = waiter.flight.clone().await;
        FlightResult { answer, was_under_way }
    }
}

impl<K: Eq + Hash, V: Clone> Drop for Waiter<'_, K, V> {
    fn drop(&mut self) {
        let mut flights = self.flights.0.lock();
        let is_same = flights.get(&self.key).is_some_and(|flight| flight.ptr_eq(&self.flight));
        // Two references are left: this waiter's and the map's. Counted under the lock, so that no waiter can
        // join meanwhile.
        let is_last =
            self.flight.peek().is_some() || self.flight.strong_count().is_none_or(|count| count <= 2);
        if is_same && is_last {
            flights.remove(&self.key);
        }
    }
}

impl<K, V> Clone for Flights<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, V> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flights")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn concurrent_calls_share_a_result_and_an_abandoned_call_is_repeated() {
        let (flights, asked, go) = (Flights::default(), Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let ask = || {
            let (asked, go) = (asked.clone(), go.clone());
            flights.ask(7, move || {
                async move {
                    go.notified().await;
                    asked.fetch_add(1, Ordering::Relaxed) + 1
                }
                .boxed()
            })
        };
        let (mut first, mut second) = (Box::pin(ask()), Box::pin(ask()));
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        drop(first);
        go.notify_one();
        assert_eq!(
            second.await,
            FlightResult { answer: 1, was_under_way: true },
            "goes on without the first"
        );
        let mut alone = Box::pin(ask());
        assert!(alone.as_mut().now_or_never().is_none());
        drop(alone);
        go.notify_one();
        assert_eq!(ask().await, FlightResult { answer: 2, was_under_way: false });
    }
}
