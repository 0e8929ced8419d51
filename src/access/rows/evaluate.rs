//! Turns pairs of a change and a viewer into verdicts: selects the images to check, and interprets the
//! outcomes.
use super::{
    Inner, UnknownDeletes,
    check::{self, Job},
    decision_cache::{CachedPlan, ROW_BYTES_MAX},
    plan::{Check, Plan, PlanError, PolicyQuery},
    types::{Cell, Failure, Image, Images, OldRow, PolicyTable, RowChange, Verdict, Viewer},
};
use crate::db;
use futures_util::{FutureExt, future::join_all};
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// With fewer jobs, one connection runs them all.
const JOBS_APART_MIN: usize = 4;

/// Most time for one read of the catalog; the connection is closed after that.
pub(super) const CATALOG_WITHIN: Duration = Duration::from_secs(15);

/// One of the images of a change.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum ImageKind {
    New,
    Old,
}

/// Whether a viewer sees an image: known, or part of a batch that is checked.
#[derive(Clone, Copy)]
enum Visibility {
    Known(Result<bool, Failure>),
    /// Index of the batch, and of the row in it.
    Batched(usize, usize),
}

/// The distinct rows of one table to check for one viewer.
struct Batch<'a> {
    query: &'a Arc<PolicyQuery>,
    viewer: &'a Arc<Viewer>,
    rows: Vec<&'a str>,
    index: HashMap<&'a str, usize>,
    answers: Vec<Option<Result<bool, Failure>>>,
}

/// The verdict about one pair, possibly before its outcomes are known.
enum Pending {
    Final(Verdict),
    /// An insert or update: its new row, and for an update the old row.
    Row(Visibility, Option<Visibility>),
    /// A delete: its old row, and whether the change carries every column of it.
    Deleted(Visibility, bool),
}

/// Returns a verdict for each pair (index of a change, index of a viewer) in `asked`, in that order.
pub(super) async fn judge(
    inner: &Arc<Inner>,
    changes: &[RowChange],
    viewers: &[Arc<Viewer>],
    asked: &[(usize, usize)],
) -> Vec<Verdict> {
    let plans = plans(inner, changes, viewers, asked).await;
    let rows = rows(changes, viewers, asked, &plans);
    let mut batches: Vec<Batch<'_>> = Vec::new();
    // One batch for each query and viewer; equal rows in it are checked once.
    let mut by_viewer: HashMap<(u64, usize), usize> = HashMap::new();
    let mut pending = Vec::with_capacity(asked.len());
    for (change_at, viewer_at) in asked {
        let (Some(change), Some(viewer)) = (changes.get(*change_at), viewers.get(*viewer_at)) else {
            pending.push(Pending::Final(Verdict::Hidden));
            continue;
        };
        let plan = match plans.get(&(address(&change.table), viewer.role.as_str())) {
            Some(Ok(plan)) => plan,
            Some(Err(failure)) => {
                pending.push(Pending::Final(Verdict::Failed(*failure)));
                continue;
            }
            None => {
                pending.push(Pending::Final(Verdict::Hidden));
                continue;
            }
        };
        let mut visibility = |kind: ImageKind| match &plan.check {
            Check::AllVisible => Visibility::Known(Ok(true)),
            Check::NoneVisible => Visibility::Known(Ok(false)),
            Check::MissingColumn => Visibility::Known(Err(Failure::Column)),
            Check::Query(query) => {
                let Some(Some(row)) = rows.get(&(*change_at, kind, query.id)) else {
                    return Visibility::Known(Err(Failure::Column));
                };
                let batch = *by_viewer.entry((query.id, *viewer_at)).or_insert_with(|| {
                    batches.push(Batch::new(query, viewer));
                    batches.len() - 1
                });
                let at = batches.get_mut(batch).map_or(0, |batch| batch.add(row));
                Visibility::Batched(batch, at)
            }
        };
        let limited = !matches!(plan.check, Check::AllVisible);
        pending.push(match &change.images {
            Images::Insert { .. } => Pending::Row(visibility(ImageKind::New), None),
            // Without an old image its visibility is unknown, so only the key of the old row is shown.
            Images::Update { old: None, .. } if limited => {
                Pending::Row(visibility(ImageKind::New), Some(Visibility::Known(Ok(false))))
            }
            Images::Update { .. } => {
                Pending::Row(visibility(ImageKind::New), Some(visibility(ImageKind::Old)))
            }
            Images::Delete { old } if limited => {
                match (is_complete(old.as_ref()), inner.config.unknown_deletes) {
                    (false, UnknownDeletes::ShowKey) => Pending::Final(Verdict::Shown(OldRow::Key)),
                    (complete, _) => Pending::Deleted(visibility(ImageKind::Old), complete),
                }
            }
            Images::Delete { .. } => Pending::Final(Verdict::Shown(OldRow::Whole)),
        });
    }
    check_batches(inner, &mut batches).await;
    pending.into_iter().map(|pending| verdict(pending, &batches)).collect()
}

/// Evaluates what can be cached, with the plans that are cached; see [`super::Rows::prefetch`].
pub(super) async fn prefetch(
    inner: &Arc<Inner>,
    changes: &[RowChange],
    viewers: &[Arc<Viewer>],
    asked: &[(usize, usize)],
) {
    let is_cacheable = |(change, viewer): &(usize, usize)| {
        let (Some(change), Some(viewer)) = (changes.get(*change), viewers.get(*viewer)) else { return false };
        let Ok(Ok(plan)) = inner.catalog.get(&change.table, &viewer.role) else { return false };
        let Check::Query(query) = &plan.check else { return false };
        let images = [ImageKind::New, ImageKind::Old].into_iter().filter_map(|kind| kind.of(&change.images));
        query.pure && images.into_iter().all(|image| text_bytes(image) <= ROW_BYTES_MAX)
    };
    let asked: Vec<_> = asked.iter().copied().filter(is_cacheable).collect();
    if !asked.is_empty() {
        judge(inner, changes, viewers, &asked).await;
    }
}

/// A lower bound of the size of an image as text.
fn text_bytes(image: &Image) -> usize {
    let bytes = |cell: &Cell| if let Cell::Text(text) = cell { text.len() } else { 0 };
    image.iter().map(bytes).sum()
}

/// Returns the plan of each pair of a table and a role that occurs in `asked`.
async fn plans<'a>(
    inner: &Arc<Inner>,
    changes: &[RowChange],
    viewers: &'a [Arc<Viewer>],
    asked: &[(usize, usize)],
) -> HashMap<(usize, &'a str), CachedPlan> {
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

/// Returns the images as text, once for each query that takes them; `None` where an image lacks a column of
/// the policies.
fn rows(
    changes: &[RowChange],
    viewers: &[Arc<Viewer>],
    asked: &[(usize, usize)],
    plans: &HashMap<(usize, &str), CachedPlan>,
) -> HashMap<(usize, ImageKind, u64), Option<String>> {
    let mut rows = HashMap::new();
    for (at, viewer) in asked {
        let (Some(change), Some(viewer)) = (changes.get(*at), viewers.get(*viewer)) else { continue };
        let plan = plans.get(&(address(&change.table), viewer.role.as_str()));
        let Some(Ok(plan)) = plan else { continue };
        let Check::Query(query) = &plan.check else { continue };
        for kind in [ImageKind::New, ImageKind::Old] {
            if let Some(image) = kind.of(&change.images) {
                rows.entry((*at, kind, query.id)).or_insert_with(|| query.row(image));
            }
        }
    }
    rows
}

/// Whether the change carries every column of the old row.
fn is_complete(old: Option<&Image>) -> bool {
    old.is_some_and(|old| !old.contains(&Cell::Unknown))
}

/// Fills in the outcomes of every batch: from the cache where policies are pure, else from Postgres.
async fn check_batches(inner: &Inner, batches: &mut [Batch<'_>]) {
    for batch in batches.iter_mut().filter(|batch| batch.query.pure) {
        let cached = inner.outcomes.recall(batch.query, batch.viewer.fingerprint, &batch.rows);
        inner.metrics.remembered.inc_by(cached.iter().flatten().count() as u64);
        batch.answers = cached.into_iter().map(|cached| cached.map(Ok)).collect();
    }
    let mut jobs: Vec<(usize, Job<'_>)> = Vec::new();
    for (at, batch) in batches.iter().enumerate() {
        let unknown = batch.rows.iter().zip(&batch.answers).filter(|(_, answer)| answer.is_none());
        let rows: Vec<&str> = unknown.map(|(row, _)| *row).collect();
        if !rows.is_empty() {
            inner.metrics.asked.inc_by(rows.len() as u64);
            jobs.push((at, Job { query: batch.query.clone(), viewer: batch.viewer.clone(), rows }));
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
        let Some(batch) = batches.get_mut(at) else { continue };
        if job.query.pure {
            // Failures are not cached: a policy may fail for a reason that passes, such as a timeout.
            let known =
                job.rows.iter().zip(&answers).filter_map(|(row, answer)| Some((*row, (*answer).ok()?)));
            inner.outcomes.remember(&job.query, job.viewer.fingerprint, &known.collect::<Vec<_>>());
        }
        // The job has the rows without an answer in their order, so its answers fill the gaps in this order.
        let open = batch.answers.iter_mut().filter(|answer| answer.is_none());
        for (open, answer) in open.zip(answers) {
            *open = Some(answer);
        }
    }
}

fn verdict(pending: Pending, batches: &[Batch<'_>]) -> Verdict {
    let known = |visibility| match visibility {
        Visibility::Known(known) => known,
        Visibility::Batched(batch, row) => {
            let answer = batches.get(batch).and_then(|batch| batch.answers.get(row).copied().flatten());
            // Fails closed if an outcome is missing.
            answer.unwrap_or(Err(Failure::Policy))
        }
    };
    match pending {
        Pending::Final(verdict) => verdict,
        Pending::Row(new, old) => match known(new) {
            // An old row whose check failed counts as hidden: only its key is shown.
            Ok(true) if old.is_none_or(|old| known(old) == Ok(true)) => Verdict::Shown(OldRow::Whole),
            Ok(true) => Verdict::Shown(OldRow::Key),
            Ok(false) => Verdict::Hidden,
            Err(failure) => Verdict::Failed(failure),
        },
        Pending::Deleted(old, complete) => match known(old) {
            Ok(true) => Verdict::Shown(OldRow::Key),
            Ok(false) => Verdict::Hidden,
            // A policy that reads a column which the change does not carry fails by design, not by a fault.
            Err(Failure::Column | Failure::Policy) if !complete => Verdict::Hidden,
            Err(failure) => Verdict::Failed(failure),
        },
    }
}

impl Inner {
    /// Returns the plan for a table and a role, from the cache or from the catalog. Concurrent callers share
    /// one read. Waits while the database is unavailable.
    pub(super) async fn plan(self: &Arc<Self>, table: &Arc<PolicyTable>, role: &str) -> CachedPlan {
        let generation = match self.catalog.get(table, role) {
            Ok(known) => return known,
            Err(generation) => generation,
        };
        // The generation is part of the key: a caller after a fingerprint check must not join a read that
        // began before it.
        let key = (address(table), role.to_owned(), generation);
        let (inner, table, role) = (self.clone(), table.clone(), role.to_owned());
        let read = || async move { inner.read_plan(generation, &table, &role).await }.boxed();
        self.reading.ask(key, read).await.answer
    }

    async fn read_plan(&self, generation: u64, table: &Arc<PolicyTable>, role: &str) -> CachedPlan {
        loop {
            let lent = self.sessions.lend().await;
            let read = async {
                let begin =
                    "begin read only; set local search_path = ''; set local statement_timeout = '10s'";
                lent.session.client.batch_execute(begin).await?;
                Plan::read(&lent.session.client, table, role, self.config.cache).await
            };
            // A connection that does not answer is closed by dropping `lent`, and the read is retried on
            // another one.
            let Ok(read) = tokio::time::timeout(CATALOG_WITHIN, read).await else { continue };
            let known = match read {
                Ok(plan) => Ok(Arc::new(plan)),
                Err(PlanError::UnknownRole) => Err(Failure::UnknownRole),
                Err(PlanError::Query(error)) if error.is_closed() || db::is_transient(&error) => continue,
                Err(PlanError::Query(error)) => {
                    let table = format!("{}.{}", table.schema, table.name);
                    tracing::error!(table, role, %error, "catalog not readable, rows of the table are hidden");
                    Err(Failure::Policy)
                }
            };
            lent.give_back();
            self.catalog.put(generation, table, role, &known);
            return known;
        }
    }
}

impl ImageKind {
    fn of(self, images: &Images) -> Option<&Image> {
        match (self, images) {
            (Self::New, Images::Insert { new } | Images::Update { new, .. }) => Some(new),
            (Self::Old, Images::Update { old, .. } | Images::Delete { old }) => old.as_ref(),
            _ => None,
        }
    }
}

impl<'a> Batch<'a> {
    fn new(query: &'a Arc<PolicyQuery>, viewer: &'a Arc<Viewer>) -> Self {
        Self { query, viewer, rows: Vec::new(), index: HashMap::new(), answers: Vec::new() }
    }

    /// Returns the index of the row, which is added once even if it occurs in several changes.
    fn add(&mut self, row: &'a str) -> usize {
        *self.index.entry(row).or_insert_with(|| {
            self.rows.push(row);
            self.answers.push(None);
            self.rows.len() - 1
        })
    }
}

fn address(table: &Arc<PolicyTable>) -> usize {
    Arc::as_ptr(table).addr()
}
