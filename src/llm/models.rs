//! The models of a daemon, with concurrency limits, retries and backoff.
use super::{
    Admission, Answer, ChatAnswer, ChatRequest, Clients, CompletionRequest, Error, Model, OpenAi, backoff,
};
use crate::clock::Clock;
use parking_lot::Mutex;
use secrecy::SecretString;
use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

/// Most concurrent requests to one endpoint.
const REQUESTS_MAX: usize = 16;
/// Most attempts of one request.
const ATTEMPTS_MAX: u32 = 5;

/// The models of a daemon. Clones share connections and limits.
#[derive(Clone, Default)]
pub struct Models {
    clock: Clock,
    clients: Clients,
    gates: Arc<Mutex<HashMap<String, Admission>>>,
    scripted: Option<Arc<dyn Model>>,
}

/// A model with the concurrency limit of its endpoint.
#[derive(Clone)]
pub struct Provider {
    model: Arc<dyn Model>,
    gate: Admission,
}

impl Models {
    /// Creates models behind real endpoints.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, ..Self::default() }
    }

    /// Creates models that all are `model`, whatever their endpoint: for tests and rehearsals.
    #[must_use]
    pub fn scripted(model: Arc<dyn Model>) -> Self {
        Self { scripted: Some(model), ..Self::default() }
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
        let gate = self
            .gates
            .lock()
            .entry(base_url.to_owned())
            .or_insert_with(|| Admission::new(REQUESTS_MAX))
            .clone();
        let model: Arc<dyn Model> = match &self.scripted {
            Some(model) => model.clone(),
            None => Arc::new(OpenAi::new(base_url, key, &self.clients, self.clock.clone())?),
        };
        Ok(Provider { model, gate })
    }
}

impl Provider {
    /// Requests a completion, with retries: until an answer, a permanent error, five attempts or the
    /// deadline.
    ///
    /// The backoff is the endpoint's `Retry-After`, else exponential. A 429 pauses every request to the
    /// endpoint.
    ///
    /// # Errors
    /// The error of the last attempt; [`Error::Timeout`] if the deadline passed before the first one.
    pub async fn ask(&self, question: &CompletionRequest, deadline: Instant) -> Result<Answer, Error> {
        self.with_retries(question.timeout, deadline, || self.model.ask(question)).await
    }

    /// Sends a request of a conversation, with retries like [`Self::ask`].
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn chat(&self, question: &ChatRequest, deadline: Instant) -> Result<ChatAnswer, Error> {
        self.with_retries(question.timeout, deadline, || self.model.chat(question)).await
    }

    async fn with_retries<T, F>(
        &self,
        timeout: Duration,
        deadline: Instant,
        send: impl Fn() -> F + Send + Sync,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let mut last = Error::Timeout(timeout);
        for tried in 1..=ATTEMPTS_MAX {
            let Ok(permit) = timeout_at(deadline, self.gate.enter()).await else { return Err(last) };
            let asked = timeout_at(deadline, send()).await;
            // Released before the backoff, so that waiting requests do not hold up others.
            drop(permit);
            let error = match asked {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => Error::Timeout(timeout),
            };
            if !error.is_transient() || tried == ATTEMPTS_MAX {
                return Err(error);
            }
            let wait = error.retry_after().unwrap_or_else(|| backoff(tried));
            debug!(tried, ?wait, %error, "model request failed, will retry");
            // A backoff beyond the deadline cannot help, so the error is returned now.
            if Instant::now() + wait >= deadline {
                return Err(error);
            }
            last = error;
            match last {
                // The pause holds the next `enter` of this request, too.
                Error::RateLimited { .. } => self.gate.pause(wait),
                _ => sleep(wait).await,
            }
        }
        Err(last)
    }
}
