//! `fetch`: one GET or HEAD of the model, to the hosts that the definition lists.
//!
//! Each hop resolves its name once, judges every address, and connects to a judged one: a name that changes its address
//! between the judgement and the connection is of no use. Redirects are followed here, so that each is judged, and
//! without the secrets of the first. No proxy is used, because it would resolve for itself. What comes back is text,
//! of a limited size, and is marked as untrusted.
use super::{Outcome, ToolCall, html, judge};
use crate::{
    agent::{Env, Fetch, FetchMethod},
    llm::{Clients, innermost},
};
use futures_util::{StreamExt, future::BoxFuture};
use reqwest::{
    Method, Response, Url,
    header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION},
};
use serde_json::{Value, json};
use std::{io, net::SocketAddr, time::Duration};
use tokio::time::{Instant, timeout_at};

/// Most redirects.
const HOPS_MAX: usize = 5;
/// Bytes of a body that are read.
const BODY_BYTES_MAX: usize = 2 << 20;

/// Resolves a name. Tests have their own.
type Lookup<'a> = dyn Fn(String, u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> + Send + Sync + 'a;

/// Why there is no text: code, message, whether a retry may succeed.
type Refused = (&'static str, String, bool);

pub(super) async fn call(call: ToolCall<'_>, fetch: &Fetch) -> Outcome {
    let fetcher = Fetcher {
        fetch,
        clients: call.parts.models.clients(),
        env: &call.parts.env,
        lookup: &|name: String, port: u16| -> BoxFuture<'_, io::Result<Vec<SocketAddr>>> {
            Box::pin(async move { Ok(tokio::net::lookup_host((name, port)).await?.collect()) })
        },
    };
    tokio::select! {
        found = fetcher.get(call.args, call.tool.timeout()) => match found {
            Ok(page) => Outcome::Done(page.to_string()),
            Err((code, message, again)) => Outcome::Failed(code, message, again),
        },
        () = call.stop.cancelled() => Outcome::Stopped,
    }
}

struct Fetcher<'a> {
    fetch: &'a Fetch,
    clients: &'a Clients,
    env: &'a Env,
    lookup: &'a Lookup<'a>,
}

impl Fetcher<'_> {
    /// The page of a URL: where it came from, its status, its type and its text.
    async fn get(&self, args: &Value, limit: Duration) -> Result<Value, Refused> {
        let late = |_| ("timeout", format!("no end within {}", humantime::format_duration(limit)), true);
        timeout_at(Instant::now() + limit, self.follow(args)).await.map_err(late)?
    }

    async fn follow(&self, args: &Value) -> Result<Value, Refused> {
        let text = |name: &str| args.get(name).and_then(Value::as_str).unwrap_or_default();
        let method = match text("method") {
            "HEAD" => FetchMethod::Head,
            _ => FetchMethod::Get,
        };
        if !self.fetch.methods.contains(&method) {
            return Err(("denied", format!("{} is not in run.fetch.methods", method.as_str()), false));
        }
        let bad_url = |e: url::ParseError| ("bad_arguments", format!("this is no URL: {e}"), false);
        let mut url = Url::parse(text("url")).map_err(bad_url)?;
        let mut secrets = self.secrets()?;
        for _ in 0..=HOPS_MAX {
            let response = self.hop(&url, method, std::mem::take(&mut secrets)).await?;
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            match (response.status().as_u16(), location) {
                (301 | 302 | 303 | 307 | 308, Some(location)) => url = url.join(location).map_err(bad_url)?,
                _ => return page(&url, method, response).await,
            }
        }
        Err(("failed", format!("more than {HOPS_MAX} redirects"), false))
    }

    fn secrets(&self) -> Result<HeaderMap, Refused> {
        let mut headers = HeaderMap::new();
        for (name, variable) in &self.fetch.headers_env {
            let value = self.env.get(variable).and_then(|value| HeaderValue::from_str(&value).ok());
            let (Some(mut value), Ok(name)) = (value, HeaderName::try_from(name.as_str())) else {
                return Err(("failed", format!("{variable} is not set, or is no value of a header"), false));
            };
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(headers)
    }

    /// One request to a judged address.
    async fn hop(&self, url: &Url, method: FetchMethod, secrets: HeaderMap) -> Result<Response, Refused> {
        let denied = |why: String| ("denied", why, false);
        let private = judge::permitted(url, self.fetch).map_err(denied)?;
        let port = url.port_or_known_default().unwrap_or_default();
        let name = url.host_str().unwrap_or_default();
        let addresses = match url.host() {
            Some(url::Host::Ipv4(address)) => vec![SocketAddr::new(address.into(), port)],
            Some(url::Host::Ipv6(address)) => vec![SocketAddr::new(address.into(), port)],
            _ => {
                let found = (self.lookup)(name.to_owned(), port).await.unwrap_or_default();
                if found.is_empty() {
                    return Err(("failed", format!("the host {name} has no address"), true));
                }
                found
            }
        };
        // One refused address is enough: the others may be those of a moment ago.
        if let Some(why) = addresses.iter().find_map(|at| judge::refused(at.ip(), private)) {
            return Err(denied(format!("the host {name} has {why}")));
        }
        let unreachable = |why: String| ("failed", format!("the host {name} cannot be reached: {why}"), true);
        let client = self.clients.for_addresses(name, &addresses).map_err(unreachable)?;
        let method = match method {
            FetchMethod::Get => Method::GET,
            FetchMethod::Head => Method::HEAD,
        };
        let request = client.request(method, url.clone()).headers(secrets);
        let request = request.header(ACCEPT, "text/html, text/plain, application/json, */*;q=0.1");
        let response = request.send().await.map_err(|e| unreachable(innermost(&e)))?;
        match response.remote_addr() {
            Some(at) if addresses.contains(&at) => Ok(response),
            _ => Err(denied(format!("the host {name} was reached at an address that was not judged"))),
        }
    }
}

async fn page(url: &Url, method: FetchMethod, response: Response) -> Result<Value, Refused> {
    let status = response.status().as_u16();
    if status >= 300 {
        let again = matches!(status, 408 | 425 | 429 | 500..);
        let code = if status == 429 { "rate_limited" } else { "failed" };
        return Err((code, format!("the server answered {status}"), again));
    }
    let header = |name: HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
    let kind = header(CONTENT_TYPE).unwrap_or_default().split(';').next().unwrap_or_default();
    let kind = kind.trim().to_ascii_lowercase();
    let encoded = header(CONTENT_ENCODING).is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity"));
    let mut page = json!({ "source": url.as_str(), "status": status, "type": kind, "untrusted": true });
    if method == FetchMethod::Head {
        return Ok(page);
    }
    if encoded || !is_text(&kind) {
        let found = if encoded { "it is compressed" } else { kind.as_str() };
        return Err(("failed", format!("the answer is no text: {found}"), false));
    }
    let (body, cut) = read(response).await?;
    let text = String::from_utf8_lossy(&body);
    let text = match kind.as_str() {
        "text/html" | "application/xhtml+xml" => html::text_of(&text),
        _ => text.into_owned(),
    };
    if let Value::Object(members) = &mut page {
        members.insert("cut".into(), json!(cut));
        members.insert("text".into(), json!(text));
    }
    Ok(page)
}

/// Reads a body up to the limit, and says whether there was more.
async fn read(response: Response) -> Result<(Vec<u8>, bool), Refused> {
    let (mut body, mut stream) = (Vec::new(), response.bytes_stream());
    while let Some(chunk) = stream.next().await {
        let chunk =
            chunk.map_err(|e| ("failed", format!("the connection broke: {}", innermost(&e)), true))?;
        let room = BODY_BYTES_MAX - body.len();
        body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
        if chunk.len() > room {
            return Ok((body, true));
        }
    }
    Ok((body, false))
}

/// Whether a media type is one of text.
fn is_text(kind: &str) -> bool {
    let known = [
        "json",
        "xml",
        "javascript",
        "x-ndjson",
        "ndjson",
        "yaml",
        "x-yaml",
        "toml",
        "x-www-form-urlencoded",
    ];
    match kind.split_once('/') {
        Some(("text", _)) => true,
        Some(("application", kind)) => {
            known.contains(&kind) || kind.ends_with("+json") || kind.ends_with("+xml")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
