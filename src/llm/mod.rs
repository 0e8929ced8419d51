//! Language models: one question, one answer, with what it cost in tokens.
//!
//! [`Model`] has two implementations: [`OpenAi`] speaks to any server that
//! answers `POST /chat/completions` as OpenAI's does, through async-openai over
//! a plain transport of ours (one request a call, a limit on the answer's size,
//! nothing read from `OPENAI_*` variables, nothing of an answer in the log), and
//! [`Scripted`] gives prepared answers to tests. [`Models`] hands them out and
//! keeps one [`Admission`] an endpoint, so that a fleet of agents shares its
//! limit and its back-off after a 429. Owns no conversation and no tools. Fails
//! with [`Error`], made for the caller's choice between again, later and never;
//! its texts hold no word of a model or of its server.
mod admission;
mod models;
mod openai;
mod scripted;
mod transport;

pub use admission::Admission;
pub use models::{Models, Provider};
pub use openai::OpenAi;
pub use scripted::{Scripted, Step};
pub use transport::{Clients, retry_after};
pub(crate) use transport::{backoff, innermost, read_body};

use std::time::Duration;

/// A model that can be asked.
#[async_trait::async_trait]
pub trait Model: Send + Sync {
    /// Asks once. Nothing is repeated here; dropping the future ends the request.
    ///
    /// # Errors
    /// See [`Error`].
    async fn ask(&self, question: &Question) -> Result<Answer, Error>;
}

/// What a model is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// The model's name at its endpoint.
    pub model: String,
    /// What it is told to be and do.
    pub system: String,
    /// What it is to work on.
    pub user: String,
    /// What its answer must look like.
    pub format: Format,
    /// Most tokens that it may write.
    pub max_tokens: Option<u32>,
    /// 0 to 2; the endpoint's own by default.
    pub temperature: Option<f32>,
    /// How long the answer may take.
    pub timeout: Duration,
}

/// What an answer must look like, as far as the endpoint can see to it.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// Nothing is asked for.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON of this schema.
    JsonSchema(serde_json::Value),
}

/// What a model answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its words.
    pub text: String,
    /// Tokens that it read, as the endpoint counts them; 0 when it does not say.
    pub input_tokens: u64,
    /// Tokens that it wrote.
    pub output_tokens: u64,
    /// Whether it ended because `max_tokens` was reached.
    pub cut_off: bool,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The key is wrong or may not use the model: asking again is of no use.
    #[error("model endpoint refused the key ({status})")]
    Refused {
        /// 401 or 403.
        status: u16,
    },
    /// The endpoint does not take the question: asking again is of no use.
    #[error("model endpoint rejected the request ({status})")]
    Rejected {
        /// Another 4xx, or a redirect, which is not followed.
        status: u16,
    },
    /// Too many questions for now.
    #[error("model endpoint is over its rate limit (429)")]
    RateLimited {
        /// When to come again, as the endpoint says.
        retry_after: Option<Duration>,
    },
    /// The endpoint has trouble of its own.
    #[error("model endpoint failed ({status})")]
    Failed {
        /// A 5xx.
        status: u16,
        /// When to come again, as the endpoint says.
        retry_after: Option<Duration>,
    },
    /// No connection, or it broke.
    #[error("model endpoint cannot be reached: {reason}")]
    Unreachable {
        /// `connection refused` and the like.
        reason: String,
    },
    /// No answer in time.
    #[error("model endpoint did not answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// An answer that is none.
    #[error("model endpoint gave an answer that is no chat completion: {0}")]
    Rubbish(&'static str),
}

impl Error {
    /// Whether the endpoint may take the same question in a moment.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::RateLimited { .. } | Self::Failed { .. } | Self::Unreachable { .. } | Self::Timeout(_)
        )
    }

    /// Whether asking again, however late, is of no use before someone has changed something.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Rejected { .. })
    }

    /// When to come again, as the endpoint says.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } | Self::Failed { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
