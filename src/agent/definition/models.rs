//! The models of an agent: where each is, and what it costs.
use crate::{agent::Env, llm::Price};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The endpoint of an agent that names a key and no endpoint.
const OPENAI_BASE_URL: &str = "https://api.openai.com/v1";

/// One model of `run.models`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelChoice {
    /// Its name at its endpoint.
    pub model: String,
    /// The endpoint, up to and with `/v1`. Defaults to the OpenAI API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// The variable with the endpoint. It takes precedence over `base_url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url_env: Option<String>,
    /// The variable with the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// The prices of its questions. Defaults to those of the model in the settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    /// Tokens of its context. A question that is too large for one model goes to a later one with a larger context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<u64>,
}

/// When a question goes to another model of `run.models`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failover {
    /// Longest wait for the account of a model. Defaults to 30 seconds: turning away from a model earlier throws away
    /// what its endpoint has cached, and moves a storm of requests to the next account.
    #[serde(with = "humantime_serde")]
    pub after: Duration,
}

impl Default for Failover {
    fn default() -> Self {
        Self { after: Duration::from_secs(30) }
    }
}

/// The endpoint of an agent's model, and its key.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) base_url: String,
    pub(crate) api_key: Option<SecretString>,
}

impl ModelChoice {
    /// The endpoint of the model. One from the environment needs no key (a local server); any other needs the key
    /// that the definition names.
    ///
    /// # Errors
    /// Which variable is missing, one line.
    pub(crate) fn endpoint(&self, env: &Env) -> Result<Endpoint, String> {
        let from_env = self.base_url_env.as_ref().and_then(|name| env.get(name));
        let api_key = self.api_key_env.as_ref().and_then(|name| env.get(name)).map(SecretString::from);
        let key_missing = self.api_key_env.as_ref().filter(|_| api_key.is_none());
        match (from_env, key_missing, &self.base_url_env) {
            (Some(base_url), _, _) => return Ok(Endpoint { base_url, api_key }),
            (None, Some(key), Some(base)) => {
                return Err(format!("neither {key} nor {base} is set in the environment"));
            }
            (None, Some(key), None) => return Err(format!("{key} is not set in the environment")),
            (None, None, Some(base)) if api_key.is_none() && self.base_url.is_none() => {
                return Err(format!("{base} is not set in the environment"));
            }
            _ => {}
        }
        let base_url = self.base_url.clone().unwrap_or_else(|| OPENAI_BASE_URL.to_owned());
        Ok(Endpoint { base_url, api_key })
    }
}
