//! Websockets of realtime clients, and HTTP broadcast.
//!
//! One task a connection, one pure machine a channel (`channel`): the connection reads
//! frames, the session gives them to machines and performs what they ask for, and
//! whatever is said goes through the hub. Owns the sockets and their limits; knows no
//! task and no agent: what clients say to agents goes out as [`Coordination`] data.
//! A bad frame is dropped and counted, a refused join stops only its own topic, and a
//! socket that does not read is closed with 4008. Contract: `reference/realtime-protocol.md`.
mod attendance;
mod broadcast;
mod channel;
mod config;
mod connection;
mod coordination;
mod directory;
mod handshake;
mod join;
mod joined;
pub mod limits;
mod look;
mod metrics;
mod post;
mod refused;
mod replay;
mod resume;
mod said;
mod session;
mod shared;

pub use attendance::{Attendance, Attendant};
#[cfg(fuzzing)]
pub use channel::fuzz as fuzz_channel;
pub use config::Config;
pub use coordination::Coordination;
pub use look::{MemberLook, RefusalLook, RoomLook, TopicLine, TopicLook, Topics};
pub use post::{Collected, LEASE, LEASE_MAX, LEASE_MIN, Mail, Post, Unsaid};

use crate::{
    access::Access,
    auth::Keys,
    changes::Changes,
    clock::Clock,
    hub::Hub,
    presence::Tracker,
    scope::{Scope, Stuck},
    telemetry::Registry,
};
use axum::{
    Router,
    http::StatusCode,
    routing::{get, post},
};
use refused::Refused;
use shared::Shared;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::{mpsc, watch};

/// What a gateway works with.
pub struct Deps {
    /// Which tokens are good.
    pub keys: Keys,
    /// Which private rooms they open.
    pub access: Access,
    /// Where everything is said.
    pub hub: Hub,
    /// Where presence is kept.
    pub tracker: Tracker,
    /// For the expiry of tokens.
    pub clock: Clock,
    /// Its metrics are `gateway_…`.
    pub registry: Registry,
    /// Who hears what clients say to agents; what finds the queue full is dropped and counted.
    pub coordination: Option<mpsc::Sender<Coordination>>,
    /// Row changes; nothing when there is no database.
    pub changes: Option<Changes>,
    /// Whether messages of the database come; nothing when there is none.
    pub streaming: Option<watch::Receiver<bool>>,
}

/// All websockets of a daemon. Clones name the same ones.
#[derive(Clone)]
pub struct Gateway(Arc<Shared>);

impl Gateway {
    /// A gateway whose connections live in a scope of their own under `scope`.
    #[must_use]
    pub fn new(scope: &Scope, config: Config, deps: Deps) -> Self {
        Self(Arc::new(Shared::new(scope.child(), config, deps)))
    }

    /// Which agents are here by a socket of their own.
    #[must_use]
    pub fn attendance(&self) -> Attendance {
        self.0.attendance.clone()
    }

    /// Agents that are here by HTTP, and what is said to agents over it.
    #[must_use]
    pub fn post(&self) -> Post {
        self.0.post.clone()
    }

    /// Closes every socket with 1012 after its last frames, and refuses joins from now on.
    ///
    /// # Errors
    /// [`Stuck`] when some are still open after `within`.
    pub async fn stop(&self, within: Duration) -> Result<(), Stuck> {
        self.0.stopping.store(true, Ordering::Release);
        self.0.scope.drain(within).await
    }
}

/// The routes of realtime clients, with and without the prefix `/realtime/v1` that a Supabase gateway has.
pub fn router(gateway: &Gateway) -> Router {
    // A method other than GET is 400 with an empty body here, not 405.
    let socket = || get(handshake::websocket).fallback(|| async { StatusCode::BAD_REQUEST });
    let api = Router::new()
        .route("/broadcast", post(broadcast::batch))
        .route("/broadcast/{topic}/events/{event}", post(broadcast::single))
        .route("/ping", get(|| async { axum::Json(serde_json::json!({ "message": "Success" })) }))
        .layer(broadcast::cors())
        .layer(axum::extract::DefaultBodyLimit::max(broadcast::BODY_BYTES_MAX));
    Router::new()
        .route("/socket/websocket", socket())
        .route("/realtime/v1/websocket", socket())
        .nest("/api", api.clone())
        .nest("/realtime/v1/api", api)
        .with_state(gateway.0.clone())
}
