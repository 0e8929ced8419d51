//! The dashboard: the page for operators under `/dashboard/`, and the sessions of the people who look at it.
//!
//! Serves the files that `web/dashboard` builds and the session routes; owns the tables `convoke.logins` and
//! `convoke.sessions`. The page has no data of its own: it reads `/v1` and the channels with a bearer token like any
//! other client. A cookie authenticates the session routes only, so `/v1` needs no protection against forged
//! requests. Every request here passes `guard`, which refuses foreign hosts and cross-site requests. Without the
//! database the page loads and signing in answers 503.
mod assets;
mod guard;
mod routes;
mod sessions;

pub use assets::sources_stamp;

use crate::{
    auth::{IssuerRoles, Keys},
    clock::Clock,
    db::Database,
    problem::RateLimit,
};
use assets::Assets;
use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::Uri,
    middleware,
    routing::{delete, get, post},
};
use guard::Guard;
use serde::{Deserialize, Serialize};
use sessions::Sessions;
use std::{net::IpAddr, sync::Arc, time::Duration};

/// Path of the page. Cookies are limited to it.
pub const PATH: &str = "/dashboard";
/// Most bytes of a request's body: a sign-in code.
const BODY_BYTES_MAX: usize = 8 * 1024;
/// Most requests for a session of one address in a minute, and of all addresses.
const SIGN_INS: (u32, u32) = (10, 100);
/// Most requests for a bearer token of one address in a minute, and of all addresses. A tab asks every eight minutes.
const TOKENS: (u32, u32) = (120, 1200);
/// Most requests with a cookie of one address in a minute, and of all addresses: each asks the database.
const SESSIONS: (u32, u32) = (240, 2400);

/// The page for operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Whether the daemon serves the page.
    pub enabled: bool,
    /// The page's address behind a reverse proxy, like `https://convoke.example.org`. Its host is accepted, and with
    /// `https` the cookie is `Secure`.
    pub public_url: Option<String>,
    /// A session ends after this time without use.
    #[serde(with = "humantime_serde")]
    pub session_idle: Duration,
    /// A session ends after this time in any case.
    #[serde(with = "humantime_serde")]
    pub session_max: Duration,
    /// Who sees the data of tasks.
    pub data: DataReaders,
    /// The roles of people whom other issuers name.
    pub roles: IssuerRoles,
}

/// Who sees the inputs, results, errors, questions and events of tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataReaders {
    /// Viewers, too.
    #[default]
    Everyone,
    /// Operators and admins. The daemon sends viewers none of it.
    Operators,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            public_url: None,
            session_idle: Duration::from_secs(12 * 3600),
            session_max: Duration::from_secs(7 * 24 * 3600),
            data: DataReaders::default(),
            roles: IssuerRoles::default(),
        }
    }
}

impl Config {
    /// Whether viewers get the data of tasks.
    #[must_use]
    pub fn viewers_see_data(&self) -> bool {
        self.data == DataReaders::Everyone
    }

    /// Returns every problem: key in the section, message and remedy.
    pub fn check(&self) -> impl Iterator<Item = (&'static str, String, &'static str)> {
        let url = self.public_url.as_ref().filter(|url| self.public_host().is_none() || url.ends_with('/'));
        let url = url.map(|url| {
            let remedy = "write it like \"https://convoke.example.org\", without a path";
            ("public_url", format!("{url:?} is not the origin of a page"), remedy)
        });
        let times = [("session_idle", self.session_idle), ("session_max", self.session_max)];
        let times = times.into_iter().filter(|(_, time)| time.is_zero());
        let remedy = "use a time like \"12h\"";
        let roles = self.roles.check().err().map(|(what, remedy)| ("roles", what, remedy));
        let times = times.map(move |(key, _)| (key, "0 would end every session".into(), remedy));
        url.into_iter().chain(times).chain(roles)
    }

    /// Host and port of `public_url`. `None` without a setting, or if it is no origin.
    fn public_host(&self) -> Option<String> {
        let url: Uri = self.public_url.as_deref()?.parse().ok()?;
        let scheme = url.scheme_str().is_some_and(|scheme| matches!(scheme, "http" | "https"));
        let bare = url.path_and_query().is_none_or(|path| path.as_str() == "/");
        (scheme && bare).then(|| url.authority().map(|host| host.as_str().to_ascii_lowercase())).flatten()
    }

    fn is_https(&self) -> bool {
        self.public_url.as_ref().is_some_and(|url| url.starts_with("https://"))
    }
}

/// The dependencies of the routes.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Sessions.
    pub database: Database,
    /// Verifies codes, signs bearers.
    pub keys: Keys,
    /// Clock for the expiry of codes.
    pub clock: Clock,
}

/// What the handlers share.
#[derive(Clone)]
struct Context(Arc<Inner>);

struct Inner {
    keys: Keys,
    clock: Clock,
    sessions: Sessions,
    assets: Assets,
    cookie: routes::Cookie,
    sign_ins: RateLimit<IpAddr>,
    tokens: RateLimit<IpAddr>,
    /// Counts each request before its cookie is looked up.
    lookups: RateLimit<IpAddr>,
    /// A key for the socket, in which a URL may contain it.
    anon_key: String,
    /// Whether viewers get the data of tasks; `api` enforces it.
    viewers_see_data: bool,
}

/// Returns the routes below [`PATH`]; none if the page is not enabled.
///
/// # Errors
/// If signing a token fails, which is a bug.
pub fn router(config: &Config, deps: Deps) -> Result<Router, jsonwebtoken::errors::Error> {
    if !config.enabled {
        return Ok(Router::new());
    }
    let Deps { database, keys, clock } = deps;
    let request = crate::auth::MintRequest::new(crate::auth::Role::Anon);
    let anon_key = crate::auth::mint(&keys, &request, clock.now())?;
    let context = Context(Arc::new(Inner {
        cookie: routes::Cookie::new(keys.mark(), config),
        sessions: Sessions { database, idle: config.session_idle, max: config.session_max },
        assets: Assets::embedded(),
        sign_ins: RateLimit::new(SIGN_INS),
        tokens: RateLimit::new(TOKENS),
        lookups: RateLimit::new(SESSIONS),
        keys,
        clock,
        anon_key,
        viewers_see_data: config.viewers_see_data(),
    }));
    let guard = Guard::new(config.public_host(), config.is_https());
    Ok(Router::new()
        .route(PATH, get(routes::page))
        .route(&format!("{PATH}/{{*path}}"), get(routes::page))
        .route(&format!("{PATH}/session"), get(routes::who).post(routes::sign_in).delete(routes::sign_out))
        .route(&format!("{PATH}/session/token"), post(routes::token))
        .route(&format!("{PATH}/session/all"), get(routes::all))
        .route(&format!("{PATH}/session/{{id}}"), delete(routes::revoke))
        .method_not_allowed_fallback(routes::wrong_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(Arc::new(guard), guard::check))
        .with_state(context))
}
