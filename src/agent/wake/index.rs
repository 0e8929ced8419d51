//! The wakes of all agents, found by table.
use super::{Context, Filter, RequestTemplate, bound::Bound};
use crate::{
    agent::{
        definition::{Definition, WakeEvent},
        metrics::Metrics,
    },
    id::{AgentId, Lsn, OrgId},
    task::Request,
    wal::{Op, Relation, RowChange},
};
use chrono::{DateTime, SecondsFormat, Utc};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};
use tracing::error;

/// Where and when a change was committed.
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    /// The commit's place in the log.
    pub lsn: Lsn,
    /// Its time, by the database's clock.
    pub committed_at: DateTime<Utc>,
}

/// A change that wakes an agent.
#[derive(Debug)]
pub struct Hit {
    /// `<agent>#<index of its [[wake]]>`, which with the place in the log names the effect.
    pub trigger: String,
    /// Whose wake it is.
    pub agent: AgentId,
    /// Whose task it becomes.
    pub org: OrgId,
    /// The task, or why it could not be made: one line without values of the row.
    pub request: Result<Request, String>,
}

/// The wakes of all agents. Built once for a set of definitions; shared by reference.
#[derive(Debug, Default)]
pub struct WakeIndex {
    tables: HashMap<String, HashMap<String, Vec<Entry>>>,
    metrics: Metrics,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) agent: AgentId,
    pub(super) at: usize,
    org: OrgId,
    events: Vec<WakeEvent>,
    pub(super) filter: Filter,
    request: RequestTemplate,
    /// The filter for the version of the table that was seen last; nothing where it does not fit.
    bound: Mutex<Option<Seen>>,
}

#[derive(Debug)]
struct Seen {
    relation: Arc<Relation>,
    bound: Option<Arc<Bound>>,
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
                tables.entry(table.to_owned()).or_default().push(Entry {
                    agent: definition.id.clone(),
                    at,
                    org: definition.org.clone(),
                    events: wake.events.clone(),
                    filter,
                    request,
                    bound: Mutex::new(None),
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

    /// What a row's change wakes, in the order of agents and of their wakes. Never waits.
    #[must_use]
    pub fn matches(&self, change: &RowChange, commit: &Commit) -> Vec<Hit> {
        let event = match change.op {
            Op::Insert => WakeEvent::Insert,
            Op::Update => WakeEvent::Update,
            Op::Delete => WakeEvent::Delete,
        };
        let relation = &change.relation;
        let mut hits = Vec::new();
        let mut context = None;
        for entry in self.of(relation) {
            if entry.events.contains(&event) && entry.passes(change, &self.metrics) {
                let context = context.get_or_insert_with(|| {
                    let new = change.new.as_ref().map(|_| Value::Object(change.new_json()));
                    let old = change.old.as_ref().map(|_| Value::Object(change.old_json()));
                    context_of(relation, event, commit, new, old)
                });
                hits.push(entry.hit(commit, context, &self.metrics));
            }
        }
        hits
    }

    /// What a `TRUNCATE` wakes: those that list the event; `new` and `old` are null.
    #[must_use]
    pub fn truncated(&self, relations: &[Arc<Relation>], commit: &Commit) -> Vec<Hit> {
        let mut hits = Vec::new();
        for relation in relations {
            let context = context_of(relation, WakeEvent::Truncate, commit, None, None);
            let woken = self.of(relation).iter().filter(|entry| entry.events.contains(&WakeEvent::Truncate));
            hits.extend(woken.map(|entry| entry.hit(commit, &context, &self.metrics)));
        }
        hits
    }

    fn of(&self, relation: &Relation) -> &[Entry] {
        let tables = self.tables.get(&relation.schema);
        tables.and_then(|tables| tables.get(&relation.name)).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &str, &Entry)> {
        self.tables.iter().flat_map(|(schema, tables)| {
            tables.iter().flat_map(move |(table, entries)| {
                entries.iter().map(move |entry| (schema.as_str(), table.as_str(), entry))
            })
        })
    }
}

impl Entry {
    fn passes(&self, change: &RowChange, metrics: &Metrics) -> bool {
        if self.filter.segments.is_empty() {
            return true;
        }
        match self.bound_to(&change.relation) {
            Some(bound) => bound.matches(change),
            None => {
                metrics.wakes_unfit.inc();
                false
            }
        }
    }

    fn bound_to(&self, relation: &Arc<Relation>) -> Option<Arc<Bound>> {
        let mut bound = self.bound.lock();
        if let Some(seen) = &*bound
            && Arc::ptr_eq(&seen.relation, relation)
        {
            return seen.bound.clone();
        }
        let fresh = Bound::new(&self.filter, relation).map(Arc::new);
        if let Err(e) = &fresh {
            error!(agent = %self.agent, wake = self.at, error = %e, "the filter of a wake does not fit its table");
        }
        let fresh = fresh.ok();
        *bound = Some(Seen { relation: relation.clone(), bound: fresh.clone() });
        fresh
    }

    fn hit(&self, commit: &Commit, context: &Context, metrics: &Metrics) -> Hit {
        let request = self.request.fill(commit, context).map_err(|e| e.to_string());
        if request.is_err() {
            metrics.wakes_unfit.inc();
        }
        metrics.wakes.inc();
        let trigger = format!("{}#{}", self.agent, self.at);
        Hit { trigger, agent: self.agent.clone(), org: self.org.clone(), request }
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
        ("committed_at", json!(commit.committed_at.to_rfc3339_opts(SecondsFormat::Micros, true))),
    ];
    Context::new(names.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::super::bound::tests::{insert, table};
    use super::*;

    const AGENT: &str = r#"
        id = "triage"
        org = "demo"
        [run]
        kind = "remote"
        [[wake]]
        table = "tickets"
        events = ["INSERT"]
        filter = "priority=gte.3"
        request = { kind = "triage", priority = 2, deadline_after = "1m",
                    input = { ticket = "{{ new }}", at = "{{ commit_lsn }}", n = [1, "{{ event }}"] } }
        [[wake]]
        table = "public.tickets"
        events = ["UPDATE", "DELETE", "TRUNCATE"]
        request = { kind = "audit", input = { was = "{{ old.title }}" } }
    "#;

    fn index(text: &str) -> WakeIndex {
        WakeIndex::new([&toml::from_str::<Definition>(text).unwrap()], &Metrics::default())
    }
    fn commit() -> Commit {
        Commit { lsn: Lsn(0x10), committed_at: DateTime::from_timestamp(1_000, 0).unwrap() }
    }
    fn tickets() -> Arc<Relation> {
        table(&[("id", "int8"), ("priority", "int4"), ("title", "text")])
    }

    #[test]
    fn a_row_that_passes_requests_the_task_of_the_wake() {
        let (index, tickets) = (index(AGENT), tickets());
        assert_eq!(index.tables(), [("public".to_owned(), "tickets".to_owned())]);
        let hits = index.matches(&insert(&tickets, &["7", "3", "Fire"]), &commit());
        assert_eq!(hits.len(), 1);
        assert_eq!((hits[0].trigger.as_str(), hits[0].org.as_str()), ("triage#0", "demo"));
        let request = hits[0].request.as_ref().unwrap();
        assert_eq!(request.deadline.unwrap().timestamp(), 1_060);
        let ticket = json!({ "id": 7, "priority": 3, "title": "Fire" });
        assert_eq!(request.input, json!({ "ticket": ticket, "at": "0/10", "n": [1, "INSERT"] }));
        assert!(index.matches(&insert(&tickets, &["7", "2", "Fire"]), &commit()).is_empty());
    }

    #[test]
    fn a_table_of_the_same_name_elsewhere_wakes_nobody() {
        let other = Arc::new(Relation { schema: "other".into(), ..(*tickets()).clone() });
        assert!(index(AGENT).matches(&insert(&other, &["7", "3", "Fire"]), &commit()).is_empty());
    }

    #[test]
    fn a_template_that_cannot_be_filled_in_is_told() {
        let (index, tickets) = (index(AGENT), tickets());
        let mut change = insert(&tickets, &["7", "1", "Fire"]);
        change.op = Op::Delete;
        change.old = change.new.take();
        change.old_is_key_only = true;
        let hits = index.matches(&change, &commit());
        assert_eq!(hits[0].request.as_ref().unwrap_err(), "input.was: there is no old.title");
        change.old_is_key_only = false;
        assert_eq!(
            index.matches(&change, &commit())[0].request.as_ref().unwrap().input,
            json!({ "was": "Fire" })
        );
        let hits = index.truncated(&[tickets], &commit());
        assert_eq!((hits.len(), hits[0].trigger.as_str()), (1, "triage#1"));
        assert!(hits[0].request.is_err());
    }

    #[test]
    fn a_filter_that_no_longer_fits_matches_nothing_until_the_table_fits_again() {
        let index = index(AGENT);
        let renamed = table(&[("id", "int8"), ("urgency", "int4"), ("title", "text")]);
        assert!(index.matches(&insert(&renamed, &["7", "3", "Fire"]), &commit()).is_empty());
        assert_eq!(index.metrics.wakes_unfit.get(), 1);
        assert_eq!(index.matches(&insert(&tickets(), &["7", "3", "Fire"]), &commit()).len(), 1);
    }
}
