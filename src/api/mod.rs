//! The HTTP API: requests and reports as JSON, health and metrics.
//!
//! Offers over HTTP what `docs/spec/negotiation.md` §6 offers over channels. Owns the routes, their
//! authorization, and the form of errors (RFC 9457 problem details with the codes of §6). `task` decides
//! about tasks. Bodies have a size limit, long polls a time limit, and no text of the database reaches a
//! client.
mod activity;
mod admin;
mod agents;
mod assignments;
mod caller;
mod channels;
mod feed;
mod health;
mod hidden;
mod inbox;
mod input;
mod landing_page;
mod overview;
mod polls;
mod problem;
mod providers;
mod series;
mod stream;
mod tasks;
mod wait;

pub use activity::SPEND_BY_DAYS_MAX;
pub use admin::{Doctor, Reload, Reloaded};
pub use health::{Health, PartState};
pub use inbox::PresenceRate;
pub use overview::Overviews;
pub use polls::Polls;

use crate::{
    agent::{Agents, Trials},
    auth::Keys,
    clock::Clock,
    gateway::Gateway,
    llm::Models,
    remote::{Identity, Inboxes},
    task::TaskCommands,
    telemetry,
};
use axum::{
    Router,
    extract::{DefaultBodyLimit, FromRef},
    http::{Method, StatusCode, Uri},
    middleware,
    routing::{get, post, put},
};
use parking_lot::RwLock;
use problem::Problem;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Most bytes of a body: the largest input of a task, and 64 KiB for the rest of the request.
const BODY_BYTES_MAX: usize = crate::task::INPUT_BYTES_MAX + 64 * 1024;

/// Listen address, and limits that apply before a token is verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Address and port of HTTP and websockets. Port 0 selects a free one.
    pub listen: SocketAddr,
    /// Most TCP connections, including websockets; further ones are refused with 503. The system's limit on
    /// open files may allow fewer.
    pub connections_max: usize,
    /// Most TCP connections of one address (IPv6: of one /64 network); further ones are refused with 429.
    /// Defaults to half of all.
    pub connections_per_address_max: Option<usize>,
    /// Addresses of reverse proxies. For their connections, limits apply to the client in `x-forwarded-for`.
    pub trusted_proxies: Vec<IpAddr>,
    /// Timeout of a request's head, and of an idle connection until its next request.
    #[serde(with = "humantime_serde")]
    pub head_timeout: Duration,
    /// Timeout of a request's body.
    #[serde(with = "humantime_serde")]
    pub body_timeout: Duration,
    /// Longest pause within a request's body.
    #[serde(with = "humantime_serde")]
    pub body_idle_timeout: Duration,
    /// Longest time in which a client reads nothing of a response.
    #[serde(with = "humantime_serde")]
    pub write_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7700)),
            connections_max: 24_000,
            connections_per_address_max: None,
            trusted_proxies: Vec::new(),
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(60),
            body_idle_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
        }
    }
}

/// The dependencies of the routes.
#[derive(Clone)]
pub struct Deps {
    /// The negotiation.
    pub tasks: TaskCommands,
    /// The agents' files.
    pub agents: Agents,
    /// Realtime channels.
    pub gateway: Gateway,
    /// Verifies tokens.
    pub keys: Keys,
    /// Clock for the expiry of tokens.
    pub clock: Clock,
    /// State of the daemon's parts.
    pub health: Health,
    /// Metrics for `/metrics`.
    pub metrics: telemetry::Registry,
    /// Checks the org of an agent.
    pub identity: Identity,
    /// Inboxes of agents that use HTTP alone.
    pub inboxes: Inboxes,
    /// Ends long polls when the daemon stops.
    pub stop: CancellationToken,
    /// Limits on long polls.
    pub polls: Polls,
    /// The limit on presence of agents that use HTTP alone.
    pub presence_rate: PresenceRate,
    /// The overviews of the last second.
    pub overviews: Overviews,
    /// The accounts of the models.
    pub models: Models,
    /// The past of the metrics.
    pub series: telemetry::Series,
    /// Checks the database.
    pub doctor: Doctor,
    /// Tries rows for wakes.
    pub trials: Trials,
    /// Reads the agents' files again.
    pub reload: Reload,
    /// The settings, without secrets.
    pub settings: Arc<RwLock<Value>>,
    /// Whether viewers of the dashboard get the data of tasks.
    pub viewers_see_data: bool,
}

impl FromRef<Deps> for Health {
    fn from_ref(deps: &Deps) -> Self {
        deps.health.clone()
    }
}
impl FromRef<Deps> for telemetry::Registry {
    fn from_ref(deps: &Deps) -> Self {
        deps.metrics.clone()
    }
}

/// Returns all routes, with answers for unknown paths and methods.
pub fn router(deps: Deps) -> Router {
    let v1 = Router::new()
        .merge(tasks::routes())
        .route("/assignments/{id}/{report}", post(assignments::report))
        .route("/overview", get(overview::show))
        .route("/providers", get(providers::list))
        .route("/agents", get(agents::list))
        .route("/agents/{id}", get(agents::show))
        .route("/agents/{id}/definition", get(agents::definition))
        .route("/agents/{id}/drain", post(agents::drain))
        .route("/agents/{id}/resume", post(agents::resume))
        .route("/doctor", get(admin::doctor))
        .route("/reload", post(admin::reload))
        .route("/events", get(feed::list))
        .route("/series", get(series::read))
        .route("/settings", get(admin::settings))
        .route("/lanes", get(activity::lanes))
        .route("/spend", get(activity::spend))
        .route("/triggers", get(activity::triggers))
        .route("/triggers/{trigger}/try", post(activity::try_wake))
        .route("/agents/{id}/presence", put(inbox::present).delete(inbox::gone))
        .route("/agents/{id}/inbox", get(inbox::inbox))
        .route("/agents/{id}/messages", post(inbox::message))
        .route("/orgs/{org}/messages", post(inbox::broadcast))
        .route("/channels", get(channels::list))
        .route("/channels/{topic}", get(channels::show))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX));
    // One rule for every route, also for those to come: a handler cannot forget it.
    let v1 = if deps.viewers_see_data {
        v1
    } else {
        v1.layer(middleware::from_fn_with_state(deps.clone(), hidden::from_viewers))
    };
    let metrics = Router::new().route("/metrics", get(health::metrics));
    let for_pages = Router::new()
        .nest("/v1", v1)
        .route("/", get(landing_page::page))
        .route("/healthcheck", get(|| async { "ok" }))
        .route("/health", get(health::report))
        .route("/health/ready", get(health::ready))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        // Outside the fallbacks: a CORS layer below them never sees a preflight request.
        .layer(crate::gateway::cors());
    // Without CORS: `/metrics` needs no token, and any web page could read the metrics of a daemon on the
    // user's machine.
    for_pages.merge(metrics.method_not_allowed_fallback(wrong_method)).with_state(deps)
}

async fn unknown_path(uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} does not take {method}", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}
