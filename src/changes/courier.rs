//! From entries of the log to frames: which groups they are for, who may see them, and how they are told.
use super::{
    Config,
    catalog::{Catalog, Described},
    log::Entry,
    metrics::Metrics,
    oracle::Oracle,
    payload::{self, Refused, Shown, by_select, refusal, refused},
    registry::{Broken, Group, Match, Registry, Table},
};
use crate::{
    access::rows::{self, Failure, Images, OldRow, Rights, Rows, Security, Verdict, Viewer},
    hub::Hub,
    wal::{Cell, Op, Relation, Row, RowChange},
    wire::{socket, text},
};
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};

/// Pause while the catalog cannot be read.
const PAUSE: Duration = Duration::from_millis(200);

/// Delivers changes to whoever is in a registry.
#[derive(Debug)]
pub(super) struct Courier {
    pub(super) config: Config,
    pub(super) hub: Hub,
    pub(super) rows: Rows,
    pub(super) catalog: Arc<Catalog>,
    pub(super) oracle: Oracle,
    pub(super) metrics: Metrics,
}

/// A change, and where it stands.
#[derive(Clone, Copy)]
struct Told<'a> {
    number: u64,
    index: u32,
    committed_at: DateTime<Utc>,
    row: &'a RowChange,
}

/// A change that is for somebody.
struct Due<'a> {
    told: Told<'a>,
    table: Arc<Table>,
    matches: Vec<Match>,
}

/// What roles may see of tables, by the log's description, which stays when the catalog's is read again.
#[derive(Default)]
struct Known(HashMap<usize, HashMap<String, Result<Arc<Rights>, Failure>>>);

/// By the place of the change and of the match.
type Verdicts = HashMap<(usize, usize), Verdict>;

/// Frames for the members of a group.
struct Parcel {
    group: Arc<Group>,
    bytes: BytesMut,
    frames: usize,
}

impl Courier {
    /// Puts out what these entries are to those in `registry`, in order. Waits while the database is away.
    pub(super) async fn deliver(&self, registry: &Mutex<Registry>, entries: &[Arc<Entry>], replayed: bool) {
        if registry.lock().is_empty() {
            return;
        }
        let parts = entries.iter().filter_map(|entry| Some((entry.number, entry.part.as_ref()?)));
        let rows = parts.flat_map(|(number, part)| {
            let committed_at = part.committed_at;
            part.rows.iter().map(move |(index, row)| Told { number, index: *index, committed_at, row })
        });
        let rows: Vec<Told<'_>> = rows.collect();
        for run in of_one_shape(&rows) {
            self.deliver_run(registry, run, replayed).await;
        }
    }

    /// As [`Self::deliver`], for rows in which each table has one description.
    async fn deliver_run(&self, registry: &Mutex<Registry>, rows: &[Told<'_>], replayed: bool) {
        self.describe(registry, rows).await;
        let known = self.rights(registry, rows).await;
        let due = self.find(registry, rows, &known).await;
        if due.is_empty() {
            return;
        }
        let verdicts = self.judge(&due, &known).await;
        let mut parcels: Vec<Parcel> = Vec::new();
        let mut of_group: HashMap<usize, usize> = HashMap::new();
        for (at, due) in due.iter().enumerate() {
            let mut made = Vec::new();
            for (nth, found) in due.matches.iter().enumerate() {
                let group = &found.group;
                let Some(sight) = self.sight(due, group, &known, verdicts.get(&(at, nth))) else { continue };
                let parcel = *of_group.entry(Arc::as_ptr(group).addr()).or_insert_with(|| {
                    parcels.push(Parcel { group: group.clone(), bytes: BytesMut::new(), frames: 0 });
                    parcels.len() - 1
                });
                let Some(parcel) = parcels.get_mut(parcel) else { continue };
                match sight {
                    Sight::Refused(why) => {
                        let items = found.items.iter().filter_map(|at| group.spec.items.get(*at));
                        let ids: Vec<u64> = items.map(|item| item.id).collect();
                        parcel.add(&due.told, &ids, &refusal(due.told.row, why), replayed);
                    }
                    Sight::Row(rights, old) => {
                        for (select, ids) in by_select(&group.spec.items, &found.items) {
                            let data = self.data(due, (rights, old, select), &mut made);
                            parcel.add(&due.told, &ids, &data, replayed);
                        }
                    }
                }
            }
        }
        for Parcel { group, bytes, frames } in parcels {
            let bytes = bytes.freeze();
            let members = group.members.lock();
            members.iter().for_each(|member| member.put(&self.hub, &bytes, frames));
            self.metrics.delivered.inc_by((members.len() * frames) as u64);
        }
        if replayed {
            return;
        }
        let last = due.iter().map(|due| due.told.committed_at).max();
        if let Some(last) = last {
            let age = (self.metrics.clock.now() - last).to_std().unwrap_or_default();
            self.metrics.seconds.observe(age.as_secs_f64());
        }
    }

    /// What a group sees of a change, if anything; what it must be told instead, it is told once.
    fn sight<'k>(
        &self,
        due: &Due<'_>,
        group: &Group,
        known: &'k Known,
        verdict: Option<&Verdict>,
    ) -> Option<Sight<'k>> {
        let rights = match known.of(&due.table, group.spec.viewer.role())? {
            Ok(rights) => rights,
            Err(failure) => {
                self.failed(due, group, *failure);
                return None;
            }
        };
        if let Some(why) = refused(due.told.row.op, rights) {
            let told = (due.table.relation.oid, why.text().to_owned());
            return group.told.lock().insert(told).then_some(Sight::Refused(why));
        }
        match verdict {
            None => Some(Sight::Row(rights, OldRow::Whole)),
            Some(Verdict::Shown(old)) => Some(Sight::Row(rights, *old)),
            Some(Verdict::Hidden) => None,
            Some(Verdict::Failed(failure)) => {
                self.failed(due, group, *failure);
                None
            }
        }
    }

    /// A change as it is shown with these rights, this much of the old row and these columns; made once.
    fn data<'s>(
        &self,
        due: &Due<'_>,
        shown: (&'s Arc<Rights>, OldRow, Option<&'s [String]>),
        made: &mut Vec<(Shape<'s>, Bytes)>,
    ) -> Bytes {
        let (rights, old, select) = shown;
        let same = |shape: &Shape<'_>| Arc::ptr_eq(shape.0, rights) && (shape.1, shape.2) == (old, select);
        if let Some((_, data)) = made.iter().find(|(shape, _)| same(shape)) {
            return data.clone();
        }
        let Told { row, committed_at, .. } = due.told;
        let view = Shown { table: &due.table, row, committed_at, rights, old, select };
        let data = Bytes::from(view.data(self.config.record_bytes_max));
        made.push((shown, data.clone()));
        data
    }

    /// Reads the catalog for tables that are not known in this form; waits while that cannot be done.
    async fn describe(&self, registry: &Mutex<Registry>, rows: &[Told<'_>]) {
        let mut unknown: Vec<Arc<Relation>> = Vec::new();
        {
            let registry = registry.lock();
            for Told { row, .. } in rows {
                let is_known = registry.table(&row.relation).is_some();
                if !is_known && !unknown.iter().any(|it| Arc::ptr_eq(it, &row.relation)) {
                    unknown.push(row.relation.clone());
                }
            }
        }
        for relation in unknown {
            let table = self.table(relation).await;
            let broken = registry.lock().describe(table);
            self.tell_broken(broken);
        }
    }

    async fn table(&self, relation: Arc<Relation>) -> Arc<Table> {
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

    /// A table as the log and the catalog describe it.
    pub(super) fn known(&self, relation: Arc<Relation>, described: Option<Arc<Described>>) -> Table {
        let for_rights = described.as_ref().map(|described| self.catalog.for_rights(described));
        if described.as_ref().is_some_and(|described| described.unlimited) {
            tracing::warn!(
                table = format!("{}.{}", relation.schema, relation.name),
                "clients hear nothing of this table: it is published with a row filter, and without it by another \
                 publication"
            );
        }
        Table::new(relation, described, for_rights)
    }

    /// Items that cannot be asked of a table any more: their channels are told.
    pub(super) fn tell_broken(&self, broken: Vec<Broken>) {
        for Broken { group, item, why } in broken {
            let Some(item) = group.spec.items.get(item) else { continue };
            self.metrics.failures.inc();
            let text = item.exception("P0001 (raise_exception)", &why.to_string());
            group.members.lock().iter().for_each(|member| member.tell("error", &text));
        }
    }

    async fn find<'a>(&self, registry: &Mutex<Registry>, rows: &[Told<'a>], known: &Known) -> Vec<Due<'a>> {
        // Told once, however often it is looked.
        let mut untold: Vec<(usize, Match)> = Vec::new();
        loop {
            let mut asking = self.oracle.asking();
            let mut all = Vec::new();
            {
                let mut registry = registry.lock();
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
                    let mut matches = registry.find(row, &mut asking);
                    let here = untold.iter().filter(|(of, _)| *of == at).map(|(_, found)| found.clone());
                    matches.splice(0..0, here);
                    if !matches.is_empty() {
                        all.push(Due { told, table, matches });
                    }
                }
            }
            if !self.oracle.asked(asking).await {
                return all;
            }
        }
    }

    /// What each role that looks at these tables may see of them.
    async fn rights(&self, registry: &Mutex<Registry>, rows: &[Told<'_>]) -> Known {
        let mut asked: HashMap<usize, (Arc<Table>, Vec<String>)> = HashMap::new();
        {
            let registry = registry.lock();
            for Told { row, .. } in rows {
                let Some(table) = registry.table(&row.relation) else { continue };
                let key = address(&table.relation);
                asked.entry(key).or_insert_with(|| (table.clone(), registry.roles(row.relation.oid)));
            }
        }
        let mut known = Known::default();
        for (key, (table, roles)) in asked {
            for role in roles {
                let rights = self.rows.rights(&table.rights, &role).await;
                known.0.entry(key).or_default().insert(role, rights);
            }
        }
        known
    }

    /// What row security says where it must be asked.
    async fn judge(&self, due: &[Due<'_>], known: &Known) -> Verdicts {
        let (mut changes, mut viewers, mut asked) = (Vec::new(), Vec::<Arc<Viewer>>::new(), Vec::new());
        let (mut places, mut nth_viewer) = (Vec::new(), HashMap::<Arc<Viewer>, usize>::new());
        for (at, due) in due.iter().enumerate() {
            let mut change = None;
            for (nth, found) in due.matches.iter().enumerate() {
                let viewer = &found.group.spec.viewer;
                let Some(Ok(rights)) = known.of(&due.table, viewer.role()) else { continue };
                if rights.security != Security::On || refused(due.told.row.op, rights).is_some() {
                    continue;
                }
                let change = *change.get_or_insert_with(|| {
                    changes.push(rows::RowChange {
                        table: due.table.rights.clone(),
                        images: images(due.told.row),
                    });
                    changes.len() - 1
                });
                let viewer = *nth_viewer.entry(viewer.clone()).or_insert_with(|| {
                    viewers.push(viewer.clone());
                    viewers.len() - 1
                });
                asked.push((change, viewer));
                places.push((at, nth));
            }
        }
        if asked.is_empty() {
            return Verdicts::new();
        }
        places.into_iter().zip(self.rows.judge(&changes, &viewers, &asked).await).collect()
    }

    /// Tells a group once that changes of a table cannot be shown to it.
    fn failed(&self, due: &Due<'_>, group: &Group, failure: Failure) {
        self.metrics.failures.inc();
        let Relation { oid, schema, name, .. } = &*due.table.relation;
        let text = format!("Unable to show changes of {schema}.{name}: {failure}");
        if group.told.lock().insert((*oid, text.clone())) {
            group.members.lock().iter().for_each(|member| member.tell("error", &text));
        }
    }
}

/// Rows in their order, cut wherever a table gets another description.
fn of_one_shape<'t, 'a>(rows: &'t [Told<'a>]) -> impl Iterator<Item = &'t [Told<'a>]> {
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

impl Known {
    fn of(&self, table: &Arc<Table>, role: &str) -> Option<&Result<Arc<Rights>, Failure>> {
        self.0.get(&address(&table.relation))?.get(role)
    }
}

/// What makes one `data` another: rights, how much of the old row, columns.
type Shape<'s> = (&'s Arc<Rights>, OldRow, Option<&'s [String]>);

/// What a group gets of a change.
enum Sight<'k> {
    /// With these rights, and this much of the old row.
    Row(&'k Arc<Rights>, OldRow),
    /// Why it may see nothing of the table.
    Refused(Refused),
}

impl Parcel {
    fn add(&mut self, told: &Told<'_>, ids: &[u64], data: &[u8], replayed: bool) {
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

/// A change as row security looks at it.
fn images(row: &RowChange) -> Images {
    let cell = |cell: &Cell| match cell {
        Cell::Null => rows::Cell::Null,
        Cell::Unchanged => rows::Cell::Unknown,
        Cell::Text(text) => rows::Cell::Text(text.clone()),
    };
    let whole = |old: &Row| old.iter().map(cell).collect::<Vec<_>>();
    let old = row.old.as_ref().filter(|_| !row.old_is_key_only).map(whole);
    match (row.op, &row.new) {
        (Op::Delete, _) | (_, None) => Images::Delete { old },
        (op, Some(new)) => {
            let cells = 0..new.len();
            let new = cells.map(|at| row.completed(new, at).map_or(rows::Cell::Unknown, cell)).collect();
            if op == Op::Insert { Images::Insert { new } } else { Images::Update { new, old } }
        }
    }
}
