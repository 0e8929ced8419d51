//! The models of a daemon, with concurrency limits, retries and backoff.
use super::{
    Account, AccountState, Answer, Caller, ChatAnswer, ChatRequest, Clients, CompletionRequest, Config,
    Error, Model, OpenAi, Price, account::Needs, backoff, breaker::Outcome, config::AccountKey,
    limiter::Prefix, metrics, reported,
};
use crate::{clock::Clock, telemetry::Registry};
use chrono::NaiveDate;
use parking_lot::Mutex;
use secrecy::SecretString;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    future::Future,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

/// Most attempts of one request. An answer 429 is no attempt.
const ATTEMPTS_MAX: u32 = 5;
/// Most attempts of a request for which the endpoint could not read what its model made.
const BAD_CALLS_MAX: u32 = 3;
/// Most attempts of a request for which another model can be asked: one failure may be an accident.
const ATTEMPTS_BEFORE_MOVE: u32 = 2;
/// A request that timed out after a shorter time tells nothing about its endpoint.
const HANG: Duration = Duration::from_secs(10);
/// Tokens that are expected of an answer without a limit.
const ANSWER_TOKENS: u64 = 1_024;
/// Bytes of text that are estimated as one token.
const BYTES_PER_TOKEN: usize = 4;
/// A prefix with fewer bytes is in no cache: public endpoints keep prefixes from 1,024 tokens.
const PREFIX_BYTES_MIN: usize = 4_096;

/// The models of a daemon. Clones share connections and limits.
#[derive(Clone, Default)]
pub struct Models {
    clock: Clock,
    clients: Clients,
    config: Arc<Config>,
    accounts: Arc<Mutex<BTreeMap<AccountKey, Arc<Account>>>>,
    scripted: Option<Arc<dyn Model>>,
}

impl std::fmt::Debug for Models {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Models").field("accounts", &self.accounts()).finish_non_exhaustive()
    }
}

/// A model with the limits of its account.
#[derive(Clone)]
pub struct Provider {
    model: Arc<dyn Model>,
    account: Arc<Account>,
    name: Arc<str>,
}

impl Models {
    /// Creates models behind real endpoints, without declared limits.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, ..Self::default() }
    }

    /// Declares the limits of accounts.
    #[must_use]
    pub fn with_config(self, config: Config) -> Self {
        Self { config: Arc::new(config), ..self }
    }

    /// Creates models that all are `model`, whatever their endpoint: for tests and rehearsals.
    #[must_use]
    pub fn scripted(model: Arc<dyn Model>) -> Self {
        Self { scripted: Some(model), ..Self::default() }
    }

    /// The price of a model on a day (UTC), by its name. `None` if the settings have none.
    #[must_use]
    pub fn price(&self, model: &str, day: NaiveDate) -> Option<&Price> {
        self.config.prices.get(model)?.on(day)
    }

    /// The present day, in UTC.
    #[must_use]
    pub fn today(&self) -> NaiveDate {
        self.clock.now().date_naive()
    }

    /// The money of a day of a provider, by its name. `None` without a limit.
    #[must_use]
    pub fn provider_limit(&self, name: &str) -> Option<u64> {
        self.config.providers.get(name)?.microdollars_per_day
    }

    /// The money of a day of an org. `None` without a limit.
    #[must_use]
    pub fn org_limit(&self, org: &str) -> Option<u64> {
        self.config.orgs.get(org)?.microdollars_per_day
    }

    /// The HTTP clients that the models use.
    #[must_use]
    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// Returns the model at an endpoint.
    ///
    /// # Errors
    /// If no HTTP client can be created.
    pub fn at(&self, base_url: &str, key: Option<SecretString>) -> Result<Provider, Error> {
        let account = {
            let (key, limits) = self.config.account(base_url, key.as_ref());
            let name = key.name();
            let mut accounts = self.accounts.lock();
            // Two keys of one host are two accounts, which people tell apart by a number.
            let same = accounts.keys().filter(|other| **other != key && other.name() == name).count();
            let name = if same == 0 { name } else { format!("{name} ({})", same + 1) };
            accounts.entry(key).or_insert_with(|| Arc::new(Account::new(name, limits))).clone()
        };
        let model: Arc<dyn Model> = match &self.scripted {
            Some(model) => model.clone(),
            None => Arc::new(OpenAi::new(base_url, key, &self.clients, self.clock.clone())?),
        };
        let name = self.config.provider(base_url).into();
        Ok(Provider { model, account, name })
    }

    /// Adds the metrics of the accounts.
    pub fn register(&self, registry: &Registry) {
        registry.register_collector(Box::new(metrics::Accounts(self.clone())));
    }

    /// The state of each account that an agent uses.
    #[must_use]
    pub fn accounts(&self) -> Vec<AccountState> {
        self.accounts.lock().values().map(|account| account.state()).collect()
    }
}

impl Provider {
    /// Name of the provider: as declared, or the host of its address.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Counts a question that this provider could not answer, and that goes to another model.
    pub fn pass_over(&self) {
        self.account.pass_over();
    }

    /// Requests a completion, with retries: until an answer, a permanent error, five attempts or the
    /// deadline.
    ///
    /// The backoff is the endpoint's `Retry-After`, else exponential. A 429 is no attempt: it pauses every request of
    /// the account, and this one is sent again after the pause.
    ///
    /// # Errors
    /// The error of the last attempt; [`Error::RateLimited`] or [`Error::Held`] if no attempt could be sent before
    /// the deadline.
    pub async fn ask(
        &self,
        question: &CompletionRequest,
        caller: &Caller<'_>,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let limit = question.max_tokens.map_or(ANSWER_TOKENS, u64::from);
        let needs = Needs {
            model: &question.model,
            tokens: tokens(question.system.len() + question.user.len(), limit),
            prefix: prefix(&question.model, &[&question.system]),
        };
        let used = |answer: &Answer| answer.input_tokens.zip(answer.output_tokens);
        let send = || self.model.ask(question);
        let (answer, _) = self.with_retries(needs, question.timeout, caller, deadline, used, send).await?;
        self.account.answered(&question.model, question.max_tokens, answer.output_tokens);
        Ok(answer)
    }

    /// Sends a request of a conversation, with retries like [`Self::ask`].
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn chat(
        &self,
        question: &ChatRequest,
        caller: &Caller<'_>,
        deadline: Instant,
    ) -> Result<ChatAnswer, Error> {
        let needs = needs(question);
        let used = |answer: &ChatAnswer| answer.input_tokens.zip(answer.output_tokens);
        let send = || self.model.chat(question);
        let (answer, request_id) =
            self.with_retries(needs, question.timeout, caller, deadline, used, send).await?;
        self.account.answered(&question.model, Some(question.max_tokens), answer.output_tokens);
        Ok(ChatAnswer { request_id, ..answer })
    }

    /// The most tokens that an answer with this limit may have. An endpoint that has ignored a limit of the model may
    /// fill its whole context. If that is unknown, twice the longest answer so far is presumed.
    #[must_use]
    pub fn answer_most(&self, model: &str, limit: u32, context_tokens: Option<u64>) -> u32 {
        let Some(longest) = self.account.longest_over_limit(model) else { return limit };
        let most = context_tokens.unwrap_or_else(|| longest.saturating_mul(2));
        u32::try_from(most).unwrap_or(u32::MAX).max(limit)
    }

    /// Returns the answer, and the id of its request at the endpoint.
    async fn with_retries<T, F>(
        &self,
        needs: Needs<'_>,
        timeout: Duration,
        caller: &Caller<'_>,
        deadline: Instant,
        used: impl Fn(&T) -> Option<(u64, u64)> + Send + Sync,
        send: impl Fn() -> F + Send + Sync,
    ) -> Result<(T, Option<String>), Error>
    where
        F: Future<Output = Result<T, Error>> + Send,
        T: Send,
    {
        let mut last = None;
        for tried in 1..=ATTEMPTS_MAX {
            let enter_by = caller.enter_by(deadline);
            let entered = self.account.enter(needs, caller, enter_by).await;
            let mut turn = match (entered, last) {
                (Ok(turn), _) => turn,
                (Err(error), last) => return Err(last.unwrap_or(error)),
            };
            let error = loop {
                let sent_at = Instant::now();
                let (asked, report) = {
                    let sent = timeout_at(deadline, send());
                    reported::with_report(caller.traceparent.as_deref(), turn.on_first_byte(), sent).await
                };
                let error = match asked {
                    Ok(Ok(answer)) => {
                        let tokens = used(&answer).map(|(input, output)| input.saturating_add(output));
                        let request_id = report.request_id.clone();
                        turn.ended(Outcome::Works, tokens, report);
                        return Ok((answer, request_id));
                    }
                    Ok(Err(error)) => error,
                    Err(_) => Error::Timeout(timeout),
                };
                if let Error::RateLimited { retry_after } = error {
                    turn.rate_limited(retry_after, report);
                    debug!(
                        account = self.account.name(),
                        ?retry_after,
                        "model request was rate limited, will wait"
                    );
                    // A pause beyond the deadline cannot help, so the error is returned now.
                    let enter_by = caller.enter_by(deadline);
                    if turn.paused_until().is_some_and(|until| until >= enter_by) {
                        return Err(error);
                    }
                    if turn.again(caller, enter_by).await.is_err() {
                        return Err(error);
                    }
                    continue;
                }
                // Freed before the backoff, so that waiting requests do not hold up others.
                match outcome(&error, sent_at.elapsed()) {
                    Some(outcome) => turn.ended(outcome, None, report),
                    None => drop(turn),
                }
                break error;
            };
            if !error.is_transient() || tried >= attempts_max(&error, caller.moves_on) {
                return Err(error);
            }
            let wait = error.retry_after().unwrap_or_else(|| backoff(tried));
            debug!(account = self.account.name(), tried, ?wait, %error, "model request failed, will retry");
            if Instant::now() + wait >= deadline {
                return Err(error);
            }
            if error.may_have_cost()
                && let Some(meter) = caller.meter
                && !meter.lost().await
            {
                return Err(error);
            }
            last = Some(error);
            sleep(wait).await;
        }
        Err(last.unwrap_or(Error::Timeout(timeout)))
    }
}

/// What a request of a conversation needs of its account. No text of it is kept: it may be long, and so may the answer
/// take.
fn needs(question: &ChatRequest) -> Needs<'_> {
    // What all questions of an agent have in common: the instructions in the first message, and the tools.
    let common: Vec<String> =
        question.messages.first().into_iter().chain(&*question.tools).map(Value::to_string).collect();
    let common: Vec<&str> = common.iter().map(String::as_str).collect();
    let history: usize = question.messages.iter().skip(1).map(|part| part.to_string().len()).sum();
    let bytes = history + common.iter().map(|text| text.len()).sum::<usize>();
    Needs {
        model: &question.model,
        tokens: tokens(bytes, question.max_tokens.into()),
        prefix: prefix(&question.model, &common),
    }
}

/// Estimated tokens of a prompt and its answer.
fn tokens(prompt_bytes: usize, answer_tokens: u64) -> u64 {
    u64::try_from(prompt_bytes / BYTES_PER_TOKEN).unwrap_or(u64::MAX).saturating_add(answer_tokens)
}

/// The prefix of a request to a model that begins with these texts; `None` if it is too short for a cache.
fn prefix(model: &str, texts: &[&str]) -> Option<Prefix> {
    let bytes: usize = texts.iter().map(|text| text.len()).sum();
    let mut hasher = DefaultHasher::new();
    (model, texts).hash(&mut hasher);
    (bytes >= PREFIX_BYTES_MIN).then(|| hasher.finish())
}

/// Most attempts of a request that failed with this error.
fn attempts_max(error: &Error, moves_on: bool) -> u32 {
    match error {
        Error::BadCall => BAD_CALLS_MAX,
        // The wait for it was long already.
        Error::Timeout(_) if moves_on => 1,
        _ if moves_on => ATTEMPTS_BEFORE_MOVE,
        _ => ATTEMPTS_MAX,
    }
}

/// What a failure tells the breaker; `None` if it tells nothing about the endpoint.
fn outcome(error: &Error, took: Duration) -> Option<Outcome> {
    match error {
        Error::Refused { .. } | Error::Quota { .. } => Some(Outcome::KeyRefused),
        Error::Failed { .. } | Error::Unreachable { .. } | Error::Broken { .. } => Some(Outcome::Fails),
        Error::Timeout(_) if took >= HANG => Some(Outcome::Fails),
        Error::Timeout(_) | Error::Held { .. } => None,
        Error::Rejected { .. }
        | Error::InvalidAnswer(_)
        | Error::BadCall
        | Error::TooLarge { .. }
        | Error::RateLimited { .. } => Some(Outcome::Works),
    }
}
