//! The wakes of all agents, found by table.
use super::{
    Context, RequestTemplate,
    bind::{ASK_WITHIN, BoundWake, WakeCriteria, kinds_of},
};
use crate::{
    agent::{compiled::CompiledAgent, definition::WakeEvent, metrics::Metrics},
    db::{self, Database},
    filter::{Answers, Kinds, Truth},
    id::{AgentId, Lsn, OrgId},
    task::{Burst, Wake},
    wal::{Change, Op, Relation, RowChange},
};
use chrono::{DateTime, SecondsFormat, Utc};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tracing::error;

/// The coalescing key without columns.
const NO_COLUMNS: &str = "[]";

/// The position and time of a commit.
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    /// The WAL position of the commit.
    pub lsn: Lsn,
    /// Its time, by the database's clock.
    pub committed_at: DateTime<Utc>,
}

/// A row change with its position.
#[derive(Clone, Copy, Debug)]
pub struct PositionedChange<'a> {
    /// Its commit.
    pub commit: Commit,
    /// Its number in the commit.
    pub index: u32,
    /// The change.
    pub change: &'a Change,
}

/// The wakes of all agents. Built once for a set of definitions; shared by reference.
#[derive(Debug, Default)]
pub struct WakeIndex {
    tables: HashMap<String, HashMap<String, WatchedTable>>,
    metrics: Metrics,
}

/// The wakes of one table.
#[derive(Debug, Default)]
struct WatchedTable {
    entries: Vec<Entry>,
    /// Bound to the latest version of the table.
    fitted: Mutex<Option<Arc<Fitted>>>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) agent: AgentId,
    pub(super) at: usize,
    pub(super) wants: WakeCriteria,
    /// The filter as it is written.
    pub(super) filter: String,
    pub(super) org: OrgId,
    pub(super) events: Vec<WakeEvent>,
    together: Option<Together>,
    request: Arc<RequestTemplate>,
}

/// How the changes of a wake are coalesced.
#[derive(Clone, Copy, Debug)]
struct Together {
    quiet: Duration,
    merges: bool,
}

/// The wakes of a table, each bound to one version of it; `None` for one that cannot be bound.
#[derive(Debug)]
pub(super) struct Fitted {
    pub(super) relation: Arc<Relation>,
    pub(super) fits: Vec<Option<BoundWake>>,
}

/// A row change and the wakes of its table.
pub(super) struct MatchCandidate<'a> {
    pub(super) placed: &'a PositionedChange<'a>,
    pub(super) row: &'a RowChange,
    pub(super) event: WakeEvent,
    pub(super) entries: &'a [Entry],
    pub(super) fitted: Arc<Fitted>,
}

impl WakeIndex {
    /// The wakes of these agents.
    #[must_use]
    pub fn new<'a>(agents: impl IntoIterator<Item = &'a CompiledAgent>, metrics: &Metrics) -> Self {
        let mut index = Self { tables: HashMap::new(), metrics: metrics.clone() };
        for CompiledAgent { definition, wakes, .. } in agents {
            for (at, (wake, compiled)) in definition.wake.iter().zip(wakes).enumerate() {
                let (schema, table) = wake.table_name();
                let tables = index.tables.entry(schema.to_owned()).or_default();
                tables.entry(table.to_owned()).or_default().entries.push(Entry {
                    agent: definition.id.clone(),
                    at,
                    wants: WakeCriteria {
                        filter: compiled.filter.clone(),
                        by: wake.coalesce_by.clone().unwrap_or_default(),
                    },
                    filter: wake.filter.clone().unwrap_or_default(),
                    org: definition.org.clone(),
                    events: wake.events.clone(),
                    together: (wake.debounce.is_some() || wake.coalesce_by.is_some()).then(|| Together {
                        quiet: wake.debounce.unwrap_or_default(),
                        merges: wake.coalesce_by.is_some(),
                    }),
                    request: compiled.request.clone(),
                });
            }
        }
        index
    }

    /// The tables of all wakes, sorted, each once: what the publication must contain.
    #[must_use]
    pub fn tables(&self) -> Vec<(String, String)> {
        let names = self.entries().map(|(schema, table, _)| (schema.to_owned(), table.to_owned()));
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The wakes of these changes, in the order of the changes, the agents and their wakes.
    ///
    /// Asks the database only what it alone can answer: the catalog for a table that is new or has changed, and the
    /// questions of filters, for all rows in one query. A question that fails for a row makes a wake with the error in
    /// place of its request.
    ///
    /// # Errors
    /// If the database cannot be reached: try again.
    pub async fn find_wakes(
        &self,
        database: &Database,
        changes: &[PositionedChange<'_>],
    ) -> Result<Vec<Wake>, db::Error> {
        let mut looks = Vec::new();
        for placed in changes {
            let Change::Row(row) = placed.change else { continue };
            let Some(table) = self.of(&row.relation) else { continue };
            let fitted = match table.fitted_to(&row.relation) {
                Some(fitted) => fitted,
                None => table.fit(database, &row.relation).await?,
            };
            looks.push(MatchCandidate {
                placed,
                row,
                event: event_of(row.op),
                entries: &table.entries,
                fitted,
            });
        }
        let mut answers = Answers::default();
        loop {
            looks.iter().for_each(|look| look.ask(&mut answers));
            if !answers.has_open() {
                break;
            }
            answers.fetch(&mut database.client().await?, ASK_WITHIN).await?;
        }
        let mut looks = looks.iter().peekable();
        let mut wakes = Vec::new();
        for placed in changes {
            if let Some(look) = looks.next_if(|look| std::ptr::eq(look.placed, placed)) {
                look.collect_wakes(&mut answers, &self.metrics, &mut wakes);
            } else if let Change::Truncate(relations) = placed.change {
                self.truncated(placed, relations, &mut wakes);
            }
        }
        Ok(wakes)
    }

    /// Adds the wakes of a `TRUNCATE`: those that list the event. `new` and `old` are null.
    fn truncated(&self, placed: &PositionedChange<'_>, relations: &[Arc<Relation>], wakes: &mut Vec<Wake>) {
        for relation in relations {
            let Some(table) = self.of(relation) else { continue };
            let context = Arc::new(context_of(relation, WakeEvent::Truncate, &placed.commit, None, None));
            let woken = table.entries.iter().filter(|entry| entry.events.contains(&WakeEvent::Truncate));
            wakes
                .extend(woken.map(|entry| {
                    entry.to_wake(placed, &context, Some(NO_COLUMNS.to_owned()), &self.metrics)
                }));
        }
    }

    fn of(&self, relation: &Relation) -> Option<&WatchedTable> {
        self.tables.get(&relation.schema)?.get(&relation.name)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &str, &Entry)> {
        self.tables.iter().flat_map(|(schema, tables)| {
            tables.iter().flat_map(move |(name, table)| {
                table.entries.iter().map(move |entry| (schema.as_str(), name.as_str(), entry))
            })
        })
    }
}

impl WatchedTable {
    fn fitted_to(&self, relation: &Arc<Relation>) -> Option<Arc<Fitted>> {
        self.fitted.lock().as_ref().filter(|fitted| Arc::ptr_eq(&fitted.relation, relation)).cloned()
    }

    async fn fit(&self, database: &Database, relation: &Arc<Relation>) -> Result<Arc<Fitted>, db::Error> {
        let mut fits = Vec::new();
        if self.entries.iter().all(|entry| entry.wants.nothing()) {
            fits.extend(self.entries.iter().map(|_| Some(BoundWake::default())));
        } else {
            let mut client = database.client().await?;
            let kinds = kinds_of(relation, &Kinds::read(&**client, &[relation.oid]).await?);
            for entry in &self.entries {
                let fit = BoundWake::verified(&mut client, relation, &kinds, &entry.wants).await?;
                fits.push(fit.map_err(|misfit| entry.complain(relation, misfit)).ok());
            }
        }
        Ok(self.keep(relation, fits))
    }

    fn keep(&self, relation: &Arc<Relation>, fits: Vec<Option<BoundWake>>) -> Arc<Fitted> {
        let fitted = Arc::new(Fitted { relation: relation.clone(), fits });
        *self.fitted.lock() = Some(fitted.clone());
        fitted
    }
}

impl MatchCandidate<'_> {
    /// The wakes that list this event, each with its binding; `None` for one that cannot be bound.
    fn concerned(&self) -> impl Iterator<Item = (&Entry, Option<&BoundWake>)> {
        let pairs = self.entries.iter().zip(&self.fitted.fits).map(|(entry, fit)| (entry, fit.as_ref()));
        pairs.filter(|(entry, _)| entry.events.contains(&self.event))
    }

    /// Collects the questions for Postgres.
    pub(super) fn ask(&self, answers: &mut Answers) {
        for fit in self.concerned().filter_map(|(_, fit)| fit).filter(|fit| fit.asks()) {
            fit.test(self.row, answers);
        }
    }

    pub(super) fn collect_wakes(&self, answers: &mut Answers, metrics: &Metrics, wakes: &mut Vec<Wake>) {
        let mut context = None;
        for (entry, fit) in self.concerned() {
            let outcome = fit.map(|fit| fit.test(self.row, answers));
            match outcome {
                None => drop(metrics.wakes_unfit.inc()),
                Some(Truth::False | Truth::Null) => {}
                Some(Truth::Unknown) => {
                    let reason = "filter: the database takes the question about this row for an error";
                    metrics.wakes_unfit.inc();
                    wakes.push(Wake { request: Err(reason.to_owned()), ..entry.bare(self.placed) });
                }
                Some(Truth::True) => {
                    let key = fit.and_then(|fit| fit.key(self.row));
                    let context = context.get_or_insert_with(|| {
                        let new = self.row.new.as_ref().map(|_| Value::Object(self.row.new_json()));
                        let old = self.row.old.as_ref().map(|_| Value::Object(self.row.old_json()));
                        Arc::new(context_of(&self.row.relation, self.event, &self.placed.commit, new, old))
                    });
                    wakes.push(entry.to_wake(self.placed, context, key, metrics));
                }
            }
        }
    }
}

impl Entry {
    /// The wake's name, like `triage#0`.
    pub(super) fn trigger(&self) -> String {
        format!("{}#{}", self.agent, self.at)
    }

    /// Whether changes wait to be coalesced before a task is requested.
    pub(super) fn coalesces(&self) -> bool {
        self.together.is_some()
    }

    fn complain(&self, relation: &Relation, misfit: super::bind::BindError) {
        let table = format!("{}.{}", relation.schema, relation.name);
        let key = format!("wake.{}.{}", self.at, misfit.key);
        error!(agent = %self.agent, key, table, error = misfit.message, "wake cannot match: column or type missing in table");
    }

    /// `key` is the coalescing key, `None` if the WAL does not carry its columns.
    fn to_wake(
        &self,
        placed: &PositionedChange<'_>,
        context: &Arc<Context>,
        key: Option<String>,
        metrics: &Metrics,
    ) -> Wake {
        let mut request = self.request.fill(&placed.commit, context).map_err(|e| e.to_string());
        let burst = self.together.zip(key.clone()).map(|(Together { quiet, merges }, key)| {
            let (template, context, commit) = (self.request.clone(), context.clone(), placed.commit);
            let again = move |changes: i64| {
                template.fill(&commit, &context.with("changes", json!(changes))).map_err(|e| e.to_string())
            };
            Burst { key, quiet, merges, again: Arc::new(again) }
        });
        if self.together.is_some() && key.is_none() {
            request = Err("coalesce_by: the change does not carry all of these columns".to_owned());
        }
        if request.is_err() {
            metrics.wakes_unfit.inc();
        }
        metrics.wakes.inc();
        Wake { request, burst, ..self.bare(placed) }
    }

    fn bare(&self, placed: &PositionedChange<'_>) -> Wake {
        Wake {
            trigger: self.trigger(),
            agent: self.agent.clone(),
            org: self.org.clone(),
            lsn: placed.commit.lsn,
            index: placed.index,
            request: Err(String::new()),
            burst: None,
        }
    }
}

pub(super) fn event_of(op: Op) -> WakeEvent {
    match op {
        Op::Insert => WakeEvent::Insert,
        Op::Update => WakeEvent::Update,
        Op::Delete => WakeEvent::Delete,
    }
}

fn context_of(
    relation: &Relation,
    event: WakeEvent,
    commit: &Commit,
    new: Option<Value>,
    old: Option<Value>,
) -> Context {
    let names = [
        ("new", new.unwrap_or_default()),
        ("old", old.unwrap_or_default()),
        ("event", json!(event.as_str())),
        ("schema", json!(relation.schema)),
        ("table", json!(relation.name)),
        ("commit_lsn", json!(commit.lsn.to_string())),
        ("changes", json!(1)),
        ("committed_at", json!(commit.committed_at.to_rfc3339_opts(SecondsFormat::Micros, true))),
    ];
    Context::new(names.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests;
