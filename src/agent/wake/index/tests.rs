use super::*;
use crate::{
    agent::{Definition, Env},
    wal::{Cell, Column},
};
use bytes::Bytes;

const AGENT: &str = r#"
    id = "triage"
    org = "demo"
    [run]
    kind = "remote"
    [[wake]]
    table = "tickets"
    events = ["INSERT"]
    filter = "priority=gte.3"
    request = { kind = "triage", priority = 2, deadline_after = "1m",
                input = { ticket = "{{ new }}", at = "{{ commit_lsn }}", n = [1, "{{ event }}"] } }
    [[wake]]
    table = "public.tickets"
    events = ["UPDATE", "DELETE", "TRUNCATE"]
    request = { kind = "audit", input = { was = "{{ old.title }}" } }
"#;

fn index(text: &str) -> WakeIndex {
    let definition: Definition = toml::from_str(text).unwrap();
    WakeIndex::new([&definition.compile(&Env::process()).unwrap()], &Metrics::default())
}
/// A table of (name, type).
fn table(columns: &[(&str, &str)]) -> Arc<Relation> {
    let column =
        |(name, kind): &(&str, &str)| Column::new((*name).into(), 25, -1, *name == "id", (*kind).into());
    Arc::new(Relation {
        oid: 1,
        schema: "public".into(),
        name: "tickets".into(),
        replica_identity: 'd',
        columns: columns.iter().map(column).collect(),
    })
}

fn insert(relation: &Arc<Relation>, values: &[&'static str]) -> RowChange {
    let new = Some(values.iter().map(|text| Cell::Text(Bytes::from_static(text.as_bytes()))).collect());
    RowChange { relation: relation.clone(), op: Op::Insert, new, old: None, old_is_key_only: false }
}

/// What a change wakes, without a database.
fn woken(index: &WakeIndex, change: Change) -> Vec<Wake> {
    let placed = PositionedChange { commit: commit(), index: 0, change: &change };
    let mut wakes = Vec::new();
    let row = match &change {
        Change::Row(row) => row,
        Change::Truncate(relations) => {
            index.truncated(&placed, relations, &mut wakes);
            return wakes;
        }
        Change::Message { .. } => return wakes,
    };
    let Some(table) = index.of(&row.relation) else { return wakes };
    let fitted = table.fitted_to(&row.relation).unwrap_or_else(|| {
        let kinds = kinds_of(&row.relation, &Kinds::default());
        let fit = |entry: &Entry| BoundWake::new(&row.relation, &kinds, &entry.wants).ok();
        table.keep(&row.relation, table.entries.iter().map(fit).collect())
    });
    let look =
        MatchCandidate { placed: &placed, row, event: event_of(row.op), entries: &table.entries, fitted };
    look.collect_wakes(&mut Answers::default(), &index.metrics, &mut wakes);
    wakes
}

fn commit() -> Commit {
    Commit { lsn: Lsn(0x10), committed_at: DateTime::from_timestamp(1_000, 0).unwrap() }
}
fn tickets() -> Arc<Relation> {
    table(&[("id", "int8"), ("priority", "int4"), ("title", "text")])
}

#[test]
fn a_row_that_passes_requests_the_task_of_the_wake() {
    let (index, tickets) = (index(AGENT), tickets());
    assert_eq!(index.tables(), [("public".to_owned(), "tickets".to_owned())]);
    let hits = woken(&index, Change::Row(insert(&tickets, &["7", "3", "Fire"])));
    assert_eq!(hits.len(), 1);
    assert_eq!((hits[0].trigger.as_str(), hits[0].org.as_str()), ("triage#0", "demo"));
    let request = hits[0].request.as_ref().unwrap();
    assert_eq!(request.deadline.unwrap().timestamp(), 1_060);
    let ticket = json!({ "id": 7, "priority": 3, "title": "Fire" });
    assert_eq!(request.input, json!({ "ticket": ticket, "at": "0/10", "n": [1, "INSERT"] }));
    assert!(woken(&index, Change::Row(insert(&tickets, &["7", "2", "Fire"]))).is_empty());
}

#[test]
fn table_of_the_same_name_in_another_schema_wakes_no_agent() {
    let other = Arc::new(Relation { schema: "other".into(), ..(*tickets()).clone() });
    assert!(woken(&index(AGENT), Change::Row(insert(&other, &["7", "3", "Fire"]))).is_empty());
}

#[test]
fn a_template_that_cannot_be_filled_in_is_told() {
    let (index, tickets) = (index(AGENT), tickets());
    let mut change = insert(&tickets, &["7", "1", "Fire"]);
    change.op = Op::Delete;
    change.old = change.new.take();
    change.old_is_key_only = true;
    let hits = woken(&index, Change::Row(change.clone()));
    assert_eq!(hits[0].request.as_ref().unwrap_err(), "input.was: there is no old.title");
    change.old_is_key_only = false;
    assert_eq!(
        woken(&index, Change::Row(change.clone()))[0].request.as_ref().unwrap().input,
        json!({ "was": "Fire" })
    );
    let hits = woken(&index, Change::Truncate(vec![tickets]));
    assert_eq!((hits.len(), hits[0].trigger.as_str()), (1, "triage#1"));
    assert!(hits[0].request.is_err());
}

#[test]
fn a_filter_that_no_longer_fits_matches_nothing_until_the_table_fits_again() {
    let index = index(AGENT);
    let renamed = table(&[("id", "int8"), ("urgency", "int4"), ("title", "text")]);
    assert!(woken(&index, Change::Row(insert(&renamed, &["7", "3", "Fire"]))).is_empty());
    assert_eq!(index.metrics.wakes_unfit.get(), 1);
    assert_eq!(woken(&index, Change::Row(insert(&tickets(), &["7", "3", "Fire"]))).len(), 1);
}
