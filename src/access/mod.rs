//! Rights in private rooms: whether a token may join one, send to it, and which rows it may see.
//!
//! The row security policies of `realtime.messages` decide (`docs/spec/realtime-protocol.md` §7.4). They are
//! evaluated in a transaction that is always rolled back, with the role and the claims of the token. Requests
//! go through a fair queue (`fair`), so that no connection, org or policy occupies every database connection.
//! Public rooms and the service role need no policy. Without a database every private room is closed to all
//! but the service role. Owns a small connection pool of its own, so that a storm of joins takes no
//! connection from the negotiation. Caches no grant: the caller keeps the [`Grant`] for as long as §7.5
//! allows. Fails closed: an [`Error`] allows nothing and carries no text of the database. Each kind of
//! failure is logged at most once a minute.
mod error;
mod grant;
pub mod partition_maintenance;
mod probe;
mod replay;
mod reset;
mod roles;
pub mod rows;
mod schema;

pub use error::{Error, no_right_to_read, unauthorized};
pub use grant::{Grant, Rights};
pub use replay::{Missing, Payload, Recorded, Replay, Stored};
pub use roles::check_roles;
pub use schema::{Finding, inspect, prepare};

use crate::{
    auth::Claims,
    db::{self, Database},
    id::{Lsn, Topic},
    scope::{FairQueue, QueueFull, Turn, TurnOwner},
    telemetry::Registry,
};
use deadpool_postgres::Object;
use parking_lot::Mutex;
use probe::{Extension, Settings};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// Most time in the queue and for a connection, in total. Clients give up a join after 10 s, so this is well
/// below.
const CONNECTION_WAIT: Duration = Duration::from_secs(6);
/// SQL run on each new connection: policies see the default time zone of the database, not the daemon's UTC.
const SESSION_SETTINGS: &str = "reset timezone";
/// Least time between two log lines about one kind of failure.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How policies of private channels are evaluated, and how long messages are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Database connections for policies, in addition to those of the pool.
    pub connections_max: usize,
    /// Most time for one statement that evaluates policies.
    #[serde(with = "humantime_serde")]
    pub policy_timeout: Duration,
    /// How long messages sent from the database are kept for replays. Whole days are dropped.
    #[serde(with = "humantime_serde")]
    pub messages_retention: Duration,
    /// Which tokens may join the rooms of an org and of its agents, and whether `anon` reads the rows of
    /// tasks.
    pub observers: Observers,
    /// How row security is checked for row changes.
    pub rows: rows::Config,
}

/// Which tokens may join the public rooms `org:<org>` and `agent:<id>`, on which the negotiation is
/// published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Observers {
    /// Open if the daemon listens on a loopback address, else by token.
    #[default]
    Auto,
    /// Every holder of a key.
    Open,
    /// Tokens of the room's org, and the service role.
    Token,
}

impl Observers {
    /// Whether every holder of a key may observe, for a daemon that listens on this address.
    #[must_use]
    pub fn open(self, listen: SocketAddr) -> bool {
        match self {
            Self::Auto => listen.ip().is_loopback(),
            Self::Open => true,
            Self::Token => false,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connections_max: 4,
            policy_timeout: Duration::from_secs(2),
            messages_retention: Duration::from_secs(72 * 3600),
            observers: Observers::default(),
            rows: rows::Config::default(),
        }
    }
}

/// The bearer of a token, as policies see it.
#[derive(Clone, Debug)]
pub struct Asker {
    /// The claims of the token.
    pub claims: Arc<Claims>,
    /// The connection or request that carried the token.
    pub origin: Origin,
}

/// The connection or HTTP request that carried a token.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The request headers as a JSON object; policies see them as `request.headers`.
    pub headers: Arc<str>,
    /// A number that is unique to the connection.
    pub connection: u64,
}

impl Asker {
    /// The identity in the fair queue. Topics with the same prefix before `:` (`room:1`, `room:2`) count as
    /// one policy.
    fn turn_owner(&self, right: &str, topic: &Topic) -> TurnOwner {
        let kind = topic.as_str().split_once(':').map_or("", |(kind, _)| kind);
        TurnOwner {
            org: self.claims.org.as_ref().map_or("", |org| org.as_str()).into(),
            connection: self.origin.connection,
            // The role is part of it, because each role may have policies of its own.
            policy: format!("{} {right} {kind}", self.claims.role).into(),
        }
    }
}

/// Evaluates the rights in rooms. Clones share connections. The default value has no database.
#[derive(Clone, Debug, Default)]
pub struct Access(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    database: Database,
    /// As many turns as the pool has connections, so that the holder of a turn never waits for the pool.
    queue: FairQueue,
    requests: Family<RequestLabels, Counter>,
    /// When each kind of failure was logged last.
    last_logged: Mutex<HashMap<String, Instant>>,
    /// Position (commit LSN, index in its transaction) of the last message that was read from the WAL and
    /// published.
    published: watch::Sender<(Lsn, u32)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    right: &'static str,
    outcome: &'static str,
}

impl Access {
    /// Evaluates policies in this database. Connections of its own are opened on demand.
    ///
    /// # Errors
    /// [`db::Error::Unfit`] if the pool cannot be configured.
    pub fn new(database: &Database, config: &Config, registry: &Registry) -> Result<Self, db::Error> {
        let (size, within) = (config.connections_max, config.policy_timeout);
        let database = database.beside("convoke access", size, within, SESSION_SETTINGS)?;
        let requests = Family::default();
        registry.register(
            "access_questions",
            "Questions to the policies of private channels, by right and outcome",
            requests.clone(),
        );
        Ok(Self(Some(Arc::new(Inner {
            database,
            queue: FairQueue::new(config.connections_max),
            requests,
            last_logged: Mutex::default(),
            published: watch::Sender::default(),
        }))))
    }

    /// Returns the grant if it is known without policies: every right in a public room and for the service
    /// role, no right without a database. `None` if policies must be evaluated.
    #[must_use]
    pub fn grant_without_policies(&self, claims: &Claims, private: bool) -> Option<Grant> {
        if !private || claims.is_service() {
            return Some(Grant::ALL);
        }
        self.0.is_none().then_some(Grant::NONE)
    }

    /// Returns the rights to receive in the private room of a topic; presence only if `presence` is set. The
    /// rights to send stay unknown.
    ///
    /// # Errors
    /// [`Error`]; it grants no right.
    pub async fn read(&self, asker: &Asker, topic: &Topic, presence: bool) -> Result<Grant, Error> {
        if let Some(grant) = self.grant_without_policies(&asker.claims, true) {
            return Ok(grant);
        }
        let both = [Extension::Broadcast, Extension::Presence];
        let extensions = if presence { &both[..] } else { &both[..1] };
        let rights = self.ask_read(asker, topic, extensions).await?;
        Ok(Grant {
            broadcast_read: rights.broadcast,
            presence_read: presence.then_some(rights.presence),
            write: None,
        })
    }

    /// Returns whether the token may receive presence in the private room of a topic.
    ///
    /// # Errors
    /// [`Error`]; it grants no right.
    pub async fn read_presence(&self, asker: &Asker, topic: &Topic) -> Result<bool, Error> {
        match self.grant_without_policies(&asker.claims, true) {
            Some(grant) => Ok(grant.sees_presence()),
            None => Ok(self.ask_read(asker, topic, &[Extension::Presence]).await?.presence),
        }
    }

    /// Returns the rights to send in the private room of a topic.
    ///
    /// # Errors
    /// [`Error`]; it grants no right.
    pub async fn write(&self, asker: &Asker, topic: &Topic) -> Result<Rights, Error> {
        let Some(inner) = &self.0 else { return Ok(Rights::NONE) };
        if asker.claims.is_service() {
            return Ok(Rights::ALL);
        }
        let settings = Settings::of(asker)?;
        let (client, _turn) = inner.client("write", asker.turn_owner("write", topic)).await?;
        let rights = probe::write(&client, &settings, topic.as_str()).await;
        inner.record_outcome("write", &asker.claims, rights)
    }

    async fn ask_read(
        &self,
        asker: &Asker,
        topic: &Topic,
        extensions: &[Extension],
    ) -> Result<Rights, Error> {
        let Some(inner) = &self.0 else { return Ok(Rights::NONE) };
        let settings = Settings::of(asker)?;
        let (client, _turn) = inner.client("read", asker.turn_owner("read", topic)).await?;
        let rights = probe::read(&client, &settings, topic.as_str(), extensions).await;
        inner.record_outcome("read", &asker.claims, rights)
    }
}

impl Inner {
    /// Returns a connection and the turn that it needs. The caller drops the connection first, so that it is
    /// back in the pool when the next waiter gets the turn.
    async fn client(&self, right: &'static str, owner: TurnOwner) -> Result<(Object, Turn), Error> {
        let client = tokio::time::timeout(CONNECTION_WAIT, async {
            let turn = self.queue.turn(owner).await.map_err(|QueueFull| Error::Busy)?;
            let client = self.database.client().await.map_err(|error| Error::of_connecting(&error))?;
            Ok((client, turn))
        });
        let error = match client.await {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(error)) => error,
            Err(_) => Error::Busy,
        };
        self.count(right, "unavailable");
        self.log_throttled(&format!("{error:?}"), || {
            tracing::warn!(%error, "private channel policies not evaluated: no database connection");
        });
        Err(error)
    }

    fn record_outcome(
        &self,
        right: &'static str,
        claims: &Claims,
        rights: Result<Rights, tokio_postgres::Error>,
    ) -> Result<Rights, Error> {
        match rights {
            Ok(rights) => {
                self.count(right, if rights == Rights::NONE { "denied" } else { "allowed" });
                Ok(rights)
            }
            Err(failed) => {
                let error = Error::of(&failed);
                self.count(right, "failed");
                let code = failed.code().map_or("none", |code| code.code()).to_owned();
                let role = claims.role.clone();
                self.log_throttled(&code, || {
                    tracing::warn!(
                        %error, sqlstate = code, role, right,
                        "policy of realtime.messages failed, access denied"
                    );
                });
                Err(error)
            }
        }
    }

    fn count(&self, right: &'static str, outcome: &'static str) {
        self.requests.get_or_create(&RequestLabels { right, outcome }).inc();
    }

    /// Logs a kind of failure, at most once per [`LOG_INTERVAL`].
    fn log_throttled(&self, kind: &str, log: impl FnOnce()) {
        let now = Instant::now();
        let mut last_logged = self.last_logged.lock();
        if last_logged.get(kind).is_none_or(|last| now.duration_since(*last) >= LOG_INTERVAL) {
            last_logged.insert(kind.to_owned(), now);
            // Released before the log is written, which may block.
            drop(last_logged);
            log();
        }
    }
}
