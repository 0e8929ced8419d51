//! A declared statement that is committed together with the step that called it: the effect happens once, or not at all.
//!
//! The statement is the operator's text, and the model gives only values, which travel as parameters of the extended
//! protocol. It runs under a role that the definition names, with limits on time and rows. The fence is checked at the
//! end, directly before the commit: a lock on the assignment that is held while the statement runs would delay the
//! arbiter, and could wait in a circle with a statement that touches the task.
use super::{CallEnd, Fence, LatestRun, RunKey, read, written};
use crate::db;
use crate::task::storage::rows::Columns;
use crate::task::storage::statement::{run, sql, to_i64};
use crate::task::storage::transaction::Transaction;
use crate::task::{Error, TaskCommands};
use bytes::BytesMut;
use futures_util::{
    FutureExt,
    future::{ready, try_join},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio_postgres::{
    error::SqlState,
    types::{Format, IsNull, ToSql, Type, to_sql_checked},
};

/// Most rows of a result.
const ROWS_MAX: usize = 200;
/// Most bytes of a result.
const BYTES_MAX: usize = 64 << 10;
/// How long the statement waits for a lock.
const LOCK_TIMEOUT: &str = "1s";

/// Undoes a statement that may only read, or that Postgres refused, with its limits: a transaction that is read-only
/// becomes writable again only in this way.
const UNDO: &str = "rollback to savepoint tool";
/// Keeps a statement and ends its limits: `set local` outlives the savepoint, and the record is written as the daemon.
const KEEP: &str = "set local role none; set local statement_timeout = 0; set local lock_timeout = 0; \
                    set local search_path = pg_catalog; release savepoint tool";

/// A statement with its values.
#[derive(Clone, Debug)]
pub struct DatabaseCall {
    /// The role that it runs as.
    pub role: String,
    /// The statement with `$1`, `$2`, …
    pub statement: String,
    /// The values, as text for the types that the statement gives them.
    pub values: Vec<Option<String>>,
    /// Whether it may only read.
    pub read_only: bool,
    /// The time limit.
    pub timeout: Duration,
}

/// The result of a statement.
#[derive(Clone, Debug, PartialEq)]
pub enum DatabaseResult {
    /// The rows, each an object.
    Rows {
        /// At most 200 rows and 64 KiB.
        rows: Vec<Value>,
        /// Whether there were more.
        more: bool,
    },
    /// Postgres refused it.
    Refused {
        /// The SQLSTATE. Its message may contain values, so it is not kept.
        sqlstate: String,
    },
}

/// A value in text form, for a parameter of any type.
#[derive(Debug)]
struct TextValue<'a>(Option<&'a str>);

impl ToSql for TextValue<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let Some(text) = self.0 else { return Ok(IsNull::Yes) };
        out.extend_from_slice(text.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

impl TaskCommands {
    /// Runs the statement of the call `seq` and ends the call with its result, in one commit. `end` makes the result
    /// that the model is shown. Returns the run after it. `None` if it could not be read.
    ///
    /// # Errors
    /// `Fenced` when the assignment is over or the call has ended: the statement had no effect. `Unavailable` and
    /// `Internal` when the database failed: it may be called again.
    pub async fn end_call_with(
        &self,
        at: &RunKey,
        seq: i32,
        call: &DatabaseCall,
        end: impl FnOnce(&DatabaseResult) -> CallEnd + Send,
    ) -> Result<Option<LatestRun>, Error> {
        let mut client = self.context.database.client().await?;
        // Before the begin: the role of the statement may not look into our schema.
        client.prepare_cached(sql!("step_end")).await.map_err(db::Error::from)?;
        let tx = Transaction::begin_with(&mut client, &limits(call));
        let (found, close) = match statement(&tx, call).await {
            Ok(found) => (found, if call.read_only { UNDO } else { KEEP }),
            Err(error) => {
                let sqlstate = refused_state(&error).ok_or(db::Error::from(error))?;
                (DatabaseResult::Refused { sqlstate }, UNDO)
            }
        };
        let end = end(&found);
        let fence = Fence::of(at);
        let (state, bytes) = (end.state.as_str(), to_i64(end.bytes));
        let params = fence.with(&[&seq, &state, &end.result, &bytes, &end.cut, &1_i32]);
        // Sent together, in this order.
        let ended = async {
            let closed = async { Ok(tx.batch(close).await.map_err(db::Error::from)?) };
            Ok(try_join(closed, run(&tx, sql!("step_end"), &params)).await?.1)
        };
        let task = at.key.task_id;
        let behind = |client| read::latest(client, task, false).boxed();
        let after = if close == UNDO {
            // Nothing is left that the commit could keep, so it does not wait for the fence.
            let (ended, after) = tx.commit_with(ended, behind).await?;
            written(&ended)?;
            after
        } else {
            written(&ended.await?)?;
            tx.commit_with(ready(Ok(())), behind).await?.1
        };
        Ok(after.await.ok().flatten())
    }
}

/// What a statement may do, in its transaction.
fn limits(call: &DatabaseCall) -> String {
    let role = call.role.replace('"', "\"\"");
    let timeout = call.timeout.as_millis();
    // What is only read can be read again, so its record does not wait for the disk. That is set outside of the savepoint,
    // which is rolled back with a refused statement, so that the record of the refusal can still be committed.
    let flush = if call.read_only { "set local synchronous_commit = off; " } else { "" };
    let read_only = if call.read_only { "; set local transaction_read_only = on" } else { "" };
    format!(
        "{flush}savepoint tool; set local statement_timeout = {timeout}; set local lock_timeout = '{LOCK_TIMEOUT}'; \
         set local search_path = public, pg_temp; set local role \"{role}\"{read_only}"
    )
}

async fn statement(
    tx: &Transaction<'_>,
    call: &DatabaseCall,
) -> Result<DatabaseResult, tokio_postgres::Error> {
    // Postgres makes the JSON of each row, whatever its types. One row more than the limit says whether there are more;
    // rows beyond it are not made.
    let text = format!(
        "with called as ({}\n) select to_json(called) as row from called limit {}",
        call.statement,
        ROWS_MAX + 1
    );
    let values: Vec<TextValue<'_>> = call.values.iter().map(|value| TextValue(value.as_deref())).collect();
    let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| value as _).collect();
    let found = tx.query_once(&text, &values).await?;
    let (mut rows, mut bytes, mut more) = (Vec::new(), 0, found.len() > ROWS_MAX);
    for row in found.iter().take(ROWS_MAX) {
        let row: Value = row.read("row").unwrap_or_else(|_| json!({ "error": "the row cannot be read" }));
        bytes += row.to_string().len();
        if bytes > BYTES_MAX {
            more = true;
            break;
        }
        rows.push(row);
    }
    if !call.read_only {
        // Deferred triggers would run at the commit, as the daemon.
        tx.batch("set constraints all immediate").await?;
    }
    Ok(DatabaseResult::Rows { rows, more })
}

/// The SQLSTATE of a statement that Postgres refused. `None` if the same statement may succeed again at once, or the
/// connection is lost.
fn refused_state(error: &tokio_postgres::Error) -> Option<String> {
    let state = error.as_db_error()?.code();
    let again = [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
    ];
    (!again.contains(state)).then(|| state.code().to_owned())
}
