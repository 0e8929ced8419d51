//! HTTP to servers of others: clients, `Retry-After`, and the transport under async-openai.
//!
//! The transport sends one request, once. async-openai's own transport would retry and log bodies of failed
//! answers. So every answer that is not a 2xx with JSON becomes an [`Error`] here, boxed in async-openai's
//! error type.
use super::{Error, reported};
use async_openai::{error::OpenAIError, middleware::HttpRequestFactory};
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde::de::IgnoredAny;
use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

/// Most bytes of an answer.
pub(super) const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Most bytes of an error that are read for its code, and how long it may take.
const ERROR_BYTES_MAX: usize = 64 << 10;
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest `Retry-After`; longer ones are shortened to it.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(20);

/// HTTP clients, created on first use: one without proxy for loopback addresses, and one with the proxy of
/// the environment. Neither follows redirects.
#[derive(Clone, Debug, Default)]
pub struct Clients {
    direct: Arc<OnceLock<Result<reqwest::Client, String>>>,
    proxied: Arc<OnceLock<Result<reqwest::Client, String>>>,
    tls: Arc<OnceLock<Result<rustls::ClientConfig, String>>>,
}

impl Clients {
    /// Returns the client for this URL.
    ///
    /// # Errors
    /// If no client can be created; one line.
    pub fn for_url(&self, url: &str) -> Result<reqwest::Client, String> {
        let host = reqwest::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned));
        let host = host.unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let address = host.parse::<std::net::IpAddr>();
        let local = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
        let slot = if local { &self.direct } else { &self.proxied };
        slot.get_or_init(|| self.client(local)).clone()
    }

    /// Returns a client of its own that reaches this host at these addresses only, without a proxy.
    ///
    /// # Errors
    /// If no client can be created; one line.
    pub(crate) fn for_addresses(
        &self,
        host: &str,
        addresses: &[SocketAddr],
    ) -> Result<reqwest::Client, String> {
        let client = self.builder()?.no_proxy().resolve_to_addrs(host, addresses).build();
        client.map_err(|e| innermost(&e))
    }

    fn client(&self, direct: bool) -> Result<reqwest::Client, String> {
        let builder = self.builder()?;
        let builder = if direct { builder.no_proxy() } else { builder };
        builder.build().map_err(|e| innermost(&e))
    }

    fn builder(&self) -> Result<reqwest::ClientBuilder, String> {
        Ok(reqwest::Client::builder()
            .tls_backend_preconfigured(self.tls.get_or_init(tls).clone()?)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(Duration::from_secs(30))
            .user_agent(concat!("convoke/", env!("CARGO_PKG_VERSION"))))
    }
}

fn tls() -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    // Without system certificates plain HTTP still works, and TLS fails with its own error.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Parses `Retry-After`, in seconds or as a date; at most an hour.
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        Err(_) => (DateTime::parse_from_rfc2822(value).ok()?.to_utc() - now).to_std().unwrap_or_default(),
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// The backoff after attempt `tried`: exponential, with ±20 % jitter so that callers do not retry together.
pub(crate) fn backoff(tried: u32) -> Duration {
    let base = PAUSE_FIRST.saturating_mul(1 << tried.saturating_sub(1).min(10)).min(PAUSE_MAX);
    base.mul_f64(rand::random_range(0.8..1.2))
}

/// Returns the innermost cause, like `connection refused`; the outermost is only `error sending request`.
pub(crate) fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let text = cause.to_string().to_lowercase();
    match text.split_once(" (os error") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

/// Reads a body of at most `bytes_max`; `None` if it is larger.
pub(crate) async fn read_body(
    response: reqwest::Response,
    bytes_max: usize,
) -> Result<Option<Bytes>, reqwest::Error> {
    let mut body = BytesMut::new();
    let mut stream = response.bytes_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        if body.len() + chunk.len() > bytes_max {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body.freeze()))
}

/// Sends a request of async-openai, once.
#[derive(Clone, Debug)]
pub(super) struct Plain {
    pub(super) client: reqwest::Client,
    pub(super) clock: crate::clock::Clock,
}

impl tower_service::Service<HttpRequestFactory> for Plain {
    type Response = reqwest::Response;
    type Error = OpenAIError;
    type Future = Pin<Box<dyn Future<Output = Result<reqwest::Response, OpenAIError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), OpenAIError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequestFactory) -> Self::Future {
        let Self { client, clock } = self.clone();
        Box::pin(async move {
            let request = request.build().await?;
            send(&client, &clock, request).await.map_err(|e| OpenAIError::Boxed(Box::new(e)))
        })
    }
}

/// Classifies a transport error: a request that was not sent costs nothing, a sent one may have been charged.
pub(super) fn broken(error: &reqwest::Error) -> Error {
    let reason = innermost(error);
    if error.is_connect() || error.is_builder() {
        Error::Unreachable { reason }
    } else {
        Error::Broken { reason }
    }
}

/// The response, if its status is that of success. The body of another one is read for its code.
pub(super) async fn successful(
    response: reqwest::Response,
    clock: &crate::clock::Clock,
) -> Result<reqwest::Response, Error> {
    reported::keep(response.headers(), clock.now());
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let headers = response.headers().clone();
    // A server that does not end the body of its error has said enough.
    let body = tokio::time::timeout(ERROR_BODY_TIMEOUT, read_body(response, ERROR_BYTES_MAX)).await;
    let body = body.ok().and_then(Result::ok).flatten().unwrap_or_default();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let error = Error::of_status(status.as_u16(), &headers, &body, clock.now());
    Err(error.unwrap_or(Error::Rejected { status: status.as_u16() }))
}

async fn send(
    client: &reqwest::Client,
    clock: &crate::clock::Clock,
    mut request: reqwest::Request,
) -> Result<reqwest::Response, Error> {
    reported::add_traceparent(request.headers_mut());
    let response = client.execute(request).await.map_err(|e| broken(&e))?;
    let response = successful(response, clock).await?;
    reported::first_byte();
    let body = read_body(response, ANSWER_BYTES_MAX).await.map_err(|e| broken(&e))?;
    let body = body.ok_or(Error::InvalidAnswer("it is over 4 MiB"))?;
    if serde_json::from_slice::<IgnoredAny>(&body).is_err() {
        return Err(Error::InvalidAnswer("it is no JSON"));
    }
    Ok(http::Response::new(body).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_created_for_loopback_and_remote_urls() {
        let clients = Clients::default();
        for url in
            ["https://api.openai.com/v1", "http://127.0.0.1:8080", "http://[::1]:8080", "http://localhost"]
        {
            clients.for_url(url).unwrap();
        }
        assert!(clients.proxied.get().is_some() && clients.direct.get().is_some());
    }

    #[test]
    fn retry_after_is_parsed_as_seconds_or_date() {
        let now = DateTime::parse_from_rfc3339("2026-08-21T09:00:00Z").unwrap().to_utc();
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(read("2"), Some(Duration::from_secs(2)));
        assert_eq!(read("0.5"), Some(Duration::from_millis(500)));
        assert_eq!(read("Fri, 21 Aug 2026 09:00:07 GMT"), Some(Duration::from_secs(7)));
        assert_eq!(read("Fri, 21 Aug 2026 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("99999999"), Some(RETRY_AFTER_MAX));
        for bad in ["soon", "-1", "NaN"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
