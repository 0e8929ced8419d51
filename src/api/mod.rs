//! The HTTP edge: requests and reports as JSON, health and metrics.
//!
//! Says over HTTP what `reference/negotiation.md` §6 says over channels. Owns the
//! routes, who may use them and the form of errors (RFC 9457 problem details with
//! the codes of §6); every decision about a task is made by `task`. Bodies are
//! bounded, long polls end by themselves, and no database text reaches a client.
mod agents;
mod assignments;
mod caller;
mod channels;
mod health;
mod inbox;
mod input;
mod polls;
mod problem;
mod stream;
mod tasks;
mod wait;

pub use health::{Health, PartState};
pub use polls::Polls;

use crate::{
    auth::Keys,
    clock::Clock,
    gateway::{Gateway, Post},
    task::Tasks,
    telemetry,
};
use axum::{
    Router,
    extract::{DefaultBodyLimit, FromRef},
    http::{Method, StatusCode, Uri},
    routing::{get, post, put},
};
use problem::Problem;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use tokio_util::sync::CancellationToken;
use tower_http::cors::{Any, CorsLayer};

/// Largest body of a request: the largest input of a task and what stands around it.
const BODY_BYTES_MAX: usize = crate::task::INPUT_BYTES_MAX + 64 * 1024;

/// Where the daemon listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Address and port of HTTP and websocket; port 0 takes any free one.
    pub listen: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7700)) }
    }
}

/// What the routes need of the daemon.
#[derive(Clone)]
pub struct Deps {
    /// The negotiation.
    pub tasks: Tasks,
    /// The channels of clients.
    pub gateway: Gateway,
    /// Checks tokens.
    pub keys: Keys,
    /// The time for tokens.
    pub clock: Clock,
    /// What `/health/ready` says.
    pub health: Health,
    /// What `/metrics` says.
    pub metrics: telemetry::Registry,
    /// Agents that are here by HTTP.
    pub post: Post,
    /// Ends long polls when the daemon stops.
    pub stop: CancellationToken,
    /// Who waits.
    pub polls: Polls,
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

/// All routes, with the answers for unknown paths and methods.
pub fn router(deps: Deps) -> Router {
    let v1 = Router::new()
        .route("/tasks", post(tasks::request).get(tasks::list))
        .route("/tasks/{id}", get(tasks::show))
        .route("/tasks/{id}/events", get(tasks::events))
        .route("/tasks/{id}/why", get(tasks::why))
        .route("/tasks/{id}/cancel", post(tasks::cancel))
        .route("/tasks/{id}/budget", post(tasks::budget))
        .route("/tasks/{id}/choose", post(tasks::choose))
        .route("/tasks/{id}/answer", post(tasks::answer))
        .route("/tasks/{id}/requeue", post(tasks::requeue))
        .route("/tasks/{id}/offers", post(tasks::offer))
        .route("/tasks/{id}/decline", post(tasks::decline))
        .route("/assignments/{id}/{report}", post(assignments::report))
        .route("/agents", get(agents::list))
        .route("/agents/{id}", get(agents::show))
        .route("/agents/{id}/presence", put(inbox::present).delete(inbox::gone))
        .route("/agents/{id}/inbox", get(inbox::inbox))
        .route("/agents/{id}/messages", post(inbox::message))
        .route("/orgs/{org}/messages", post(inbox::broadcast))
        .route("/channels", get(channels::list))
        .route("/channels/{topic}", get(channels::show))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        // Tokens travel in headers, never in cookies, so a page of any origin may ask.
        .layer(CorsLayer::new().allow_origin(Any).allow_headers(Any).allow_methods(Any));
    Router::new()
        .nest("/v1", v1)
        .route("/healthcheck", get(|| async { "ok" }))
        .route("/health", get(health::report))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(health::metrics))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(deps)
}

async fn unknown_path(uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} does not take {method}", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}
