//! The channels of a daemon alone: websockets, rooms and presence, without a database and without agents.
//!
//! For benchmarks and for programs that need only channels. Stores nothing but the configured histories. Without a
//! configured secret one is generated in memory, so its tokens end with it.
use crate::{
    access::Access,
    api::Health,
    auth::{Keys, MintRequest, Role, mint},
    clock::Clock,
    config::Config,
    gateway::{self, Gateway},
    hub::Hub,
    presence::Tracker,
    remote::{Audience, Identity},
    scope::{OnExit, Scope},
    telemetry::Registry,
};
use anyhow::Context;
use std::{net::SocketAddr, time::Duration};
use tokio::net::TcpListener;

const STOP_WITHIN: Duration = Duration::from_secs(5);

/// A server of channels.
pub struct Channels {
    /// The address that it listens on.
    pub addr: SocketAddr,
    /// Its rooms.
    pub hub: Hub,
    /// Its metrics.
    pub registry: Registry,
    keys: Keys,
    gateway: Gateway,
    scope: Scope,
    http: Scope,
}

impl Channels {
    /// Starts with the settings `server`, `gateway`, `channels`, `history` and the secret of `auth`.
    ///
    /// # Errors
    /// If the address cannot be bound, a history cannot be opened, or the secret cannot be used.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        let listen = config.server.listen;
        let listener =
            TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
        let addr = listener.local_addr()?;
        let (scope, registry) = (Scope::default(), Registry::default());
        let hub = Hub::new(&registry);
        super::history::start(&scope, &hub, config, &Clock::System, &registry, &Health::default())?;
        let tracker = Tracker::start(&scope, hub.clone(), &registry);
        let made = || format!("{}{}", uuid::Uuid::new_v4(), uuid::Uuid::new_v4()).into();
        let keys = Keys::from_secret(&config.auth.jwt_secret.clone().unwrap_or_else(made))?;
        // No daemon receives messages of agents, so they are relayed like any other.
        let identity = Identity::new(tracker.clone(), None, Audience::Everybody);
        let deps = gateway::Deps {
            keys: keys.clone(),
            access: Access::default(),
            hub: hub.clone(),
            tracker,
            identity,
            clock: Clock::System,
            registry: registry.clone(),
            changes: None,
            streaming: None,
        };
        let gateway = Gateway::new(&scope, config.gateway.clone(), deps);
        let app = gateway::router(&gateway);
        let http = scope.child();
        super::serve_http(
            &http,
            OnExit::Log,
            listener,
            app,
            super::Edge::new(&config.server, &registry, gateway.memory()),
        );
        Ok(Self { addr, hub, registry, keys, gateway, scope, http })
    }

    /// A token of role `anon`.
    ///
    /// # Errors
    /// If it cannot be signed.
    pub fn anon_key(&self) -> anyhow::Result<String> {
        Ok(mint(&self.keys, &MintRequest::new(Role::Anon), Clock::System.now())?)
    }

    /// Closes every websocket and the port.
    ///
    /// # Errors
    /// If a part does not stop in time.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.http.stop();
        self.gateway.stop(STOP_WITHIN).await?;
        self.http.drain(STOP_WITHIN).await?;
        Ok(self.scope.drain(STOP_WITHIN).await?)
    }
}
