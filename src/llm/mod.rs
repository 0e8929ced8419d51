//! Language models: one request, one answer, with its token counts.
//!
//! [`Model`] has two implementations. [`OpenAi`] works with any server that implements chat completions
//! (`POST /chat/completions`) like OpenAI, through async-openai over a plain transport of our own: one HTTP
//! request for each call, a limit on the size of the answer, no `OPENAI_*` variables, no content in the
//! process log. Streamed answers have a decoder of our own ([`StreamDecoder`]).
//! [`Scripted`] returns prepared answers, for tests. [`Models`] creates them and keeps one [`Account`] for
//! each key of an endpoint, so that all agents share its limits, its queue and its pause after a 429. Owns no
//! conversation and no tools. Fails with [`Error`], which tells whether to retry; its texts contain nothing
//! that a model or its server wrote.
mod account;
mod bill;
mod breaker;
mod catalog;
mod chat;
mod config;
mod dollars;
mod in_order;
mod limiter;
mod metrics;
mod models;
mod openai;
mod price;
mod reported;
mod scripted;
mod status;
mod stream;
mod transport;
mod usage;

pub use account::{Account, AccountState, Caller, Meter};
pub use bill::{Bill, BillProblem, read_bill};
pub use catalog::{CatalogPrices, CatalogProblem, Wanted, read_catalog};
pub use chat::{ChatAnswer, ChatRequest, Streaming};
pub use config::{Config, OrgConfig, ProviderConfig};
pub(crate) use in_order::InOrder;
pub use limiter::Limits;
pub use models::{Models, Provider};
pub use openai::OpenAi;
pub use price::{Price, Tier};
pub use scripted::{Scripted, Step};
pub use stream::StreamDecoder;
pub use transport::{Clients, retry_after};
pub(crate) use transport::{backoff, innermost, read_body};
pub use usage::{TokenCounts, UsageDetails};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;

/// A language model.
#[async_trait::async_trait]
pub trait Model: Send + Sync {
    /// Sends one request, without retries. Dropping the future cancels the request.
    ///
    /// # Errors
    /// See [`Error`].
    async fn ask(&self, question: &CompletionRequest) -> Result<Answer, Error>;

    /// Sends one request of a conversation with tools, without retries. Dropping the future cancels the request.
    ///
    /// # Errors
    /// See [`Error`].
    async fn chat(&self, question: &ChatRequest) -> Result<ChatAnswer, Error>;
}

/// A request for a completion.
#[derive(Clone, Debug)]
pub struct CompletionRequest {
    /// Name of the model at its endpoint.
    pub model: String,
    /// System prompt.
    pub system: String,
    /// User prompt.
    pub user: String,
    /// Required form of the answer.
    pub format: Format,
    /// Most tokens of the answer; `None` leaves it to the endpoint.
    pub max_tokens: Option<u32>,
    /// The member that limits them. `None` for that of the endpoint.
    pub limit_member: Option<LimitMember>,
    /// 0 to 2. Defaults to the endpoint's own.
    pub temperature: Option<f32>,
    /// Timeout of one attempt.
    pub timeout: Duration,
}

/// The member of a request that limits the tokens of its answer. Endpoints know one of the two, and some refuse the other
/// or ignore it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitMember {
    /// The older name, which all but OpenAI's newer models know.
    MaxTokens,
    /// The newer name.
    MaxCompletionTokens,
}

impl LimitMember {
    /// The one that is named, else that of the endpoint.
    fn of(named: Option<Self>, is_openai: bool) -> Self {
        named.unwrap_or(if is_openai { Self::MaxCompletionTokens } else { Self::MaxTokens })
    }

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MaxTokens => "max_tokens",
            Self::MaxCompletionTokens => "max_completion_tokens",
        }
    }
}

/// The required form of an answer, as far as the endpoint enforces it.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that matches this schema.
    JsonSchema(serde_json::Value),
}

impl Format {
    /// The member `response_format`. `None` for any text.
    fn member(&self) -> Option<Value> {
        match self {
            Self::Text => None,
            Self::JsonObject => Some(json!({ "type": "json_object" })),
            Self::JsonSchema(schema) => {
                Some(json!({ "type": "json_schema", "json_schema": { "name": "result", "schema": schema } }))
            }
        }
    }
}

/// A temperature with six decimals: 0.2 as f32 would be sent as 0.20000000298.
fn rounded(temperature: f32) -> Value {
    json!((f64::from(temperature) * 1e6).round() / 1e6)
}

/// The answer of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// Tokens of the prompt, as counted by the endpoint; `None` if the count is missing or unreadable.
    pub input_tokens: Option<u64>,
    /// Tokens of the answer, likewise.
    pub output_tokens: Option<u64>,
    /// The parts of these counts, and the cost that the endpoint names.
    pub details: UsageDetails,
    /// The model that the endpoint names.
    pub model: Option<String>,
    /// Whether the answer was cut off at `max_tokens`.
    pub cut_off: bool,
}

impl Answer {
    /// All counts of its tokens. `None` if one of the two wholes is missing.
    #[must_use]
    pub fn counts(&self) -> Option<TokenCounts> {
        usage::counts(self.input_tokens, self.output_tokens, self.details)
    }
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The key is invalid or may not use the model. Permanent.
    #[error("model endpoint refused the key ({status})")]
    Refused {
        /// 401 or 403.
        status: u16,
    },
    /// The account has no credit left. Permanent.
    #[error("model endpoint has no credit left for this key ({status})")]
    Quota {
        /// 402 or 429.
        status: u16,
    },
    /// The request is larger than the context of the model. Permanent.
    #[error("the request is over the context of the model ({status})")]
    TooLarge {
        /// 400 or 413.
        status: u16,
    },
    /// The endpoint could not read the call that its model made. The same request may succeed.
    #[error("model endpoint could not read the call of its model (400)")]
    BadCall,
    /// The endpoint does not accept the request. Permanent.
    #[error("model endpoint rejected the request ({status})")]
    Rejected {
        /// Another 4xx, or a redirect: redirects are not followed.
        status: u16,
    },
    /// The rate limit of the endpoint is exceeded.
    #[error("model endpoint is over its rate limit (429)")]
    RateLimited {
        /// `Retry-After`, if given.
        retry_after: Option<Duration>,
    },
    /// The endpoint failed.
    #[error("model endpoint failed ({status})")]
    Failed {
        /// A 5xx, or 408.
        status: u16,
        /// `Retry-After`, if given.
        retry_after: Option<Duration>,
    },
    /// No connection, so the request was not sent.
    #[error("model endpoint cannot be reached: {reason}")]
    Unreachable {
        /// `connection refused` and the like.
        reason: String,
    },
    /// The connection was lost after the request was sent: it may have been answered and charged.
    #[error("model endpoint broke the connection: {reason}")]
    Broken {
        /// `connection reset by peer` and the like.
        reason: String,
    },
    /// The endpoint failed repeatedly or refused the key, so requests to the model are held. Nothing was sent.
    #[error("requests to model {model} are held, because its endpoint failed repeatedly or refused the key")]
    Held {
        /// Name of the model.
        model: String,
    },
    /// No answer in time.
    #[error("model endpoint did not answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// The answer is not a chat completion.
    #[error("model endpoint gave an answer that is no chat completion: {0}")]
    InvalidAnswer(&'static str),
}

impl Error {
    /// Whether a retry of the same request may succeed soon.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::RateLimited { .. }
                | Self::Failed { .. }
                | Self::Unreachable { .. }
                | Self::Broken { .. }
                | Self::BadCall
                | Self::Timeout(_)
        )
    }

    /// Whether the endpoint is down or overloaded, independent of the request.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        matches!(
            self,
            Self::RateLimited { .. }
                | Self::Failed { .. }
                | Self::Unreachable { .. }
                | Self::Broken { .. }
                | Self::Held { .. }
        )
    }

    /// Whether the failed request may have been answered and charged.
    #[must_use]
    pub fn may_have_cost(&self) -> bool {
        matches!(self, Self::Broken { .. } | Self::Timeout(_) | Self::InvalidAnswer(_) | Self::BadCall)
    }

    /// Whether a retry cannot succeed until the request or the settings change.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        matches!(
            self,
            Self::Refused { .. } | Self::Rejected { .. } | Self::Quota { .. } | Self::TooLarge { .. }
        )
    }

    /// `Retry-After` of the endpoint, if given.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } | Self::Failed { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
