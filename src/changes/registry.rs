//! An index of subscriptions, by which a change finds its groups quickly.
//!
//! Channels with identical filters, rights and encoding are one [`Group`]: it is
//! asked about once and its frames are made once, however many they are. Items are bound to each version of a table;
//! those with a value that a row must have are found by that value, the others one after the other. Pure.
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
    /// As frames carry it.
    pub(super) topic: Arc<str>,
    pub(super) version: Version,
    /// A client without `config`: changes have their kind as event and nothing around them.
    pub(super) plain: bool,
    /// Messages have an id, because they may be said again.
    pub(super) numbered: bool,
    pub(super) items: Arc<[Item]>,
}

/// Channels with the same [`Spec`].
#[derive(Debug)]
pub(super) struct Group {
    id: u64,
    pub(super) spec: Spec,
    pub(super) members: Mutex<Vec<Arc<ChangeSubscriber>>>,
    /// What it was told once about a table and is not told again: oid, and what.
    pub(super) told: Mutex<HashSet<(u32, String)>>,
}

/// All groups, and the tables of which a change was seen.
#[derive(Debug, Default)]
pub(super) struct Registry {
    groups: HashMap<Spec, Arc<Group>>,
    tables: HashMap<u32, ChannelEntry>,
    next_id: u64,
    patience: FilterWait,
    /// Changes before this one were put out already.
    from: (u64, u32),
}

#[derive(Debug)]
struct ChannelEntry {
    table: Arc<SubscribedTable>,
    scan: Vec<Hit>,
    /// The roles that look at it, and how many items of theirs.
    roles: HashMap<String, usize>,
    /// Origin role, groups that came since it was last looked whether the role may see anything.
    fresh: HashMap<String, Vec<Arc<Group>>>,
    /// Origin column, then by value.
    keyed: HashMap<usize, HashMap<Key, Vec<Hit>>>,
}

/// A version of a table, as the WAL and the catalog describe it.
#[derive(Debug)]
pub(super) struct SubscribedTable {
    pub(super) relation: Arc<Relation>,
    /// `None` when its changes are not for clients.
    pub(super) described: Option<Arc<Described>>,
    /// As row security knows it: its columns are those of the relation.
    pub(super) rights: Arc<rows::PolicyTable>,
    /// For each column of the relation its description.
    pub(super) columns: Vec<Option<usize>>,
    /// The epoch of the rights in which the catalog was read, plus one; 0 when that is not known.
    read_at: AtomicU64,
}

/// An item of a group that may be about a change.
#[derive(Clone, Debug)]
struct Hit {
    group: Arc<Group>,
    item: usize,
    bound: Arc<Bound>,
}

/// A group that a change is for, by the places of its items.
#[derive(Clone, Debug)]
pub(super) struct Match {
    pub(super) group: Arc<Group>,
    pub(super) items: Vec<usize>,
}

/// An item that cannot be asked of a table any more.
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

    /// The epoch of the rights in which it was read; `u64::MAX` when that is not known.
    pub(super) fn read_at(&self) -> u64 {
        self.read_at.load(Ordering::Relaxed).wrapping_sub(1)
    }

    pub(super) fn set_read_at(&self, epoch: u64) {
        self.read_at.store(epoch.wrapping_add(1), Ordering::Relaxed);
    }

    /// Whether clients may hear of such a change to it.
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
    /// Its items that are about such changes to a table.
    pub(super) fn about(&self, table: &SubscribedTable, op: Op) -> Vec<usize> {
        let Relation { schema, name, .. } = &*table.relation;
        let items = self.spec.items.iter().enumerate();
        items.filter(|(_, item)| item.is_about(schema, name) && item.takes(op)).map(|(at, _)| at).collect()
    }
}

/// Channels that go on in the next lane, from a change on.
pub(super) struct Moved {
    pub(super) members: Vec<Arc<ChangeSubscriber>>,
    pub(super) from: (u64, u32),
}

impl Registry {
    /// For channels that wait so long for filters, and have everything before a change.
    pub(super) fn with(patience: FilterWait, from: (u64, u32)) -> Self {
        Self { patience, from, ..Self::default() }
    }

    pub(super) fn patience(&self) -> FilterWait {
        self.patience
    }

    pub(super) fn from(&self) -> (u64, u32) {
        self.from
    }

    /// Takes these groups out, with their channels, which go on elsewhere from that change on.
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

    /// Lets a channel into the group of its spec.
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

    /// Takes a channel out of the group of its spec.
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

    /// The table of this very description, if it is known.
    pub(super) fn table(&self, relation: &Arc<Relation>) -> Option<&Arc<SubscribedTable>> {
        let place = self.tables.get(&relation.oid)?;
        Arc::ptr_eq(&place.table.relation, relation).then_some(&place.table)
    }

    /// Tables whose description was read from the catalog, to be looked at again.
    pub(super) fn tables(&self) -> Vec<Arc<SubscribedTable>> {
        self.tables.values().map(|place| place.table.clone()).collect()
    }

    /// A table has (another) description: all items are bound to it. Those that cannot be are given.
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

    /// Whether anybody looks at a table.
    pub(super) fn is_watched(&self, oid: u32) -> bool {
        self.tables.get(&oid).is_some_and(|place| !place.roles.is_empty())
    }

    /// The roles that look at a table.
    pub(super) fn roles(&self, oid: u32) -> Vec<String> {
        self.tables.get(&oid).map(|place| place.roles.keys().cloned().collect()).unwrap_or_default()
    }

    /// Groups that came since the last call and whose role may see nothing of such changes to a table, with all of
    /// their items that are about them, whatever their filters say.
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

    /// Whom a change to `table` is for, as far as filters know, in a fixed order. Whose filter depends on what is not
    /// known yet goes into `late`, and is no match.
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
        // Only under the values that its own items name.
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
