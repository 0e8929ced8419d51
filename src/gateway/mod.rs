//! Websockets of realtime clients, and broadcasts over HTTP.
//!
//! One task per connection, one pure state machine per channel (`channel`). The connection reads
//! frames, the session passes them to the state machines and performs the actions they return, and
//! every message is published through the hub. Owns the sockets and their limits. Knows no task.
//! Of agents it knows only what it asks [`Identity`]: may this message be delivered, may
//! this token observe the room or track presence in it, and is its agent connected.
//! An invalid frame is dropped and counted, a refused join affects only its own topic, and a
//! slow subscriber is closed with 4008. Contract: `docs/spec/realtime-protocol.md`.
mod broadcast;
mod channel;
mod channel_registry;
mod config;
mod connection;
pub mod edge;
mod handshake;
mod introspection;
mod join;
mod joined;
pub mod limits;
mod metrics;
mod publish_batch;
mod rejection;
mod replay;
mod resume;
mod session;
mod shared;

pub use broadcast::cors;
#[cfg(fuzzing)]
pub use channel::fuzz as fuzz_channel;
pub use config::Config;
pub use introspection::{MemberInfo, RejectionInfo, RoomInfo, TopicInfo, TopicSummary, Topics};

use crate::{
    access::Access,
    auth::Keys,
    changes::Changes,
    clock::Clock,
    hub::{Hub, Memory},
    presence::Tracker,
    remote::Identity,
    scope::{Scope, Stuck},
    telemetry::Registry,
};
use axum::{
    Router,
    http::StatusCode,
    routing::{any, get, post},
};
use rejection::Rejection;
use shared::Shared;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::watch;

/// The dependencies of a gateway.
pub struct Deps {
    /// Verifies tokens.
    pub keys: Keys,
    /// Decides the rights in private rooms.
    pub access: Access,
    /// Delivers messages.
    pub hub: Hub,
    /// Keeps presence.
    pub tracker: Tracker,
    /// The time for the expiry of tokens.
    pub clock: Clock,
    /// Receives the metrics `gateway_…`.
    pub registry: Registry,
    /// Checks senders, observers and presence in the rooms of agents.
    pub identity: Identity,
    /// Row changes; `None` without a database.
    pub changes: Option<Changes>,
    /// Whether broadcasts of the database are streamed; `None` without a database.
    pub streaming: Option<watch::Receiver<bool>>,
}

/// All websockets of a daemon. Clones share the same ones.
#[derive(Clone)]
pub struct Gateway(Arc<Shared>);

impl Gateway {
    /// A gateway whose connections live in a child scope of `scope`.
    #[must_use]
    pub fn new(scope: &Scope, config: Config, deps: Deps) -> Self {
        Self(Arc::new(Shared::new(scope.child(), config, deps)))
    }

    /// The memory accounts of all clients.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.0.memory.clone()
    }

    /// Refuses joins from now on, writes the queued frames, and closes every socket with 1012.
    ///
    /// # Errors
    /// [`Stuck`] if sockets are still open after `within`.
    pub async fn stop(&self, within: Duration) -> Result<(), Stuck> {
        self.0.stopping.store(true, Ordering::Release);
        self.0.scope.drain(within).await
    }
}

/// The routes of realtime clients, with and without the prefix `/realtime/v1` of a Supabase gateway.
pub fn router(gateway: &Gateway) -> Router {
    // As in Supabase Realtime, a method other than GET is 400 with an empty body, not 405.
    let socket = || get(handshake::websocket).fallback(|| async { StatusCode::BAD_REQUEST });
    let api = Router::new()
        .route("/broadcast", post(broadcast::batch))
        .route("/broadcast/{topic}/events/{event}", post(broadcast::single))
        .route("/ping", get(|| async { axum::Json(serde_json::json!({ "message": "Success" })) }))
        .layer(axum::extract::DefaultBodyLimit::max(broadcast::BODY_BYTES_MAX))
        .layer(cors());
    // Clients append `/websocket` to the configured URL; others open that URL directly.
    let sockets = ["/socket", "/realtime/v1"].into_iter().fold(Router::new(), |router, url| {
        router.route(url, socket()).route(&format!("{url}/websocket"), socket())
    });
    let long_poll = Router::new()
        .route("/socket/longpoll", any(handshake::long_poll))
        .route("/realtime/v1/longpoll", any(handshake::long_poll))
        .layer(cors());
    sockets
        .merge(long_poll)
        .nest("/api", api.clone())
        .nest("/realtime/v1/api", api)
        .with_state(gateway.0.clone())
}
