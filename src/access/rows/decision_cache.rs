//! Caches of row-security checks.
//!
//! Holds plans until the catalog changes, outcomes of pure policies within a fixed size, and slow policies
//! for the time of their backoff. A wrong entry would be a stale authorization, so every entry is bound to
//! the query id of one plan, and a new plan has a new id: outcomes of an old plan are unreachable and are
//! evicted by age. Decision 32 says when an outcome may be cached.
use super::{
    plan::{Plan, PolicyQuery},
    types::{Failure, PolicyTable},
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeSet, HashMap, HashSet, hash_map::Entry},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use tokio_postgres::types::Oid;

/// Most plans (pairs of a table and a role) in the cache; at the limit all are evicted.
const PLANS_MAX: usize = 10_000;
/// Most outcomes in each of two generations; when the young one is full, the old one is evicted.
const OUTCOMES_MAX: usize = 100_000;
/// Outcomes of rows with a longer text are not cached.
pub(super) const ROW_BYTES_MAX: usize = 200;
/// Backoff after a timeout, and the least time between two log lines about one policy.
const BACKOFF: Duration = Duration::from_secs(30);
/// With so many viewers in backoff, a policy is in backoff for every viewer.
const BACKOFF_VIEWERS_MAX: usize = 3;

/// A plan, or why the policy cannot be planned.
pub(super) type CachedPlan = Result<Arc<Plan>, Failure>;

/// The plans that were made from the catalog.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    state: Mutex<CatalogState>,
}

#[derive(Debug, Default)]
struct CatalogState {
    /// Rises with every invalidation and every fingerprint check: a plan whose reading began before is not
    /// cached.
    generation: u64,
    /// Number of invalidations.
    epoch: u64,
    /// By the address of the table and by role. The entry holds the [`Arc`], so the address cannot be reused.
    tables: HashMap<usize, (Arc<PolicyTable>, HashMap<String, CachedPlan>)>,
}

/// The catalog objects on which the cached plans depend; the fingerprint covers them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Watched {
    pub(super) tables: Vec<Oid>,
    pub(super) functions: Vec<Oid>,
    pub(super) roles: Vec<String>,
}

impl Catalog {
    /// Returns the cached plan, or the generation to pass to [`Catalog::put`] with a plan that is read now.
    pub(super) fn get(&self, table: &Arc<PolicyTable>, role: &str) -> Result<CachedPlan, u64> {
        let state = self.state.lock();
        let known = state.tables.get(&address(table)).and_then(|(_, roles)| roles.get(role));
        known.cloned().ok_or(state.generation)
    }

    /// Caches a plan, unless the catalog was invalidated or checked since `generation`: it may be older than
    /// that check.
    pub(super) fn put(&self, generation: u64, table: &Arc<PolicyTable>, role: &str, known: &CachedPlan) {
        let mut state = self.state.lock();
        if state.generation != generation {
            return;
        }
        if !state.tables.contains_key(&address(table)) {
            // The WAL consumer makes a new description when a table changes; older ones with no other holder
            // are evicted.
            state.tables.retain(|_, (old, _)| old.oid != table.oid || Arc::strong_count(old) > 1);
        }
        if state.tables.values().map(|(_, roles)| roles.len()).sum::<usize>() >= PLANS_MAX {
            state.tables.clear();
        }
        let entry = state.tables.entry(address(table)).or_insert_with(|| (table.clone(), HashMap::new()));
        entry.1.insert(role.to_owned(), known.clone());
    }

    /// Number of invalidations so far.
    pub(super) fn epoch(&self) -> u64 {
        self.state.lock().epoch
    }

    /// Whether a plan for the table is cached.
    pub(super) fn knows(&self, table: &Arc<PolicyTable>) -> bool {
        self.state.lock().tables.contains_key(&address(table))
    }

    /// Evicts every plan.
    pub(super) fn forget(&self) {
        let mut state = self.state.lock();
        state.generation += 1;
        state.epoch += 1;
        state.tables.clear();
    }

    /// Returns the objects that a fingerprint check must cover; `None` if no plan is cached.
    ///
    /// Starts a new generation: a plan that is being read now is not covered by the check, and may be older
    /// than the check's snapshot, so [`Catalog::put`] must not cache it.
    pub(super) fn watched(&self) -> Option<Watched> {
        let mut state = self.state.lock();
        state.generation += 1;
        let (mut tables, mut functions, mut roles) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (table, known) in state.tables.values() {
            tables.insert(table.oid);
            for (role, known) in known {
                roles.insert(role.clone());
                if let Ok(plan) = known {
                    tables.extend(&plan.related);
                    functions.extend(&plan.functions);
                }
            }
        }
        (!tables.is_empty()).then(|| Watched {
            tables: tables.into_iter().collect(),
            functions: functions.into_iter().collect(),
            roles: roles.into_iter().collect(),
        })
    }
}

/// The identity of a table description. Valid while the caller holds the [`Arc`].
fn address(table: &Arc<PolicyTable>) -> usize {
    Arc::as_ptr(table).addr()
}

/// Outcomes of pure policies, by query id, viewer and row: those three determine the outcome.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    halves: Mutex<Halves>,
}

#[derive(Debug, Default)]
struct Halves {
    young: Half,
    old: Half,
    /// Outcomes in the young generation, including those that were too long to be cached.
    count: usize,
}

type Half = HashMap<(u64, u128), HashMap<Box<str>, bool>>;

impl Outcomes {
    /// Returns the cached outcomes of these rows, `None` for each row without one.
    pub(super) fn recall(&self, query: &PolicyQuery, viewer: u128, rows: &[&str]) -> Vec<Option<bool>> {
        let halves = self.halves.lock();
        let key = (query.id, viewer);
        let (young, old) = (halves.young.get(&key), halves.old.get(&key));
        let find = |row: &str| young.and_then(|known| known.get(row)).or_else(|| old?.get(row)).copied();
        rows.iter().map(|row| find(row)).collect()
    }

    /// Caches the outcomes of rows that are not too long.
    pub(super) fn remember(&self, query: &PolicyQuery, viewer: u128, rows: &[(&str, bool)]) {
        let mut halves = self.halves.lock();
        if halves.count + rows.len() > OUTCOMES_MAX {
            halves.count = 0;
            halves.old = std::mem::take(&mut halves.young);
        }
        halves.count += rows.len();
        let known = halves.young.entry((query.id, viewer)).or_default();
        for (row, visible) in rows.iter().filter(|(row, _)| row.len() <= ROW_BYTES_MAX) {
            known.insert((*row).into(), *visible);
        }
    }
}

/// Throttles log lines, because a policy can fail on every row.
#[derive(Debug, Default)]
pub(super) struct LogThrottle {
    logged: Mutex<HashMap<(u64, Failure), Instant>>,
}

impl LogThrottle {
    /// Whether a failure of this policy may be logged now; marks it as logged if so.
    pub(super) fn is_due(&self, query: &PolicyQuery, failure: Failure) -> bool {
        let now = Instant::now();
        let mut logged = self.logged.lock();
        logged.retain(|_, at| *at + BACKOFF > now);
        match logged.entry((query.id, failure)) {
            Entry::Occupied(_) => false,
            Entry::Vacant(vacant) => {
                vacant.insert(now);
                true
            }
        }
    }
}

/// Policies that ran into their timeout, with the viewers concerned.
#[derive(Debug, Default)]
pub(super) struct SlowPolicyBackoff {
    queries: Mutex<HashMap<u64, (HashSet<u128>, Instant)>>,
}

impl SlowPolicyBackoff {
    /// Whether the policy is in backoff for this viewer.
    pub(super) fn has(&self, query: &PolicyQuery, viewer: u128) -> bool {
        let mut queries = self.queries.lock();
        let Some((viewers, until)) = queries.get(&query.id) else { return false };
        if *until <= Instant::now() {
            queries.remove(&query.id);
            return false;
        }
        viewers.len() >= BACKOFF_VIEWERS_MAX || viewers.contains(&viewer)
    }

    /// Puts the policy in backoff for this viewer.
    pub(super) fn add(&self, query: &PolicyQuery, viewer: u128) {
        let mut queries = self.queries.lock();
        queries.retain(|_, (_, until)| *until > Instant::now());
        let (viewers, until) = queries.entry(query.id).or_insert_with(|| (HashSet::new(), Instant::now()));
        viewers.insert(viewer);
        *until = Instant::now() + BACKOFF;
    }
}
