//! Messages of the database that are said again to whoever joins (`reference/postgres-changes.md` §6).
//!
//! Read with the daemon's own role: who may hear the room may hear what was said in it.
//! Since a time, the newest come, as the original has it; after a cursor (our
//! extension), the oldest come, exactly in the order in which they were committed, which
//! the daemon records as it reads the log.
use super::{Access, Error, Inner};
use crate::id::{Lsn, Topic};
use bytes::Bytes;
use chrono::{DateTime, NaiveDateTime};
use deadpool_postgres::Client;
use serde_json::Value;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

/// Most messages that one join gets since a time.
const SINCE_MAX: i64 = 25;
/// Most messages that one join gets after a cursor.
const AFTER_MAX: i64 = 1000;
/// How long a join waits for messages that are committed to come through the log.
const HEARD_WITHIN: Duration = Duration::from_millis(500);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// The newest `limit` messages since then.
    Since {
        /// UTC.
        since: NaiveDateTime,
        /// 1 to 25.
        limit: i64,
    },
    /// The first `limit` messages that were committed after this one.
    After {
        /// Where it was committed.
        commit_lsn: Lsn,
        /// Which change of its transaction it was.
        index: i32,
        /// 1 to 1000.
        limit: i64,
    },
}

impl Replay {
    /// Reads `config.broadcast.replay`; nothing when it asks for nothing that there is.
    #[must_use]
    pub fn parse(value: &Value) -> Option<Self> {
        let limit = |max: i64| match value.get("limit") {
            None => Some(max),
            Some(limit) => limit.as_i64().map(|limit| limit.clamp(1, max)),
        };
        if let Some(cursor) = value.get("cursor") {
            let (commit_lsn, index) = place(cursor.as_str()?)?;
            return Some(Self::After { commit_lsn, index: index.try_into().ok()?, limit: limit(AFTER_MAX)? });
        }
        let since = DateTime::from_timestamp_millis(value.get("since")?.as_i64()?)?;
        // What Postgres can hold as a timestamp.
        let years = 1900..=9999;
        years.contains(&chrono::Datelike::year(&since)).then_some(())?;
        Some(Self::Since { since: since.naive_utc(), limit: limit(SINCE_MAX)? })
    }
}

/// Why there is more than what is said again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// More than the limit came after the cursor.
    Later,
    /// The message of the cursor is not kept any more, so what followed it may not be either.
    Earlier,
}

/// One message of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Of its row.
    pub id: String,
    /// Its event.
    pub event: String,
    /// What it says.
    pub payload: Payload,
    /// Where it stands among all others, when that is known yet.
    pub cursor: Option<String>,
}

/// What a stored message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// JSON text.
    Json(Bytes),
    /// Anything.
    Binary(Bytes),
}

/// A message as the log has it, to be kept in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Where it was committed.
    pub commit_lsn: Lsn,
    /// Which change of its transaction it is.
    pub index: u32,
    /// The topic of its private room.
    pub topic: String,
    /// Of its row.
    pub id: Uuid,
    /// As the row has it.
    pub inserted_at: String,
}

impl Access {
    /// The messages that `replay` asks for in the private room of a topic, in commit order, and what may be missing
    /// of those after a cursor.
    ///
    /// # Errors
    /// [`Error`]; always without a database.
    pub async fn replay(
        &self,
        topic: &Topic,
        replay: Replay,
    ) -> Result<(Vec<Stored>, Option<Missing>), Error> {
        let Some(inner) = &self.0 else { return Err(Error::Unreachable) };
        let client = inner.client("replay").await?;
        let failed = |e: tokio_postgres::Error| {
            let error = Error::of(&e);
            inner.tell("replay", || tracing::warn!(%error, "messages cannot be replayed"));
            error
        };
        let (rows, missing) = match replay {
            Replay::Since { since, limit } => {
                (inner.since(&client, topic, since, limit).await.map_err(failed)?, None)
            }
            Replay::After { commit_lsn, index, limit } => {
                let sql =
                    client.prepare_cached(include_str!("sql/replay_after.sql")).await.map_err(failed)?;
                let (lsn, one_more) = (commit_lsn.to_string(), limit + 1);
                let params: &[&(dyn ToSql + Sync)] = &[&topic.as_str(), &lsn, &index, &one_more];
                let mut rows = client.query(&sql, params).await.map_err(failed)?;
                let limit = usize::try_from(limit).unwrap_or_default();
                let more = rows.len() > limit;
                rows.truncate(limit);
                let sql = client.prepare_cached(include_str!("sql/is_kept.sql")).await.map_err(failed)?;
                let kept: bool = client.query_one(&sql, &[&lsn, &index]).await.map_err(failed)?.get(0);
                let missing = if kept { more.then_some(Missing::Later) } else { Some(Missing::Earlier) };
                (rows, missing)
            }
        };
        let stored: Result<Vec<_>, _> = rows.iter().map(stored).collect();
        Ok((stored.map_err(failed)?.into_iter().flatten().collect(), missing))
    }

    /// Everything up to this message was put out.
    pub fn heard(&self, commit_lsn: Lsn, index: u32) {
        if let Some(inner) = &self.0 {
            inner.heard.send_replace((commit_lsn, index));
        }
    }

    /// Keeps the order of messages that the log told; some may be kept already.
    ///
    /// # Errors
    /// [`Error`]; nothing is kept then.
    pub async fn record(&self, messages: &[Recorded]) -> Result<(), Error> {
        let Some(inner) = &self.0 else { return Ok(()) };
        let client = inner.client("record").await?;
        let (mut lsns, mut indexes, mut topics, mut ids, mut times) =
            (vec![], vec![], vec![], vec![], vec![]);
        for message in messages {
            lsns.push(message.commit_lsn.to_string());
            indexes.push(i32::try_from(message.index).unwrap_or(i32::MAX));
            topics.push(message.topic.as_str());
            ids.push(message.id);
            times.push(message.inserted_at.as_str());
        }
        let sql = client.prepare_cached(include_str!("sql/record.sql")).await.map_err(|e| Error::of(&e))?;
        client.execute(&sql, &[&lsns, &indexes, &topics, &ids, &times]).await.map_err(|e| Error::of(&e))?;
        Ok(())
    }
}

impl Inner {
    /// The newest messages since then, once all of them that come through the log are put out: whoever listens has
    /// what came before them. Those that take longer are left out, and heard live.
    async fn since(
        &self,
        client: &Client,
        topic: &Topic,
        since: NaiveDateTime,
        limit: i64,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let sql = client.prepare_cached(include_str!("sql/replay_since.sql")).await?;
        let ends = Instant::now() + HEARD_WITHIN;
        let mut heard = self.heard.subscribe();
        loop {
            heard.borrow_and_update();
            let rows = client.query(&sql, &[&topic.as_str(), &since, &limit]).await?;
            let rows = rows.into_iter().map(|row| Ok((coming(&row)?, row)));
            let mut rows = rows.collect::<Result<Vec<_>, tokio_postgres::Error>>()?;
            let comes = rows.iter().any(|(coming, _)| coming.is_coming(*heard.borrow()));
            let late = comes && timeout_at(ends, heard.changed()).await.is_err();
            if late {
                rows.retain(|(coming, _)| !matches!(coming, Coming::Unplaced));
            }
            if late || !comes {
                return Ok(rows.into_iter().map(|(_, row)| row).collect());
            }
        }
    }
}

/// Whether a message of the last seconds is still on its way through the log.
enum Coming {
    /// Its place is not kept.
    Unplaced,
    /// Its place is kept, and then it is put out.
    Placed(Lsn, u32),
    /// It is older than that.
    Old,
}

impl Coming {
    fn is_coming(&self, heard: (Lsn, u32)) -> bool {
        match self {
            Self::Unplaced => true,
            Self::Placed(commit_lsn, index) => (*commit_lsn, *index) > heard,
            Self::Old => false,
        }
    }
}

fn coming(row: &Row) -> Result<Coming, tokio_postgres::Error> {
    let (position, fresh): (Option<&str>, bool) = (row.try_get(4)?, row.try_get(5)?);
    Ok(match position {
        _ if !fresh => Coming::Old,
        None => Coming::Unplaced,
        Some(position) => place(position).map_or(Coming::Old, |(lsn, index)| Coming::Placed(lsn, index)),
    })
}

/// The place that a cursor names.
fn place(cursor: &str) -> Option<(Lsn, u32)> {
    let (commit_lsn, index) = cursor.split_once(':')?;
    Some((commit_lsn.parse().ok()?, index.parse().ok()?))
}

fn stored(row: &Row) -> Result<Option<Stored>, tokio_postgres::Error> {
    let (json, bytes): (Option<String>, Option<Vec<u8>>) = (row.try_get(2)?, row.try_get(3)?);
    let payload = match (bytes, json) {
        (Some(bytes), _) => Payload::Binary(bytes.into()),
        (None, Some(json)) => Payload::Json(json.into()),
        // Never said when it was new, so not now either.
        (None, None) => return Ok(None),
    };
    Ok(Some(Stored { id: row.try_get(0)?, event: row.try_get(1)?, payload, cursor: row.try_get(4)? }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn limits_are_kept_and_what_is_no_time_is_refused() {
        let limit = |value: Value| match Replay::parse(&value) {
            Some(Replay::Since { limit, .. } | Replay::After { limit, .. }) => Some(limit),
            None => None,
        };
        assert_eq!(limit(json!({"since": 0})), Some(25));
        assert_eq!(limit(json!({"since": 0, "limit": 0})), Some(1));
        assert_eq!(limit(json!({"since": 0, "limit": 100})), Some(25));
        assert_eq!(limit(json!({"cursor": "0/16B3748:2", "limit": 5000})), Some(1000));
        for bad in [
            json!({}),
            json!({"since": "0"}),
            json!({"since": 1.5}),
            json!({"since": i64::MAX}),
            json!({"since": -9_999_999_999_999i64}),
            json!({"since": 0, "limit": "2"}),
            json!({"cursor": "x"}),
            json!({"cursor": "0/1:-1"}),
        ] {
            assert_eq!(Replay::parse(&bad), None, "{bad}");
        }
    }
}
