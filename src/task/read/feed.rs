//! The event log of an org, for feeds. Bounded reads: the log has no index by org.
use crate::task::storage::rows::{self, Columns};
use crate::task::storage::statement::sql;
use crate::task::{AgentId, Error, OrgId, TaskId, TaskReader};
use serde_json::{Value, json};
use tokio_postgres::Row;
use uuid::Uuid;

/// Most events of one answer, besides those of a tail that are read again.
const EVENTS_MAX: i64 = 1000;

/// Where a feed begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedFrom {
    /// The newest events, below this number if there is one.
    Newest(Option<i64>),
    /// The events after this number, and again those of the 5 seconds before it.
    After(i64),
}

/// Which events to read.
#[derive(Clone, Debug)]
pub struct FeedFilter {
    /// Only of this org.
    pub org: OrgId,
    /// Only of these types; all if it is empty.
    pub types: Vec<String>,
    /// Only of this agent.
    pub agent: Option<AgentId>,
    /// Where it begins.
    pub from: FeedFrom,
    /// Most events; 1 to 1,000.
    pub limit: i64,
}

/// A part of the event log of an org.
#[derive(Clone, Debug)]
pub struct Feed {
    /// `{seq, at, task_id, agent_id, epoch, type, body, body_bytes}`: newest first, or oldest first after a number. The
    /// body of an event over 4 KiB is null.
    pub events: Vec<Value>,
    /// The number from which to read on. `None` at the beginning of the event log.
    pub next: Option<i64>,
}

impl TaskReader {
    /// The events of an org. Reads 200,000 events at most, of whatever org.
    ///
    /// A reader of a tail drops the numbers that it knows: numbers do not commit in order, so those of the last 5 seconds
    /// before `After` come again.
    ///
    /// # Errors
    /// `BadRequest`, `Unavailable`.
    pub async fn feed(&self, filter: &FeedFilter) -> Result<Feed, Error> {
        if filter.types.iter().any(|name| name.contains('\0')) {
            return Err(Error::BadRequest("types contains the character U+0000, which no type has".into()));
        }
        let types = (!filter.types.is_empty()).then_some(&filter.types);
        let (org, agent) = (filter.org.as_str(), filter.agent.as_ref().map(AgentId::as_str));
        let limit = filter.limit.clamp(1, EVENTS_MAX);
        match filter.from {
            FeedFrom::Newest(before) => {
                let rows = self.query(sql!("feed_newest"), &[&org, &before, &types, &agent, &limit]).await?;
                let events = rows.iter().map(event).collect::<Result<Vec<_>, Error>>()?;
                let last = rows.last().map(|row| row.read::<i64>("seq")).transpose()?;
                let is_full = i64::try_from(rows.len()).is_ok_and(|count| count >= limit);
                let next = if is_full { last } else { self.feed_scanned_to(before).await? };
                Ok(Feed { events, next })
            }
            FeedFrom::After(after) => {
                let rows = self.query(sql!("feed_after"), &[&org, &after, &types, &agent, &limit]).await?;
                let reached =
                    rows.first().map(|row| row.read::<Option<i64>>("reached")).transpose()?.flatten();
                let mut events = Vec::with_capacity(rows.len());
                let (mut last, mut new) = (after, 0);
                for row in &rows {
                    // Without an event there is one row, which has only `reached`.
                    let Some(seq) = row.read::<Option<i64>>("seq")? else { continue };
                    (last, new) = (seq.max(last), new + i64::from(seq > after));
                    events.push(event(row)?);
                }
                let next = if new >= limit { last } else { reached.unwrap_or(after) };
                Ok(Feed { events, next: Some(next) })
            }
        }
    }

    async fn feed_scanned_to(&self, before: Option<i64>) -> Result<Option<i64>, Error> {
        let rows = self.query(sql!("feed_scanned_to"), &[&before]).await?;
        Ok(rows.first().map(|row| row.read("seq")).transpose()?)
    }
}

fn event(row: &Row) -> Result<Value, Error> {
    let body = row.read::<Option<i32>>("body_bytes")?.unwrap_or_default();
    Ok(json!({
        "seq": row.read::<i64>("seq")?, "at": rows::time(row, "at").ok().flatten(),
        "task_id": row.read::<Option<Uuid>>("task_id")?.map(TaskId::from), "agent_id": rows::agent(row, "agent_id")?,
        "epoch": row.read::<Option<i64>>("epoch")?, "type": row.read::<String>("type")?,
        "body": rows::json(row, "body"), "body_bytes": body,
    }))
}
