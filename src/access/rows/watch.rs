//! Invalidates cached plans when the catalog has changed.
//!
//! The WAL carries no change of policies, privileges, roles and functions, and not every change of
//! publications. So before changes are judged, one statement computes a fingerprint of all catalog rows on
//! which the cached plans depend. Its snapshot is taken after the changes were received, and so after
//! everything that was committed before them. If the fingerprint equals the last one, the plans hold for
//! those changes; else all are evicted. The check also runs every second, for subscribers that join while no
//! changes arrive.
use super::{Inner, decision_cache::Watched, evaluate::CATALOG_WITHIN, session::Session};
use crate::scope::{OnExit, Scope};
use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Mutex, time::Instant};
use tokio_postgres::{SimpleQueryMessage, error::SqlState, types::Oid};

/// Interval of the periodic check; it does nothing while no plan is cached.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a check waits until snapshots see the transactions that the WAL has shown.
const VISIBLE_WITHIN: Duration = Duration::from_secs(5);
/// Looks for them that follow each other at once, and the pause before each later one.
const LOOKS_WITHOUT_PAUSE: u32 = 10;
const VISIBLE_PAUSE: Duration = Duration::from_millis(10);
/// The statement of a check.
const FINGERPRINT: &str = include_str!("sql/fingerprint.sql");
/// Its parameter for the held roles.
const HELD: &str = "$4::oid[]";
/// A catalog table that servers before PostgreSQL 15 lack.
const SCHEMAS: &str = "pg_catalog.pg_publication_namespace";
/// Its empty replacement for those servers.
const NO_SCHEMAS: &str =
    "(select 0::oid as oid, 0::oid as pnpubid, 0::oid as pnnspid, '0'::xid as xmin where false)";

/// Fingerprint checks, shared by concurrent callers.
#[derive(Debug, Default)]
pub(super) struct FingerprintChecks {
    /// The objects of the last check, and what it found. Locked for the whole of a check.
    last: Mutex<Option<(Watched, Found)>>,
    /// Number of checks that have begun.
    begun: AtomicU64,
    /// Number of the last check that has ended.
    ended: AtomicU64,
}

/// Starts the periodic check. At a stop it also closes the connections, which the scope waits for.
pub(super) fn start(scope: &Scope, inner: &Arc<Inner>) {
    let inner = Arc::downgrade(inner);
    scope.spawn("row security watch", OnExit::Log, |stop| async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = watch(inner.clone()) => {}
        }
        if let Some(inner) = inner.upgrade() {
            inner.sessions.close();
            inner.catalog_sessions.close();
        }
        Ok(())
    });
}

/// Holds only a weak reference while it sleeps, so that dropping the last handle ends it.
async fn watch(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(inner) = inner.upgrade() else { return };
        inner.refresh(&[]).await;
    }
}

/// The outcome of a check.
#[derive(Debug)]
struct Found {
    fingerprint: String,
    /// The watched roles with the roles that they are members of, directly or not; `None` if they may have changed.
    held: Option<Vec<Oid>>,
    /// The transactions that its snapshot sees.
    snapshot: Snapshot,
}

/// A snapshot of Postgres, as `pg_current_snapshot` shows it, without the epochs of its transaction ids.
#[derive(Debug, PartialEq, Eq)]
struct Snapshot {
    /// The first id that had not been assigned.
    end: u32,
    /// The ids before it that were in progress.
    in_progress: Vec<u32>,
}

impl Snapshot {
    /// Parses `xmin:xmax:xip,xip,…`.
    fn parse(text: &str) -> Option<Self> {
        let low_half = |id: &str| id.parse::<u64>().ok().map(|id| id as u32);
        let mut parts = text.splitn(3, ':').skip(1);
        let (end, in_progress) = (low_half(parts.next()?)?, parts.next()?);
        let ids = in_progress.split(',').filter(|id| !id.is_empty());
        Some(Self { end, in_progress: ids.map(low_half).collect::<Option<_>>()? })
    }

    /// Never fails to parse, but closed if it did: such a snapshot sees no transaction.
    fn of(text: &str) -> Self {
        Self::parse(text).unwrap_or(Self { end: 0, in_progress: Vec::new() })
    }

    /// Whether it sees a transaction that has committed. Ids wrap around: one is before those that follow it within
    /// half of their range.
    fn sees(&self, id: u32) -> bool {
        let is_assigned = id.wrapping_sub(self.end) > u32::MAX / 2;
        is_assigned && !self.in_progress.contains(&id)
    }
}

impl Inner {
    /// Evicts the cached plans, unless the catalog is unchanged as of the transactions `seen` in the WAL. Concurrent
    /// callers share a check. Waits while the database is unavailable. Cancel safe.
    pub(super) async fn refresh(&self, seen: &[u32]) {
        let until = Instant::now() + VISIBLE_WITHIN;
        // The WAL shows a commit a moment before new snapshots do, and that commit may have changed a policy. The moment
        // is mostly over when the change has come here, so the check comes first, and only one that came too early is
        // repeated. With a synchronous standby that does not answer, the moment is long; no other client sees the rows
        // then either.
        while !self.is_refreshed(seen).await && Instant::now() < until {
            self.wait_until_visible(seen, until).await;
        }
    }

    /// Waits until new snapshots see these transactions; returns early if the database cannot be asked. A look costs
    /// a tenth of a check.
    async fn wait_until_visible(&self, seen: &[u32], until: Instant) {
        if seen.is_empty() {
            return;
        }
        for look in 0_u32.. {
            // The timer's unit is a millisecond, and most commits are visible sooner.
            if look >= LOOKS_WITHOUT_PAUSE {
                tokio::time::sleep(VISIBLE_PAUSE).await;
            }
            // Lent for each look alone: checks of others use the same connection.
            let lent = self.catalog_sessions.lend().await;
            let Ok(Ok(snapshot)) = tokio::time::timeout(CATALOG_WITHIN, snapshot(&lent.session)).await else {
                return;
            };
            lent.give_back_idle();
            if seen.iter().all(|id| snapshot.sees(*id)) || Instant::now() >= until {
                return;
            }
        }
    }

    /// One check. Returns false if its snapshot does not see all of the transactions.
    async fn is_refreshed(&self, seen: &[u32]) -> bool {
        // A check that begins after this line has a snapshot that is new enough for this call, so one that
        // another caller ran while this one waited for the lock is enough. One that had begun before is not.
        let before = self.fingerprints.begun.load(Ordering::Acquire);
        let mut last = self.fingerprints.last.lock().await;
        let sees_all = |found: &Found| seen.iter().all(|id| found.snapshot.sees(*id));
        if self.fingerprints.ended.load(Ordering::Acquire) > before {
            return last.as_ref().is_none_or(|(_, found)| sees_all(found));
        }
        let watched = match self.catalog.watched() {
            Some(watched) => watched,
            None if seen.is_empty() => return true,
            // Plans that are read after this call must be as new.
            None => Watched::default(),
        };
        if last.as_ref().is_some_and(|last| covers(last, &watched, seen)) {
            return true;
        }
        let number = self.fingerprints.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let mut lent = self.catalog_sessions.lend().await;
        let known = last.as_ref().filter(|(objects, _)| *objects == watched);
        let held = known.and_then(|(_, found)| found.held.as_deref());
        let found =
            tokio::time::timeout(CATALOG_WITHIN, fingerprint(&mut lent.session, &watched, held)).await;
        let mut sees = true;
        match found {
            Ok(Ok(mut found)) => {
                lent.give_back_idle();
                sees = sees_all(&found);
                // Also unequal if an object is checked for the first time: it may have changed since its plan
                // was read.
                let same = last.as_ref().is_some_and(|(objects, before)| {
                    *objects == watched && before.fingerprint == found.fingerprint
                });
                if !same {
                    // The roles that were asked about may not be those that are held now.
                    found.held = found.held.filter(|_| held.is_none());
                    self.catalog.forget();
                }
                *last = Some((watched, found));
            }
            // Connection lost, or the statement failed: the plans may be stale.
            failed => {
                if let Ok(Err(error)) = failed {
                    tracing::debug!(%error, "catalog fingerprint failed, cached rights are invalidated");
                }
                self.catalog.forget();
                *last = None;
            }
        }
        // Only now, so that a dropped future counts as no check.
        self.fingerprints.ended.store(number, Ordering::Release);
        sees
    }
}

/// Whether the last check is new enough for the transactions `seen`, so that none is needed: its snapshot sees them, and
/// it covered all plans that are `watched` now. Under load a check often covers the changes that arrive while it runs.
fn covers((objects, found): &(Watched, Found), watched: &Watched, seen: &[u32]) -> bool {
    let has_plans = *watched != Watched::default();
    has_plans && objects == watched && !seen.is_empty() && seen.iter().all(|id| found.snapshot.sees(*id))
}

/// Computes the fingerprint, of the `held` roles if they are known: finding them costs about as much as the rest. Each of
/// the two statements is prepared once for each connection.
async fn fingerprint(
    session: &mut Session,
    watched: &Watched,
    held: Option<&[Oid]>,
) -> Result<Found, tokio_postgres::Error> {
    let Watched { tables, functions, roles } = watched;
    let (prepared, sql) = match held {
        Some(_) => (&mut session.fingerprint, FINGERPRINT.to_owned()),
        None => {
            (&mut session.first_fingerprint, FINGERPRINT.replace(HELD, include_str!("sql/held_roles.sql")))
        }
    };
    let statement = match prepared {
        Some(statement) => statement.clone(),
        None => {
            let statement = match session.client.prepare(&sql).await {
                Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                    session.client.prepare(&sql.replace(SCHEMAS, NO_SCHEMAS)).await?
                }
                prepared => prepared?,
            };
            prepared.insert(statement).clone()
        }
    };
    let row = match held {
        Some(held) => session.client.query_one(&statement, &[tables, functions, roles, &held]).await?,
        None => session.client.query_one(&statement, &[tables, functions, roles]).await?,
    };
    let held = Some(row.try_get(1)?);
    Ok(Found { fingerprint: row.try_get(0)?, held, snapshot: Snapshot::of(row.try_get(2)?) })
}

/// The snapshot that the server makes now, in one round trip.
async fn snapshot(session: &Session) -> Result<Snapshot, tokio_postgres::Error> {
    let messages = session.client.simple_query("select pg_catalog.pg_current_snapshot()").await?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(Snapshot::of(row.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshot_sees_what_had_committed_before_it() {
        let snapshot = Snapshot::parse("8:12:8,10").unwrap();
        let seen: Vec<u32> = (5..15).filter(|id| snapshot.sees(*id)).collect();
        assert_eq!(seen, [5, 6, 7, 9, 11]);
        assert!(Snapshot::parse("8:8:").unwrap().sees(7));
        assert_eq!(Snapshot::parse("8"), None);
        assert_eq!(Snapshot::parse("8:9:x"), None);
    }

    #[test]
    fn check_covers_what_its_snapshot_sees_of_the_plans_that_it_checked() {
        let of = |table: u32| Watched { tables: vec![table], ..Watched::default() };
        let last = |objects: Watched| {
            (objects, Found { fingerprint: "f".into(), held: None, snapshot: Snapshot::of("8:12:8,10") })
        };
        assert!(covers(&last(of(1)), &of(1), &[7]));
        assert!(covers(&last(of(1)), &of(1), &[7, 9, 11]));
        for unseen in [8, 10, 12, 13] {
            assert!(!covers(&last(of(1)), &of(1), &[7, unseen]), "transaction {unseen}");
        }
        assert!(!covers(&last(of(1)), &of(2), &[7]), "a plan of another table came since");
        // The periodic check names no transaction, and reads the catalog each time.
        assert!(!covers(&last(of(1)), &of(1), &[]));
        // Nothing is cached: a plan that is read after this call must be as new.
        assert!(!covers(&last(Watched::default()), &Watched::default(), &[7]));
    }

    #[test]
    fn snapshot_compares_ids_across_their_wrap_around() {
        // The ids of the WAL lack the epoch that those of a snapshot have.
        let epoch = 3_u64 << 32;
        let snapshot = Snapshot::parse(&format!("{}:{}:{}", epoch - 2, epoch + 5, epoch - 2)).unwrap();
        assert!(snapshot.sees(u32::MAX) && snapshot.sees(0) && snapshot.sees(4));
        assert!(!snapshot.sees(u32::MAX - 1) && !snapshot.sees(5));
    }
}
