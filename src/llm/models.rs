//! The models of a daemon, and asking them with patience.
use super::{Admission, Answer, Clients, Error, Model, OpenAi, Question, backoff};
use crate::clock::Clock;
use parking_lot::Mutex;
use secrecy::SecretString;
use std::{collections::HashMap, sync::Arc};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

/// Questions to one endpoint at once.
const PLACES: usize = 16;
/// Times that one question is sent at most.
const TRIES_MAX: u32 = 5;

/// The models of a daemon. Clones share connections and gates.
#[derive(Clone, Default)]
pub struct Models {
    clock: Clock,
    clients: Clients,
    gates: Arc<Mutex<HashMap<String, Admission>>>,
    scripted: Option<Arc<dyn Model>>,
}

/// A model with the gate of its endpoint.
#[derive(Clone)]
pub struct Provider {
    model: Arc<dyn Model>,
    gate: Admission,
}

impl Models {
    /// Models behind real endpoints.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, ..Self::default() }
    }

    /// This model, whatever the endpoint: for tests and rehearsals.
    #[must_use]
    pub fn scripted(model: Arc<dyn Model>) -> Self {
        Self { scripted: Some(model), ..Self::default() }
    }

    /// The HTTP clients that the models use.
    #[must_use]
    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// The model at an endpoint.
    ///
    /// # Errors
    /// Why no HTTP client can be made.
    pub fn at(&self, base_url: &str, key: Option<SecretString>) -> Result<Provider, Error> {
        let gate =
            self.gates.lock().entry(base_url.to_owned()).or_insert_with(|| Admission::new(PLACES)).clone();
        let model: Arc<dyn Model> = match &self.scripted {
            Some(model) => model.clone(),
            None => Arc::new(OpenAi::new(base_url, key, &self.clients, self.clock.clone())?),
        };
        Ok(Provider { model, gate })
    }
}

impl Provider {
    /// Asks until there is an answer, an error that asking again does not mend, five tries or the deadline.
    /// Waits as long as the endpoint says, else ever longer; a 429 holds everyone at the endpoint.
    ///
    /// # Errors
    /// The last try's; [`Error::Timeout`] when the deadline came first and there was no try.
    pub async fn ask(&self, question: &Question, deadline: Instant) -> Result<Answer, Error> {
        let mut last = Error::Timeout(question.timeout);
        for tried in 1..=TRIES_MAX {
            let Ok(place) = timeout_at(deadline, self.gate.enter()).await else { return Err(last) };
            let asked = timeout_at(deadline, self.model.ask(question)).await;
            drop(place);
            let error = match asked {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => Error::Timeout(question.timeout),
            };
            if !error.is_transient() || tried == TRIES_MAX {
                return Err(error);
            }
            let wait = error.retry_after().unwrap_or_else(|| backoff(tried));
            debug!(tried, ?wait, %error, "asking the model again");
            if Instant::now() + wait >= deadline {
                return Err(error);
            }
            last = error;
            match last {
                Error::RateLimited { .. } => self.gate.pause(wait),
                _ => sleep(wait).await,
            }
        }
        Err(last)
    }
}
