//! What is remembered: the catalog until it changes, outcomes of pure policies for as long as there is room,
//! and policies that took too long for a while.
use super::{
    plan::{Plan, Question},
    types::{Failure, Table},
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeSet, HashMap, HashSet, hash_map::Entry},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use tokio_postgres::types::Oid;

/// Tables and roles whose catalog entries are kept; with more all are forgotten.
const PLANS_MAX: usize = 10_000;
/// Outcomes in each of two halves; when the young half is full, the old one is forgotten.
const OUTCOMES_MAX: usize = 100_000;
/// Longer rows are not worth remembering.
const ROW_BYTES_MAX: usize = 200;
/// How long a policy that took too long is not asked again.
const REST: Duration = Duration::from_secs(30);
/// With so many of its viewers at rest, a policy rests for all of them.
const RESTING_VIEWERS_MAX: usize = 3;

/// A plan, or why there is none.
pub(super) type Known = Result<Arc<Plan>, Failure>;

/// The catalog, as far as it was asked for.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    state: Mutex<CatalogState>,
}

#[derive(Debug, Default)]
struct CatalogState {
    /// Rises whenever everything is forgotten.
    generation: u64,
    /// By the address of the table, which its entry keeps alive, and by role.
    tables: HashMap<usize, (Arc<Table>, HashMap<String, Known>)>,
}

/// What the look at the catalog must look at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Watched {
    pub(super) tables: Vec<Oid>,
    pub(super) functions: Vec<Oid>,
    pub(super) roles: Vec<String>,
}

impl Catalog {
    /// What is known, or the generation in which it must be found out.
    pub(super) fn get(&self, table: &Arc<Table>, role: &str) -> Result<Known, u64> {
        let state = self.state.lock();
        let known = state.tables.get(&address(table)).and_then(|(_, roles)| roles.get(role));
        known.cloned().ok_or(state.generation)
    }

    /// Remembers what was found out, unless the catalog has changed since.
    pub(super) fn put(&self, generation: u64, table: &Arc<Table>, role: &str, known: &Known) {
        let mut state = self.state.lock();
        if state.generation != generation {
            return;
        }
        if !state.tables.contains_key(&address(table)) {
            // Older descriptions that nobody uses any more.
            state.tables.retain(|_, (old, _)| old.oid != table.oid || Arc::strong_count(old) > 1);
        }
        if state.tables.values().map(|(_, roles)| roles.len()).sum::<usize>() >= PLANS_MAX {
            state.tables.clear();
        }
        let entry = state.tables.entry(address(table)).or_insert_with(|| (table.clone(), HashMap::new()));
        entry.1.insert(role.to_owned(), known.clone());
    }

    /// Everything must be found out again.
    pub(super) fn forget(&self) {
        let mut state = self.state.lock();
        state.generation += 1;
        state.tables.clear();
    }

    /// What to look at; nothing when nothing is known.
    pub(super) fn watched(&self) -> Option<Watched> {
        let state = self.state.lock();
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

fn address(table: &Arc<Table>) -> usize {
    Arc::as_ptr(table).addr()
}

/// Outcomes of pure policies: question, viewer and row say it all.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    halves: Mutex<Halves>,
}

#[derive(Debug, Default)]
struct Halves {
    young: Half,
    old: Half,
    /// Outcomes in the young half.
    count: usize,
}

type Half = HashMap<(u64, u128), HashMap<Box<str>, bool>>;

impl Outcomes {
    /// The outcomes of these rows; nothing where a row is not known.
    pub(super) fn recall(&self, question: &Question, viewer: u128, rows: &[&str]) -> Vec<Option<bool>> {
        let halves = self.halves.lock();
        let key = (question.id, viewer);
        let (young, old) = (halves.young.get(&key), halves.old.get(&key));
        let find = |row: &str| young.and_then(|known| known.get(row)).or_else(|| old?.get(row)).copied();
        rows.iter().map(|row| find(row)).collect()
    }

    /// Remembers the outcomes of rows that are not too long.
    pub(super) fn remember(&self, question: &Question, viewer: u128, rows: &[(&str, bool)]) {
        let mut halves = self.halves.lock();
        if halves.count + rows.len() > OUTCOMES_MAX {
            halves.count = 0;
            halves.old = std::mem::take(&mut halves.young);
        }
        halves.count += rows.len();
        let known = halves.young.entry((question.id, viewer)).or_default();
        for (row, visible) in rows.iter().filter(|(row, _)| row.len() <= ROW_BYTES_MAX) {
            known.insert((*row).into(), *visible);
        }
    }
}

/// What the operator was told of, so that a policy that fails on every row is told of now and then.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    told: Mutex<HashMap<(u64, Failure), Instant>>,
}

impl Complaints {
    /// Whether it is time to tell.
    pub(super) fn is_due(&self, question: &Question, failure: Failure) -> bool {
        let now = Instant::now();
        let mut told = self.told.lock();
        told.retain(|_, at| *at + REST > now);
        match told.entry((question.id, failure)) {
            Entry::Occupied(_) => false,
            Entry::Vacant(vacant) => {
                vacant.insert(now);
                true
            }
        }
    }
}

/// Policies that took too long.
#[derive(Debug, Default)]
pub(super) struct Rest {
    questions: Mutex<HashMap<u64, (HashSet<u128>, Instant)>>,
}

impl Rest {
    /// Whether the question is not to be asked for this viewer now.
    pub(super) fn has(&self, question: &Question, viewer: u128) -> bool {
        let mut questions = self.questions.lock();
        let Some((viewers, until)) = questions.get(&question.id) else { return false };
        if *until <= Instant::now() {
            questions.remove(&question.id);
            return false;
        }
        viewers.len() >= RESTING_VIEWERS_MAX || viewers.contains(&viewer)
    }

    /// It took too long.
    pub(super) fn add(&self, question: &Question, viewer: u128) {
        let mut questions = self.questions.lock();
        questions.retain(|_, (_, until)| *until > Instant::now());
        let (viewers, until) =
            questions.entry(question.id).or_insert_with(|| (HashSet::new(), Instant::now()));
        viewers.insert(viewer);
        *until = Instant::now() + REST;
    }
}
