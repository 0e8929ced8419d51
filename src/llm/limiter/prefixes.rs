//! Requests that begin alike: an endpoint reads their common prefix once and finds it in its cache afterwards. While the
//! first of them has no answer yet, the others would all be read at the full price, so they wait for its first byte.
use super::Ticket;
use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;

/// Longest wait for the first byte of another request: a hanging one must not hold up the others for long.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// How long an endpoint keeps a prefix that no request uses. Public endpoints keep it for five minutes or more.
const KEPT: Duration = Duration::from_secs(300);
/// Most prefixes that are known. Requests with others wait for no other request.
const PREFIXES_MAX: usize = 1_000;

/// A hash of what requests have in common at their beginning.
pub(in crate::llm) type Prefix = u64;

#[derive(Debug)]
enum State {
    /// This request was sent and has no answer; the others wait for at most this long.
    Sent(Ticket, Instant),
    /// An answer began at this time.
    Cached(Instant),
}

/// What is known of the prefixes of one account.
#[derive(Debug, Default)]
pub(super) struct Prefixes(HashMap<Prefix, State>);

impl Prefixes {
    /// How long a request with this prefix waits at most for the first byte of another one; zero if it does not.
    pub(super) fn wait(&self, now: Instant, prefix: Option<Prefix>) -> Duration {
        match prefix.and_then(|prefix| self.0.get(&prefix)) {
            Some(State::Sent(_, until)) => until.saturating_duration_since(now),
            _ => Duration::ZERO,
        }
    }

    /// Records that a request is sent. It is the first one if the prefix is in no cache.
    pub(super) fn sent(&mut self, now: Instant, ticket: Ticket, prefix: Option<Prefix>) {
        let Some(prefix) = prefix else { return };
        if self.0.get(&prefix).is_some_and(|state| state.holds(now)) {
            return;
        }
        if self.0.len() >= PREFIXES_MAX {
            self.0.retain(|_, state| state.holds(now));
        }
        if self.0.len() < PREFIXES_MAX {
            self.0.insert(prefix, State::Sent(ticket, now + WAIT_MAX));
        }
    }

    /// Records the first byte of an answer.
    pub(super) fn answered(&mut self, now: Instant, prefix: Option<Prefix>) {
        if let Some(state) = prefix.and_then(|prefix| self.0.get_mut(&prefix)) {
            *state = State::Cached(now);
        }
    }

    /// Records that a request is over. Without an answer to it, another one goes first.
    pub(super) fn over(&mut self, ticket: Ticket, prefix: Option<Prefix>) {
        let Some(prefix) = prefix else { return };
        if matches!(self.0.get(&prefix), Some(State::Sent(first, _)) if *first == ticket) {
            self.0.remove(&prefix);
        }
    }
}

impl State {
    /// Whether it still says something.
    fn holds(&self, now: Instant) -> bool {
        match self {
            Self::Sent(_, until) => *until > now,
            Self::Cached(at) => now.saturating_duration_since(*at) < KEPT,
        }
    }
}
