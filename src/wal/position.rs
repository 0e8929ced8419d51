//! The stored position: how far changes are durably handed off, in `convoke.wal_position`.
//!
//! The server's own memory of a slot's position goes back when the server is
//! restarted, so ours decides where a stream begins. It only rises, but for
//! `reset`, when the WAL is another one.
use super::error::Error;
use crate::id::Lsn;
use tokio_postgres::{GenericClient, types::PgLsn};

/// What is stored about a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) lsn: Lsn,
    pub(super) system_id: Option<String>,
}

/// How far changes are handed off, or nothing when the slot was never used.
///
/// # Errors
/// [`Error::Query`] when the table cannot be read.
pub async fn load(client: &impl GenericClient, slot: &str) -> Result<Option<Lsn>, Error> {
    Ok(load_stored(client, slot).await?.map(|stored| stored.lsn))
}

/// Raises the position to `lsn`; a lower one changes nothing.
///
/// Meant for the transaction that makes the changes durable elsewhere. The
/// stream itself saves what was [confirmed](super::Confirm::confirm) before it
/// tells the server, so calling it is an optimisation: fewer changes come
/// again after a crash.
///
/// # Errors
/// [`Error::Query`] when the table cannot be written.
pub async fn save(client: &impl GenericClient, slot: &str, lsn: Lsn) -> Result<(), Error> {
    client.execute(include_str!("sql/save_position.sql"), &[&slot, &PgLsn::from(lsn.0)]).await?;
    Ok(())
}

pub(super) async fn load_stored(client: &impl GenericClient, slot: &str) -> Result<Option<Stored>, Error> {
    let row =
        client.query_opt("select lsn, system_id from convoke.wal_position where slot = $1", &[&slot]).await?;
    let Some(row) = row else { return Ok(None) };
    let lsn: PgLsn = row.try_get(0)?;
    Ok(Some(Stored { lsn: Lsn(u64::from(lsn)), system_id: row.try_get(1)? }))
}

/// Stores a position that may be lower than before, and whose log it is.
pub(super) async fn reset(
    client: &impl GenericClient,
    slot: &str,
    system_id: &str,
    lsn: Lsn,
) -> Result<(), Error> {
    let sql = include_str!("sql/reset_position.sql");
    client.execute(sql, &[&slot, &system_id, &PgLsn::from(lsn.0)]).await?;
    Ok(())
}
