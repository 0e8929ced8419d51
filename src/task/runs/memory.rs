//! What agents remember: an entry is written together with the end of the step that remembers it, so that a crash
//! neither loses nor repeats a change.
use super::{CallEnd, Fence, RunKey, written};
use crate::db;
use crate::id::OrgId;
use crate::task::storage::rows::{Columns, Unreadable};
use crate::task::storage::statement::{sql, to_i64};
use crate::task::{Error, TaskCommands};
use deadpool_postgres::Transaction;
use serde_json::Value;
use tokio_postgres::{Row, error::SqlState};

/// Largest value of an entry, in bytes of JSON.
pub const MEMORY_BYTES_MAX: usize = 64 << 10;
/// Most entries that are recalled at once.
const RECALLED_MAX: i64 = 20;

/// A change of a memory.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryChange {
    /// Whether the entry is shared by all agents of the org.
    pub of_org: bool,
    /// Its key.
    pub key: String,
    /// What happens to it.
    pub action: MemoryAction,
}

/// What happens to an entry.
#[derive(Clone, Debug, PartialEq)]
pub enum MemoryAction {
    /// It is written.
    Remember {
        /// The value, at most [`MEMORY_BYTES_MAX`].
        value: Value,
        /// The version that it must have: 0 if it must not exist. `None` for any.
        version: Option<i64>,
        /// Days until it expires. `None` for never.
        days: Option<i32>,
    },
    /// It is removed.
    Forget,
}

/// What a change did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryChanged {
    /// The entry has this version now.
    Written(i64),
    /// The entry was removed, or there was none.
    Forgotten(bool),
    /// The agent has 4 MiB or 1,000 entries.
    Full,
    /// The entry has another version: this one, or none.
    OtherVersion(Option<i64>),
    /// A text of it cannot be stored in the database's encoding.
    Unstorable,
}

/// An entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// Its key.
    pub key: String,
    /// Whether it is shared by all agents of the org.
    pub of_org: bool,
    /// Its value.
    pub value: Value,
    /// Its version.
    pub version: i64,
    /// Bytes of the value.
    pub bytes: i32,
}

impl Memory {
    fn from_row(row: &Row) -> Result<Self, Unreadable> {
        Ok(Self {
            key: row.read("key")?,
            of_org: row.read("of_org")?,
            value: row.read("value")?,
            version: row.read("version")?,
            bytes: row.read("bytes")?,
        })
    }
}

/// The column of an entry's owner.
fn owner(at: &RunKey, of_org: bool) -> &str {
    if of_org { "" } else { at.agent.as_str() }
}

impl TaskCommands {
    /// Changes a memory and ends the call `seq` with its result, in one commit. `end` makes the result that the model
    /// is shown.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over or the call has ended: nothing was changed. `Unavailable` and `Internal`
    /// when the database failed: it may be called again.
    pub async fn end_call_remembering(
        &self,
        at: &RunKey,
        org: &OrgId,
        seq: i32,
        change: &MemoryChange,
        end: impl FnOnce(&MemoryChanged) -> CallEnd + Send,
    ) -> Result<(), Error> {
        let mut client = self.context.database.client().await?;
        let mut tx = client.transaction().await.map_err(db::Error::from)?;
        // Rolled back with a text that cannot be stored, so that the record of the refusal can still be committed.
        let inner = tx.savepoint("memory").await.map_err(db::Error::from)?;
        let changed = match apply(&inner, at, org, seq, change).await {
            Ok(changed) => {
                inner.commit().await.map_err(db::Error::from)?;
                changed
            }
            Err(error) if is_unstorable(&error) => {
                inner.rollback().await.map_err(db::Error::from)?;
                MemoryChanged::Unstorable
            }
            Err(error) => return Err(db::Error::from(error).into()),
        };
        let end = end(&changed);
        let fence = Fence::of(at);
        let (state, bytes) = (end.state.as_str(), to_i64(end.bytes));
        let params = fence.with(&[&seq, &state, &end.result, &bytes, &end.cut, &1_i32]);
        let statement = tx.prepare_cached(sql!("step_end")).await.map_err(db::Error::from)?;
        written(&tx.query(&statement, &params).await.map_err(db::Error::from)?)?;
        Ok(tx.commit().await.map_err(db::Error::from)?)
    }

    /// The entries that the agent of a run may read, newest first, at most 20: those whose key begins with `prefix`
    /// and which have all of the words. `of_org` adds those that the agents of the org share.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn recall(
        &self,
        at: &RunKey,
        org: &OrgId,
        of_org: bool,
        prefix: &str,
        words: &str,
    ) -> Result<Vec<Memory>, Error> {
        let owners: Vec<&str> = std::iter::once(owner(at, false)).chain(of_org.then_some("")).collect();
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
            [&org.as_str(), &owners, &prefix, &words, &RECALLED_MAX];
        let rows = self.query(sql!("memory_recall"), &params).await?;
        rows.iter().map(Memory::from_row).collect::<Result<_, _>>().map_err(Error::from)
    }
}

async fn apply(
    tx: &Transaction<'_>,
    at: &RunKey,
    org: &OrgId,
    seq: i32,
    change: &MemoryChange,
) -> Result<MemoryChanged, tokio_postgres::Error> {
    let (org, owner, key) = (org.as_str(), owner(at, change.of_org), change.key.as_str());
    let MemoryAction::Remember { value, version, days } = &change.action else {
        let rows = tx.query(sql!("memory_forget"), &[&org, &owner, &key]).await?;
        return Ok(MemoryChanged::Forgotten(!rows.is_empty()));
    };
    let bytes = i32::try_from(value.to_string().len()).unwrap_or(i32::MAX);
    let task = at.key.task_id.as_uuid();
    let row = tx
        .query_one(
            sql!("memory_put"),
            &[&org, &owner, &key, value, &bytes, version, &task, &at.run, &seq, days],
        )
        .await?;
    let written: Option<i64> = row.try_get("written")?;
    let is_full: bool = row.try_get("is_full")?;
    Ok(match written {
        Some(version) => MemoryChanged::Written(version),
        None if is_full => MemoryChanged::Full,
        None => MemoryChanged::OtherVersion(row.try_get("before")?),
    })
}

fn is_unstorable(error: &tokio_postgres::Error) -> bool {
    let states = [
        SqlState::CHARACTER_NOT_IN_REPERTOIRE,
        SqlState::UNTRANSLATABLE_CHARACTER,
        SqlState::INVALID_TEXT_REPRESENTATION,
    ];
    error.code().is_some_and(|code| states.contains(code))
}
