//! One question to a model as money.
//!
//! Before a question is sent, the most that it may use is reserved in every budget and recorded. With its answer, what
//! it used takes the place of that. A try without an answer that may have been charged counts as its most, and the
//! next try reserves again. If this program dies in between, the record counts as its most.
use super::{
    Definition, Finished, Job, ModelChoice, Price,
    job::{permanent, retryable},
    retry::again,
};
use crate::{
    llm::{Error, Meter, Models, Provider, TokenCounts, UsageDetails},
    task::{DayLimit, Failure, InsufficientBudget, LimitScope, ModelQuestion, ModelUsage, TokenParts, Usage},
};
use chrono::NaiveDate;
use parking_lot::Mutex;
use std::time::Duration;
use tracing::warn;
use uuid::Uuid;

/// How often a task that waits for the next day is tried: a restart of the daemon may have raised the limit.
const DAY_POLL: Duration = Duration::from_secs(600);

/// The provider of calls of tools, which are recorded like questions. No address has this name.
const TOOLS: &str = "(tool)";

/// What the questions of an agent cost.
#[derive(Clone, Copy)]
pub(in crate::agent) struct Pricing<'a> {
    pub(in crate::agent) definition: &'a Definition,
    /// The model that is asked.
    pub(in crate::agent) choice: &'a ModelChoice,
    pub(in crate::agent) models: &'a Models,
    /// Whether it is the first question of an assignment: without a price, it costs what the offer says.
    pub(in crate::agent) is_first: bool,
    /// The day (UTC) on which the question begins. Its prices hold until the end of the question, with all tries.
    pub(in crate::agent) day: NaiveDate,
}

impl Pricing<'_> {
    /// The price of the agent's own definition, else that of the model that answered, else that of the model that was
    /// asked.
    fn price(&self, said: Option<&str>) -> Option<&Price> {
        let by_name = |name: &str| self.models.price(name, self.day);
        let own = self.choice.price.as_ref().and_then(|price| price.on(self.day));
        own.or_else(|| said.and_then(by_name)).or_else(|| by_name(&self.choice.model))
    }

    /// Whether the cost of a question cannot be limited.
    fn is_unknown(&self) -> bool {
        self.price(None).is_none() && self.definition.offer.cost_microdollars == 0
    }

    /// The limits of a day that a question at this provider counts to.
    ///
    /// # Errors
    /// If there is one, and no price.
    fn limits(&self, provider: &str) -> Result<Vec<DayLimit>, Failure> {
        let org = self.definition.org.as_str();
        let limit = |scope, name: &str, microdollars: Option<u64>| {
            Some(DayLimit { scope, name: name.to_owned(), microdollars: microdollars? })
        };
        let of_provider = limit(LimitScope::Provider, provider, self.models.provider_limit(provider));
        let limits: Vec<_> =
            of_provider.into_iter().chain(limit(LimitScope::Org, org, self.models.org_limit(org))).collect();
        if !limits.is_empty() && self.is_unknown() {
            let model = &self.choice.model;
            let text = "unpriced: money of a day is limited, so the model needs a price: add llm.prices or run.price";
            return Err(permanent(format!("{text} for {model:?}")));
        }
        Ok(limits)
    }

    fn unpriced(&self) -> u64 {
        if self.is_first { self.definition.offer.cost_microdollars } else { 0 }
    }

    /// The most that a question may use.
    pub(in crate::agent) fn most(&self, input_tokens: u64, output_tokens: u64) -> Usage {
        let price = self.price(None);
        let microdollars =
            price.map_or_else(|| self.unpriced(), |price| price.most(input_tokens, output_tokens));
        Usage { tokens: input_tokens.saturating_add(output_tokens), microdollars, presumed: false }
    }

    /// What a question used that was answered. The cost that the endpoint names goes before the price; counts that it
    /// does not report are presumed to be the most.
    pub(in crate::agent) fn used(
        &self,
        counts: Option<TokenCounts>,
        details: UsageDetails,
        said: Option<&str>,
        most: Usage,
    ) -> ModelUsage {
        // A text with the character U+0000 cannot be stored.
        let (named, said_name) = (details.microdollars, said.map(|said| said.replace('\0', "\u{fffd}")));
        let Some(counts) = counts else {
            let microdollars = named.unwrap_or(most.microdollars);
            let usage = Usage { presumed: true, microdollars, ..most };
            return ModelUsage { usage, said: said_name, named, ..ModelUsage::default() };
        };
        let price = self.price(said);
        let priced = price.map(|price| price.of(&counts));
        let microdollars = named.or(priced).unwrap_or_else(|| self.unpriced());
        let TokenCounts { input, cached, written, output, reasoning } = counts;
        ModelUsage {
            usage: Usage { tokens: counts.total(), microdollars, presumed: false },
            said: said_name,
            parts: Some(TokenParts { input, cached, written, output, reasoning }),
            named,
            priced,
            price_from: price.and_then(|price| price.from),
        }
    }
}

/// A question of a job, with its tries; or a call of a tool.
pub(in crate::agent) struct Asking<'a> {
    job: &'a Job,
    provider: &'a str,
    model: &'a str,
    most: Usage,
    /// The first day of the price by which `most` was computed.
    price_from: Option<NaiveDate>,
    limits: Vec<DayLimit>,
    now: Mutex<Now>,
}

/// The try under way.
struct Now {
    record: Uuid,
    /// Whether it is under way: it was recorded, and has no end yet.
    is_open: bool,
    /// The run and the number of the step that asks.
    step: Option<(i32, i32)>,
    /// What the assignment has used.
    used: Usage,
    /// The limit of a day that has no room for another try.
    short: Option<InsufficientBudget>,
}

impl<'a> Asking<'a> {
    /// A question that may use `most`. `used`: what its assignment has used before.
    ///
    /// # Errors
    /// If money is limited and the model has no price.
    pub(in crate::agent) fn new(
        job: &'a Job,
        provider: &'a Provider,
        pricing: Pricing<'a>,
        most: Usage,
        used: Usage,
    ) -> Result<Self, Failure> {
        let limits = pricing.limits(provider.name()).map_err(|failure| Failure { usage: used, ..failure })?;
        let model = pricing.choice.model.as_str();
        let price_from = pricing.price(None).and_then(|price| price.from);
        let now = Now { record: Uuid::new_v4(), is_open: false, step: None, used, short: None };
        Ok(Self { job, provider: provider.name(), model, most, price_from, limits, now: Mutex::new(now) })
    }

    /// A call of a tool, in this run and step, that may cost `most`. `used`: what its assignment has used before.
    /// `org_limit`: the money of a day of the org.
    pub(in crate::agent) fn of_call(
        job: &'a Job,
        tool: &'a str,
        step: (i32, i32),
        most: Usage,
        org_limit: Option<u64>,
        used: Usage,
    ) -> Self {
        let org = job.start.org.to_string();
        let limit = |microdollars| DayLimit { scope: LimitScope::Org, name: org, microdollars };
        let limits = org_limit.map(limit).into_iter().collect();
        let now = Now { record: Uuid::new_v4(), is_open: false, step: Some(step), used, short: None };
        Self { job, provider: TOOLS, model: tool, most, price_from: None, limits, now: Mutex::new(now) }
    }

    /// The most that a try may use.
    pub(in crate::agent) fn most(&self) -> Usage {
        self.most
    }

    /// What the assignment has used, with the tries so far.
    pub(in crate::agent) fn used(&self) -> Usage {
        self.now.lock().used
    }

    /// Reserves the most of a try, if there is a limit.
    ///
    /// # Errors
    /// The failure of the job.
    pub(in crate::agent) async fn reserve(&self) -> Result<(), Failure> {
        let Some(budget) = self.job.budget() else { return Ok(()) };
        let used = self.used();
        let total = added(used, self.most);
        budget.reserve(total).await.map_err(|failure| Failure { usage: used, ..failure })
    }

    /// The record of the try.
    pub(in crate::agent) fn record(&self) -> ModelQuestion {
        ModelQuestion {
            id: self.now.lock().record,
            provider: self.provider.to_owned(),
            model: self.model.to_owned(),
            most: self.most,
            price_from: self.price_from,
            limits: self.limits.clone(),
        }
    }

    /// The record was written with this step.
    pub(in crate::agent) fn begun(&self, run: i32, seq: i32) {
        let mut now = self.now.lock();
        (now.is_open, now.step) = (true, Some((run, seq)));
    }

    /// Reserves and records a try. Returns whether it may be sent: a limit of the day may have no room.
    ///
    /// # Errors
    /// The failure of the job: nothing may be sent.
    pub(in crate::agent) async fn begin(&self) -> Result<bool, Failure> {
        self.reserve().await?;
        let Some(tasks) = self.job.tasks() else {
            self.now.lock().is_open = true;
            return Ok(true);
        };
        let (record, step) = (self.record(), self.now.lock().step);
        let (key, agent) = (self.job.start.key, &self.job.agent_id);
        let asked = again(self.job.deadline, || tasks.ask_model(key, agent, step, &record)).await;
        match asked.map_err(|e| Failure { usage: self.used(), ..retryable(e.to_string()) })? {
            Ok(()) => self.now.lock().is_open = true,
            Err(short) => self.is_short(short),
        }
        Ok(self.now.lock().is_open)
    }

    /// A limit of the day has no room.
    pub(in crate::agent) fn is_short(&self, short: InsufficientBudget) {
        self.now.lock().short = Some(short);
    }

    /// How the job goes on if a limit of the day has no room: later, with the same attempt.
    pub(in crate::agent) fn deferral(&self) -> Option<Finished> {
        let now = self.now.lock();
        let short = now.short.as_ref()?;
        let left = match short {
            InsufficientBudget::Day { left, .. } => *left,
            _ => DAY_POLL,
        };
        // A second more, so that the day is over.
        let after = DAY_POLL.min(left + Duration::from_secs(1));
        Some(Finished::Deferred { reason: short.to_string(), after, usage: now.used })
    }

    /// Counts a try that was answered. Its record is written with the end of its step, or by [`Self::record_end`].
    pub(in crate::agent) fn count(&self, usage: Usage) {
        let mut now = self.now.lock();
        if std::mem::take(&mut now.is_open) {
            now.used = added(now.used, usage);
        }
    }

    /// Records what the try used. It counts also if the assignment is over, in place of what was presumed then.
    pub(in crate::agent) async fn record_end(&self, used: &ModelUsage) {
        let record = self.now.lock().record;
        record_usage(self.job, record, used).await;
    }

    /// Counts and records what a try used. Nothing if it is not under way.
    pub(in crate::agent) async fn ended(&self, used: &ModelUsage) {
        if self.now.lock().is_open {
            self.count(used.usage);
            self.record_end(used).await;
        }
    }

    /// Counts and records a try that failed.
    pub(in crate::agent) async fn failed(&self, error: &Error) {
        if error.may_have_cost() {
            self.stopped().await;
        } else {
            self.ended(&ModelUsage::none()).await;
        }
    }

    /// Counts and records a try whose end is not known: as its most.
    pub(in crate::agent) async fn stopped(&self) {
        self.ended(&ModelUsage::presumed(self.most)).await;
    }
}

#[async_trait::async_trait]
impl Meter for Asking<'_> {
    async fn lost(&self) -> bool {
        self.stopped().await;
        self.now.lock().record = Uuid::new_v4();
        self.begin().await.unwrap_or(false)
    }
}

/// Records what a question used. It counts also if the assignment is over, in place of what was presumed then.
pub(in crate::agent) async fn record_usage(job: &Job, question: Uuid, used: &ModelUsage) {
    let Some(tasks) = job.tasks() else { return };
    if let Err(error) = again(job.deadline, || tasks.end_model_question(question, used)).await {
        // The record counts as its most when the assignment ends.
        warn!(task = %job.start.key.task_id, %error, "the usage of a question is not recorded");
    }
}

pub(in crate::agent) fn added(used: Usage, more: Usage) -> Usage {
    Usage {
        tokens: used.tokens.saturating_add(more.tokens),
        microdollars: used.microdollars.saturating_add(more.microdollars),
        presumed: used.presumed || more.presumed,
    }
}
