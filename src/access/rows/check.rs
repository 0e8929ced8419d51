//! Evaluates policies in Postgres: many queries in one round trip, each in a transaction of its own.
//!
//! No state that a policy leaves behind (settings, locks, prepared statements) is visible to the next viewer,
//! and a failed query does not affect the others.
use super::{
    super::reset::RESET,
    Inner,
    plan::PolicyQuery,
    session::Session,
    types::{Failure, Viewer},
};
use crate::db;
use futures_util::{future::join_all, join};
use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};
use tokio_postgres::{Error, Statement, error::SqlState, types::ToSql};

/// Most queries in one round trip. [`join_all`] polls up to 30 futures in order, and so sends them in order;
/// this stays well below.
const PIECES_MAX: usize = 12;
/// Most rows of one statement, and most bytes of their text.
const ROWS_MAX: usize = 500;
const BYTES_MAX: usize = 4 << 20;
/// A statement that times out with more rows is split; with at most these, the policy counts as slow.
const ROWS_SLOW_MAX: usize = 16;
/// How often the rows of one job are split to isolate those on which a policy fails.
const SPLITS_MAX: usize = 64;
/// Least timeout of one query.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// After so many lost connections a query counts as their cause, and fails.
const LOSSES_MAX: u32 = 10;
/// How long an answer may take beyond the timeout of the check; the connection counts as lost after that.
const GRACE: Duration = Duration::from_secs(5);
/// Pause after the first loss; it grows linearly with each further one.
const PAUSE: Duration = Duration::from_millis(20);

/// Rows of one table to check for one viewer.
pub(super) struct Job<'a> {
    pub(super) query: Arc<PolicyQuery>,
    pub(super) viewer: Arc<Viewer>,
    pub(super) rows: Vec<&'a str>,
}

/// Whether the viewer sees each row of a job.
pub(super) type Answers = Vec<Result<bool, Failure>>;

/// A range of rows of a job that one statement checks.
#[derive(Clone)]
struct Piece {
    job: usize,
    rows: Range<usize>,
    losses: u32,
    /// Runs in a round trip of its own, with the full timeout.
    alone: bool,
    /// The statement was prepared again once, after a missing privilege.
    renewed: bool,
}

/// The result of one statement.
enum Outcome {
    Seen(Vec<bool>),
    Lost,
    Failed(Error),
    Refused(Failure),
}

/// Runs every job and returns its answers, in the order of `jobs`. Retries after lost connections.
pub(super) async fn run(inner: &Inner, jobs: &[Job<'_>]) -> Vec<Answers> {
    // Fails closed: a row keeps this failure unless an answer replaces it.
    let mut answers: Vec<Answers> =
        jobs.iter().map(|job| vec![Err(Failure::Policy); job.rows.len()]).collect();
    let mut splits = vec![0; jobs.len()];
    let mut pieces: VecDeque<Piece> = VecDeque::new();
    for (at, job) in jobs.iter().enumerate() {
        pieces.extend(cut(&job.rows).into_iter().map(|rows| Piece {
            job: at,
            rows,
            losses: 0,
            alone: job.query.is_heavy(),
            renewed: false,
        }));
    }
    while !pieces.is_empty() {
        let losses = pieces.front().map_or(0, |piece| piece.losses);
        if losses > 0 {
            tokio::time::sleep(PAUSE * losses).await;
        }
        // A round trip takes either one piece that runs alone, or up to `PIECES_MAX` others.
        let alone = pieces.front().is_some_and(|piece| piece.alone);
        let together = pieces.iter().take(PIECES_MAX).take_while(|piece| !piece.alone).count();
        let batch: Vec<Piece> = pieces.drain(..if alone { 1 } else { together }).collect();
        let mut lent = inner.sessions.lend().await;
        let within = inner.config.check_timeout + GRACE;
        let asked = tokio::time::timeout(within, ask(inner, &mut lent.session, jobs, &batch)).await;
        // A connection that does not answer in time counts as lost.
        let silent = || batch.iter().map(|_| Outcome::Lost).collect();
        let outcomes = asked.unwrap_or_else(|_| silent());
        let lost = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Lost));
        let mut retry = Vec::new();
        for (mut piece, outcome) in batch.into_iter().zip(outcomes) {
            let Some(job) = jobs.get(piece.job) else { continue };
            let mut answer = |rows: &Range<usize>, answer: Result<bool, Failure>| {
                let cells = answers.get_mut(piece.job).and_then(|answers| answers.get_mut(rows.clone()));
                cells.unwrap_or_default().fill(answer);
            };
            let failure = match outcome {
                Outcome::Seen(seen) => {
                    for (row, seen) in piece.rows.clone().zip(seen) {
                        answer(&(row..row + 1), Ok(seen));
                    }
                    continue;
                }
                Outcome::Lost if piece.losses < LOSSES_MAX => {
                    // Alone in its next round trip, so that it cannot take other queries down with it.
                    (piece.losses, piece.alone) = (piece.losses + 1, true);
                    retry.push(piece);
                    continue;
                }
                Outcome::Lost => Failure::Policy,
                Outcome::Refused(failure) => {
                    inner.log_failure(job, failure, None);
                    failure
                }
                Outcome::Failed(error) => {
                    let lacks_right = error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
                    // After an invalidation Postgres parses the statement again with the viewer's role, which may
                    // not use a schema in it. Prepared anew with the daemon's role it is retried once.
                    if lacks_right && !piece.renewed && lent.session.forget(&job.query) {
                        piece.renewed = true;
                        retry.push(piece);
                        continue;
                    }
                    let failure = if error.code() == Some(&SqlState::QUERY_CANCELED) {
                        Failure::Slow
                    } else {
                        Failure::Policy
                    };
                    if failure == Failure::Slow && !piece.alone {
                        // It had only a share of the timeout, so it gets one more run with all of it before
                        // it counts as slow.
                        job.query.set_heavy();
                        piece.alone = true;
                        retry.push(piece);
                        continue;
                    }
                    let least = if failure == Failure::Slow { ROWS_SLOW_MAX } else { 1 };
                    if let (Some(halves), Some(split)) = (halves(&piece, least), splits.get_mut(piece.job))
                        && *split < SPLITS_MAX
                    {
                        *split += 1;
                        retry.extend(halves);
                        continue;
                    }
                    inner.log_failure(job, failure, Some(&error));
                    if failure == Failure::Slow {
                        inner.slow_policies.add(&job.query, job.viewer.fingerprint);
                    }
                    failure
                }
            };
            inner.metrics.failed(failure);
            answer(&piece.rows, Err(failure));
        }
        // Not returned, and so closed.
        if !lost {
            lent.give_back();
        }
        pieces.extend(retry);
    }
    answers
}

/// Cuts rows into ranges that one statement can take. A row above the byte limit is alone in its range.
fn cut(rows: &[&str]) -> Vec<Range<usize>> {
    let (mut parts, mut from, mut bytes) = (Vec::new(), 0, 0);
    for (at, row) in rows.iter().enumerate() {
        if at > from && (at - from >= ROWS_MAX || bytes + row.len() > BYTES_MAX) {
            parts.push(from..at);
            (from, bytes) = (at, 0);
        }
        bytes += row.len();
    }
    parts.push(from..rows.len());
    parts
}

/// Splits a piece in two; `None` if it has at most `least` rows.
fn halves(piece: &Piece, least: usize) -> Option<[Piece; 2]> {
    let Range { start, end } = piece.rows;
    let middle = start + (end - start) / 2;
    (end - start > least).then(|| {
        let part = |rows| Piece { rows, ..piece.clone() };
        [part(start..middle), part(middle..end)]
    })
}

impl Inner {
    /// Logs a failure for the operator, throttled. Without text of the database, which may contain values of
    /// rows.
    fn log_failure(&self, job: &Job<'_>, failure: Failure, error: Option<&Error>) {
        if !self.log_throttle.is_due(&job.query, failure) {
            return;
        }
        let (table, role) = (job.query.table.as_str(), job.viewer.role.as_str());
        let sqlstate = error.and_then(Error::code).map(SqlState::code);
        match failure {
            Failure::RoleRefused => tracing::error!(
                table,
                role,
                "row security not checkable for role: grant the role to the role of database.url \
                 (`convoke doctor` prints the statement)"
            ),
            failure => tracing::error!(table, role, sqlstate, "rows hidden: {failure}"),
        }
    }
}

/// Sends all pieces at once. They share the timeout of one check, so that slow policies do not add up.
async fn ask(inner: &Inner, session: &mut Session, jobs: &[Job<'_>], pieces: &[Piece]) -> Vec<Outcome> {
    let mut prepared = Vec::new();
    for piece in pieces {
        // Prepared before the first `begin`, with the daemon's own role and outside a transaction.
        prepared.push(match jobs.get(piece.job) {
            None => Err(Outcome::Refused(Failure::Policy)),
            Some(job) if inner.slow_policies.has(&job.query, job.viewer.fingerprint) => {
                Err(Outcome::Refused(Failure::Slow))
            }
            Some(job) => match session.prepare(&job.query).await {
                Ok(statement) => Ok((job, statement)),
                Err(error) => Err(Outcome::of(error)),
            },
        });
    }
    // Divided evenly. A policy that exceeds its share runs alone next, with the whole timeout.
    let share = inner.config.check_timeout / u32::try_from(pieces.len()).unwrap_or(1).max(1);
    let begin = format!(
        "begin read only; set local statement_timeout = {}",
        share.max(TIMEOUT_MIN).as_millis().clamp(1, 600_000)
    );
    let session = &*session;
    let evaluations = prepared.into_iter().zip(pieces).map(async |(prepared, piece)| match prepared {
        Ok((job, statement)) => evaluate_piece(session, &begin, job, (&statement, piece)).await,
        Err(outcome) => outcome,
    });
    join_all(evaluations).await
}

/// Sets the viewer's role, evaluates the rows and resets the connection, in a transaction of its own.
async fn evaluate_piece(
    session: &Session,
    begin: &str,
    job: &Job<'_>,
    asked: (&Statement, &Piece),
) -> Outcome {
    let (statement, piece) = asked;
    let Viewer { role, claims, sub, .. } = &*job.viewer;
    let rows = job.rows.get(piece.rows.clone()).unwrap_or_default();
    let (set_role, rows_asked): ([&(dyn ToSql + Sync); 3], [&(dyn ToSql + Sync); 1]) =
        ([role, claims, sub], [&rows]);
    // A pure policy only reads, so a rollback takes back everything; any other may leave session state
    // behind.
    let end = if job.query.pure { "rollback" } else { RESET };
    // Queued in this order on the first poll, the reset included, even if this future is dropped afterwards.
    let (begun, role_set, seen, ended) = join!(
        session.client.batch_execute(begin),
        session.client.execute(&session.set_role, &set_role),
        session.client.query(statement, &rows_asked),
        session.client.batch_execute(end),
    );
    if begun.is_err() || ended.is_err() {
        // Without its end the state of the connection is unknown.
        return Outcome::Lost;
    }
    match (role_set, seen) {
        (Err(error), _) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            Outcome::Refused(Failure::RoleRefused)
        }
        (Err(error), _) if error.code() == Some(&SqlState::INVALID_PARAMETER_VALUE) => {
            Outcome::Refused(Failure::UnknownRole)
        }
        (Err(error), _) | (_, Err(error)) => Outcome::of(error),
        (Ok(_), Ok(seen)) => {
            let seen: Result<Vec<bool>, Error> = seen.iter().map(|row| row.try_get(0)).collect();
            match seen {
                // One answer for each row, or none: a shorter result would assign answers to the wrong rows.
                Ok(seen) if seen.len() == rows.len() => Outcome::Seen(seen),
                _ => Outcome::Refused(Failure::Policy),
            }
        }
    }
}

impl Outcome {
    fn of(error: Error) -> Self {
        if error.is_closed() || db::is_transient(&error) { Self::Lost } else { Self::Failed(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_by_count_and_by_bytes() {
        let short = vec!["()"; 1_001];
        assert_eq!(cut(&short), [0..500, 500..1_000, 1_000..1_001]);
        let long = "x".repeat(3 << 20);
        assert_eq!(cut(&[&long, "()", &long, &long]), [0..2, 2..3, 3..4]);
    }
}
