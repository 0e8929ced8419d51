//! May this token enter this private room, and say something in it?
//!
//! The policies of `realtime.messages` decide (`reference/realtime-protocol.md` §7.4),
//! asked in a transaction that is always rolled back, as the role and with the claims
//! of the token. Public rooms and the service role are never asked about; without a
//! database every other private room is closed. Owns a small pool of its own, so that
//! a storm of joins takes nothing from the negotiation. Caches nothing: who asks keeps
//! the [`Grant`] for as long as §7.5 says. Fails closed, with an [`Error`] that carries
//! none of the database's words; the log tells the operator, once a minute each.
mod error;
mod grant;
mod probe;
mod replay;
pub mod rows;
mod schema;
pub mod upkeep;

pub use error::{Error, no_right_to_read, unauthorized};
pub use grant::{Grant, Rights};
pub use replay::{Missing, Payload, Recorded, Replay, Stored};
pub use schema::{Finding, inspect, prepare};

use crate::{
    auth::Claims,
    db::{self, Database},
    id::{Lsn, Topic},
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
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// How long a question may wait for a connection: well under the 10 s after which clients give up a join.
const WAIT: Duration = Duration::from_secs(6);
/// How often one kind of failure is logged.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// How policies of private channels are asked, and how long messages are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Connections for it, beside the pool's.
    pub connections_max: usize,
    /// How long one statement of a policy may take.
    #[serde(with = "humantime_serde")]
    pub policy_timeout: Duration,
    /// How long messages of the database are kept for replays; whole days are dropped.
    #[serde(with = "humantime_serde")]
    pub messages_retention: Duration,
    /// How row security is checked for row changes.
    pub rows: rows::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connections_max: 4,
            policy_timeout: Duration::from_secs(2),
            messages_retention: Duration::from_secs(72 * 3600),
            rows: rows::Config::default(),
        }
    }
}

/// Who asks: what policies can know about the bearer of a token.
#[derive(Clone, Debug)]
pub struct Asker {
    /// What the token says.
    pub claims: Arc<Claims>,
    /// The headers it came with, as a JSON object: `request.headers`.
    pub headers: Arc<str>,
}

/// Decides about rooms. Clones decide alike; the default one has no database.
#[derive(Clone, Debug, Default)]
pub struct Access(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    database: Database,
    asked: Family<Asked, Counter>,
    told: Mutex<HashMap<String, Instant>>,
    /// The last message of the log that was put out.
    heard: watch::Sender<(Lsn, u32)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    right: &'static str,
    outcome: &'static str,
}

impl Access {
    /// Asks the policies of this database, on connections of its own, which it opens when they are needed.
    ///
    /// # Errors
    /// [`db::Error::Unfit`] when there can be no pool.
    pub fn new(database: &Database, config: &Config, registry: &Registry) -> Result<Self, db::Error> {
        let database = database.beside("convoke access", config.connections_max, config.policy_timeout)?;
        let asked = Family::default();
        registry.register(
            "access_questions",
            "Questions to the policies of private channels, by right and outcome",
            asked.clone(),
        );
        Ok(Self(Some(Arc::new(Inner {
            database,
            asked,
            told: Mutex::default(),
            heard: watch::Sender::default(),
        }))))
    }

    /// What is known without asking policies: everything in a public room and for the service role, nothing
    /// without a database.
    #[must_use]
    pub fn at_once(&self, claims: &Claims, private: bool) -> Option<Grant> {
        if !private || claims.is_service() {
            return Some(Grant::ALL);
        }
        self.0.is_none().then_some(Grant::NONE)
    }

    /// What may be heard in the private room of a topic, and with `presence` seen. What may be said there is
    /// left unknown.
    ///
    /// # Errors
    /// [`Error`]; nothing is allowed then.
    pub async fn read(&self, asker: &Asker, topic: &Topic, presence: bool) -> Result<Grant, Error> {
        if let Some(grant) = self.at_once(&asker.claims, true) {
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

    /// Whether it may be seen who is in the private room of a topic.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn read_presence(&self, asker: &Asker, topic: &Topic) -> Result<bool, Error> {
        match self.at_once(&asker.claims, true) {
            Some(grant) => Ok(grant.sees_presence()),
            None => Ok(self.ask_read(asker, topic, &[Extension::Presence]).await?.presence),
        }
    }

    /// What may be said in the private room of a topic.
    ///
    /// # Errors
    /// [`Error`]; nothing is allowed then.
    pub async fn write(&self, asker: &Asker, topic: &Topic) -> Result<Rights, Error> {
        let Some(inner) = &self.0 else { return Ok(Rights::NONE) };
        if asker.claims.is_service() {
            return Ok(Rights::ALL);
        }
        let settings = Settings::of(asker)?;
        let client = inner.client("write").await?;
        let rights = probe::write(&client, &settings, topic.as_str()).await;
        inner.settle("write", &asker.claims, rights)
    }

    async fn ask_read(
        &self,
        asker: &Asker,
        topic: &Topic,
        extensions: &[Extension],
    ) -> Result<Rights, Error> {
        let Some(inner) = &self.0 else { return Ok(Rights::NONE) };
        let settings = Settings::of(asker)?;
        let client = inner.client("read").await?;
        let rights = probe::read(&client, &settings, topic.as_str(), extensions).await;
        inner.settle("read", &asker.claims, rights)
    }
}

impl Inner {
    async fn client(&self, right: &'static str) -> Result<Object, Error> {
        let client = tokio::time::timeout(WAIT, self.database.client()).await;
        let error = match client {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(error)) => Error::of_connecting(&error),
            Err(_) => Error::Busy,
        };
        self.count(right, "unavailable");
        self.tell(&format!("{error:?}"), || tracing::warn!(%error, "private channels are not checked"));
        Err(error)
    }

    fn settle(
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
                self.tell(&code, || {
                    tracing::warn!(
                        %error, sqlstate = code, role, right,
                        "a policy of realtime.messages failed: nothing is allowed by it"
                    );
                });
                Err(error)
            }
        }
    }

    fn count(&self, right: &'static str, outcome: &'static str) {
        self.asked.get_or_create(&Asked { right, outcome }).inc();
    }

    /// Says something unless it was said a short while ago.
    fn tell(&self, what: &str, say: impl FnOnce()) {
        let now = Instant::now();
        let mut told = self.told.lock();
        if told.get(what).is_none_or(|last| now.duration_since(*last) >= TOLD_EVERY) {
            told.insert(what.to_owned(), now);
            drop(told);
            say();
        }
    }
}
