//! Turns entries of the change log into frames: finds the groups, evaluates rights, and encodes.
use super::{
    Config,
    catalog::{Catalog, Described},
    filter_wait::FilterWait,
    log::Entry,
    metrics::Metrics,
    payload::{self, Shown, Unrepresentable, by_select, refusal, refused},
    postgres_filters::{Asking, Oracle},
    registry::{Broken, Group, Match, Moved, Registry, SubscribedTable},
};
use crate::{
    access::rows::{self, Failure, Images, OldRow, Rights, Rows, Security, Verdict, Viewer},
    hub::Hub,
    wal::{Cell, Op, Relation, Row, RowChange},
    wire::{socket, text},
};
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use futures_util::join;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Pause while the catalog cannot be read.
const PAUSE: Duration = Duration::from_millis(200);
/// Most rows whose policies are evaluated concurrently with the check of the catalog.
const PREFETCHED_ROWS_MAX: usize = 16;

/// Delivers changes to the channels of a registry.
#[derive(Debug)]
pub(super) struct Dispatcher {
    pub(super) config: Config,
    pub(super) hub: Hub,
    pub(super) rows: Rows,
    pub(super) catalog: Arc<Catalog>,
    pub(super) oracle: Oracle,
    pub(super) metrics: Metrics,
    /// The last entry whose transaction is visible to new snapshots, or whose wait for that timed out.
    pub(super) visible: AtomicU64,
}

/// A change with its position in the change log.
#[derive(Clone, Copy)]
struct LoggedChange<'a> {
    number: u64,
    index: u32,
    committed_at: DateTime<Utc>,
    row: &'a RowChange,
}

/// A change with the groups that match it.
struct PendingDelivery<'a> {
    told: LoggedChange<'a>,
    table: Arc<SubscribedTable>,
    matches: Vec<Match>,
}

/// Rights by table and role. The key of a table is the address of its WAL description, which stays the same when the
/// catalog is read again.
#[derive(Default)]
struct RightsCache(HashMap<usize, HashMap<String, Result<Arc<Rights>, Failure>>>);

/// Verdicts by index of the change and of the match.
type Verdicts = HashMap<(usize, usize), Verdict>;

/// Frames for the members of a group.
struct FrameBatch {
    group: Arc<Group>,
    bytes: BytesMut,
    frames: usize,
}

impl Dispatcher {
    /// Delivers these entries to the channels of `registry`, in order. Waits while the database is unavailable. Returns
    /// the channels that must move to the next lane, because their filters exceed the wait of this one.
    pub(super) async fn deliver(
        &self,
        registry: &Mutex<Registry>,
        entries: &[Arc<Entry>],
        replayed: bool,
    ) -> Vec<Moved> {
        let (from, rows_max) = {
            let registry = registry.lock();
            if registry.is_empty() {
                return Vec::new();
            }
            (registry.from(), registry.patience().rows_max())
        };
        let parts = entries.iter().filter_map(|entry| Some((entry.number, entry.part.as_ref()?)));
        let rows = parts.flat_map(|(number, part)| {
            let committed_at = part.committed_at;
            part.rows.iter().map(move |(index, row)| LoggedChange {
                number,
                index: *index,
                committed_at,
                row,
            })
        });
        let rows: Vec<LoggedChange<'_>> = rows.filter(|told| (told.number, told.index) >= from).collect();
        if rows.iter().any(|told| self.is_for_somebody(registry, told)) {
            // Cached rights must be at least as new as these changes.
            let visible = self.visible.load(Ordering::Acquire);
            let fresh = entries.iter().filter(|entry| entry.number > visible);
            let transactions: Vec<u32> = fresh.filter_map(|entry| entry.transaction).collect();
            // Concurrently, policies are evaluated with the cached rights, which are nearly always still valid.
            join!(self.rows.refresh(&transactions), self.prefetch(registry, &rows));
            self.visible.fetch_max(entries.last().map_or(0, |entry| entry.number), Ordering::AcqRel);
        }
        let mut moved = Vec::new();
        for run in of_one_shape(&rows).flat_map(|run| run.chunks(rows_max)) {
            moved.extend(self.deliver_run(registry, run, replayed).await);
        }
        moved
    }

    /// Evaluates policies for a few rows with the cached rights, and caches the outcomes. Has no other effect.
    async fn prefetch(&self, registry: &Mutex<Registry>, rows: &[LoggedChange<'_>]) {
        if rows.len() > PREFETCHED_ROWS_MAX {
            // With many rows, a second search of their groups costs more than it saves.
            return;
        }
        let (due, known) = {
            let registry = registry.lock();
            if registry.patience() != FilterWait::Never {
                return;
            }
            let mut known = RightsCache::default();
            for LoggedChange { row, .. } in rows {
                let Some(table) = registry.table(&row.relation) else { continue };
                let roles = registry.roles(row.relation.oid).into_iter();
                let rights = roles.filter_map(|role| {
                    let rights = self.rows.known_rights(&table.rights, &role)?;
                    Some((role, rights))
                });
                known.0.entry(address(&table.relation)).or_insert_with(|| rights.collect());
            }
            let is_limited = |rights: &Result<Arc<Rights>, Failure>| {
                rights.as_ref().is_ok_and(|rights| rights.security == Security::On)
            };
            if !known.0.values().flat_map(HashMap::values).any(is_limited) {
                return;
            }
            // Postgres evaluates no filter here: a group whose filter needs it does not match.
            let mut asking = self.oracle.asking(FilterWait::Never);
            let due = rows.iter().filter_map(|told| {
                let table = registry.table(&told.row.relation)?.clone();
                let matches = registry.find(told.row, &mut asking, &mut Vec::new());
                Some(PendingDelivery { told: *told, table, matches })
            });
            (due.collect::<Vec<_>>(), known)
        };
        let Asked { changes, viewers, asked, .. } = Asked::of(&due, &known);
        self.rows.prefetch(&changes, &viewers, &asked).await;
    }

    /// Whether a group may want changes of the table.
    fn is_for_somebody(&self, registry: &Mutex<Registry>, told: &LoggedChange<'_>) -> bool {
        let registry = registry.lock();
        let relation = &told.row.relation;
        registry.table(relation).is_none() || registry.is_watched(relation.oid)
    }

    /// Like [`Self::deliver`], for rows in which each table has one description.
    async fn deliver_run(
        &self,
        registry: &Mutex<Registry>,
        rows: &[LoggedChange<'_>],
        replayed: bool,
    ) -> Option<Moved> {
        self.describe(registry, rows).await;
        let known = self.rights(registry, rows).await;
        let (due, moved) = self.find(registry, rows, &known).await;
        if due.is_empty() {
            return moved;
        }
        let verdicts = self.judge(&due, &known).await;
        let mut parcels: Vec<FrameBatch> = Vec::new();
        let mut of_group: HashMap<usize, usize> = HashMap::new();
        for (at, due) in due.iter().enumerate() {
            let mut made = Vec::new();
            for (nth, found) in due.matches.iter().enumerate() {
                let group = &found.group;
                let Some(sight) = self.sight(due, group, &known, verdicts.get(&(at, nth))) else { continue };
                let parcel = *of_group.entry(Arc::as_ptr(group).addr()).or_insert_with(|| {
                    parcels.push(FrameBatch { group: group.clone(), bytes: BytesMut::new(), frames: 0 });
                    parcels.len() - 1
                });
                let Some(parcel) = parcels.get_mut(parcel) else { continue };
                match sight {
                    Visibility::Unrepresentable(why) => {
                        let items = found.items.iter().filter_map(|at| group.spec.items.get(*at));
                        let ids: Vec<u64> = items.map(|item| item.id).collect();
                        parcel.add(&due.told, &ids, &refusal(due.told.row, why), replayed);
                    }
                    Visibility::Row(rights, old) => {
                        for (select, ids) in by_select(&group.spec.items, &found.items) {
                            let data = self.data(due, (rights, old, select), &mut made);
                            parcel.add(&due.told, &ids, &data, replayed);
                        }
                    }
                }
            }
        }
        for FrameBatch { group, bytes, frames } in parcels {
            let bytes = bytes.freeze();
            let members = group.members.lock();
            members.iter().for_each(|member| member.put(&self.hub, &bytes, frames));
            self.metrics.delivered.inc_by((members.len() * frames) as u64);
        }
        if replayed {
            return moved;
        }
        let last = due.iter().map(|due| due.told.committed_at).max();
        if let Some(last) = last {
            let age = (self.metrics.clock.now() - last).to_std().unwrap_or_default();
            self.metrics.seconds.observe(age.as_secs_f64());
        }
        moved
    }

    /// The part of a change that a group may see; `None` if it sees nothing. Sends an error that applies, once.
    fn sight<'k>(
        &self,
        due: &PendingDelivery<'_>,
        group: &Group,
        known: &'k RightsCache,
        verdict: Option<&Verdict>,
    ) -> Option<Visibility<'k>> {
        let rights = match known.of(&due.table, group.spec.viewer.role())? {
            Ok(rights) => rights,
            Err(failure) => {
                self.failed(due, group, *failure);
                return None;
            }
        };
        if let Some(why) = refused(due.told.row.op, rights) {
            let told = (due.table.relation.oid, why.text().to_owned());
            return group.told.lock().insert(told).then_some(Visibility::Unrepresentable(why));
        }
        match verdict {
            None => Some(Visibility::Row(rights, OldRow::Whole)),
            Some(Verdict::Shown(old)) => Some(Visibility::Row(rights, *old)),
            Some(Verdict::Hidden) => None,
            Some(Verdict::Failed(failure)) => {
                self.failed(due, group, *failure);
                None
            }
        }
    }

    /// The encoded change for these rights, this part of the old row and these columns. `made` caches it.
    fn data<'s>(
        &self,
        due: &PendingDelivery<'_>,
        shown: (&'s Arc<Rights>, OldRow, Option<&'s [String]>),
        made: &mut Vec<(Shape<'s>, Bytes)>,
    ) -> Bytes {
        let (rights, old, select) = shown;
        let same = |shape: &Shape<'_>| Arc::ptr_eq(shape.0, rights) && (shape.1, shape.2) == (old, select);
        if let Some((_, data)) = made.iter().find(|(shape, _)| same(shape)) {
            return data.clone();
        }
        let LoggedChange { row, committed_at, .. } = due.told;
        let view = Shown { table: &due.table, row, committed_at, rights, old, select };
        let data = Bytes::from(view.data(self.config.record_bytes_max));
        made.push((shown, data.clone()));
        data
    }

    /// Reads the catalog for tables that are unknown or may have changed. Waits while the catalog is unavailable. The
    /// fingerprint check covers only tables with cached rights, so others are read each time.
    async fn describe(&self, registry: &Mutex<Registry>, rows: &[LoggedChange<'_>]) {
        let mut unknown: Vec<Arc<Relation>> = Vec::new();
        let epoch = self.rows.epoch();
        {
            let registry = registry.lock();
            for LoggedChange { row, .. } in rows {
                let is_known = registry.table(&row.relation).is_some_and(|table| {
                    let is_looked_at =
                        !registry.is_watched(row.relation.oid) || self.rows.remembers(&table.rights);
                    table.read_at() == epoch && is_looked_at
                });
                if !is_known && !unknown.iter().any(|it| Arc::ptr_eq(it, &row.relation)) {
                    unknown.push(row.relation.clone());
                }
            }
        }
        for relation in unknown {
            let table = self.table(relation).await;
            table.set_read_at(epoch);
            let broken = {
                let mut registry = registry.lock();
                let known = registry.table(&table.relation);
                if let Some(known) = known.filter(|known| known.described == table.described) {
                    known.set_read_at(epoch);
                    continue;
                }
                registry.describe(table)
            };
            self.report_broken(broken);
        }
    }

    async fn table(&self, relation: Arc<Relation>) -> Arc<SubscribedTable> {
        loop {
            match self.catalog.table(relation.oid).await {
                Ok(described) => return Arc::new(self.known(relation, described)),
                Err(error) => {
                    tracing::debug!(%error, "row changes wait for the catalog");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Combines the descriptions of a table in the WAL and in the catalog.
    pub(super) fn known(
        &self,
        relation: Arc<Relation>,
        described: Option<Arc<Described>>,
    ) -> SubscribedTable {
        let for_rights = described.as_ref().map(|described| self.catalog.for_rights(described));
        if described.as_ref().is_some_and(|described| described.unlimited) {
            tracing::warn!(
                table = format!("{}.{}", relation.schema, relation.name),
                "clients get no changes of this table: it is published with a row filter, and without it by another \
                 publication"
            );
        }
        SubscribedTable::new(relation, described, for_rights)
    }

    /// Sends an error to the channels whose items can no longer be bound to a table.
    pub(super) fn report_broken(&self, broken: Vec<Broken>) {
        for Broken { group, item, why } in broken {
            let Some(item) = group.spec.items.get(item) else { continue };
            self.metrics.failures.inc();
            let text = item.exception("P0001 (raise_exception)", &why.to_string());
            group.members.lock().iter().for_each(|member| member.send_status("error", &text));
        }
    }

    /// The groups that match these changes, and the channels that move to the next lane because of their filters.
    async fn find<'a>(
        &self,
        registry: &Mutex<Registry>,
        rows: &[LoggedChange<'a>],
        known: &RightsCache,
    ) -> (Vec<PendingDelivery<'a>>, Option<Moved>) {
        let patience = registry.lock().patience();
        let mut until = patience.within().map(|within| Instant::now() + within);
        // Errors to be sent once, regardless of the number of passes.
        let mut untold: Vec<(usize, Match)> = Vec::new();
        let mut asking = self.oracle.asking(patience);
        let (mut all, late) = loop {
            let (all, late) = self.look(registry, rows, known, (&mut asking, &mut untold));
            let Some(until) = until.as_mut().filter(|_| !late.is_empty()) else { break (all, late) };
            if Instant::now() < *until {
                self.oracle.fetch(&mut asking, patience, until).await;
            } else if matches!(patience, FilterWait::Own(_)) {
                // There is no further lane: a comparison without an answer counts as no match.
                asking.give_up();
                self.report_slow_filter(&late, rows);
            } else {
                break (all, late);
            }
        };
        self.oracle.keep(asking, patience);
        let Some(first) = rows.first().filter(|_| !late.is_empty()) else { return (all, None) };
        for due in &mut all {
            due.matches.retain(|found| !late.iter().any(|group| Arc::ptr_eq(group, &found.group)));
        }
        all.retain(|due| !due.matches.is_empty());
        (all, Some(registry.lock().take(&late, (first.number, first.index))))
    }

    /// One pass over all rows, with the answers that are known.
    fn look<'a>(
        &self,
        registry: &Mutex<Registry>,
        rows: &[LoggedChange<'a>],
        known: &RightsCache,
        (asking, untold): (&mut Asking, &mut Vec<(usize, Match)>),
    ) -> (Vec<PendingDelivery<'a>>, Vec<Arc<Group>>) {
        let (mut all, mut late) = (Vec::new(), Vec::new());
        let mut registry = registry.lock();
        asking.begin();
        for (at, told) in rows.iter().copied().enumerate() {
            let row = told.row;
            let Some(table) = registry.table(&row.relation).cloned() else { continue };
            let is_refused = |role: &str| {
                known
                    .of(&table, role)
                    .is_some_and(|it| it.as_ref().is_ok_and(|it| refused(row.op, it).is_some()))
            };
            let newly = registry.take_refused(&table, row.op, is_refused);
            untold.extend(newly.into_iter().map(|found| (at, found)));
            let mut matches = registry.find(row, asking, &mut late);
            let here = untold.iter().filter(|(of, _)| *of == at).map(|(_, found)| found.clone());
            matches.splice(0..0, here);
            if !matches.is_empty() {
                all.push(PendingDelivery { told, table, matches });
            }
        }
        (all, late)
    }

    /// Sends an error about a slow filter to these groups, once.
    fn report_slow_filter(&self, late: &[Arc<Group>], rows: &[LoggedChange<'_>]) {
        self.metrics.failures.inc();
        let Some(Relation { oid, schema, name, .. }) = rows.first().map(|told| &*told.row.relation) else {
            return;
        };
        let text = format!("Unable to show changes of {schema}.{name}: a filter took too long");
        for group in late {
            if group.told.lock().insert((*oid, text.clone())) {
                group.members.lock().iter().for_each(|member| member.send_status("error", &text));
            }
        }
    }

    /// The rights of each subscribed role on the tables of these rows.
    async fn rights(&self, registry: &Mutex<Registry>, rows: &[LoggedChange<'_>]) -> RightsCache {
        let mut asked: HashMap<usize, (Arc<SubscribedTable>, Vec<String>)> = HashMap::new();
        {
            let registry = registry.lock();
            for LoggedChange { row, .. } in rows {
                let Some(table) = registry.table(&row.relation) else { continue };
                let key = address(&table.relation);
                asked.entry(key).or_insert_with(|| (table.clone(), registry.roles(row.relation.oid)));
            }
        }
        let mut known = RightsCache::default();
        for (key, (table, roles)) in asked {
            for role in roles {
                let rights = self.rows.rights(&table.rights, &role).await;
                known.0.entry(key).or_default().insert(role, rights);
            }
        }
        known
    }

    /// Evaluates row security for the matches that need it.
    async fn judge(&self, due: &[PendingDelivery<'_>], known: &RightsCache) -> Verdicts {
        let Asked { changes, viewers, asked, places } = Asked::of(due, known);
        if asked.is_empty() {
            return Verdicts::new();
        }
        places.into_iter().zip(self.rows.judge(&changes, &viewers, &asked).await).collect()
    }

    /// Sends an error to a group, once: changes of a table cannot be shown to it.
    fn failed(&self, due: &PendingDelivery<'_>, group: &Group, failure: Failure) {
        self.metrics.failures.inc();
        let Relation { oid, schema, name, .. } = &*due.table.relation;
        let text = format!("Unable to show changes of {schema}.{name}: {failure}");
        if group.told.lock().insert((*oid, text.clone())) {
            group.members.lock().iter().for_each(|member| member.send_status("error", &text));
        }
    }
}

/// The input of an evaluation of row security.
#[derive(Default)]
struct Asked {
    changes: Vec<rows::RowChange>,
    viewers: Vec<Arc<Viewer>>,
    /// Indexes of a change and a viewer.
    asked: Vec<(usize, usize)>,
    /// For each pair in `asked`, the index of the delivery and of the match.
    places: Vec<(usize, usize)>,
}

impl Asked {
    fn of(due: &[PendingDelivery<'_>], known: &RightsCache) -> Self {
        let (mut all, mut nth_viewer) = (Self::default(), HashMap::<Arc<Viewer>, usize>::new());
        for (at, due) in due.iter().enumerate() {
            let mut change = None;
            for (nth, found) in due.matches.iter().enumerate() {
                let viewer = &found.group.spec.viewer;
                let Some(Ok(rights)) = known.of(&due.table, viewer.role()) else { continue };
                if rights.security != Security::On || refused(due.told.row.op, rights).is_some() {
                    continue;
                }
                let change = *change.get_or_insert_with(|| {
                    let (table, images) = (due.table.rights.clone(), images(due.told.row));
                    all.changes.push(rows::RowChange { table, images });
                    all.changes.len() - 1
                });
                let viewer = *nth_viewer.entry(viewer.clone()).or_insert_with(|| {
                    all.viewers.push(viewer.clone());
                    all.viewers.len() - 1
                });
                all.asked.push((change, viewer));
                all.places.push((at, nth));
            }
        }
        all
    }
}

/// Splits rows, in order, before each row whose table has a new description.
fn of_one_shape<'t, 'a>(rows: &'t [LoggedChange<'a>]) -> impl Iterator<Item = &'t [LoggedChange<'a>]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let mut shapes: HashMap<u32, &Arc<Relation>> = HashMap::new();
        let end = rest.iter().position(|told| {
            let relation = &told.row.relation;
            !Arc::ptr_eq(shapes.entry(relation.oid).or_insert(relation), relation)
        });
        let (run, others) = rest.split_at(end.unwrap_or(rest.len()));
        rest = others;
        (!run.is_empty()).then_some(run)
    })
}

impl RightsCache {
    fn of(&self, table: &Arc<SubscribedTable>, role: &str) -> Option<&Result<Arc<Rights>, Failure>> {
        self.0.get(&address(&table.relation))?.get(role)
    }
}

/// The inputs on which an encoded change depends: rights, part of the old row, columns.
type Shape<'s> = (&'s Arc<Rights>, OldRow, Option<&'s [String]>);

/// The part of a change that a group sees.
enum Visibility<'k> {
    /// The row with these rights, and this part of the old row.
    Row(&'k Arc<Rights>, OldRow),
    /// Why the role may not see the table.
    Unrepresentable(Unrepresentable),
}

impl FrameBatch {
    fn add(&mut self, told: &LoggedChange<'_>, ids: &[u64], data: &[u8], replayed: bool) {
        let spec = &self.group.spec;
        let event = if spec.plain { told.row.op.as_str() } else { "postgres_changes" };
        let (mut before, after) = text::envelope(spec.version, None, None, &spec.topic, event);
        let mut tail = Vec::new();
        if !spec.plain {
            before.extend_from_slice(b"{\"ids\":");
            before.extend_from_slice(payload::ids(ids).as_bytes());
            before.extend_from_slice(b",\"data\":");
            if spec.numbered {
                let replayed = if replayed { ",\"replayed\":true" } else { "" };
                tail =
                    format!(",\"meta\":{{\"id\":\"{}:{}\"{replayed}}}", told.number, told.index).into_bytes();
            }
            tail.push(b'}');
        }
        let size = before.len() + data.len() + tail.len() + after.len();
        self.bytes.reserve(size + socket::HEADER_BYTES_MAX);
        socket::put_text_header(&mut self.bytes, size);
        for part in [&before[..], data, &tail, &after] {
            self.bytes.extend_from_slice(part);
        }
        self.frames += 1;
    }
}

fn address(relation: &Arc<Relation>) -> usize {
    Arc::as_ptr(relation).addr()
}

/// The images of a change for row security.
fn images(row: &RowChange) -> Images {
    let cell = |cell: &Cell| match cell {
        Cell::Null => rows::Cell::Null,
        Cell::Unchanged => rows::Cell::Unknown,
        Cell::Text(text) => rows::Cell::Text(text.clone()),
    };
    let is_carried =
        |at: usize| !row.old_is_key_only || row.relation.columns.get(at).is_some_and(|column| column.is_key);
    let known = |(at, it): (usize, &Cell)| if is_carried(at) { cell(it) } else { rows::Cell::Unknown };
    let old = row.old.as_ref().map(|old: &Row| old.iter().enumerate().map(known).collect::<Vec<_>>());
    match (row.op, &row.new) {
        (Op::Delete, _) | (_, None) => Images::Delete { old },
        (op, Some(new)) => {
            let cells = 0..new.len();
            let new = cells.map(|at| row.completed(new, at).map_or(rows::Cell::Unknown, cell)).collect();
            if op == Op::Insert { Images::Insert { new } } else { Images::Update { new, old } }
        }
    }
}
