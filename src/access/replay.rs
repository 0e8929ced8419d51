//! Replay of messages that the database sent, for a client that joins (`docs/spec/postgres-changes.md` §6).
//!
//! Read with the daemon's own role: the right to receive in a room includes its earlier messages. With
//! `since`, the newest messages are returned, like in Supabase Realtime. With `cursor` (an extension of
//! Convoke), the oldest messages after it are returned in commit order, which the daemon records as it reads
//! the WAL.
use super::{Access, Asker, Error, Inner};
use crate::{
    id::{Lsn, Topic},
    scope::TurnOwner,
};
use bytes::Bytes;
use chrono::{DateTime, NaiveDateTime};
use deadpool_postgres::Client;
use serde_json::Value;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

/// Most messages that one join receives with `since`.
const SINCE_MAX: i64 = 25;
/// Most messages that one join receives with `cursor`.
const AFTER_MAX: i64 = 1000;
/// How long a join waits until committed messages have been read from the WAL and published.
const PUBLISHED_WITHIN: Duration = Duration::from_millis(500);

/// The messages that a join requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// The newest `limit` messages since a time.
    Since {
        /// The time, in UTC.
        since: NaiveDateTime,
        /// 1 to 25.
        limit: i64,
    },
    /// The first `limit` messages after a position.
    After {
        /// Commit LSN of the message before the first.
        commit_lsn: Lsn,
        /// Index of that message in its transaction.
        index: i32,
        /// 1 to 1000.
        limit: i64,
    },
}

impl Replay {
    /// Parses `config.broadcast.replay`; `None` if the value is invalid.
    #[must_use]
    pub fn parse(value: &Value) -> Option<Self> {
        let limit = |max: i64| match value.get("limit") {
            None => Some(max),
            Some(limit) => limit.as_i64().map(|limit| limit.clamp(1, max)),
        };
        if let Some(cursor) = value.get("cursor") {
            let (commit_lsn, index) = parse_cursor(cursor.as_str()?)?;
            return Some(Self::After { commit_lsn, index: index.try_into().ok()?, limit: limit(AFTER_MAX)? });
        }
        let since = DateTime::from_timestamp_millis(value.get("since")?.as_i64()?)?;
        // Years that both a Postgres timestamp and its text form can hold.
        let years = 1900..=9999;
        years.contains(&chrono::Datelike::year(&since)).then_some(())?;
        Some(Self::Since { since: since.naive_utc(), limit: limit(SINCE_MAX)? })
    }
}

/// Why messages may be missing in a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// More messages than the limit follow the cursor.
    Later,
    /// The message of the cursor was dropped, so messages that followed it may be gone, too.
    Earlier,
}

/// One stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Id of its row.
    pub id: String,
    /// Name of its event.
    pub event: String,
    /// Its payload.
    pub payload: Payload,
    /// Its position (`<commit LSN>:<index>`); `None` until the daemon has read it from the WAL.
    pub cursor: Option<String>,
}

/// The payload of a stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// JSON text.
    Json(Bytes),
    /// Bytes without a format.
    Binary(Bytes),
}

/// The position of a message in the WAL, to be stored for replays in commit order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// LSN of its commit.
    pub commit_lsn: Lsn,
    /// Index of the change in its transaction.
    pub index: u32,
    /// The topic of its private room.
    pub topic: String,
    /// Id of its row.
    pub id: Uuid,
    /// `inserted_at` of its row, as text.
    pub inserted_at: String,
}

impl Access {
    /// Returns the messages that `replay` requests in the private room of a topic, in commit order, and with
    /// a cursor the reason why some may be missing.
    ///
    /// The caller has checked the right to receive.
    ///
    /// # Errors
    /// [`Error`]; always without a database.
    pub async fn replay(
        &self,
        asker: &Asker,
        topic: &Topic,
        replay: Replay,
    ) -> Result<(Vec<Stored>, Option<Missing>), Error> {
        let Some(inner) = &self.0 else { return Err(Error::Unreachable) };
        let (client, _turn) = inner.client("replay", asker.turn_owner("replay", topic)).await?;
        let failed = |e: tokio_postgres::Error| {
            let error = Error::of(&e);
            inner.log_throttled("replay", || tracing::warn!(%error, "message replay failed"));
            error
        };
        let (rows, missing) = match replay {
            Replay::Since { since, limit } => {
                (inner.since(&client, topic, since, limit).await.map_err(failed)?, None)
            }
            Replay::After { commit_lsn, index, limit } => {
                let sql =
                    client.prepare_cached(include_str!("sql/replay_after.sql")).await.map_err(failed)?;
                // One row more than the limit shows whether messages remain.
                let (lsn, one_more) = (commit_lsn.to_string(), limit + 1);
                let params: &[&(dyn ToSql + Sync)] = &[&topic.as_str(), &lsn, &index, &one_more];
                let mut rows = client.query(&sql, params).await.map_err(failed)?;
                let limit = usize::try_from(limit).unwrap_or_default();
                let more = rows.len() > limit;
                rows.truncate(limit);
                // Asked after the messages were read: if the cursor's message is kept now, none after it was
                // dropped before.
                let sql = client.prepare_cached(include_str!("sql/is_kept.sql")).await.map_err(failed)?;
                let row = client.query_one(&sql, &[&lsn, &index]).await.map_err(failed)?;
                let kept: bool = row.try_get(0).map_err(failed)?;
                let missing = if kept { more.then_some(Missing::Later) } else { Some(Missing::Earlier) };
                (rows, missing)
            }
        };
        let stored: Result<Vec<_>, _> = rows.iter().map(stored).collect();
        Ok((stored.map_err(failed)?.into_iter().flatten().collect(), missing))
    }

    /// Reports that every message up to this position was published; wakes the joins that wait for it.
    pub fn set_published(&self, commit_lsn: Lsn, index: u32) {
        if let Some(inner) = &self.0 {
            inner.published.send_replace((commit_lsn, index));
        }
    }

    /// Stores positions of messages. Positions that are stored already are skipped.
    ///
    /// # Errors
    /// [`Error`]; no position is stored then.
    pub async fn record(&self, messages: &[Recorded]) -> Result<(), Error> {
        let Some(inner) = &self.0 else { return Ok(()) };
        let (client, _turn) = inner.client("record", TurnOwner::daemon("record")).await?;
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
    /// Returns the newest messages since a time, in commit order.
    ///
    /// Waits at most 500 ms until fresh ones have been published, so that the client does not receive a
    /// message both live and in the replay, or neither. After that, fresh messages without a position are
    /// left out: they arrive live.
    async fn since(
        &self,
        client: &Client,
        topic: &Topic,
        since: NaiveDateTime,
        limit: i64,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let sql = client.prepare_cached(include_str!("sql/replay_since.sql")).await?;
        let ends = Instant::now() + PUBLISHED_WITHIN;
        let mut published = self.published.subscribe();
        loop {
            // Marked as seen before the query: a message that is published during the query wakes `changed`
            // below.
            published.borrow_and_update();
            let rows = client.query(&sql, &[&topic.as_str(), &since, &limit]).await?;
            let rows = rows.into_iter().map(|row| Ok((wal_state(&row)?, row)));
            let mut rows = rows.collect::<Result<Vec<_>, tokio_postgres::Error>>()?;
            let pending = rows.iter().any(|(state, _)| state.is_pending(*published.borrow()));
            let late = pending && timeout_at(ends, published.changed()).await.is_err();
            if late {
                rows.retain(|(state, _)| !matches!(state, WalState::Unplaced));
            }
            if late || !pending {
                return Ok(rows.into_iter().map(|(_, row)| row).collect());
            }
        }
    }
}

/// Progress of a message on its way through the WAL.
enum WalState {
    /// Fresh, and its position is not stored yet.
    Unplaced,
    /// Fresh, and its position is stored; publishing follows.
    Placed(Lsn, u32),
    /// Older than 10 s: it counts as published, or as older than the daemon.
    Old,
}

impl WalState {
    fn is_pending(&self, published: (Lsn, u32)) -> bool {
        match self {
            Self::Unplaced => true,
            Self::Placed(commit_lsn, index) => (*commit_lsn, *index) > published,
            Self::Old => false,
        }
    }
}

fn wal_state(row: &Row) -> Result<WalState, tokio_postgres::Error> {
    let (position, fresh): (Option<&str>, bool) = (row.try_get(4)?, row.try_get(5)?);
    Ok(match position {
        _ if !fresh => WalState::Old,
        None => WalState::Unplaced,
        Some(position) => {
            parse_cursor(position).map_or(WalState::Old, |(lsn, index)| WalState::Placed(lsn, index))
        }
    })
}

/// Parses a cursor (`<commit LSN>:<index>`).
fn parse_cursor(cursor: &str) -> Option<(Lsn, u32)> {
    let (commit_lsn, index) = cursor.split_once(':')?;
    Some((commit_lsn.parse().ok()?, index.parse().ok()?))
}

fn stored(row: &Row) -> Result<Option<Stored>, tokio_postgres::Error> {
    let (json, bytes): (Option<String>, Option<Vec<u8>>) = (row.try_get(2)?, row.try_get(3)?);
    let payload = match (bytes, json) {
        (Some(bytes), _) => Payload::Binary(bytes.into()),
        (None, Some(json)) => Payload::Json(json.into()),
        // A row without a payload was not published when it was new, so it is not replayed.
        (None, None) => return Ok(None),
    };
    Ok(Some(Stored { id: row.try_get(0)?, event: row.try_get(1)?, payload, cursor: row.try_get(4)? }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn limit_is_clamped_and_invalid_values_are_refused() {
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
