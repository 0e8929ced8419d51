//! `kind = "http"`: a POST for each task.
//!
//! The body is the start of the job as JSON (`task_id`, `assignment_id`, `epoch`,
//! `agent_id`, `org`, `kind`, `input`, `attempt`, `lease`, `attempt_timeout`,
//! `checkpoint`, `result_schema`). With `secret_env` it is signed:
//! `Convoke-Signature: sha256=<hex>` is the HMAC-SHA256 of `<timestamp>.<body>`
//! with `Convoke-Timestamp` in Unix seconds. `Convoke-Event` is `task`, or the event of a message from
//! another agent, which comes by a POST of its own. `Idempotency-Key` is the assignment,
//! so a server can detect a repeat. Where there is a secret, `Convoke-Url` and `Convoke-Token`
//! let the server request parts and report as the agent. 200 with JSON is the result (its cost may be in
//! `Convoke-Tokens` and `Convoke-Microdollars`); 202 means that the server
//! reports through `/v1/assignments` and renews the lease itself; 429, 5xx and
//! broken connections are tried again while the attempt lasts; redirects are not
//! followed. No text of an answer becomes part of a failure.
use super::RunnerDeps;
use crate::{
    agent::{
        Agent, AgentMessage, Definition, Finished, Handled, Job, hex,
        job::{outage, permanent, retryable, unread},
    },
    json::{self, count_text},
    llm::{backoff, innermost, read_body, retry_after},
    task::{Failure, Usage},
};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::{
    Response,
    header::{CONTENT_TYPE, HeaderMap},
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use sha2::Sha256;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout_at};

/// Most tries of one job.
const TRIES_MAX: u32 = 5;

/// An agent behind a URL.
pub(crate) struct Http {
    definition: Arc<Definition>,
    url: String,
    secret: Option<SecretString>,
    parts: RunnerDeps,
}

/// Why a try failed, and how long to wait before the next.
struct RetryAfter {
    failure: Failure,
    wait: Option<Duration>,
}

impl Http {
    pub(crate) fn new(definition: Arc<Definition>, parts: RunnerDeps) -> Result<Self, String> {
        let url = definition.run.url.clone().ok_or("url is missing")?;
        let secret = secret(&definition, &parts)?;
        Ok(Self { definition, url, secret, parts })
    }

    fn body(job: &Job) -> Vec<u8> {
        let mut body = json!(job.start);
        if let Value::Object(members) = &mut body {
            members.insert("agent_id".into(), json!(job.agent_id));
            let left = job.deadline.saturating_duration_since(Instant::now());
            let left = Duration::from_millis(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
            members.insert("attempt_timeout".into(), json!(humantime::format_duration(left).to_string()));
        }
        body.to_string().into_bytes()
    }

    fn request(&self, event: &str, body: &[u8]) -> Result<reqwest::RequestBuilder, String> {
        request(&self.parts, &self.url, self.secret.as_ref(), event, body)
    }

    async fn post(&self, job: &Job, body: &[u8]) -> Result<Result<Finished, Failure>, RetryAfter> {
        let again = |message: String, wait| RetryAfter { failure: outage(message), wait };
        let request = self.request("task", body).map_err(|e| again(e, None))?;
        let request = request.header("Idempotency-Key", job.start.key.assignment_id.to_string());
        let request = match job.start.traceparent {
            Some(trace) => request.header("traceparent", trace.to_string()),
            None => request,
        };
        // Only to a server that shares a secret: the token acts as the agent.
        let request = match job.pass().filter(|_| self.secret.is_some()) {
            Some(pass) => request.header("Convoke-Url", &pass.url).header("Convoke-Token", &pass.token),
            None => request,
        };
        let unreachable =
            |e: reqwest::Error| again(format!("the agent cannot be reached: {}", innermost(&e)), None);
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status().as_u16();
        let wait = retry_after(response.headers(), self.parts.clock.now());
        Ok(match status {
            202 => Ok(Finished::Delegated),
            200..300 => self.result(response).await.map_err(unreachable)?,
            300..400 => Err(permanent(format!(
                "the agent answered with a redirect ({status}), which is not followed"
            ))),
            408 | 425 | 429 | 500.. => return Err(again(format!("the agent answered {status}"), wait)),
            _ => Err(permanent(format!("the agent answered {status}"))),
        })
    }

    async fn result(&self, response: Response) -> Result<Result<Finished, Failure>, reqwest::Error> {
        let usage = self.usage(response.headers());
        let bytes_max = self.definition.limits.output_bytes;
        let with_usage = |failure: Failure| Failure { usage, ..failure };
        let Some(body) = read_body(response, bytes_max).await? else {
            let message = format!("the result is over limits.output_bytes, {bytes_max} bytes");
            return Ok(Err(with_usage(permanent(message))));
        };
        Ok(match json::parse(&body) {
            Ok(result) => Ok(Finished::Result { result, usage }),
            Err(e) => Err(with_usage(unread(&e))),
        })
    }

    fn usage(&self, headers: &HeaderMap) -> Usage {
        // Usage in an unreadable header is presumed; without a header it is the definition's.
        let number = |name| headers.get(name).map(|value| value.to_str().ok().and_then(count_text));
        let (tokens, money) = (number("Convoke-Tokens"), number("Convoke-Microdollars"));
        let cost = self.definition.offer.cost_microdollars;
        Usage {
            tokens: tokens.flatten().unwrap_or(0),
            microdollars: money.flatten().unwrap_or(cost),
            presumed: tokens == Some(None) || money == Some(None),
        }
    }
}

/// The secret of the agent's signatures.
pub(super) fn secret(definition: &Definition, parts: &RunnerDeps) -> Result<Option<SecretString>, String> {
    let Some(name) = &definition.run.secret_env else { return Ok(None) };
    let secret = parts.env.get(name).ok_or_else(|| format!("{name} is not set in the environment"))?;
    Ok(Some(SecretString::from(secret)))
}

/// A POST of this body, signed if there is a secret. The error is one line.
pub(super) fn request(
    parts: &RunnerDeps,
    url: &str,
    secret: Option<&SecretString>,
    event: &str,
    body: &[u8],
) -> Result<reqwest::RequestBuilder, String> {
    let client = parts.models.clients().for_url(url)?;
    let timestamp = parts.clock.now().timestamp();
    let request = client
        .post(url)
        .header(CONTENT_TYPE, "application/json")
        .header("Convoke-Event", event)
        .header("Convoke-Timestamp", timestamp.to_string())
        .body(body.to_vec());
    Ok(match secret {
        Some(secret) => request.header("Convoke-Signature", signature(secret, timestamp, body)),
        None => request,
    })
}

/// `sha256=` and the HMAC-SHA256 of `<timestamp>.<body>` in hexadecimal.
fn signature(secret: &SecretString, timestamp: i64, body: &[u8]) -> String {
    // HMAC takes a key of any length, so this cannot fail.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()) else {
        return String::new();
    };
    mac.update(timestamp.to_string().as_bytes());
    mac.update(b".");
    mac.update(body);
    format!("sha256={}", hex(mac.finalize().into_bytes().as_slice()))
}

#[async_trait::async_trait]
impl Agent for Http {
    async fn run(&self, job: Job) -> Result<Finished, Failure> {
        let body = Self::body(&job);
        let tries = async {
            for tried in 1.. {
                let RetryAfter { failure, wait } =
                    match timeout_at(job.deadline, self.post(&job, &body)).await {
                        Ok(Ok(outcome)) => return outcome,
                        Ok(Err(again)) => again,
                        Err(_) => return Err(retryable("the agent did not answer in time")),
                    };
                let wait = wait.unwrap_or_else(|| backoff(tried));
                if tried == TRIES_MAX || Instant::now() + wait >= job.deadline {
                    return Err(match tried {
                        1 => failure,
                        _ => Failure {
                            message: format!("{}, tried {tried} times", failure.message),
                            ..failure
                        },
                    });
                }
                sleep(wait).await;
            }
            Err(retryable("the agent did not answer"))
        };
        tokio::select! {
            outcome = tries => outcome,
            // Dropping the request closes its connection: HTTP has no other way to cancel.
            () = job.stopped() => Err(retryable("the request was stopped")),
        }
    }

    /// Posted once, without retries: a message is a hint.
    async fn message(&self, message: &AgentMessage) -> Result<Handled, Failure> {
        let definition = &self.definition;
        let mut body = json!(message);
        if let Value::Object(members) = &mut body {
            members.insert("agent_id".into(), json!(definition.id));
            members.insert("org".into(), json!(definition.org));
        }
        let request = self.request(message.event, body.to_string().as_bytes()).map_err(retryable)?;
        let response = request.send().await;
        let response =
            response.map_err(|e| retryable(format!("the agent cannot be reached: {}", innermost(&e))))?;
        match response.status().as_u16() {
            200..300 => Ok(Handled::Taken),
            status => Err(retryable(format!("the agent answered {status}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_is_the_hmac_of_timestamp_and_body() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac secret
        let expected = "sha256=49f24e537407743fa4a0242bb63b94b9a47ee99cbbe071ccd8a22550ae411686";
        assert_eq!(signature(&SecretString::from("secret"), 1_700_000_000, b"{\"a\":1}"), expected);
    }
}
