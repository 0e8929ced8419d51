//! The channels of a daemon alone: sockets, rooms and presence, without a database and
//! without agents.
//!
//! For measurements and for programs that want only channels. Owns its scopes; keeps
//! nothing but the histories that the settings name; without a secret in the settings one is
//! made in memory, so tokens end with it.
use crate::{
    access::Access,
    api::Health,
    auth::{Keys, MintRequest, Role, mint},
    clock::Clock,
    config::Config,
    gateway::{self, Gateway},
    hub::Hub,
    presence::Tracker,
    scope::{OnExit, Scope},
    telemetry::Registry,
};
use anyhow::Context;
use std::{net::SocketAddr, time::Duration};
use tokio::net::TcpListener;

const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Channels that are being served.
pub struct Channels {
    /// Where they listen.
    pub addr: SocketAddr,
    /// Their rooms.
    pub hub: Hub,
    /// Their metrics.
    pub registry: Registry,
    keys: Keys,
    gateway: Gateway,
    scope: Scope,
    http: Scope,
}

impl Channels {
    /// Serves channels with the settings of `server`, `gateway`, `channels`, `history` and the secret of `auth`.
    ///
    /// # Errors
    /// When the address cannot be listened on, the history cannot be kept, or the secret cannot be used.
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
        let deps = gateway::Deps {
            keys: keys.clone(),
            access: Access::default(),
            hub: hub.clone(),
            tracker,
            clock: Clock::System,
            registry: registry.clone(),
            coordination: None,
            changes: None,
            streaming: None,
        };
        let gateway = Gateway::new(&scope, config.gateway.clone(), deps);
        let app = gateway::router(&gateway);
        let http = scope.child();
        super::serve_http(&http, OnExit::Log, listener, app);
        Ok(Self { addr, hub, registry, keys, gateway, scope, http })
    }

    /// A key with which anybody may connect.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn anon_key(&self) -> anyhow::Result<String> {
        Ok(mint(&self.keys, &MintRequest::new(Role::Anon), Clock::System.now())?)
    }

    /// Closes every socket and frees the port.
    ///
    /// # Errors
    /// When a part does not stop in time.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.http.stop();
        self.gateway.stop(STOP_WITHIN).await?;
        self.http.drain(STOP_WITHIN).await?;
        Ok(self.scope.drain(STOP_WITHIN).await?)
    }
}
