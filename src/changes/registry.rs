//! The index of subscriptions: finds the groups that match a change.
//!
//! Channels with identical filters, rights and encoding are one [`Group`]: its filters and rights are evaluated once
//! and its frames are encoded once, regardless of the number of channels. Items are bound to each version of a table.
//! Items that require a certain value are found through a map of values, the others by a scan. Pure.
use super::{
    catalog::Described, filter_wait::FilterWait, item::Item, postgres_filters::Asking,
    subscriber::ChangeSubscriber,
};
use crate::{
    access::rows::{self, Viewer},
    filter::{Bound, ColumnValue, Key, Kind, Truth, Unbindable},
    wal::{Cell, Op, Relation, RowChange},
    wire::Version,
};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// The subscription of a channel: its items, its viewer and its encoding.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Spec {
    pub(super) viewer: Arc<Viewer>,
    /// The topic in frames.
    pub(super) topic: Arc<str>,
    pub(super) version: Version,
    /// The join has no `config`: the event is the kind of the change, and the payload is the `data` alone.
    pub(super) plain: bool,
    /// Messages have an id, because they may be delivered again after a reconnect.
    pub(super) numbered: bool,
    pub(super) items: Arc<[Item]>,
}

/// Channels with the same [`Spec`].
#[derive(Debug)]
pub(super) struct Group {
    id: u64,
    pub(super) spec: Spec,
    pub(super) members: Mutex<Vec<Arc<ChangeSubscriber>>>,
    /// Oid and text of the errors that were sent to it, so that each is sent once.
    pub(super) told: Mutex<HashSet<(u32, String)>>,
}

/// All groups, and the tables that have changed so far.
#[derive(Debug, Default)]
pub(super) struct Registry {
    groups: HashMap<Spec, Arc<Group>>,
    tables: HashMap<u32, ChannelEntry>,
    next_id: u64,
    patience: FilterWait,
    /// Number and index of the first change to deliver.
    from: (u64, u32),
}

#[derive(Debug)]
struct ChannelEntry {
    table: Arc<SubscribedTable>,
    scan: Vec<Hit>,
    /// Number of items by role.
    roles: HashMap<String, usize>,
    /// New groups by role, whose rights on the table have not been evaluated yet.
    fresh: HashMap<String, Vec<Arc<Group>>>,
    /// Items by column and value.
    keyed: HashMap<usize, HashMap<Key, Vec<Hit>>>,
}

/// A version of a table: its descriptions in the WAL and in the catalog.
#[derive(Debug)]
pub(super) struct SubscribedTable {
    pub(super) relation: Arc<Relation>,
    /// `None` if the clients' publication does not have the table.
    pub(super) described: Option<Arc<Described>>,
    /// The form for row security, with the columns of the relation.
    pub(super) rights: Arc<rows::PolicyTable>,
    /// For each column of the relation, its index in `described`.
    pub(super) columns: Vec<Option<usize>>,
    /// The epoch of the rights at which the catalog was read, plus one; 0 if unknown.
    read_at: AtomicU64,
}

/// An item of a group, bound to a table.
#[derive(Clone, Debug)]
struct Hit {
    group: Arc<Group>,
    item: usize,
    bound: Arc<Bound>,
}

/// A group that matches a change, with the indexes of the matching items.
#[derive(Clone, Debug)]
pub(super) struct Match {
    pub(super) group: Arc<Group>,
    pub(super) items: Vec<usize>,
}

/// An item that cannot be evaluated on a table any more.
pub(super) struct Broken {
    pub(super) group: Arc<Group>,
    pub(super) item: usize,
    pub(super) why: Unbindable,
}

impl SubscribedTable {
    pub(super) fn new(
        relation: Arc<Relation>,
        described: Option<Arc<Described>>,
        for_rights: Option<Arc<rows::PolicyTable>>,
    ) -> Self {
        let find = |column: &crate::wal::Column| {
            let columns = &described.as_ref()?.columns;
            columns.iter().position(|it| it.name == column.name && it.type_oid == column.type_oid)
        };
        let columns: Vec<_> = relation.columns.iter().map(find).collect();
        let same = |rights: &Arc<rows::PolicyTable>| {
            let pairs = rights.columns.iter().map(|c| (&c.name, c.type_oid));
            pairs.eq(relation.columns.iter().map(|c| (&c.name, c.type_oid)))
        };
        let rights = for_rights.filter(same).unwrap_or_else(|| {
            let column =
                |c: &crate::wal::Column| rows::PolicyColumn { name: c.name.clone(), type_oid: c.type_oid };
            Arc::new(rows::PolicyTable {
                oid: relation.oid,
                schema: relation.schema.clone(),
                name: relation.name.clone(),
                columns: relation.columns.iter().map(column).collect(),
            })
        });
        Self { relation, described, rights, columns, read_at: AtomicU64::new(0) }
    }

    /// The epoch of the rights at which the catalog was read; `u64::MAX` if unknown.
    pub(super) fn read_at(&self) -> u64 {
        self.read_at.load(Ordering::Relaxed).wrapping_sub(1)
    }

    pub(super) fn set_read_at(&self, epoch: u64) {
        self.read_at.store(epoch.wrapping_add(1), Ordering::Relaxed);
    }

    /// Whether the clients' publication has changes of this kind.
    fn publishes(&self, op: Op) -> bool {
        let Some(described) = self.described.as_ref().filter(|it| !it.unlimited) else { return false };
        let [insert, update, delete] = described.publishes;
        match op {
            Op::Insert => insert,
            Op::Update => update,
            Op::Delete => delete,
        }
    }

    fn column(&self, name: &str) -> Option<(usize, &Kind)> {
        let at = self.relation.position(name)?;
        let described = self.described.as_ref()?;
        let column = described.columns.get(self.columns.get(at).copied().flatten()?)?;
        Some((at, &column.kind))
    }
}

impl Group {
    /// Indexes of the items for changes of this kind to the table.
    pub(super) fn about(&self, table: &SubscribedTable, op: Op) -> Vec<usize> {
        let Relation { schema, name, .. } = &*table.relation;
        let items = self.spec.items.iter().enumerate();
        items.filter(|(_, item)| item.is_about(schema, name) && item.takes(op)).map(|(at, _)| at).collect()
    }
}

/// Channels that move to the next lane, from the change `from` on.
pub(super) struct Moved {
    pub(super) members: Vec<Arc<ChangeSubscriber>>,
    pub(super) from: (u64, u32),
}

impl Registry {
    /// A registry of channels with this wait for filters, which have received everything before `from`.
    pub(super) fn with(patience: FilterWait, from: (u64, u32)) -> Self {
        Self { patience, from, ..Self::default() }
    }

    pub(super) fn patience(&self) -> FilterWait {
        self.patience
    }

    pub(super) fn from(&self) -> (u64, u32) {
        self.from
    }

    /// Removes these groups with their channels, which move to the next lane from the change `from` on.
    pub(super) fn take(&mut self, groups: &[Arc<Group>], from: (u64, u32)) -> Moved {
        let mut members = Vec::new();
        for group in groups {
            if let Some(gone) = self.groups.remove(&group.spec) {
                self.tables.values_mut().for_each(|place| place.unbind(&gone));
                members.append(&mut gone.members.lock());
            }
        }
        Moved { members, from }
    }

    /// Adds a channel to the group of its spec. Returns the items that cannot be bound.
    pub(super) fn enter(&mut self, spec: Spec, member: Arc<ChangeSubscriber>) -> Vec<Broken> {
        if let Some(group) = self.groups.get(&spec) {
            group.members.lock().push(member);
            return Vec::new();
        }
        self.next_id += 1;
        let group = Arc::new(Group {
            id: self.next_id,
            spec: spec.clone(),
            members: Mutex::new(vec![member]),
            told: Mutex::default(),
        });
        self.groups.insert(spec, group.clone());
        let places = self.tables.values_mut();
        places.flat_map(|place| place.bind(&group)).collect()
    }

    /// Removes a channel from the group of its spec.
    pub(super) fn leave(&mut self, spec: &Spec, member: &Arc<ChangeSubscriber>) {
        let Some(group) = self.groups.get(spec) else { return };
        let mut members = group.members.lock();
        members.retain(|it| !Arc::ptr_eq(it, member));
        if members.is_empty() {
            drop(members);
            if let Some(gone) = self.groups.remove(spec) {
                self.tables.values_mut().for_each(|place| place.unbind(&gone));
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    pub(super) fn members(&self) -> Vec<Arc<ChangeSubscriber>> {
        self.groups.values().flat_map(|group| group.members.lock().clone()).collect()
    }

    /// The table with this description; `None` if it is unknown.
    pub(super) fn table(&self, relation: &Arc<Relation>) -> Option<&Arc<SubscribedTable>> {
        let place = self.tables.get(&relation.oid)?;
        Arc::ptr_eq(&place.table.relation, relation).then_some(&place.table)
    }

    /// All tables.
    pub(super) fn tables(&self) -> Vec<Arc<SubscribedTable>> {
        self.tables.values().map(|place| place.table.clone()).collect()
    }

    /// Adds or replaces a table, and binds all items to it. Returns those that cannot be bound.
    pub(super) fn describe(&mut self, table: Arc<SubscribedTable>) -> Vec<Broken> {
        let oid = table.relation.oid;
        let mut place = ChannelEntry {
            table,
            scan: Vec::new(),
            roles: HashMap::new(),
            fresh: HashMap::new(),
            keyed: HashMap::new(),
        };
        let mut groups: Vec<_> = self.groups.values().cloned().collect();
        groups.sort_by_key(|group| group.id);
        let mut broken = Vec::new();
        for group in groups {
            group.told.lock().retain(|(told, _)| *told != oid);
            broken.extend(place.bind(&group));
        }
        self.tables.insert(oid, place);
        broken
    }

    /// Whether any item is bound to a table.
    pub(super) fn is_watched(&self, oid: u32) -> bool {
        self.tables.get(&oid).is_some_and(|place| !place.roles.is_empty())
    }

    /// The roles of the items of a table.
    pub(super) fn roles(&self, oid: u32) -> Vec<String> {
        self.tables.get(&oid).map(|place| place.roles.keys().cloned().collect()).unwrap_or_default()
    }

    /// Groups that are new since the last call and whose role may see no change of this kind to the table. Each has all
    /// of its items for the table, regardless of their filters.
    pub(super) fn take_refused(
        &mut self,
        table: &SubscribedTable,
        op: Op,
        is_refused: impl Fn(&str) -> bool,
    ) -> Vec<Match> {
        let Some(place) = self.tables.get_mut(&table.relation.oid) else { return Vec::new() };
        let mut found = Vec::new();
        for (role, fresh) in &mut place.fresh {
            if fresh.is_empty() || op == Op::Delete || !table.publishes(op) {
                continue;
            }
            let groups = std::mem::take(fresh);
            if is_refused(role) {
                found.extend(groups.into_iter().filter_map(|group| {
                    let items = group.about(table, op);
                    (!items.is_empty()).then_some(Match { group, items })
                }));
            }
        }
        found
    }

    /// The groups whose filters match a change, in a fixed order. A group whose filter needs a missing answer is added
    /// to `late`, and does not match.
    pub(super) fn find(
        &self,
        row: &RowChange,
        oracle: &mut Asking,
        late: &mut Vec<Arc<Group>>,
    ) -> Vec<Match> {
        let Some(place) = self.tables.get(&row.relation.oid) else { return Vec::new() };
        if !place.table.publishes(row.op) {
            return Vec::new();
        }
        let cell = |at: usize| match row.cell_at(at) {
            Some(Cell::Null) => ColumnValue::Null,
            Some(Cell::Text(bytes)) => {
                std::str::from_utf8(bytes).map_or(ColumnValue::Absent, ColumnValue::Text)
            }
            Some(Cell::Unchanged) | None => ColumnValue::Absent,
        };
        let mut hits: Vec<(&Arc<Group>, usize)> = Vec::new();
        oracle.next_row();
        let mut ask = |hit: &'_ Hit| {
            if hit.group.spec.items.get(hit.item).is_none_or(|item| !item.takes(row.op)) {
                return false;
            }
            oracle.of(hit.group.id);
            let before = oracle.in_vain();
            let truth = hit.bound.test(&cell, oracle);
            let is_late = truth == Truth::Unknown && oracle.in_vain() > before;
            if is_late && late.last().is_none_or(|last| !Arc::ptr_eq(last, &hit.group)) {
                late.push(hit.group.clone());
            }
            truth == Truth::True
        };
        for hit in &place.scan {
            if ask(hit) {
                hits.push((&hit.group, hit.item));
            }
        }
        for (column, by_value) in &place.keyed {
            let ColumnValue::Text(text) = cell(*column) else { continue };
            let kind = place.table.relation.columns.get(*column).and_then(|it| place.table.column(&it.name));
            let Some(key) = kind.and_then(|(_, kind)| Key::read(kind, text)) else { continue };
            for hit in by_value.get(&key).into_iter().flatten() {
                if ask(hit) {
                    hits.push((&hit.group, hit.item));
                }
            }
        }
        hits.sort_by_key(|(group, item)| (group.id, *item));
        let mut found: Vec<Match> = Vec::new();
        for (group, item) in hits {
            match found.last_mut().filter(|last| Arc::ptr_eq(&last.group, group)) {
                Some(last) if last.items.last() == Some(&item) => {}
                Some(last) => last.items.push(item),
                None => found.push(Match { group: group.clone(), items: vec![item] }),
            }
        }
        found
    }
}

impl ChannelEntry {
    fn bind(&mut self, group: &Arc<Group>) -> Vec<Broken> {
        let mut broken = Vec::new();
        let Relation { schema, name, .. } = &*self.table.relation;
        if self.table.described.is_none() {
            return broken;
        }
        for (at, item) in group.spec.items.iter().enumerate() {
            if !item.is_about(schema, name) {
                continue;
            }
            let bound = match Bound::new(&item.filter, |column| self.table.column(column)) {
                Ok(bound) => Arc::new(bound),
                Err(why) => {
                    broken.push(Broken { group: group.clone(), item: at, why });
                    continue;
                }
            };
            let fresh = self.fresh.entry(group.spec.viewer.role().to_owned()).or_default();
            if fresh.last().is_none_or(|last| !Arc::ptr_eq(last, group)) {
                fresh.push(group.clone());
            }
            *self.roles.entry(group.spec.viewer.role().to_owned()).or_default() += 1;
            let hit = Hit { group: group.clone(), item: at, bound: bound.clone() };
            match bound.keys() {
                Some((column, keys)) => {
                    let by_value = self.keyed.entry(column).or_default();
                    for key in keys {
                        by_value.entry(key).or_default().push(hit.clone());
                    }
                }
                None => self.scan.push(hit),
            }
        }
        broken
    }

    fn unbind(&mut self, group: &Arc<Group>) {
        self.scan.retain(|hit| !Arc::ptr_eq(&hit.group, group));
        if let Some(fresh) = self.fresh.get_mut(group.spec.viewer.role()) {
            fresh.retain(|it| !Arc::ptr_eq(it, group));
        }
        let Relation { schema, name, .. } = &*self.table.relation;
        // Only the values of its own items contain it.
        for item in group.spec.items.iter().filter(|item| item.is_about(schema, name)) {
            let Ok(bound) = Bound::new(&item.filter, |column| self.table.column(column)) else { continue };
            let role = group.spec.viewer.role();
            if let Some(count) = self.roles.get_mut(role) {
                *count -= 1;
                if *count == 0 {
                    self.roles.remove(role);
                }
            }
            let Some((column, keys)) = bound.keys() else { continue };
            let Some(by_value) = self.keyed.get_mut(&column) else { continue };
            for key in keys {
                if let Some(hits) = by_value.get_mut(&key) {
                    hits.retain(|hit| !Arc::ptr_eq(&hit.group, group));
                    if hits.is_empty() {
                        by_value.remove(&key);
                    }
                }
            }
            if by_value.is_empty() {
                self.keyed.remove(&column);
            }
        }
    }
}
