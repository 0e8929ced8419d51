//! The replication slot: found, made, and held against what we remember of it.
//!
//! A slot that is missing, lost, or further than our stored position means
//! that changes are gone; it is made anew or taken as it is, and a [`Gap`]
//! says so. Until the gap is confirmed the stored position stays behind the
//! slot's, so that a crash cannot hide it.
use super::{
    change::Gap,
    connection::Connection,
    error::Error,
    position::{self, Stored},
};
use crate::id::Lsn;
use std::time::Duration;
use tokio_postgres::{GenericClient, types::PgLsn};
use tracing::{info, warn};

/// When to say that a slot's creation waits for running transactions.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the server says of itself on a replication connection.
#[derive(Debug)]
pub(super) struct System {
    id: String,
    /// Where its log ends.
    end: Lsn,
    database: String,
}

/// Where a stream begins.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) from: Lsn,
    /// What `convoke.wal_position` says.
    pub(super) stored: Lsn,
    pub(super) gap: Option<Gap>,
    /// The log is not the one that earlier positions were about.
    pub(super) other_log: bool,
}

/// What is needed to judge a slot.
pub(super) struct Slot<'a> {
    pub(super) name: &'a str,
    pub(super) publications: &'a [String],
    /// The highest position that this process told the server.
    pub(super) told: Lsn,
    /// Why the slot is of no use although it looks well.
    pub(super) broken: Option<&'a str>,
}

struct Found {
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
        let (id, end, database) = (field(0), field(1), field(0));
        let end = end.and_then(|end| end.parse().ok());
        match (id, end, database) {
            (Some(id), Some(end), Some(database)) => Ok(Self { id, end, database }),
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

/// Takes the leader's lock if nobody has it. It lives as long as this connection, which also streams:
/// who loses the one has lost the other.
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

impl Slot<'_> {
    /// Finds where to begin; makes the slot where there is none. Only the leader may call it.
    pub(super) async fn prepare(
        &self,
        connection: &mut Connection,
        client: &impl GenericClient,
    ) -> Result<Prepared, Error> {
        self.check_publications(client).await?;
        let stored = position::load_stored(client, self.name).await?;
        // After the position is read, so that the end of the log cannot be from before it.
        let system = &System::identify(connection).await?;
        let found = self.find(client).await?;
        if let Some(found) = &found {
            self.check_owner(found, system)?;
        }
        let useless = match (&found, self.broken) {
            (None, _) => Some(format!("replication slot {} is missing", self.name)),
            (Some(found), _) if found.lost => Some(format!(
                "replication slot {} was invalidated, because it held back more log than \
                 max_slot_wal_keep_size allows",
                self.name
            )),
            (Some(_), broken) => broken.map(ToOwned::to_owned),
        };
        let (confirmed, useless) = match (found, useless) {
            (Some(found), None) => (found.confirmed, None),
            (found, useless) => (self.make(connection, found.is_some()).await?, useless),
        };
        self.judge(client, system, stored, confirmed, useless).await
    }

    async fn judge(
        &self,
        client: &impl GenericClient,
        system: &System,
        stored: Option<Stored>,
        confirmed: Lsn,
        useless: Option<String>,
    ) -> Result<Prepared, Error> {
        let Some(Stored { lsn, system_id }) = stored else {
            position::reset(client, self.name, &system.id, confirmed).await?;
            return Ok(Prepared { from: confirmed, stored: confirmed, gap: None, other_log: false });
        };
        let other_system = system_id.as_ref().is_some_and(|id| *id != system.id);
        let other_log = other_system || lsn > system.end;
        let reason = if other_system {
            Some("the database is now in another PostgreSQL cluster".to_owned())
        } else if other_log {
            let end = system.end;
            Some(format!("the log ends at {end}, before the stored position: it was restored from a backup"))
        } else if useless.is_some() {
            useless
        } else if confirmed > lsn.max(self.told) {
            Some(format!("somebody else moved replication slot {} on to {confirmed}", self.name))
        } else {
            None
        };
        if other_log {
            // The old position means nothing here; zero keeps the gap open until it is confirmed.
            position::reset(client, self.name, &system.id, Lsn(0)).await?;
        } else if system_id.is_none() {
            position::reset(client, self.name, &system.id, lsn).await?;
        }
        let gap = reason.map(|reason| Gap { from: Some(lsn), to: confirmed, reason });
        let from = if gap.is_some() { confirmed } else { lsn };
        let stored = if other_log { Lsn(0) } else { lsn };
        Ok(Prepared { from, stored, gap, other_log })
    }

    async fn check_publications(&self, client: &impl GenericClient) -> Result<(), Error> {
        let missing = "select name from unnest($1::text[]) as name \
                       where not exists (select from pg_publication where pubname = name) limit 1";
        match client.query_opt(missing, &[&self.publications]).await? {
            Some(row) => Err(Error::MissingPublication(row.try_get(0)?)),
            None => Ok(()),
        }
    }

    async fn find(&self, client: &impl GenericClient) -> Result<Option<Found>, Error> {
        let row = client.query_opt(include_str!("sql/find_slot.sql"), &[&self.name]).await?;
        let Some(row) = row else { return Ok(None) };
        let confirmed: Option<PgLsn> = row.try_get(3)?;
        Ok(Some(Found {
            plugin: row.try_get(0)?,
            database: row.try_get(1)?,
            lost: row.try_get(2)?,
            confirmed: Lsn(confirmed.map_or(0, u64::from)),
        }))
    }

    fn check_owner(&self, found: &Found, system: &System) -> Result<(), Error> {
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
            warn!("replication slot {slot} is dropped, because it cannot be read any more");
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
    fn a_slot_name_is_what_postgres_takes() {
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
