//! Trials: what a wake would do with a row that somebody gives. Nothing is stored, and no task is requested.
//!
//! The row becomes a change as the WAL would tell of it, with its values in the text form of Postgres, and goes through
//! the code that finds the wakes of real changes. Postgres is asked in sessions that only read. Each condition of the
//! filter is also tested alone, so that the one that excludes the row can be named.
use super::{
    Commit, PositionedChange,
    bind::{ASK_WITHIN, BindError, BoundWake, WakeCriteria, kinds_of},
    check::relations,
    index::{Entry, Fitted, MatchCandidate, WakeIndex},
};
use crate::{
    agent::{Metrics, definition::WakeEvent},
    db::{self, Database},
    filter::{Answers, Filter, Kind, Kinds, Truth},
    id::{Lsn, OrgId},
    task::Request,
    wal::{Cell, Change, Op, Relation, Row, RowChange},
};
use chrono::{DateTime, Utc};
use deadpool_postgres::Client;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// Time limit of a trial, with its turn among others.
const WITHIN: Duration = Duration::from_secs(10);
/// Most columns of a row that is tried.
const COLUMNS_MAX: usize = 200;
/// Largest row that is tried, in bytes of its JSON.
const ROW_BYTES_MAX: usize = 256 * 1024;

/// A row for a wake.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrialRow {
    /// What is done to the row. Defaults to the first event of the wake that has a row.
    pub event: Option<WakeEvent>,
    /// Its columns. A text is read as Postgres reads it, another value by its JSON; a column that is left out is NULL.
    pub row: Map<String, Value>,
}

/// What a wake would do with a row.
#[derive(Clone, Debug, Serialize)]
pub struct Trial {
    /// The wake, like `triage#0`.
    pub trigger: String,
    /// What was done to the row.
    pub event: WakeEvent,
    /// Whether the wake lists this event.
    pub listens: bool,
    /// What would happen.
    pub outcome: TrialOutcome,
    /// The conditions of the filter, all of which must hold.
    pub conditions: Vec<TriedCondition>,
    /// `{kind, requires, input, priority}`, if a task would be requested.
    pub request: Option<Value>,
    /// Why the request could not be made, if the outcome is [`TrialOutcome::Unfit`].
    pub problem: Option<String>,
    /// Whether the change would first be coalesced with others.
    pub coalesces: bool,
}

/// What would happen with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TrialOutcome {
    /// A task would be requested.
    Wakes,
    /// Nothing: the event or the filter excludes the row.
    Excluded,
    /// The wake would fail for this row.
    Unfit,
}

/// A condition of a filter and the row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TriedCondition {
    /// As it is written in the filter.
    pub condition: String,
    /// `None` for NULL, and where Postgres takes the question for an error: neither matches.
    pub holds: Option<bool>,
    /// The columns that it reads.
    pub columns: Vec<String>,
    /// Their values as Postgres writes them. Those that the WAL does not carry are missing.
    pub values: Map<String, Value>,
}

/// Why a row could not be tried.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// No agent of the org has this wake.
    #[error("there is no wake {0:?}")]
    UnknownWake(String),
    /// The wake does not fit the database as it is now.
    #[error("the wake cannot match any row: {0}")]
    BadWake(String),
    /// The row cannot be one of the table.
    #[error("{0}")]
    BadRow(String),
    /// The time limit passed.
    #[error("the row could not be tried within {} s", WITHIN.as_secs())]
    TooSlow,
    /// The database did not answer.
    #[error("the database did not answer")]
    Database(#[from] db::Error),
}

impl From<tokio_postgres::Error> for TrialError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error.into())
    }
}

impl From<BindError> for TrialError {
    fn from(error: BindError) -> Self {
        Self::BadWake(format!("{}: {}", error.key, error.message))
    }
}

/// Tries rows one at a time, on a connection of its own: a slow question must not hold up the wakes. Clones share both.
#[derive(Clone, Debug)]
pub struct Trials {
    database: Database,
    turn: Arc<Semaphore>,
}

impl Trials {
    /// Connects on first use.
    ///
    /// # Errors
    /// [`db::Error::Unfit`] if the pool cannot be built.
    pub fn new(database: &Database) -> Result<Self, db::Error> {
        let database = database.beside_at_low_priority("convoke trials of wakes", 1, ASK_WITHIN)?;
        Ok(Self { database, turn: Arc::new(Semaphore::new(1)) })
    }

    /// What the wake `trigger` of an org would do with a row at the time `now`.
    ///
    /// # Errors
    /// [`TrialError`].
    pub async fn try_row(
        &self,
        wakes: &WakeIndex,
        (org, trigger): (&OrgId, &str),
        tried: TrialRow,
        now: DateTime<Utc>,
    ) -> Result<Trial, TrialError> {
        let mut known = wakes.entries();
        let found = known.find(|(.., entry)| entry.org == *org && entry.trigger() == trigger);
        let (schema, table, entry) = found.ok_or_else(|| TrialError::UnknownWake(trigger.to_owned()))?;
        let event = tried.event.unwrap_or_else(|| {
            let mut events = entry.events.iter().copied();
            events.find(|event| *event != WakeEvent::Truncate).unwrap_or(WakeEvent::Insert)
        });
        check_size(&tried.row)?;
        let trial = async {
            // A semaphore that is never closed always gives a permit.
            let _turn = self.turn.acquire().await;
            let mut client = self.database.client().await?;
            let table = TriedTable::read(&client, schema, table).await?;
            let change = table.change(&client, event, &tried.row).await?;
            table.trial(&mut client, entry, &change, now).await
        };
        tokio::time::timeout(WITHIN, trial).await.unwrap_or(Err(TrialError::TooSlow))
    }
}

fn check_size(row: &Map<String, Value>) -> Result<(), TrialError> {
    if row.len() > COLUMNS_MAX {
        return Err(TrialError::BadRow(format!("row: give at most {COLUMNS_MAX} columns")));
    }
    let bytes: usize = row.iter().map(|(name, value)| name.len() + value.to_string().len()).sum();
    if bytes > ROW_BYTES_MAX {
        return Err(TrialError::BadRow(format!("row: it is larger than {ROW_BYTES_MAX} bytes")));
    }
    Ok(())
}

/// The table of a wake as it is now.
struct TriedTable {
    relation: Arc<Relation>,
    kinds: Vec<Kind>,
}

impl TriedTable {
    async fn read(client: &Client, schema: &str, table: &str) -> Result<Self, TrialError> {
        let found = relations(&***client, &[schema.to_owned()], &[table.to_owned()]).await?.pop();
        let missing = || TrialError::BadWake(format!("there is no table {schema}.{table} in the database"));
        let relation = found.ok_or_else(missing)?;
        let kinds = kinds_of(&relation, &Kinds::read(&***client, &[relation.oid]).await?);
        Ok(Self { relation: Arc::new(relation), kinds })
    }

    /// The change of a row as the WAL would tell of it.
    async fn change(
        &self,
        client: &Client,
        event: WakeEvent,
        row: &Map<String, Value>,
    ) -> Result<RowChange, TrialError> {
        let op = match event {
            WakeEvent::Insert => Op::Insert,
            WakeEvent::Update => Op::Update,
            WakeEvent::Delete => Op::Delete,
            WakeEvent::Truncate => {
                let detail = "event: a TRUNCATE has no row: use INSERT, UPDATE or DELETE";
                return Err(TrialError::BadRow(detail.to_owned()));
            }
        };
        let cells = Some(self.cells(client, row).await?);
        let (new, old) = if op == Op::Delete { (None, cells) } else { (cells, None) };
        // Of a deleted row the WAL has the replica identity, which is the whole row only with identity `full`.
        let old_is_key_only = self.relation.replica_identity != 'f';
        Ok(RowChange { relation: self.relation.clone(), op, new, old, old_is_key_only })
    }

    async fn cells(&self, client: &Client, row: &Map<String, Value>) -> Result<Row, TrialError> {
        let columns = &self.relation.columns;
        if let Some(unknown) = row.keys().find(|name| self.relation.position(name).is_none()) {
            let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
            let names = names.join(", ");
            return Err(TrialError::BadRow(format!(
                "row: the WAL has no column {unknown:?} of this table: use some of {names}"
            )));
        }
        let mut cells = Vec::new();
        for (column, kind) in columns.iter().zip(&self.kinds) {
            let text = match row.get(&column.name) {
                None | Some(Value::Null) => {
                    cells.push(Cell::Null);
                    continue;
                }
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            };
            let statement = client.prepare_cached(&kind.output_sql()).await?;
            match client.query_one(&statement, &[&text]).await {
                Ok(read) => cells.push(Cell::Text(read.try_get::<_, String>(0)?.into())),
                Err(error) if error.as_db_error().is_some() && !db::is_transient(&error) => {
                    let (name, type_name) = (&column.name, &kind.type_name);
                    return Err(TrialError::BadRow(format!(
                        "row.{name}: the value is none of type {type_name}"
                    )));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(cells)
    }

    async fn trial(
        &self,
        client: &mut Client,
        entry: &Entry,
        row: &RowChange,
        now: DateTime<Utc>,
    ) -> Result<Trial, TrialError> {
        let Self { relation, kinds } = self;
        let fit = BoundWake::verified(client, relation, kinds, &entry.wants).await??;
        let commit = Commit { lsn: Lsn(0), committed_at: now };
        let change = Change::Row(row.clone());
        let event = super::index::event_of(row.op);
        let look = MatchCandidate {
            placed: &PositionedChange { commit, index: 0, change: &change },
            row,
            event,
            entries: std::slice::from_ref(entry),
            fitted: Arc::new(Fitted { relation: relation.clone(), fits: vec![Some(fit)] }),
        };
        let mut answers = Answers::default();
        loop {
            look.ask(&mut answers);
            if !answers.has_open() {
                break;
            }
            answers.fetch(client, ASK_WITHIN).await?;
        }
        let mut wakes = Vec::new();
        // Metrics of its own: a trial is no wake.
        look.collect_wakes(&mut answers, &Metrics::default(), &mut wakes);
        let conditions = self.conditions(client, entry, row).await?;
        let (outcome, request, problem) = match wakes.pop().map(|wake| wake.request) {
            None => (TrialOutcome::Excluded, None, None),
            Some(Ok(request)) => (TrialOutcome::Wakes, Some(shown(&request)), None),
            Some(Err(problem)) => (TrialOutcome::Unfit, None, Some(problem)),
        };
        let (listens, coalesces) = (entry.events.contains(&event), entry.coalesces());
        let trigger = entry.trigger();
        Ok(Trial { trigger, event, listens, outcome, conditions, request, problem, coalesces })
    }

    /// Each condition of the filter alone.
    async fn conditions(
        &self,
        client: &mut Client,
        entry: &Entry,
        row: &RowChange,
    ) -> Result<Vec<TriedCondition>, TrialError> {
        let mut tried = Vec::new();
        for (text, condition) in Filter::texts(&entry.filter).into_iter().zip(&entry.wants.filter.conditions)
        {
            let filter = Filter { conditions: vec![condition.clone()] };
            let columns = filter.columns();
            let values = values(&columns, row);
            let wants = WakeCriteria { filter, by: Vec::new() };
            let fit = BoundWake::verified(client, &self.relation, &self.kinds, &wants).await??;
            let mut answers = Answers::default();
            let holds = loop {
                let truth = fit.test(row, &mut answers);
                if !answers.has_open() {
                    break truth;
                }
                answers.fetch(client, ASK_WITHIN).await?;
            };
            let holds = match holds {
                Truth::True => Some(true),
                Truth::False => Some(false),
                Truth::Null | Truth::Unknown => None,
            };
            tried.push(TriedCondition { condition: text.to_owned(), holds, columns, values });
        }
        Ok(tried)
    }
}

/// The values of columns, as far as the WAL carries them.
fn values(columns: &[String], row: &RowChange) -> Map<String, Value> {
    let value = |name: &str| match row.cell(name)? {
        Cell::Unchanged => None,
        Cell::Null => Some(Value::Null),
        cell @ Cell::Text(_) => Some(json!(cell.text()?)),
    };
    columns.iter().filter_map(|name| Some((name.clone(), value(name)?))).collect()
}

fn shown(request: &Request) -> Value {
    json!({
        "kind": request.kind, "requires": request.requires, "input": request.input, "priority": request.priority,
    })
}
