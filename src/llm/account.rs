//! Makes requests wait for their account: its limiter, and the breaker of their model.
use super::{
    Error,
    breaker::{Breaker, Outcome},
    limiter::{Ended, Entry, Limiter, Limits, Prefix, Refused, Ticket},
    reported::RateReport,
};
use parking_lot::Mutex;
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout_at},
};
use tracing::{info, warn};

/// Tokens over its limit that an answer may have: some endpoints count the end of a message.
const LIMIT_SLACK: u64 = 16;
/// A wait of this length is shown.
const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// The agent behind a request, and what its place in the queue depends on.
#[derive(Clone)]
pub struct Caller<'a> {
    /// The agent with its org, like `acme/triage`. Agents get equal shares of an account.
    pub agent: Arc<str>,
    /// Priority of the task; higher goes first.
    pub priority: i32,
    /// Tokens that the run has used so far: of one agent, the run that has used most goes first.
    pub spent: u64,
    /// Shows a long wait, like `waiting for team (31 before it)`, and `thinking` at its end.
    pub shows: &'a (dyn Fn(String) + Send + Sync),
    /// Longest wait for the account; then the request fails with [`Error::RateLimited`]. `None` for the deadline.
    pub patience: Option<Duration>,
    /// Whether another model can be asked instead: an open breaker is not waited for, and failures are repeated once.
    pub moves_on: bool,
    /// The header `traceparent` of the request. `None` if it belongs to no trace.
    pub traceparent: Option<String>,
    /// Is told of a try that may have cost something. `None` if nobody pays.
    pub meter: Option<&'a dyn Meter>,
}

impl Caller<'_> {
    /// The time until which a request of this caller waits for its account.
    pub(super) fn enter_by(&self, deadline: Instant) -> Instant {
        self.patience.map_or(deadline, |patience| deadline.min(Instant::now() + patience))
    }
}

/// Accounts for the tries of one request.
#[async_trait::async_trait]
pub trait Meter: Send + Sync {
    /// Counts a try that had no answer and may have been charged. Returns whether there is money for another.
    async fn lost(&self) -> bool;
}

impl Caller<'static> {
    /// A caller at priority 0 that has used nothing and shows nothing.
    #[must_use]
    pub fn new(agent: impl Into<Arc<str>>) -> Self {
        Self {
            agent: agent.into(),
            priority: 0,
            spent: 0,
            shows: &|_| {},
            patience: None,
            moves_on: false,
            traceparent: None,
            meter: None,
        }
    }
}

/// The state of an account, for people.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AccountState {
    /// Name of the account, or host of the endpoint.
    pub account: String,
    /// Requests that wait.
    pub waiting: usize,
    /// Requests under way.
    pub under_way: usize,
    /// Most concurrent requests, as declared or learned.
    pub concurrent: usize,
    /// Requests a minute; `null` while no limit is known.
    pub requests_per_minute: Option<f64>,
    /// Tokens a minute; `null` while no limit is known.
    pub tokens_per_minute: Option<f64>,
    /// Answers with status 429 since the start of the daemon.
    pub rate_limited: u64,
    /// Questions since the start of the daemon that this account could not answer, and that went to another model.
    pub passed_over: u64,
    /// Seconds until the end of the pause after a 429; `null` if there is none.
    pub paused_seconds: Option<f64>,
    /// Models whose requests are held back because the endpoint fails or refuses the key.
    pub open_breakers: Vec<String>,
    /// Models that have given longer answers than their questions allowed.
    pub limit_ignored: Vec<String>,
}

/// What a request needs of its account.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs<'a> {
    /// The model that is asked.
    pub(super) model: &'a str,
    /// Estimated tokens of the prompt and the answer.
    pub(super) tokens: u64,
    /// What it has in common with other requests at its beginning; `None` if that is too short for a cache.
    pub(super) prefix: Option<Prefix>,
}

/// One account of a provider. All models and agents that use it share its limits.
#[derive(Debug)]
pub struct Account {
    name: String,
    state: Mutex<State>,
    /// Wakes the requests that wait for a breaker.
    breaker_changed: Notify,
}

#[derive(Debug)]
struct State {
    limiter: Limiter,
    waiting: HashMap<Ticket, Arc<Notify>>,
    /// The request that is admitted next; it alone waits for a time, the others for a notice.
    first: Option<Ticket>,
    breakers: BTreeMap<String, Breaker>,
    passed_over: u64,
    /// Tokens of the longest answer over its limit, by model.
    over_limit: BTreeMap<String, u64>,
}

impl State {
    /// Admits all requests that may enter, and tells the one that is next.
    fn settle(&mut self, now: Instant) {
        while let Some(ticket) = self.limiter.admit(now) {
            if let Some(notify) = self.waiting.remove(&ticket) {
                notify.notify_one();
            }
        }
        let first = self.limiter.candidate(now);
        if self.first != first {
            self.first = first;
            if let Some(notify) = first.and_then(|first| self.waiting.get(&first)) {
                notify.notify_one();
            }
        }
    }

    /// Settles after a change that may shorten the wait of the next request, which sleeps for the time that it found.
    fn settle_anew(&mut self, now: Instant) {
        self.first = None;
        self.settle(now);
    }

    fn breaker(&mut self, model: &str) -> &mut Breaker {
        self.breakers.entry(model.to_owned()).or_default()
    }
}

/// A request of an account: it waits, or it is under way. Dropping it leaves the queue or frees its place.
#[derive(Debug)]
pub(super) struct Turn {
    account: Arc<Account>,
    model: String,
    ticket: Ticket,
    notify: Arc<Notify>,
    /// Whether the request was sent and has no outcome yet.
    is_sent: bool,
    is_over: bool,
}

impl Account {
    /// Creates an account with these declared limits.
    #[must_use]
    pub fn new(name: String, limits: Limits) -> Self {
        let state = State {
            limiter: Limiter::new(Instant::now(), limits),
            waiting: HashMap::new(),
            first: None,
            breakers: BTreeMap::new(),
            passed_over: 0,
            over_limit: BTreeMap::new(),
        };
        Self { name, state: Mutex::new(state), breaker_changed: Notify::new() }
    }

    /// Name of the account, or host of the endpoint.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The state for people.
    #[must_use]
    pub fn state(&self) -> AccountState {
        let (now, state) = (Instant::now(), self.state.lock());
        let limiter = &state.limiter;
        let open = state.breakers.iter().filter(|(_, breaker)| breaker.is_open());
        AccountState {
            account: self.name.clone(),
            waiting: limiter.waiting(),
            under_way: limiter.under_way(),
            concurrent: limiter.places(),
            requests_per_minute: limiter.requests_per_minute(),
            tokens_per_minute: limiter.tokens_per_minute(),
            rate_limited: limiter.refused(),
            passed_over: state.passed_over,
            paused_seconds: limiter.paused_until(now).map(|until| (until - now).as_secs_f64()),
            open_breakers: open.map(|(model, _)| model.clone()).collect(),
            limit_ignored: state.over_limit.keys().cloned().collect(),
        }
    }

    /// Notes an answer that is longer than its question allowed: a question to this model may cost more than its limit
    /// from now on.
    pub(super) fn answered(&self, model: &str, limit: Option<u32>, tokens: Option<u64>) {
        let (Some(limit), Some(tokens)) = (limit, tokens) else { return };
        if tokens <= u64::from(limit).saturating_add(LIMIT_SLACK) {
            return;
        }
        let before = {
            let mut state = self.state.lock();
            let longest = state.over_limit.entry(model.to_owned()).or_default();
            std::mem::replace(longest, tokens.max(*longest))
        };
        if before == 0 {
            let account = &self.name;
            warn!(%account, %model, limit, tokens, "the endpoint ignores the limit of an answer: its whole context is reserved from now on");
        }
    }

    /// Tokens of the longest answer of a model over its limit. `None` if its endpoint has kept every limit.
    pub(super) fn longest_over_limit(&self, model: &str) -> Option<u64> {
        self.state.lock().over_limit.get(model).copied()
    }

    /// Counts a question that goes to another model.
    pub(super) fn pass_over(&self) {
        self.state.lock().passed_over += 1;
    }

    /// Waits until a request may be sent. Cancel safe: dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`Error::RateLimited`] if it cannot be sent before `deadline`, and [`Error::Held`] if its breaker is open
    /// until then.
    pub(super) async fn enter(
        self: &Arc<Self>,
        needs: Needs<'_>,
        caller: &Caller<'_>,
        deadline: Instant,
    ) -> Result<Turn, Error> {
        let Needs { model, tokens, prefix } = needs;
        loop {
            // Whoever can ask another model does not wait for this one.
            let closed_by = if caller.moves_on { Instant::now() } else { deadline };
            self.closed(model, closed_by).await?;
            let (agent, priority, spent) = (caller.agent.clone(), caller.priority, caller.spent);
            let entry = Entry { agent, priority, tokens, spent, prefix };
            let notify = Arc::new(Notify::new());
            let ticket = {
                let (now, mut state) = (Instant::now(), self.state.lock());
                let ticket =
                    state.limiter.enqueue(now, entry, deadline).map_err(|refused| match refused {
                        Refused::Full => Error::RateLimited { retry_after: None },
                        Refused::TooLate(wait) => Error::RateLimited { retry_after: Some(wait) },
                    })?;
                state.waiting.insert(ticket, notify.clone());
                state.settle(now);
                ticket
            };
            let model = model.to_owned();
            let account = self.clone();
            let mut turn = Turn { account, model, ticket, notify, is_sent: false, is_over: false };
            turn.wait(caller, deadline).await?;
            // The breaker may have opened while the request waited in the queue.
            if turn.is_let_through() {
                return Ok(turn);
            }
        }
    }

    /// Waits until the breaker of the model lets a request through.
    async fn closed(&self, model: &str, deadline: Instant) -> Result<(), Error> {
        loop {
            let changed = self.breaker_changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that a change between look and wait is not missed.
            changed.as_mut().enable();
            let until = {
                let (now, mut state) = (Instant::now(), self.state.lock());
                state.breaker(model).closed_until(now).map(|until| (until, until > now))
            };
            let Some((until, is_timed)) = until else { return Ok(()) };
            if until >= deadline {
                return Err(Error::Held { model: model.to_owned() });
            }
            let wake = if is_timed { until } else { deadline };
            if timeout_at(wake, changed).await.is_err() && wake == deadline {
                return Err(Error::Held { model: model.to_owned() });
            }
        }
    }
}

impl Turn {
    /// Waits until the request is admitted, and shows a long wait.
    async fn wait(&mut self, caller: &Caller<'_>, deadline: Instant) -> Result<(), Error> {
        let shown_at = Instant::now() + SHOWN_AFTER;
        match timeout_at(shown_at, self.admitted(deadline)).await {
            Ok(admitted) => admitted,
            Err(_) => {
                let ahead = self.account.state.lock().limiter.ahead(self.ticket);
                (caller.shows)(format!("waiting for {} ({ahead} before it)", self.account.name));
                self.admitted(deadline).await?;
                (caller.shows)("thinking".to_owned());
                Ok(())
            }
        }
    }

    /// Whether the breaker lets the request through; then it counts as sent.
    fn is_let_through(&mut self) -> bool {
        let mut state = self.account.state.lock();
        let breaker = state.breaker(&self.model);
        self.is_sent = breaker.closed_until(Instant::now()).is_none();
        if self.is_sent {
            breaker.sent();
        }
        self.is_sent
    }

    /// Waits until the request may be sent again after a 429. Its place in the queue is kept.
    ///
    /// # Errors
    /// [`Error::RateLimited`] if the deadline is earlier.
    pub(super) async fn again(&mut self, caller: &Caller<'_>, deadline: Instant) -> Result<(), Error> {
        self.wait(caller, deadline).await?;
        // Sent even if the breaker is open: the endpoint did answer this request.
        self.is_sent = true;
        Ok(())
    }

    async fn admitted(&mut self, deadline: Instant) -> Result<(), Error> {
        loop {
            let wake = {
                let (now, mut state) = (Instant::now(), self.account.state.lock());
                state.settle(now);
                if !state.waiting.contains_key(&self.ticket) {
                    return Ok(());
                }
                let is_first = state.first == Some(self.ticket);
                let wait = is_first.then(|| state.limiter.wait(now, self.ticket)).flatten();
                wait.map_or(deadline, |wait| (now + wait).min(deadline))
            };
            tokio::select! {
                () = self.notify.notified() => {}
                () = sleep_until(wake) => {
                    if wake >= deadline {
                        return Err(Error::RateLimited { retry_after: None });
                    }
                }
            }
        }
    }

    /// What to call at the first byte of the answer.
    pub(super) fn on_first_byte(&self) -> Box<dyn Fn() + Send> {
        let (account, ticket) = (self.account.clone(), self.ticket);
        Box::new(move || {
            let (now, mut state) = (Instant::now(), account.state.lock());
            state.limiter.first_byte(now, ticket);
            state.settle_anew(now);
        })
    }

    /// Records the end of a request that was not answered with 429.
    pub(super) fn ended(mut self, outcome: Outcome, tokens: Option<u64>, report: RateReport) {
        self.is_over = true;
        let is_answered = outcome == Outcome::Works;
        let ended =
            Ended { is_answered, tokens, requests_reported: report.requests, tokens_reported: report.tokens };
        let (now, mut state) = (Instant::now(), self.account.state.lock());
        state.limiter.ended(now, self.ticket, &ended);
        let changed = state.breaker(&self.model).ended(now, outcome);
        let is_open = state.breaker(&self.model).is_open();
        state.settle_anew(now);
        drop(state);
        self.account.breaker_changed.notify_waiters();
        let (account, model) = (&self.account.name, &self.model);
        match (changed, is_open) {
            (true, true) => {
                warn!(%account, %model, ?outcome, "breaker opened: requests to the model are held")
            }
            (true, false) => info!(%account, %model, "breaker closed: the model answers again"),
            _ => {}
        }
    }

    /// Records a 429: the account pauses, and the request waits again at the head of its agent's queue.
    pub(super) fn rate_limited(&mut self, retry_after: Option<Duration>, report: RateReport) {
        let ended = Ended {
            is_answered: false,
            tokens: None,
            requests_reported: report.requests,
            tokens_reported: report.tokens,
        };
        let (now, mut state) = (Instant::now(), self.account.state.lock());
        if std::mem::take(&mut self.is_sent) {
            state.breaker(&self.model).dropped();
        }
        state.waiting.insert(self.ticket, self.notify.clone());
        state.limiter.rate_limited(now, self.ticket, retry_after, &ended, rand::random());
        state.settle_anew(now);
        drop(state);
        self.account.breaker_changed.notify_waiters();
    }

    /// The end of the account's pause; `None` if there is none.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.account.state.lock().limiter.paused_until(Instant::now())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut state = self.account.state.lock();
        state.waiting.remove(&self.ticket);
        state.limiter.cancel(self.ticket);
        if self.is_sent {
            state.breaker(&self.model).dropped();
        }
        state.settle_anew(Instant::now());
        drop(state);
        self.account.breaker_changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::{CompletionRequest, Format, Models, Scripted, Step};

    fn account(concurrent: u32) -> Arc<Account> {
        Arc::new(Account::new("team".into(), Limits { concurrent: Some(concurrent), ..Limits::default() }))
    }

    fn needs(model: &str) -> Needs<'_> {
        Needs { model, tokens: 1, prefix: None }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(600)
    }

    #[expect(clippy::disallowed_methods, reason = "the test waits for it")]
    #[tokio::test(start_paused = true)]
    async fn dropped_requests_leave_the_queue_and_free_their_place() {
        let account = account(1);
        let [a, b, c] = ["a", "b", "c"].map(Caller::new);
        let first = account.enter(needs("m"), &a, soon()).await.unwrap();
        let waiting = tokio::spawn({
            let account = account.clone();
            async move { account.enter(needs("m"), &b, soon()).await.map(drop) }
        });
        let canceled =
            tokio::time::timeout(Duration::from_secs(1), account.enter(needs("m"), &c, soon())).await;
        assert!(canceled.is_err() && account.state().waiting == 1, "{:?}", account.state());
        drop(first);
        waiting.await.unwrap().unwrap();
        let state = account.state();
        assert_eq!((state.waiting, state.under_way), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn long_wait_is_shown_with_the_requests_before_it() {
        let account = account(1);
        let first = account.enter(needs("m"), &Caller::new("a"), soon()).await.unwrap();
        let shown = Mutex::new(Vec::new());
        let shows = |text| shown.lock().push(text);
        let caller = Caller { shows: &shows, ..Caller::new("b") };
        let enter = account.enter(needs("m"), &caller, soon());
        let free = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            drop(first);
        };
        let (turn, ()) = tokio::join!(enter, free);
        turn.unwrap();
        assert_eq!(*shown.lock(), ["waiting for team (0 before it)", "thinking"]);
    }

    #[tokio::test(start_paused = true)]
    async fn open_breaker_holds_requests_and_one_trial_closes_it() {
        let account = account(16);
        let caller = Caller::new("a");
        let enter = || account.enter(needs("m"), &caller, soon());
        enter().await.unwrap().ended(Outcome::KeyRefused, None, RateReport::default());
        assert_eq!(account.state().open_breakers, ["m"]);
        let began = Instant::now();
        let held = account.enter(needs("m"), &caller, began + Duration::from_secs(4)).await.unwrap_err();
        assert_eq!((held, began.elapsed()), (Error::Held { model: "m".into() }, Duration::ZERO));
        account.enter(needs("other"), &caller, soon()).await.unwrap();
        let trial = enter().await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 5);
        let both = tokio::time::timeout(Duration::from_secs(1), enter()).await;
        assert!(both.is_err(), "one trial at a time");
        trial.ended(Outcome::Works, None, RateReport::default());
        enter().await.unwrap();
        assert!(account.state().open_breakers.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn caller_with_another_model_does_not_wait_for_an_open_breaker() {
        let account = account(16);
        let caller = Caller { moves_on: true, ..Caller::new("a") };
        let enter = || account.enter(needs("m"), &caller, soon());
        enter().await.unwrap().ended(Outcome::KeyRefused, None, RateReport::default());
        let began = Instant::now();
        assert_eq!(enter().await.unwrap_err(), Error::Held { model: "m".into() });
        assert_eq!(began.elapsed(), Duration::ZERO);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let trial = enter().await.unwrap();
        assert!(enter().await.is_err(), "the trial is under way");
        trial.ended(Outcome::Works, None, RateReport::default());
        enter().await.unwrap();
    }

    #[expect(clippy::disallowed_methods, reason = "the test waits for them")]
    #[tokio::test(start_paused = true)]
    async fn thousand_concurrent_requests_survive_a_storm_of_429() {
        let limited = || Step::Fail(Error::RateLimited { retry_after: None });
        let steps = (0..300).map(|n| if n % 3 == 0 { limited() } else { Step::Say("x".into()) });
        let model = Arc::new(Scripted::new(steps.chain([Step::Say("yes".into())])));
        let provider = Models::scripted(model.clone()).at("http://x", None).unwrap();
        let question = CompletionRequest {
            model: "m".into(),
            system: String::new(),
            user: "a question".into(),
            format: Format::Text,
            max_tokens: Some(10),
            limit_member: None,
            temperature: None,
            timeout: Duration::from_secs(30),
        };
        let deadline = Instant::now() + Duration::from_secs(100_000);
        let asked = (0..1_000).map(|n| {
            let (provider, question) = (provider.clone(), question.clone());
            tokio::spawn(async move {
                provider.ask(&question, &Caller::new(format!("acme/{}", n % 50)), deadline).await
            })
        });
        for answer in futures_util::future::join_all(asked).await {
            answer.unwrap().unwrap();
        }
        assert_eq!(model.asked().len(), 1_100, "each refused request was sent once more, and no other");
    }
}
