//! From changes and viewers to verdicts: which images must be looked at, and what the answers mean.
use super::{
    Inner, UnknownDeletes,
    check::{self, Job},
    memory::Known,
    plan::{Check, NoPlan, Plan, Question},
    types::{Failure, Image, Images, OldRow, RowChange, Table, Verdict, Viewer},
};
use crate::db;
use futures_util::future::join_all;
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Fewer jobs than this are not worth a second connection.
const JOBS_APART_MIN: usize = 4;

/// How long the catalog may take over its answers.
pub(super) const CATALOG_WITHIN: Duration = Duration::from_secs(15);

/// Which image of a change.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Which {
    New,
    Old,
}

/// What an image is to a viewer: known, or the answer to come.
#[derive(Clone, Copy)]
enum Sight {
    Known(Result<bool, Failure>),
    /// Of this look, the row of this index.
    Asked(usize, usize),
}

/// The distinct rows of one table that one viewer must be asked about.
struct Look<'a> {
    question: &'a Arc<Question>,
    viewer: &'a Arc<Viewer>,
    rows: Vec<&'a str>,
    index: HashMap<&'a str, usize>,
    answers: Vec<Option<Result<bool, Failure>>>,
}

/// What is to be said about one pair.
enum Pending {
    Now(Verdict),
    /// An insert or update by its new row, and the old row of an update.
    Row(Sight, Option<Sight>),
    /// A delete by its old row.
    Gone(Sight),
}

pub(super) async fn judge(
    inner: &Inner,
    changes: &[RowChange],
    viewers: &[Arc<Viewer>],
    asked: &[(usize, usize)],
) -> Vec<Verdict> {
    let plans = plans(inner, changes, viewers, asked).await;
    let rows = rows(changes, viewers, asked, &plans);
    let mut looks: Vec<Look<'_>> = Vec::new();
    let mut by_viewer: HashMap<(u64, usize), usize> = HashMap::new();
    let mut pending = Vec::with_capacity(asked.len());
    for (change_at, viewer_at) in asked {
        let (Some(change), Some(viewer)) = (changes.get(*change_at), viewers.get(*viewer_at)) else {
            pending.push(Pending::Now(Verdict::Hidden));
            continue;
        };
        let plan = match plans.get(&(address(&change.table), viewer.role.as_str())) {
            Some(Ok(plan)) => plan,
            Some(Err(failure)) => {
                pending.push(Pending::Now(Verdict::Failed(*failure)));
                continue;
            }
            None => {
                pending.push(Pending::Now(Verdict::Hidden));
                continue;
            }
        };
        let mut sight = |which: Which| match &plan.check {
            Check::All => Sight::Known(Ok(true)),
            Check::None => Sight::Known(Ok(false)),
            Check::Lacking => Sight::Known(Err(Failure::Column)),
            Check::Ask(question) => {
                let Some(Some(row)) = rows.get(&(*change_at, which, question.id)) else {
                    return Sight::Known(Err(Failure::Column));
                };
                let look = *by_viewer.entry((question.id, *viewer_at)).or_insert_with(|| {
                    looks.push(Look::new(question, viewer));
                    looks.len() - 1
                });
                let at = looks.get_mut(look).map_or(0, |look| look.ask(row));
                Sight::Asked(look, at)
            }
        };
        let limited = !matches!(plan.check, Check::All);
        pending.push(match &change.images {
            Images::Insert { .. } => Pending::Row(sight(Which::New), None),
            Images::Update { old: None, .. } if limited => {
                Pending::Row(sight(Which::New), Some(Sight::Known(Ok(false))))
            }
            Images::Update { .. } => Pending::Row(sight(Which::New), Some(sight(Which::Old))),
            Images::Delete { old: None } if limited => Pending::Now(match inner.config.unknown_deletes {
                UnknownDeletes::Hide => Verdict::Hidden,
                UnknownDeletes::ShowKey => Verdict::Shown(OldRow::Key),
            }),
            Images::Delete { .. } if limited => Pending::Gone(sight(Which::Old)),
            Images::Delete { .. } => Pending::Now(Verdict::Shown(OldRow::Whole)),
        });
    }
    answer(inner, &mut looks).await;
    pending.into_iter().map(|pending| verdict(pending, &looks)).collect()
}

/// What is known of each table for each role that is asked about.
async fn plans<'a>(
    inner: &Inner,
    changes: &[RowChange],
    viewers: &'a [Arc<Viewer>],
    asked: &[(usize, usize)],
) -> HashMap<(usize, &'a str), Known> {
    let mut plans = HashMap::new();
    for (change, viewer) in asked {
        let (Some(change), Some(viewer)) = (changes.get(*change), viewers.get(*viewer)) else { continue };
        let key = (address(&change.table), viewer.role.as_str());
        if let Entry::Vacant(entry) = plans.entry(key) {
            entry.insert(inner.plan(&change.table, &viewer.role).await);
        }
    }
    plans
}

/// The images as text, once for each question about them; nothing where one lacks a value that policies look at.
fn rows(
    changes: &[RowChange],
    viewers: &[Arc<Viewer>],
    asked: &[(usize, usize)],
    plans: &HashMap<(usize, &str), Known>,
) -> HashMap<(usize, Which, u64), Option<String>> {
    let mut rows = HashMap::new();
    for (at, viewer) in asked {
        let (Some(change), Some(viewer)) = (changes.get(*at), viewers.get(*viewer)) else { continue };
        let plan = plans.get(&(address(&change.table), viewer.role.as_str()));
        let Some(Ok(plan)) = plan else { continue };
        let Check::Ask(question) = &plan.check else { continue };
        for which in [Which::New, Which::Old] {
            if let Some(image) = which.of(&change.images) {
                rows.entry((*at, which, question.id)).or_insert_with(|| question.row(image));
            }
        }
    }
    rows
}

/// Remembers, then asks.
async fn answer(inner: &Inner, looks: &mut [Look<'_>]) {
    for look in looks.iter_mut().filter(|look| look.question.pure) {
        let known = inner.outcomes.recall(look.question, look.viewer.fingerprint, &look.rows);
        inner.metrics.remembered.inc_by(known.iter().flatten().count() as u64);
        look.answers = known.into_iter().map(|known| known.map(Ok)).collect();
    }
    let mut jobs: Vec<(usize, Job<'_>)> = Vec::new();
    for (at, look) in looks.iter().enumerate() {
        let unknown = look.rows.iter().zip(&look.answers).filter(|(_, answer)| answer.is_none());
        let rows: Vec<&str> = unknown.map(|(row, _)| *row).collect();
        if !rows.is_empty() {
            inner.metrics.asked.inc_by(rows.len() as u64);
            jobs.push((at, Job { question: look.question.clone(), viewer: look.viewer.clone(), rows }));
        }
    }
    if jobs.is_empty() {
        return;
    }
    let began = Instant::now();
    let parts = if jobs.len() < JOBS_APART_MIN { 1 } else { inner.config.connections_max.max(1) };
    let (at, jobs): (Vec<usize>, Vec<Job<'_>>) = jobs.into_iter().unzip();
    let parts = jobs.chunks(jobs.len().div_ceil(parts)).map(|jobs| check::run(inner, jobs));
    let answers: Vec<_> = join_all(parts).await.into_iter().flatten().collect();
    inner.metrics.seconds.observe(began.elapsed().as_secs_f64());
    for ((at, job), answers) in at.into_iter().zip(&jobs).zip(answers) {
        let Some(look) = looks.get_mut(at) else { continue };
        if job.question.pure {
            let known =
                job.rows.iter().zip(&answers).filter_map(|(row, answer)| Some((*row, (*answer).ok()?)));
            inner.outcomes.remember(&job.question, job.viewer.fingerprint, &known.collect::<Vec<_>>());
        }
        let open = look.answers.iter_mut().filter(|answer| answer.is_none());
        for (open, answer) in open.zip(answers) {
            *open = Some(answer);
        }
    }
}

fn verdict(pending: Pending, looks: &[Look<'_>]) -> Verdict {
    let known = |sight| match sight {
        Sight::Known(known) => known,
        Sight::Asked(look, row) => {
            let answer = looks.get(look).and_then(|look| look.answers.get(row).copied().flatten());
            answer.unwrap_or(Err(Failure::Policy))
        }
    };
    match pending {
        Pending::Now(verdict) => verdict,
        Pending::Row(new, old) => match known(new) {
            // An old row that nobody can judge is as hidden as one that fails.
            Ok(true) if old.is_none_or(|old| known(old) == Ok(true)) => Verdict::Shown(OldRow::Whole),
            Ok(true) => Verdict::Shown(OldRow::Key),
            Ok(false) => Verdict::Hidden,
            Err(failure) => Verdict::Failed(failure),
        },
        Pending::Gone(old) => match known(old) {
            Ok(true) => Verdict::Shown(OldRow::Key),
            Ok(false) => Verdict::Hidden,
            Err(failure) => Verdict::Failed(failure),
        },
    }
}

impl Inner {
    /// What is known about a table and a role, read if need be; waits while the database is away.
    pub(super) async fn plan(&self, table: &Arc<Table>, role: &str) -> Known {
        loop {
            let generation = match self.catalog.get(table, role) {
                Ok(known) => return known,
                Err(generation) => generation,
            };
            let lent = self.sessions.lend().await;
            let read = async {
                let begin =
                    "begin read only; set local search_path = ''; set local statement_timeout = '10s'";
                lent.session.client.batch_execute(begin).await?;
                Plan::read(&lent.session.client, table, role).await
            };
            // A connection that says nothing any more is dropped.
            let Ok(read) = tokio::time::timeout(CATALOG_WITHIN, read).await else { continue };
            let known = match read {
                Ok(plan) => Ok(Arc::new(plan)),
                Err(NoPlan::UnknownRole) => Err(Failure::UnknownRole),
                Err(NoPlan::Query(error)) if error.is_closed() || db::is_transient(&error) => continue,
                Err(NoPlan::Query(error)) => {
                    let table = format!("{}.{}", table.schema, table.name);
                    tracing::error!(table, role, %error, "the catalog cannot be read: its rows are hidden");
                    Err(Failure::Policy)
                }
            };
            lent.give_back();
            self.catalog.put(generation, table, role, &known);
            return known;
        }
    }
}

impl Which {
    fn of(self, images: &Images) -> Option<&Image> {
        match (self, images) {
            (Self::New, Images::Insert { new } | Images::Update { new, .. }) => Some(new),
            (Self::Old, Images::Update { old, .. } | Images::Delete { old }) => old.as_ref(),
            _ => None,
        }
    }
}

impl<'a> Look<'a> {
    fn new(question: &'a Arc<Question>, viewer: &'a Arc<Viewer>) -> Self {
        Self { question, viewer, rows: Vec::new(), index: HashMap::new(), answers: Vec::new() }
    }

    /// The index of the row, which is asked about once however often it comes.
    fn ask(&mut self, row: &'a str) -> usize {
        *self.index.entry(row).or_insert_with(|| {
            self.rows.push(row);
            self.answers.push(None);
            self.rows.len() - 1
        })
    }
}

fn address(table: &Arc<Table>) -> usize {
    Arc::as_ptr(table).addr()
}
