//! The limiter of one account: requests a minute, tokens a minute, and concurrent requests, shared by all agents.
//!
//! [`Limiter`] is a pure state machine: the caller gives the time. [`super::Account`] makes requests wait for it.
//! A request enters if all that it needs is there at once, or takes nothing. Limits are declared, reported by the
//! endpoint's headers, or learned from its refusals (additive increase, multiplicative decrease). After
//! `docs/spec/thinking-agents.md` §5, A1–A9.
mod prefixes;
mod queue;
mod rate;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub(in crate::llm) use prefixes::Prefix;
pub(in crate::llm) use queue::{Entry, Ticket};
pub(in crate::llm) use rate::Reported;

use prefixes::Prefixes;
use queue::Queue;
use rate::Rate;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Most waiting requests of an account.
const WAITING_MAX: usize = 10_000;
/// Concurrent requests of an account whose limit is not declared, until it is learned.
const PLACES_FIRST: f64 = 16.0;
/// Most concurrent requests of an account whose limit is not declared.
const PLACES_MAX: f64 = 256.0;
/// Factor of the places after a 429.
const PLACES_CUT: f64 = 0.7;
/// After a start or a pause, one more request may be under way for each such interval, and for each answer.
const RAMP: Duration = Duration::from_millis(250);
/// First pause after a 429 without `Retry-After`; it doubles.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The declared limits of an account. `None` is learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests a minute.
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers a minute.
    pub tokens_per_minute: Option<u64>,
    /// Concurrent requests.
    pub concurrent: Option<u32>,
}

/// How a request ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::llm) struct Ended {
    /// Whether the endpoint answered it.
    pub(in crate::llm) is_answered: bool,
    /// Tokens that it used; `None` if they are not known.
    pub(in crate::llm) tokens: Option<u64>,
    /// What the answer says of the limit of requests.
    pub(in crate::llm) requests_reported: Option<Reported>,
    /// What the answer says of the limit of tokens.
    pub(in crate::llm) tokens_reported: Option<Reported>,
}

/// Why a request cannot enter before its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::llm) enum Refused {
    /// Ten thousand requests wait.
    Full,
    /// It would wait for about this long.
    TooLate(Duration),
}

#[derive(Debug)]
struct UnderWay {
    entry: Entry,
    sent_at: Instant,
    /// What all requests had taken when it was sent, itself included.
    taken: (f64, f64),
}

/// The state of one account.
#[derive(Debug)]
pub(in crate::llm) struct Limiter {
    requests: Rate,
    tokens: Rate,
    queue: Queue,
    prefixes: Prefixes,
    under_way: BTreeMap<Ticket, UnderWay>,
    /// The number of each agent's requests under way.
    by_agent: HashMap<Arc<str>, usize>,
    places: f64,
    places_declared: bool,
    successes: f64,
    next_ticket: Ticket,
    /// All requests and tokens taken so far.
    taken: (f64, f64),
    paused_until: Option<Instant>,
    pause: Duration,
    ramp_from: Instant,
    /// Answers to requests that were sent since then.
    answered_in_ramp: usize,
    /// Whether the next 429 cuts the limits: a request that was sent after the last cut was accepted.
    may_cut: bool,
    /// Time of the last cut.
    cut_at: Option<Instant>,
    /// The report of a request that was sent before this one is stale.
    reported_sent_at: Option<Instant>,
    refused: u64,
}

impl Limiter {
    /// Creates the limiter of an account.
    pub(in crate::llm) fn new(now: Instant, limits: Limits) -> Self {
        Self {
            requests: Rate::new(now, limits.requests_per_minute.map(f64::from)),
            tokens: Rate::new(now, limits.tokens_per_minute.map(|tokens| tokens as f64)),
            queue: Queue::default(),
            prefixes: Prefixes::default(),
            under_way: BTreeMap::new(),
            by_agent: HashMap::new(),
            places: limits.concurrent.map_or(PLACES_FIRST, |places| f64::from(places.max(1))),
            places_declared: limits.concurrent.is_some(),
            successes: 0.0,
            next_ticket: 0,
            taken: (0.0, 0.0),
            paused_until: None,
            pause: PAUSE_FIRST,
            ramp_from: now,
            answered_in_ramp: 0,
            may_cut: true,
            cut_at: None,
            reported_sent_at: None,
            refused: 0,
        }
    }

    /// Adds a request to the queue.
    ///
    /// # Errors
    /// If it cannot enter before its deadline by the present rates.
    pub(in crate::llm) fn enqueue(
        &mut self,
        now: Instant,
        entry: Entry,
        deadline: Instant,
    ) -> Result<Ticket, Refused> {
        if self.queue.len() >= WAITING_MAX {
            return Err(Refused::Full);
        }
        let wait = self.estimate(now, &entry);
        if now + wait > deadline {
            return Err(Refused::TooLate(wait));
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.queue.add(now, ticket, entry, true);
        Ok(ticket)
    }

    /// About how long a new request would wait, as far as rates are known.
    fn estimate(&mut self, now: Instant, entry: &Entry) -> Duration {
        let (requests, tokens) = self.queue.ahead_of(&entry.agent);
        let by_rate = |rate: &mut Rate, ahead: f64, own: f64| match rate.per_minute() {
            Some(per_minute) => rate.wait(now, own) + Duration::from_secs_f64(ahead * 60.0 / per_minute),
            None => Duration::ZERO,
        };
        let paused = self.paused_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        paused.max(by_rate(&mut self.requests, requests as f64, 1.0)).max(by_rate(
            &mut self.tokens,
            tokens as f64,
            entry.tokens as f64,
        ))
    }

    /// The next request that may enter now; it has taken all that it needs. `None` if none may.
    pub(in crate::llm) fn admit(&mut self, now: Instant) -> Option<Ticket> {
        let ticket = self.candidate(now)?;
        if self.queue.len() > 1 || !self.wait(now, ticket)?.is_zero() {
            self.requests.grow(now);
            self.tokens.grow(now);
        }
        if !self.wait(now, ticket)?.is_zero() {
            return None;
        }
        let entry = self.queue.serve(now, ticket)?;
        let tokens = entry.tokens as f64;
        self.requests.take(now, 1.0);
        self.tokens.take(now, tokens);
        self.taken = (self.taken.0 + 1.0, self.taken.1 + tokens);
        *self.by_agent.entry(entry.agent.clone()).or_default() += 1;
        self.prefixes.sent(now, ticket, entry.prefix);
        self.under_way.insert(ticket, UnderWay { entry, sent_at: now, taken: self.taken });
        Some(ticket)
    }

    /// The request that is admitted next; `None` if none waits, or all wait for places.
    pub(in crate::llm) fn candidate(&self, now: Instant) -> Option<Ticket> {
        let places = self.places.floor().max(1.0) as usize;
        if self.under_way.len() >= places {
            return None;
        }
        let half = (places / 2).max(1);
        // An agent has at most half of the places while others wait.
        let may = |agent: &str| {
            self.by_agent.get(agent).is_none_or(|own| *own < half) || !self.queue.others_wait(agent)
        };
        // Requests whose prefix another one puts into the endpoint's cache just now let the others pass.
        let passes = |entry: &Entry| self.prefixes.wait(now, entry.prefix).is_zero();
        self.queue.next(now, may, passes).or_else(|| self.queue.next(now, may, |_| true))
    }

    /// How long the candidate has to wait still; `None` if it does not wait.
    pub(in crate::llm) fn wait(&mut self, now: Instant, ticket: Ticket) -> Option<Duration> {
        let entry = self.queue.get(ticket)?;
        let (tokens, prefix) = (entry.tokens as f64, self.prefixes.wait(now, entry.prefix));
        let paused = self.paused_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        // An answer shows that the endpoint accepts what is sent, so the requests under way can double in the time of
        // one answer, and an account with a thousand places is not held back for minutes.
        let intervals = self.under_way.len().saturating_sub(self.answered_in_ramp);
        let allowed_at = self.ramp_from + RAMP * u32::try_from(intervals).unwrap_or(u32::MAX);
        let ramp = allowed_at.saturating_duration_since(now);
        let rates = self.requests.wait(now, 1.0).max(self.tokens.wait(now, tokens));
        Some(paused.max(ramp).max(prefix).max(rates))
    }

    /// Records the first byte of an answer: requests with the same prefix need not wait any more.
    pub(in crate::llm) fn first_byte(&mut self, now: Instant, ticket: Ticket) {
        if let Some(under_way) = self.under_way.get(&ticket) {
            self.prefixes.answered(now, under_way.entry.prefix);
        }
    }

    /// Removes a request that waits or is under way, without an outcome.
    pub(in crate::llm) fn cancel(&mut self, ticket: Ticket) {
        self.queue.remove(ticket);
        self.leave(ticket);
    }

    fn leave(&mut self, ticket: Ticket) -> Option<UnderWay> {
        let under_way = self.under_way.remove(&ticket)?;
        self.prefixes.over(ticket, under_way.entry.prefix);
        if let Some(own) = self.by_agent.get_mut(&under_way.entry.agent) {
            *own -= 1;
            if *own == 0 {
                self.by_agent.remove(&under_way.entry.agent);
            }
        }
        Some(under_way)
    }

    /// Records the end of a request that the endpoint accepted, or that failed for another reason than the rate.
    pub(in crate::llm) fn ended(&mut self, now: Instant, ticket: Ticket, ended: &Ended) {
        if ended.is_answered {
            self.first_byte(now, ticket);
        }
        let Some(under_way) = self.leave(ticket) else { return };
        if let Some(used) = ended.tokens {
            self.tokens.correct(under_way.entry.tokens as f64, used as f64);
        }
        if ended.is_answered {
            self.pause = PAUSE_FIRST;
            self.answered_in_ramp += usize::from(under_way.sent_at >= self.ramp_from);
            self.may_cut |= self.cut_at.is_none_or(|at| under_way.sent_at > at);
            self.successes += 1.0;
            if !self.places_declared && self.successes >= self.places {
                self.successes = 0.0;
                self.places = (self.places + 1.0).min(PLACES_MAX);
            }
        }
        self.report(now, &under_way, ended);
    }

    fn report(&mut self, now: Instant, under_way: &UnderWay, ended: &Ended) {
        if ended.requests_reported.is_none() && ended.tokens_reported.is_none() {
            return;
        }
        // Answers overtake each other: only the report of the latest request counts.
        if self.reported_sent_at.is_some_and(|last| last > under_way.sent_at) {
            return;
        }
        self.reported_sent_at = Some(under_way.sent_at);
        if let Some(reported) = ended.requests_reported {
            self.requests.report(now, reported, self.taken.0 - under_way.taken.0);
        }
        if let Some(reported) = ended.tokens_reported {
            self.tokens.report(now, reported, self.taken.1 - under_way.taken.1);
        }
    }

    /// Records a 429: the request waits again, at the head of its agent's queue, and the account pauses.
    ///
    /// `jitter` is between 0 and 1 and lengthens the pause by up to a tenth.
    pub(in crate::llm) fn rate_limited(
        &mut self,
        now: Instant,
        ticket: Ticket,
        retry_after: Option<Duration>,
        ended: &Ended,
        jitter: f64,
    ) {
        let Some(under_way) = self.leave(ticket) else { return };
        self.refused += 1;
        self.tokens.correct(under_way.entry.tokens as f64, 0.0);
        self.report(now, &under_way, ended);
        // One storm is one cut: requests that were under way at the last cut, and those that find the endpoint still
        // closed after the pause, tell nothing new about the rate.
        let is_first = self.cut_at.is_none_or(|at| under_way.sent_at > at);
        if is_first && self.may_cut {
            self.may_cut = false;
            self.requests.cut(now);
            if !self.places_declared {
                self.places = (self.places * PLACES_CUT).max(1.0);
                self.successes = 0.0;
            }
        }
        if let Some(pause) = retry_after.or(is_first.then_some(self.pause)) {
            let until = now + pause.mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 10.0);
            if self.paused_until.is_none_or(|before| before < until) {
                self.paused_until = Some(until);
                self.ramp_from = until;
                self.answered_in_ramp = 0;
            }
        }
        if is_first {
            self.cut_at = Some(now);
        }
        if is_first && retry_after.is_none() {
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
        self.queue.add(now, ticket, under_way.entry, false);
    }

    /// The number of requests that probably enter before this one, if it waits.
    pub(in crate::llm) fn ahead(&self, ticket: Ticket) -> u64 {
        let agent = self.queue.get(ticket).map(|entry| &entry.agent);
        agent.map_or(0, |agent| self.queue.ahead_of(agent).0.saturating_sub(1))
    }

    /// The number of waiting requests.
    pub(in crate::llm) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// The number of requests under way.
    pub(in crate::llm) fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Requests a minute, if known.
    pub(in crate::llm) fn requests_per_minute(&self) -> Option<f64> {
        self.requests.per_minute()
    }

    /// Tokens a minute, if known.
    pub(in crate::llm) fn tokens_per_minute(&self) -> Option<f64> {
        self.tokens.per_minute()
    }

    /// Answers 429 so far.
    pub(in crate::llm) fn refused(&self) -> u64 {
        self.refused
    }

    /// The end of the pause; `None` if there is none at `now`.
    pub(in crate::llm) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.paused_until.filter(|until| *until > now)
    }

    /// The number of requests that may be under way.
    pub(in crate::llm) fn places(&self) -> usize {
        self.places.floor().max(1.0) as usize
    }
}
