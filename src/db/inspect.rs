//! Checks of the server for `convoke doctor` and for error messages.
//!
//! Every finding has a name, the state found, and the statement that repairs it. Changes nothing. Needs only
//! the right to connect.
use super::{Database, Error, connect::quote};
use crate::clock::Clock;
use serde::Serialize;
use tokio_postgres::Row;

/// The oldest server version that streams transactions in progress.
const VERSION_MIN: i32 = 140_000;
/// Largest clock difference that counts as ok. A larger one makes displayed times confusing; nothing else
/// depends on it.
const CLOCK_SKEW_MAX_MS: i64 = 2_000;

/// The state of one property of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the property, like `wal_level`.
    pub name: &'static str,
    /// Whether the state is what the daemon needs.
    pub ok: bool,
    /// The state found, like `replica`.
    pub found: String,
    /// The statement or setting that repairs it; `None` if `ok`.
    pub remedy: Option<String>,
}

/// Checks version, `wal_level`, slots, senders, rights, WAL limits, durability and clock.
///
/// # Errors
/// Errors of connecting, and [`Error::Query`].
pub async fn inspect(db: &Database) -> Result<Vec<Finding>, Error> {
    let client = db.client().await?;
    let asked = Clock::System.now();
    let row = client.query_one(include_str!("sql/inspect.sql"), &[]).await?;
    // The server reads its clock about half a round trip after the query was sent.
    let half_trip = (Clock::System.now() - asked) / 2;
    let theirs: chrono::DateTime<chrono::Utc> = row.try_get("now")?;
    let skew_ms = (theirs - (asked + half_trip)).num_milliseconds();
    let mut findings = server(&row)?;
    findings.extend(rights(db, &row)?);
    findings.push(finding(
        "clock",
        skew_ms.abs() <= CLOCK_SKEW_MAX_MS,
        format!("{skew_ms} ms ahead of this machine"),
        || "synchronise the clocks of both machines (NTP)".into(),
    ));
    Ok(findings)
}

fn server(row: &Row) -> Result<Vec<Finding>, Error> {
    let restart = "; then restart PostgreSQL";
    let (version, version_text): (i32, String) = (row.try_get("version")?, row.try_get("version_text")?);
    let standby: bool = row.try_get("standby")?;
    let read_only: bool = row.try_get("read_only")?;
    let wal_level: String = row.try_get("wal_level")?;
    let (slots_max, slots): (i32, i32) = (row.try_get("slots_max")?, row.try_get("slots")?);
    let (senders_max, senders): (i32, i32) = (row.try_get("senders_max")?, row.try_get("senders")?);
    let has_slot: bool = row.try_get("has_slot")?;
    let keep_mib: i64 = row.try_get("slot_wal_keep_mib")?;
    let fsync: String = row.try_get("fsync")?;
    let encoding: String = row.try_get("encoding")?;
    Ok(vec![
        finding("server_version", version >= VERSION_MIN, version_text, || {
            "upgrade PostgreSQL to 14 or later".into()
        }),
        finding("primary", !standby, if standby { "a standby" } else { "a primary" }, || {
            "point database.url at the primary server".into()
        }),
        finding("writes", !read_only, if read_only { "read-only" } else { "taken" }, || {
            "end what made the database read-only, like default_transaction_read_only".into()
        }),
        finding("wal_level", wal_level == "logical", wal_level.clone(), || {
            format!("alter system set wal_level = 'logical'{restart}")
        }),
        finding(
            "max_replication_slots",
            has_slot || slots < slots_max,
            format!("{slots} of {slots_max} used"),
            || format!("alter system set max_replication_slots = {}{restart}", slots_max + 10),
        ),
        finding("max_wal_senders", senders < senders_max, format!("{senders} of {senders_max} used"), || {
            format!("alter system set max_wal_senders = {}{restart}", senders_max + 10)
        }),
        finding(
            "max_slot_wal_keep_size",
            keep_mib > 0,
            if keep_mib < 0 { "unlimited".into() } else { format!("{keep_mib} MB") },
            || {
                "alter system set max_slot_wal_keep_size = '4GB'; select pg_reload_conf(): \
                 without a limit a daemon that stays away fills the server's disk"
                    .into()
            },
        ),
        finding("encoding", encoding == "UTF8", encoding.clone(), || {
            "create the database with encoding 'UTF8' template template0: this one refuses every text with a \
             character that its encoding lacks"
                .into()
        }),
        finding("fsync", fsync == "on", fsync.clone(), || {
            "alter system set fsync = on; select pg_reload_conf()".into()
        }),
    ])
}

fn rights(db: &Database, row: &Row) -> Result<Vec<Finding>, Error> {
    let (role, database) = (quote(&db.target().user), quote(&db.target().database));
    let replication: bool = row.try_get("may_replicate")?;
    let create: bool = row.try_get("may_create")?;
    let schema: Option<bool> = row.try_get("may_fill_schema")?;
    let yes_no = |yes: bool| if yes { "granted" } else { "not granted" };
    Ok(vec![
        finding("replication_right", replication, yes_no(replication), || {
            format!("alter role {role} replication (on Amazon RDS: grant rds_replication to {role})")
        }),
        finding("create_right", create, yes_no(create), || {
            format!("grant create on database {database} to {role}")
        }),
        finding(
            "schema_right",
            schema.unwrap_or(true),
            schema.map_or("no schema convoke yet", yes_no),
            || format!("alter schema convoke owner to {role}"),
        ),
    ])
}

fn finding(
    name: &'static str,
    ok: bool,
    found: impl Into<String>,
    remedy: impl FnOnce() -> String,
) -> Finding {
    Finding { name, ok, found: found.into(), remedy: (!ok).then(remedy) }
}
