//! Asking Postgres: many questions in one round trip, and the failure of one kept from the others.
use super::{
    Inner,
    plan::Question,
    session::Session,
    types::{Failure, Viewer},
};
use crate::db;
use futures_util::future::{join, join_all};
use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};
use tokio_postgres::{Error, Statement, error::SqlState, types::ToSql};

/// Questions of one transaction; few enough for [`join_all`] to send them in their order.
const PIECES_MAX: usize = 12;
/// Rows of one statement, and their bytes.
const ROWS_MAX: usize = 500;
const BYTES_MAX: usize = 4 << 20;
/// Rows of a statement that took too long with more; if it does with these, the policy is too slow.
const ROWS_SLOW_MAX: usize = 16;
/// How often one question's rows are divided to find those that a policy fails on.
const SPLITS_MAX: usize = 64;
/// How often a question may lose its connection before it is taken for the cause.
const LOSSES_MAX: u32 = 10;
/// How long the server may take over an answer beyond the time that checks have.
const GRACE: Duration = Duration::from_secs(5);
/// Pause after a loss; it grows with each.
const PAUSE: Duration = Duration::from_millis(20);

/// One viewer's look at rows of one table.
pub(super) struct Job<'a> {
    pub(super) question: Arc<Question>,
    pub(super) viewer: Arc<Viewer>,
    pub(super) rows: Vec<&'a str>,
}

/// For each row of a job, whether the viewer sees it.
pub(super) type Answers = Vec<Result<bool, Failure>>;

/// Some rows of a job.
#[derive(Clone)]
struct Piece {
    job: usize,
    rows: Range<usize>,
    losses: u32,
    /// Prepared again already, after a right was lacking.
    renewed: bool,
}

/// What became of a piece.
enum Outcome {
    Seen(Vec<bool>),
    /// Another piece failed first, or the connection was lost.
    Again,
    Lost,
    Failed(Error),
    Refused(Failure),
}

/// Asks until every job has its answers.
pub(super) async fn run(inner: &Inner, jobs: &[Job<'_>]) -> Vec<Answers> {
    let mut answers: Vec<Answers> =
        jobs.iter().map(|job| vec![Err(Failure::Policy); job.rows.len()]).collect();
    let mut splits = vec![0; jobs.len()];
    let mut pieces: VecDeque<Piece> = VecDeque::new();
    for (at, job) in jobs.iter().enumerate() {
        pieces.extend(cut(&job.rows).into_iter().map(|rows| Piece {
            job: at,
            rows,
            losses: 0,
            renewed: false,
        }));
    }
    while !pieces.is_empty() {
        // A piece that lost its connection is asked alone, so that it takes no other with it.
        let losses = pieces.front().map_or(0, |piece| piece.losses);
        let count = if losses > 0 { 1 } else { PIECES_MAX.min(pieces.len()) };
        if losses > 0 {
            tokio::time::sleep(PAUSE * losses).await;
        }
        let batch: Vec<Piece> = pieces.drain(..count).collect();
        let mut lent = inner.sessions.lend().await;
        let within = inner.config.check_timeout * u32::try_from(count).unwrap_or(1) + GRACE;
        let asked = tokio::time::timeout(within, ask(inner, &mut lent.session, jobs, &batch)).await;
        // A connection that says nothing any more is as lost as one that is cut.
        let silent = || batch.iter().map(|_| Outcome::Lost).collect();
        let outcomes = asked.unwrap_or_else(|_| silent());
        let lost = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Lost));
        let mut put_off = Vec::new();
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
                Outcome::Again => {
                    put_off.push(piece);
                    continue;
                }
                Outcome::Lost if piece.losses < LOSSES_MAX => {
                    piece.losses += 1;
                    put_off.push(piece);
                    continue;
                }
                Outcome::Lost => Failure::Policy,
                Outcome::Refused(failure) => {
                    inner.complain(job, failure, None);
                    failure
                }
                Outcome::Failed(error) => {
                    let lacks_right = error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
                    if lacks_right && !piece.renewed && lent.session.forget(&job.question) {
                        piece.renewed = true;
                        put_off.push(piece);
                        continue;
                    }
                    let failure = if error.code() == Some(&SqlState::QUERY_CANCELED) {
                        Failure::Slow
                    } else {
                        Failure::Policy
                    };
                    let least = if failure == Failure::Slow { ROWS_SLOW_MAX } else { 1 };
                    if let (Some(halves), Some(split)) = (halves(&piece, least), splits.get_mut(piece.job))
                        && *split < SPLITS_MAX
                    {
                        *split += 1;
                        put_off.extend(halves);
                        continue;
                    }
                    inner.complain(job, failure, Some(&error));
                    if failure == Failure::Slow {
                        inner.rest.add(&job.question, job.viewer.fingerprint);
                    }
                    failure
                }
            };
            inner.metrics.failed(failure);
            answer(&piece.rows, Err(failure));
        }
        // A lost connection is closed by not giving it back.
        if !lost {
            lent.give_back();
        }
        pieces.extend(put_off);
    }
    answers
}

/// Parts that a statement can take.
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

fn halves(piece: &Piece, least: usize) -> Option<[Piece; 2]> {
    let Range { start, end } = piece.rows;
    let middle = start + (end - start) / 2;
    (end - start > least).then(|| {
        let part = |rows| Piece { rows, ..piece.clone() };
        [part(start..middle), part(middle..end)]
    })
}

impl Inner {
    /// Tells the operator, who alone can mend it, without the database's words: they may hold values of rows.
    fn complain(&self, job: &Job<'_>, failure: Failure, error: Option<&Error>) {
        if !self.complaints.is_due(&job.question, failure) {
            return;
        }
        let (table, role) = (job.question.table.as_str(), job.viewer.role.as_str());
        let sqlstate = error.and_then(Error::code).map(SqlState::code);
        match failure {
            Failure::RoleRefused => tracing::error!(
                table,
                role,
                "row security cannot be checked for this role: grant it to the role of database.url \
                 (`convoke doctor` says how)"
            ),
            failure => tracing::error!(table, role, sqlstate, "rows are hidden: {failure}"),
        }
    }
}

/// One transaction with all pieces, sent at once. After the first that fails, those behind it come again.
async fn ask(inner: &Inner, session: &mut Session, jobs: &[Job<'_>], pieces: &[Piece]) -> Vec<Outcome> {
    let mut prepared = Vec::new();
    for piece in pieces {
        prepared.push(match jobs.get(piece.job) {
            None => Err(Outcome::Refused(Failure::Policy)),
            Some(job) if inner.rest.has(&job.question, job.viewer.fingerprint) => {
                Err(Outcome::Refused(Failure::Slow))
            }
            Some(job) => match session.prepare(&job.question).await {
                Ok(statement) => Ok((job, statement)),
                Err(error) => Err(Outcome::of(error)),
            },
        });
    }
    let begin = format!(
        "begin read only; set local statement_timeout = {}",
        inner.config.check_timeout.as_millis().clamp(1, 600_000)
    );
    let looks = prepared.iter().zip(pieces).filter_map(|(prepared, piece)| {
        let (job, statement) = prepared.as_ref().ok()?;
        Some(look(session, job, statement, piece))
    });
    let (begun, looks) = join(session.client.batch_execute(&begin), join_all(looks)).await;
    session.roll_back();
    let mut looks = looks.into_iter();
    let mut over = begun.is_err();
    let mut outcomes = Vec::new();
    for prepared in prepared {
        let outcome = match prepared {
            Err(outcome) => outcome,
            // Not asked in earnest: the transaction was over.
            Ok(_) if over => Outcome::Again,
            Ok(_) => {
                let outcome = looks.next().unwrap_or(Outcome::Again);
                over = !matches!(outcome, Outcome::Seen(_));
                outcome
            }
        };
        outcomes.push(outcome);
    }
    outcomes
}

/// Becomes the viewer and looks.
async fn look(session: &Session, job: &Job<'_>, statement: &Statement, piece: &Piece) -> Outcome {
    let Viewer { role, claims, sub, .. } = &*job.viewer;
    let rows = job.rows.get(piece.rows.clone()).unwrap_or_default();
    let (dress, rows_asked): ([&(dyn ToSql + Sync); 3], [&(dyn ToSql + Sync); 1]) =
        ([role, claims, sub], [&rows]);
    let dressed = session.client.execute(&session.dress, &dress);
    let (dressed, seen) = join(dressed, session.client.query(statement, &rows_asked)).await;
    match (dressed, seen) {
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
    fn rows_are_cut_by_number_and_by_bytes() {
        let short = vec!["()"; 1_001];
        assert_eq!(cut(&short), [0..500, 500..1_000, 1_000..1_001]);
        let long = "x".repeat(3 << 20);
        assert_eq!(cut(&[&long, "()", &long, &long]), [0..2, 2..3, 3..4]);
    }
}
