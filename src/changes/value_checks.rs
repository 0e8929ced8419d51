//! Validates filter values in Postgres, in batches shared by concurrent joins.
//!
//! A caller that gets a connection runs one query for all values that wait for the same statement, so a thousand joins
//! with filters of their own cost a few queries. A value that Postgres refuses is found by bisection, and fails alone.
use super::catalog::{Catalog, Error};
use crate::db;
use deadpool_postgres::Object;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::atomic::{AtomicBool, Ordering},
};
use tokio::sync::oneshot;
use tokio_postgres::error::DbError;

/// Most values of one query.
const VALUES_MAX: usize = 500;

/// The result of a statement for a value, or the error of Postgres about the value.
pub(super) type Answer = Result<Option<String>, DbError>;

/// Pending values by statement. At most one for each caller.
#[derive(Debug, Default)]
pub(super) struct ValueChecks(Mutex<HashMap<String, VecDeque<Waiting>>>);

#[derive(Debug)]
struct Waiting {
    value: String,
    answer: oneshot::Sender<Answer>,
}

/// The queue entry of one caller. Dropping it removes the entry.
struct Queued<'a> {
    checks: &'a ValueChecks,
    sql: &'a str,
    answer: oneshot::Receiver<Answer>,
}

impl ValueChecks {
    /// Runs `sql` for `value`. It has the parameter `$1::text` and returns one value. Cancel safe.
    ///
    /// # Errors
    /// If the database is unavailable.
    pub(super) async fn ask(&self, catalog: &Catalog, sql: &str, value: &str) -> Result<Answer, Error> {
        loop {
            let (mut queued, began) = (self.queue(sql, value), AtomicBool::new(false));
            let mut turn = std::pin::pin!(catalog.ask(async |client: &mut Object| {
                began.store(true, Ordering::Relaxed);
                self.answer_all(client, sql).await
            }));
            let answer = tokio::select! {
                biased;
                ended = &mut turn => match queued.answer.try_recv() {
                    Ok(answer) => Ok(answer),
                    Err(_) => {
                        ended?;
                        // Another caller's pending query contains the value.
                        (&mut queued.answer).await
                    }
                },
                answer = &mut queued.answer => {
                    if began.load(Ordering::Relaxed) {
                        // The query of this caller contains values of other callers. If it fails, they retry.
                        let _others_ask_again = turn.await;
                    }
                    answer
                }
            };
            // No answer: the query that contained the value failed or was canceled.
            if let Ok(answer) = answer {
                return Ok(answer);
            }
        }
    }

    fn queue<'a>(&'a self, sql: &'a str, value: &str) -> Queued<'a> {
        let (sender, answer) = oneshot::channel();
        let waiting = Waiting { value: value.to_owned(), answer: sender };
        self.0.lock().entry(sql.to_owned()).or_default().push_back(waiting);
        Queued { checks: self, sql, answer }
    }

    fn take(&self, sql: &str) -> Vec<Waiting> {
        let mut queues = self.0.lock();
        let Some(queue) = queues.get_mut(sql) else { return Vec::new() };
        let taken = queue.drain(..queue.len().min(VALUES_MAX)).collect();
        if queue.is_empty() {
            queues.remove(sql);
        }
        taken
    }

    /// Runs queries until no caller waits for `sql`.
    async fn answer_all(&self, client: &mut Object, sql: &str) -> Result<(), Error> {
        loop {
            let mut parts = vec![self.take(sql)];
            if parts.iter().all(Vec::is_empty) {
                return Ok(());
            }
            while let Some(mut part) = parts.pop() {
                match texts(client, sql, &part).await {
                    Ok(texts) => {
                        for (waiting, text) in part.into_iter().zip(texts) {
                            let _gone = waiting.answer.send(Ok(text));
                        }
                    }
                    Err(error) => match (error.as_db_error(), part.len()) {
                        (Some(_), 2..) => {
                            let rest = part.split_off(part.len() / 2);
                            parts.extend([rest, part]);
                        }
                        (Some(said), _) if !db::is_transient(&error) => {
                            for waiting in part {
                                let _gone = waiting.answer.send(Err(said.clone()));
                            }
                        }
                        _ => return Err(error.into()),
                    },
                }
            }
        }
    }
}

/// The result of `sql` for each value, in order; `None` for a result that is not text.
async fn texts(
    client: &mut Object,
    sql: &str,
    part: &[Waiting],
) -> Result<Vec<Option<String>>, tokio_postgres::Error> {
    // A single value has a statement of its own, so that the text of an error is the same as without batches.
    if let [only] = part {
        let statement = client.prepare_cached(sql).await?;
        let row = client.query_one(&statement, &[&only.value]).await?;
        return Ok(vec![row.try_get(0).unwrap_or_default()]);
    }
    let each = sql.replace("$1::text", "given.value");
    let batch = format!(
        "select ({each})::text from unnest($1::text[]) with ordinality as given(value, place) order by given.place"
    );
    let values: Vec<&str> = part.iter().map(|waiting| waiting.value.as_str()).collect();
    let statement = client.prepare_cached(&batch).await?;
    client.query(&statement, &[&values]).await?.iter().map(|row| row.try_get(0)).collect()
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.answer.close();
        let mut queues = self.checks.0.lock();
        let Some(queue) = queues.get_mut(self.sql) else { return };
        queue.retain(|waiting| !waiting.answer.is_closed());
        if queue.is_empty() {
            queues.remove(self.sql);
        }
    }
}
