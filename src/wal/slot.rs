//! The replication slot: found, made, and compared with the stored position.
//!
//! A slot that is missing, lost, or further than our stored position means
//! that changes are gone; it is made anew or taken as it is, and a [`Gap`]
//! says so. Until the gap is confirmed the stored position stays behind the
//! slot's, so that a crash cannot hide it.
use super::{
    change::Gap,
    connection::Connection,
    error::Error,
    memory::{Known, Log, left_at},
    position::{self, Stored},
    publication,
};
use crate::id::Lsn;
use std::time::Duration;
use tokio_postgres::{GenericClient, types::PgLsn};
use tracing::{info, warn};

const RESTORED: &str = "the database was put back from an older copy";
const OTHER_CLUSTER: &str = "the database is now in another PostgreSQL cluster";

/// When to say that a slot's creation waits for running transactions.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the server says of itself on a replication connection.
#[derive(Debug)]
pub(super) struct System {
    pub(super) log: Log,
    /// Where its log ends.
    end: Lsn,
    database: String,
}

/// What is known about the WAL from outside the database.
#[derive(Debug, Default)]
pub(super) struct Outside {
    pub(super) known: Option<Known>,
    /// The furthest position that the consumer was handed, in this process or an earlier one.
    pub(super) reached: Lsn,
}

/// Where a stream begins.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) from: Lsn,
    /// What `convoke.wal_position` says.
    pub(super) stored: Lsn,
    pub(super) gap: Option<Gap>,
    /// The WAL is not the one that earlier positions were about.
    pub(super) other_log: bool,
    pub(super) log: Log,
}

/// What is needed to judge a slot.
pub(super) struct ReplicationSlot<'a> {
    pub(super) name: &'a str,
    pub(super) publications: &'a [String],
    /// The highest position that this process confirmed to the server, or handed to its consumer, gaps included.
    /// A slot that is no further lost nothing.
    pub(super) known: Lsn,
    /// Why the slot is of no use although it looks well.
    pub(super) broken: Option<&'a str>,
    pub(super) outside: Outside,
}

/// Where the slot has everything from, and what is wrong.
struct Begun {
    confirmed: Lsn,
    useless: Option<String>,
    went_back: Option<String>,
}

struct SlotState {
    plugin: String,
    database: String,
    lost: bool,
    confirmed: Lsn,
}

impl System {
    pub(super) async fn identify(connection: &mut Connection) -> Result<Self, Error> {
        let rows = connection.query("IDENTIFY_SYSTEM").await?;
        let mut row = rows.into_iter().next().unwrap_or_default().into_iter();
        let mut field = |skip: usize| row.nth(skip).flatten();
        let (id, timeline, end, database) = (field(0), field(0), field(0), field(0));
        let (timeline, end) = (timeline.and_then(|it| it.parse().ok()), end.and_then(|it| it.parse().ok()));
        match (id, timeline, end, database) {
            (Some(system), Some(timeline), Some(end), Some(database)) => {
                Ok(Self { log: Log { system, timeline }, end, database })
            }
            _ => Err(Error::Unexpected("an answer to IDENTIFY_SYSTEM without its fields".into())),
        }
    }
}

/// Whether `name` can be a slot's.
pub(super) fn check_name(name: &str) -> Result<(), Error> {
    let fits = (1..=63).contains(&name.len());
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if fits && name.bytes().all(word) { Ok(()) } else { Err(Error::BadSlotName(name.to_owned())) }
}

/// Tries to take the leader lock. It lives as long as this connection, which also streams: a daemon that loses the
/// connection has lost the lock.
pub(super) async fn try_lead(connection: &mut Connection, slot: &str) -> Result<bool, Error> {
    let rows = connection.query(&format!("select pg_try_advisory_lock({})", lock_key(slot))).await?;
    Ok(rows.first().and_then(|row| row.first()?.as_deref()) == Some("t"))
}

/// FNV-1a of what the lock is about; Postgres wants a number.
fn lock_key(slot: &str) -> i64 {
    let hash = "convoke.wal:".bytes().chain(slot.bytes()).fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    hash.cast_signed()
}

impl ReplicationSlot<'_> {
    /// Returns the position to start from, and creates the slot if it does not exist. Only the leader may call it.
    pub(super) async fn prepare(
        &self,
        connection: &mut Connection,
        client: &impl GenericClient,
    ) -> Result<Prepared, Error> {
        self.check_publications(client).await?;
        let stored = position::load_stored(client, self.name).await?;
        // After the position is read, so that the end of the WAL cannot be from before it.
        let system = &System::identify(connection).await?;
        let found = self.find(client).await?;
        if let Some(found) = &found {
            self.check_owner(found, system)?;
        }
        let useless = match (&found, self.broken) {
            (None, _) => Some(format!("replication slot {} is missing", self.name)),
            (Some(found), _) if found.lost => Some(format!(
                "replication slot {} was invalidated, because it held back more WAL than \
                 max_slot_wal_keep_size allows",
                self.name
            )),
            (Some(_), broken) => broken.map(ToOwned::to_owned),
        };
        let (confirmed, useless) = match (found, useless) {
            (Some(found), None) => (found.confirmed, None),
            (found, useless) => {
                if let Some(ours) = self.publications.first() {
                    // Before the slot: what is committed after its position is decoded with the publication.
                    publication::ensure(client, ours).await?;
                }
                (self.make(connection, found.is_some()).await?, useless)
            }
        };
        let went_back = self.went_back(connection, system, stored.as_ref()).await;
        self.judge(client, system, stored, Begun { confirmed, useless, went_back }).await
    }

    /// Why the WAL is not the one that positions from outside the database are about; `None` if it is.
    async fn went_back(
        &self,
        connection: &mut Connection,
        system: &System,
        stored: Option<&Stored>,
    ) -> Option<String> {
        let Outside { known, reached } = &self.outside;
        let stored = stored.map_or(Lsn(0), |stored| stored.lsn);
        let (end, furthest) = (system.end, stored.max(*reached));
        if furthest > end {
            return Some(format!("the WAL ends at {end}, before {furthest}, which was read: {RESTORED}"));
        }
        let Known { log, stored: known } = known.as_ref()?;
        if log.system != system.log.system {
            return (*reached > Lsn(0)).then(|| OTHER_CLUSTER.to_owned());
        }
        if stored < *known {
            return Some(format!("the stored position is {stored} and was {known}: {RESTORED}"));
        }
        let (before, now) = (log.timeline, system.log.timeline);
        if before == now {
            return None;
        }
        // A failover that kept everything goes on; a history that cannot be read proves nothing of the kind.
        let history = connection.query(&format!("TIMELINE_HISTORY {now}")).await.unwrap_or_default();
        let history = history.first().and_then(|row| row.get(1)?.clone()).unwrap_or_default();
        let left = left_at(&history, before);
        let kept = left.is_some_and(|left| left >= furthest.max(*known));
        (!kept).then(|| {
            format!("the WAL went from timeline {before} to {now} before {furthest}, which was read")
        })
    }

    async fn judge(
        &self,
        client: &impl GenericClient,
        system: &System,
        stored: Option<Stored>,
        begun: Begun,
    ) -> Result<Prepared, Error> {
        let Begun { confirmed, useless, went_back } = begun;
        let log = system.log.clone();
        let id = &system.log.system;
        let Some(Stored { lsn, system_id }) = stored else {
            // A copy from before the first start is as much another log as any other.
            let gap = went_back.map(|reason| Gap { from: None, to: confirmed, reason });
            let (other_log, stored) = (gap.is_some(), if gap.is_some() { Lsn(0) } else { confirmed });
            position::reset(client, self.name, id, stored).await?;
            return Ok(Prepared { from: confirmed, stored, gap, other_log, log });
        };
        let other_system = system_id.as_ref().is_some_and(|known| known != id);
        let other_log = other_system || went_back.is_some();
        // An older copy of the same log has what its own position says; its slot may remember less.
        let confirmed = if went_back.is_some() && !other_system && lsn <= system.end {
            confirmed.max(lsn)
        } else {
            confirmed
        };
        let reason = if other_system {
            Some(OTHER_CLUSTER.to_owned())
        } else if went_back.is_some() {
            went_back
        } else if useless.is_some() {
            useless
        } else if confirmed > lsn.max(self.known) {
            Some(format!("replication slot {} was moved to {confirmed} by another session", self.name))
        } else {
            None
        };
        if other_log {
            // The old position means nothing here; zero keeps the gap open until it is confirmed.
            position::reset(client, self.name, id, Lsn(0)).await?;
        } else if system_id.is_none() {
            position::reset(client, self.name, id, lsn).await?;
        }
        let gap = reason.map(|reason| Gap { from: Some(lsn), to: confirmed, reason });
        let from = if gap.is_some() { confirmed } else { lsn };
        let stored = if other_log { Lsn(0) } else { lsn };
        Ok(Prepared { from, stored, gap, other_log, log })
    }

    /// One publication is enough to go on: what only another has does not come until that one is back.
    async fn check_publications(&self, client: &impl GenericClient) -> Result<(), Error> {
        let found = "select from pg_publication where pubname = any($1::text[]) limit 1";
        match (client.query_opt(found, &[&self.publications]).await?, self.publications.first()) {
            (None, Some(first)) => Err(Error::MissingPublication(first.clone())),
            _ => Ok(()),
        }
    }

    async fn find(&self, client: &impl GenericClient) -> Result<Option<SlotState>, Error> {
        let row = client.query_opt(include_str!("sql/find_slot.sql"), &[&self.name]).await?;
        let Some(row) = row else { return Ok(None) };
        let confirmed: Option<PgLsn> = row.try_get(3)?;
        Ok(Some(SlotState {
            plugin: row.try_get(0)?,
            database: row.try_get(1)?,
            lost: row.try_get(2)?,
            confirmed: Lsn(confirmed.map_or(0, u64::from)),
        }))
    }

    fn check_owner(&self, found: &SlotState, system: &System) -> Result<(), Error> {
        let owner = if found.database != system.database {
            format!("database {:?}", found.database)
        } else if found.plugin != "pgoutput" {
            format!("a consumer of plugin {:?}", found.plugin)
        } else {
            return Ok(());
        };
        Err(Error::ForeignSlot { slot: self.name.to_owned(), owner })
    }

    /// Makes the slot, after dropping the useless one; gives the position from which it has everything.
    async fn make(&self, connection: &mut Connection, drop_first: bool) -> Result<Lsn, Error> {
        let slot = self.name;
        if drop_first {
            warn!("replication slot {slot} dropped, because it cannot be read any more");
            connection.query(&format!("select pg_drop_replication_slot('{slot}')")).await?;
        }
        let sql = format!("select lsn from pg_create_logical_replication_slot('{slot}', 'pgoutput')");
        let mut making = std::pin::pin!(connection.query_unlimited(&sql));
        let rows = tokio::select! {
            rows = &mut making => rows?,
            () = tokio::time::sleep(PATIENCE) => {
                info!("the creation of replication slot {slot} waits for running transactions to end");
                making.await?
            }
        };
        let lsn = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok());
        let lsn = lsn.ok_or_else(|| Error::Unexpected("a new slot without a position".into()))?;
        info!(%lsn, "replication slot {slot} created");
        Ok(lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_name_follows_the_rules_of_postgres() {
        assert!(check_name("convoke_2").is_ok());
        for bad in ["", "Convoke", "a-b", "a\"; drop", &"x".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn two_slots_have_two_locks() {
        assert_ne!(lock_key("convoke"), lock_key("convoke2"));
    }
}
