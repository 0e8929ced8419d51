//! A client of the running daemon's HTTP API.
//!
//! The address is `CONVOKE_URL`, else `--listen`, else the one that a daemon left in its data folder, else
//! `server.listen`. The key is `CONVOKE_TOKEN`, else a service key of [`KEY_TTL`], signed with the secret of the
//! settings or of the data folder.
use super::settings::{Settings, keys};
use crate::{
    auth::{MintRequest, Role, SECRET_FILE, mint},
    clock::Clock,
    config::Config,
};
use anyhow::{Context, anyhow, bail};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use std::{net::SocketAddr, path::Path, time::Duration};

/// The file in the data folder with the daemon's URL.
pub(super) const URL_FILE: &str = "url";
const KEY_TTL: Duration = Duration::from_secs(600);
/// Time of an answer, without the time that the daemon waits on purpose.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The daemon at an address.
pub(super) struct Daemon {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Daemon {
    /// Finds the address and the key by these settings. Sends nothing.
    pub(super) fn find(settings: &Settings) -> Result<Self, super::Failure> {
        let config = settings.load()?.config;
        let url = url(settings, &config);
        let token = match std::env::var("CONVOKE_TOKEN") {
            Ok(token) => token,
            Err(_) => service_key(&config, &url)?,
        };
        let http = reqwest::Client::builder().no_proxy().connect_timeout(Duration::from_secs(5)).build()?;
        Ok(Self { http, url, token })
    }

    /// Whether the daemon accepts our key. A daemon of another project has another secret.
    pub(super) async fn knows_key(&self) -> bool {
        let query = [("limit", "1".to_owned())];
        self.get("/v1/tasks", &query, Duration::ZERO).await.is_ok()
    }

    /// Returns the JSON answer of `GET path`. `waits` is how long the daemon may wait on purpose (long polls).
    pub(super) async fn get(
        &self,
        path: &str,
        query: &[(&str, String)],
        waits: Duration,
    ) -> anyhow::Result<Value> {
        self.ask(Method::GET, path, query, None, waits).await
    }

    /// Returns the JSON answer of `POST path`.
    pub(super) async fn post(
        &self,
        path: &str,
        query: &[(&str, String)],
        body: &Value,
    ) -> anyhow::Result<Value> {
        self.ask(Method::POST, path, query, Some(body), Duration::ZERO).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&Value>,
        waits: Duration,
    ) -> anyhow::Result<Value> {
        let mut url = reqwest::Url::parse(&format!("{}{path}", self.url))
            .with_context(|| format!("{} is not the URL of a daemon", self.url))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request =
            self.http.request(method, url).bearer_auth(&self.token).timeout(waits + ANSWER_TIMEOUT);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|e| self.explain(e))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|e| self.explain(e))?;
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        if status.is_success() {
            return Ok(value);
        }
        match (value.get("detail").and_then(Value::as_str), status) {
            (Some(detail), StatusCode::UNAUTHORIZED) => {
                bail!("{detail}; is {} the daemon of this --data-dir?", self.url)
            }
            (Some(detail), _) => bail!("{detail}"),
            (None, _) => bail!("{} answered {status}: is it a Convoke daemon?", self.url),
        }
    }

    fn explain(&self, error: reqwest::Error) -> anyhow::Error {
        if error.is_connect() {
            return anyhow!(
                "no daemon answers at {}: start one with `convoke up`, or name its address with --data-dir, --listen or CONVOKE_URL",
                self.url
            );
        }
        if error.is_timeout() {
            return anyhow!("the daemon at {} did not answer in time", self.url);
        }
        anyhow::Error::new(error.without_url())
            .context(format!("the daemon at {} closed the connection", self.url))
    }
}

/// The daemon's URL, without a slash at the end.
pub(super) fn url(settings: &Settings, config: &Config) -> String {
    let given = std::env::var("CONVOKE_URL").ok();
    let left = || {
        // `--listen` names a daemon of its own, wherever the last one of this data folder listened.
        let is_default = settings.listen.is_none();
        is_default.then(|| std::fs::read_to_string(config.database.data_dir.join(URL_FILE)).ok()).flatten()
    };
    let url = given.or_else(left).unwrap_or_else(|| http_url(config.server.listen));
    url.trim().trim_end_matches('/').to_owned()
}

/// The URL at which a client on this machine reaches a listener at `address`.
pub(super) fn http_url(mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        let loopback =
            if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
        address.set_ip(loopback);
    }
    format!("http://{address}")
}

fn service_key(config: &Config, url: &str) -> anyhow::Result<String> {
    let folder: &Path = &config.database.data_dir;
    if config.auth.jwt_secret.is_none() && !folder.join(SECRET_FILE).is_file() {
        bail!(
            "no daemon has run in {} yet, so no key for {url} can be made: start one with `convoke up`, or give --data-dir or CONVOKE_TOKEN",
            folder.display()
        );
    }
    let keys = keys(config)?;
    let request = MintRequest { ttl: KEY_TTL, ..MintRequest::new(Role::ServiceRole) };
    Ok(mint(&keys, &request, Clock::System.now())?)
}
