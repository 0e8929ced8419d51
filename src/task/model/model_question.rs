//! Questions to models as money: the most that each may use, and what it used.
use super::usage::Usage;
use chrono::NaiveDate;
use uuid::Uuid;

/// A question that is about to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelQuestion {
    /// A new id, so that the same record can be written again.
    pub id: Uuid,
    /// Name of the provider.
    pub provider: String,
    /// Name of the model at its provider.
    pub model: String,
    /// The most that it may use.
    pub most: Usage,
    /// The first day of the price by which its most was computed. `None` without a price, or if that always held.
    pub price_from: Option<NaiveDate>,
    /// The limits of a day that it counts to: at most one of each scope, that of the provider first.
    pub limits: Vec<DayLimit>,
}

/// A limit of a day, in UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DayLimit {
    /// What it limits.
    pub scope: LimitScope,
    /// Name of the provider or org.
    pub name: String,
    /// Money of a day.
    pub microdollars: u64,
}

/// What a limit of a day is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitScope {
    /// A provider of models, of all orgs.
    Provider,
    /// An org, at all providers.
    Org,
}

impl LimitScope {
    /// Its name, like `provider`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::Org => "org",
        }
    }
}

/// What a question used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelUsage {
    /// Tokens and money; presumed if they are the most that it may have used.
    pub usage: Usage,
    /// The model that the endpoint names.
    pub said: Option<String>,
    /// The parts of the tokens. `None` if the endpoint did not count them.
    pub parts: Option<TokenParts>,
    /// The cost that the endpoint names, in microdollars.
    pub named: Option<u64>,
    /// The cost by the table of prices, in microdollars.
    pub priced: Option<u64>,
    /// The first day of that price. `None` if it always held.
    pub price_from: Option<NaiveDate>,
}

/// Tokens as the endpoint counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenParts {
    /// Of the whole prompt.
    pub input: u64,
    /// Of the prompt: read from a cache.
    pub cached: u64,
    /// Of the prompt: written to a cache.
    pub written: u64,
    /// Of the whole answer.
    pub output: u64,
    /// Of the answer: reasoning.
    pub reasoning: u64,
}

impl ModelUsage {
    /// The usage of a question that certainly cost nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The usage of a question whose end is not known.
    #[must_use]
    pub fn presumed(most: Usage) -> Self {
        Self { usage: Usage { presumed: true, ..most }, ..Self::default() }
    }
}
