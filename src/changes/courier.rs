//! From entries of the log to frames: which groups they are for, who may see them, and how they are told.
use super::{
    Config,
    catalog::{Catalog, Described},
    log::Entry,
    metrics::Metrics,
    oracle::Oracle,
    payload::{self, Shown, by_select, refusal, refused},
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

/// A change that is for somebody.
struct Due<'a> {
    number: u64,
    index: u32,
    committed_at: DateTime<Utc>,
    row: &'a RowChange,
    table: Arc<Table>,
    matches: Vec<Match>,
}

/// What a role may see of a table.
type Known = HashMap<(usize, String), Result<Arc<Rights>, Failure>>;
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
        self.describe(registry, entries).await;
        let due = self.find(registry, entries).await;
        if due.is_empty() {
            return;
        }
        let known = self.rights(&due).await;
        let verdicts = self.judge(&due, &known).await;
        let mut parcels: HashMap<usize, Parcel> = HashMap::new();
        let mut order = Vec::new();
        for (at, due) in due.iter().enumerate() {
            let mut made: Vec<(Made, Bytes)> = Vec::new();
            for (nth, found) in due.matches.iter().enumerate() {
                let group = &found.group;
                let key = Arc::as_ptr(group).addr();
                let parcel = parcels.entry(key).or_insert_with(|| {
                    order.push(key);
                    Parcel { group: group.clone(), bytes: BytesMut::new(), frames: 0 }
                });
                let rights = match known.get(&(address(&due.table), group.spec.viewer.role().to_owned())) {
                    Some(Ok(rights)) => rights,
                    Some(Err(failure)) => {
                        self.failed(due, group, *failure);
                        continue;
                    }
                    None => continue,
                };
                if let Some(why) = refused(due.row.op, rights) {
                    let untold = group.told.lock().insert((due.table.relation.oid, why.text().to_owned()));
                    if untold {
                        let data = Bytes::from(refusal(due.row, why));
                        parcel.add(due, &found.items, None, &data, replayed);
                    }
                    continue;
                }
                let old = match verdicts.get(&(at, nth)) {
                    None => OldRow::Whole,
                    Some(Verdict::Shown(old)) => *old,
                    Some(Verdict::Hidden) => continue,
                    Some(Verdict::Failed(failure)) => {
                        self.failed(due, group, *failure);
                        continue;
                    }
                };
                for (select, ids) in by_select(&group.spec.items, &found.items) {
                    let variant = Made {
                        rights: Arc::as_ptr(rights).addr(),
                        select: select.map(<[String]>::to_vec),
                        old,
                    };
                    let data = match made.iter().find(|(known, _)| *known == variant) {
                        Some((_, data)) => data.clone(),
                        None => {
                            let shown = Shown {
                                table: &due.table,
                                row: due.row,
                                committed_at: due.committed_at,
                                rights,
                                old,
                                select,
                            };
                            let data = Bytes::from(shown.data(self.config.record_bytes_max));
                            made.push((variant, data.clone()));
                            data
                        }
                    };
                    parcel.add(due, &found.items, Some(&ids), &data, replayed);
                }
            }
        }
        for key in order {
            let Some(parcel) = parcels.remove(&key).filter(|parcel| parcel.frames > 0) else { continue };
            let bytes = parcel.bytes.freeze();
            let members = parcel.group.members.lock();
            for member in members.iter() {
                member.put(&self.hub, &bytes, parcel.frames);
            }
            self.metrics.delivered.inc_by((members.len() * parcel.frames) as u64);
        }
        if replayed {
            return;
        }
        let last = due.iter().map(|due| due.committed_at).max();
        if let Some(last) = last {
            let age = (self.metrics.clock.now() - last).to_std().unwrap_or_default();
            self.metrics.seconds.observe(age.as_secs_f64());
        }
    }

    /// Reads the catalog for tables that are not known in this form; waits while that cannot be done.
    async fn describe(&self, registry: &Mutex<Registry>, entries: &[Arc<Entry>]) {
        let relations: Vec<Arc<Relation>> = {
            let registry = registry.lock();
            if registry.is_empty() {
                return;
            }
            let mut unknown: Vec<Arc<Relation>> = Vec::new();
            let rows = entries.iter().filter_map(|entry| entry.part.as_ref()).flat_map(|part| &part.rows);
            for (_, row) in rows {
                let is_known = registry.table(&row.relation).is_some();
                if !is_known && !unknown.iter().any(|it| Arc::ptr_eq(it, &row.relation)) {
                    unknown.push(row.relation.clone());
                }
            }
            unknown
        };
        // The last description of a table in these entries stays; the others are asked about in their turn.
        for relation in relations {
            let table = self.table(relation).await;
            let broken = registry.lock().describe(table);
            self.tell_broken(broken);
        }
    }

    pub(super) async fn table(&self, relation: Arc<Relation>) -> Arc<Table> {
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

    fn known(&self, relation: Arc<Relation>, described: Option<Arc<Described>>) -> Table {
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

    async fn find<'a>(&self, registry: &Mutex<Registry>, entries: &'a [Arc<Entry>]) -> Vec<Due<'a>> {
        loop {
            let mut asking = self.oracle.asking();
            let mut all = Vec::new();
            {
                let registry = registry.lock();
                for (entry, part) in entries.iter().filter_map(|entry| Some((entry, entry.part.as_ref()?))) {
                    for (index, row) in &part.rows {
                        let Some(table) = registry.table(&row.relation) else { continue };
                        let matches = registry.find(row, &mut asking);
                        if !matches.is_empty() {
                            all.push(Due {
                                number: entry.number,
                                index: *index,
                                committed_at: part.committed_at,
                                row,
                                table: table.clone(),
                                matches,
                            });
                        }
                    }
                }
            }
            if !self.oracle.asked(asking).await {
                return all;
            }
        }
    }

    async fn rights(&self, due: &[Due<'_>]) -> Known {
        let mut known = Known::new();
        for due in due {
            for found in &due.matches {
                let role = found.group.spec.viewer.role();
                let key = (address(&due.table), role.to_owned());
                if let std::collections::hash_map::Entry::Vacant(entry) = known.entry(key) {
                    entry.insert(self.rows.rights(&due.table.rights, role).await);
                }
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
                let Some(Ok(rights)) = known.get(&(address(&due.table), viewer.role().to_owned())) else {
                    continue;
                };
                if rights.security != Security::On || refused(due.row.op, rights).is_some() {
                    continue;
                }
                let change = *change.get_or_insert_with(|| {
                    changes
                        .push(rows::RowChange { table: due.table.rights.clone(), images: images(due.row) });
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

/// What makes one `data` another.
#[derive(PartialEq)]
struct Made {
    rights: usize,
    select: Option<Vec<String>>,
    old: OldRow,
}

impl Parcel {
    fn add(&mut self, due: &Due<'_>, items: &[usize], ids: Option<&[u64]>, data: &Bytes, replayed: bool) {
        let spec = &self.group.spec;
        let event = if spec.plain { due.row.op.as_str() } else { "postgres_changes" };
        let (mut before, after) = text::envelope(spec.version, None, None, &spec.topic, event);
        let mut tail = Vec::new();
        if !spec.plain {
            let all;
            let ids = match ids {
                Some(ids) => ids,
                None => {
                    all = items
                        .iter()
                        .filter_map(|at| spec.items.get(*at))
                        .map(|item| item.id)
                        .collect::<Vec<_>>();
                    &all
                }
            };
            before.extend_from_slice(b"{\"ids\":");
            before.extend_from_slice(payload::ids(ids).as_bytes());
            before.extend_from_slice(b",\"data\":");
            if spec.numbered {
                let replayed = if replayed { ",\"replayed\":true" } else { "" };
                tail =
                    format!(",\"meta\":{{\"id\":\"{}:{}\"{replayed}}}", due.number, due.index).into_bytes();
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

fn address(table: &Arc<Table>) -> usize {
    Arc::as_ptr(table).addr()
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
