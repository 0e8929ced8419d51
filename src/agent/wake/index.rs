//! The wakes of all agents, found by table.
use super::{
    Context, RequestTemplate,
    fit::{ASK_WITHIN, Fit, Wants, kinds_of},
};
use crate::{
    agent::{
        definition::{Definition, WakeEvent},
        metrics::Metrics,
    },
    db::{self, Database},
    filter::{Answers, Filter, Kinds, Truth},
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

/// The key of changes that no column tells apart.
const NO_COLUMNS: &str = "[]";

/// Where and when a change was committed.
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    /// The commit's place in the log.
    pub lsn: Lsn,
    /// Its time, by the database's clock.
    pub committed_at: DateTime<Utc>,
}

/// A change, and its place in the log.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    /// The commit that it belongs to.
    pub commit: Commit,
    /// Its place in that commit.
    pub index: u32,
    /// What was done.
    pub change: &'a Change,
}

/// The wakes of all agents. Built once for a set of definitions; shared by reference.
#[derive(Debug, Default)]
pub struct WakeIndex {
    tables: HashMap<String, HashMap<String, Table>>,
    metrics: Metrics,
}

/// The wakes that name one table.
#[derive(Debug, Default)]
struct Table {
    entries: Vec<Entry>,
    /// Fitted to the version of the table that was seen last.
    fitted: Mutex<Option<Arc<Fitted>>>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) agent: AgentId,
    pub(super) at: usize,
    pub(super) wants: Wants,
    org: OrgId,
    events: Vec<WakeEvent>,
    together: Option<Together>,
    request: Arc<RequestTemplate>,
}

/// How the changes of a wake are put together.
#[derive(Clone, Copy, Debug)]
struct Together {
    quiet: Duration,
    merges: bool,
}

/// The entries of a table, each fitted to one version of it; nothing for one that does not fit.
#[derive(Debug)]
struct Fitted {
    relation: Arc<Relation>,
    fits: Vec<Option<Fit>>,
}

/// A row's change and those that may care.
struct Look<'a> {
    placed: &'a Placed<'a>,
    row: &'a RowChange,
    event: WakeEvent,
    entries: &'a [Entry],
    fitted: Arc<Fitted>,
}

impl WakeIndex {
    /// The wakes of `definitions`. One whose filter or template cannot be read is left out and logged:
    /// [`crate::agent::check`] names it before it comes to that.
    #[must_use]
    pub fn new<'a>(definitions: impl IntoIterator<Item = &'a Definition>, metrics: &Metrics) -> Self {
        let mut index = Self { tables: HashMap::new(), metrics: metrics.clone() };
        for definition in definitions {
            for (at, wake) in definition.wake.iter().enumerate() {
                let filter = Filter::parse(wake.filter.as_deref().unwrap_or_default());
                let (filter, request) = match (filter, RequestTemplate::parse(&wake.request)) {
                    (Ok(filter), Ok(request)) => (filter, request),
                    (Err(e), _) => {
                        error!(agent = %definition.id, wake = at, error = %e, "wake left out");
                        continue;
                    }
                    (_, Err(e)) => {
                        error!(agent = %definition.id, wake = at, error = %e, "wake left out");
                        continue;
                    }
                };
                let (schema, table) = wake.table_name();
                let tables = index.tables.entry(schema.to_owned()).or_default();
                tables.entry(table.to_owned()).or_default().entries.push(Entry {
                    agent: definition.id.clone(),
                    at,
                    wants: Wants { filter, by: wake.coalesce_by.clone().unwrap_or_default() },
                    org: definition.org.clone(),
                    events: wake.events.clone(),
                    together: (wake.debounce.is_some() || wake.coalesce_by.is_some()).then(|| Together {
                        quiet: wake.debounce.unwrap_or_default(),
                        merges: wake.coalesce_by.is_some(),
                    }),
                    request: Arc::new(request),
                });
            }
        }
        index
    }

    /// Every table that a wake names, once each, in order: what the publication must carry.
    #[must_use]
    pub fn tables(&self) -> Vec<(String, String)> {
        let names = self.entries().map(|(schema, table, _)| (schema.to_owned(), table.to_owned()));
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// What these changes wake, in their order and that of the agents and their wakes.
    ///
    /// Asks the database only what it alone can say: the catalog when a table is seen for the first time or has
    /// changed, and the questions of filters about all these rows at once. A question that it takes for an
    /// error about a row makes a wake that says so in place of its request.
    ///
    /// # Errors
    /// When the database is away; try again.
    pub async fn wakes(&self, database: &Database, changes: &[Placed<'_>]) -> Result<Vec<Wake>, db::Error> {
        let mut looks = Vec::new();
        for placed in changes {
            let Change::Row(row) = placed.change else { continue };
            let Some(table) = self.of(&row.relation) else { continue };
            let fitted = match table.fitted_to(&row.relation) {
                Some(fitted) => fitted,
                None => table.fit(database, &row.relation).await?,
            };
            looks.push(Look { placed, row, event: event_of(row.op), entries: &table.entries, fitted });
        }
        let mut answers = Answers::default();
        loop {
            looks.iter().for_each(|look| look.ask(&mut answers));
            if !answers.lack() {
                break;
            }
            answers.fetch(&mut database.client().await?, ASK_WITHIN).await?;
        }
        let mut looks = looks.iter().peekable();
        let mut wakes = Vec::new();
        for placed in changes {
            if let Some(look) = looks.next_if(|look| std::ptr::eq(look.placed, placed)) {
                look.wakes(&mut answers, &self.metrics, &mut wakes);
            } else if let Change::Truncate(relations) = placed.change {
                self.truncated(placed, relations, &mut wakes);
            }
        }
        Ok(wakes)
    }

    /// What a `TRUNCATE` wakes: those that list the event; `new` and `old` are null.
    fn truncated(&self, placed: &Placed<'_>, relations: &[Arc<Relation>], wakes: &mut Vec<Wake>) {
        for relation in relations {
            let Some(table) = self.of(relation) else { continue };
            let context = Arc::new(context_of(relation, WakeEvent::Truncate, &placed.commit, None, None));
            let woken = table.entries.iter().filter(|entry| entry.events.contains(&WakeEvent::Truncate));
            wakes.extend(
                woken.map(|entry| entry.wake(placed, &context, Some(NO_COLUMNS.to_owned()), &self.metrics)),
            );
        }
    }

    fn of(&self, relation: &Relation) -> Option<&Table> {
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

impl Table {
    fn fitted_to(&self, relation: &Arc<Relation>) -> Option<Arc<Fitted>> {
        self.fitted.lock().as_ref().filter(|fitted| Arc::ptr_eq(&fitted.relation, relation)).cloned()
    }

    async fn fit(&self, database: &Database, relation: &Arc<Relation>) -> Result<Arc<Fitted>, db::Error> {
        let mut fits = Vec::new();
        if self.entries.iter().all(|entry| entry.wants.nothing()) {
            fits.extend(self.entries.iter().map(|_| Some(Fit::default())));
        } else {
            let mut client = database.client().await?;
            let kinds = kinds_of(relation, &Kinds::read(&**client, &[relation.oid]).await?);
            for entry in &self.entries {
                let fit = Fit::verified(&mut client, relation, &kinds, &entry.wants).await?;
                fits.push(fit.map_err(|misfit| entry.complain(relation, misfit)).ok());
            }
        }
        Ok(self.keep(relation, fits))
    }

    fn keep(&self, relation: &Arc<Relation>, fits: Vec<Option<Fit>>) -> Arc<Fitted> {
        let fitted = Arc::new(Fitted { relation: relation.clone(), fits });
        *self.fitted.lock() = Some(fitted.clone());
        fitted
    }
}

impl Look<'_> {
    /// Those that want to hear of such an event; nothing in place of the fit of one that does not fit.
    fn concerned(&self) -> impl Iterator<Item = (&Entry, Option<&Fit>)> {
        let pairs = self.entries.iter().zip(&self.fitted.fits).map(|(entry, fit)| (entry, fit.as_ref()));
        pairs.filter(|(entry, _)| entry.events.contains(&self.event))
    }

    /// Asks what has to be asked of Postgres.
    fn ask(&self, answers: &mut Answers) {
        for fit in self.concerned().filter_map(|(_, fit)| fit).filter(|fit| fit.asks()) {
            fit.test(self.row, answers);
        }
    }

    fn wakes(&self, answers: &mut Answers, metrics: &Metrics, wakes: &mut Vec<Wake>) {
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
                    wakes.push(entry.wake(self.placed, context, key, metrics));
                }
            }
        }
    }
}

impl Entry {
    fn complain(&self, relation: &Relation, misfit: super::fit::Misfit) {
        let table = format!("{}.{}", relation.schema, relation.name);
        let key = format!("wake.{}.{}", self.at, misfit.key);
        error!(agent = %self.agent, key, table, error = misfit.message, "a wake does not fit its table");
    }

    /// `key`: what the change is put together by; nothing when the log does not carry it.
    fn wake(
        &self,
        placed: &Placed<'_>,
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

    fn bare(&self, placed: &Placed<'_>) -> Wake {
        Wake {
            trigger: format!("{}#{}", self.agent, self.at),
            agent: self.agent.clone(),
            org: self.org.clone(),
            lsn: placed.commit.lsn,
            index: placed.index,
            request: Err(String::new()),
            burst: None,
        }
    }
}

fn event_of(op: Op) -> WakeEvent {
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
