//! Databases whose defaults and encodings are against us, and a change that the catalog has overtaken.
use super::watch::{WatchedDaemon, ground, settings};
use crate::support::{crypto, database_in, hostile_database};
use serde_json::{Value, json};

const TABLE: &str = r"
    create table d (id bigint primary key, at date, ts timestamptz, span interval, x float8, bin bytea,
                    ip inet, owner text, mark xml);
    alter table d enable row level security;
    create policy own on d to authenticated
        using (owner = current_setting('request.jwt.claims', true)::jsonb ->> 'sub')";

const ROW: &str = r"insert into d values
    (1, '2026-03-04', '2026-03-04 05:06:07+00', '-1 day -02:03:04', 0.1::float8 + 0.2::float8, '\xff00', '10.0.0.1', 'ann',
     '<a/>'), (2, '2026-03-04', null, null, null, null, null, 'ben', null)";

#[tokio::test]
async fn values_filters_and_row_security_are_the_same_on_a_hostile_database() {
    crypto();
    let (db, data) = (hostile_database().await, tempfile::tempdir().unwrap());
    ground(&db, TABLE, "d").await;
    let config = settings(&db, &data);
    let rig = WatchedDaemon::on(db, data, config).await;
    let filters = [
        "at=eq.2026-03-04",
        "at=lt.2026-03-05",
        "ts=gte.2026-03-04T05:06:07Z",
        "span=eq.-1 day -02:03:04",
        "span=lt.1 hour",
        "x=eq.0.30000000000000004",
        r"bin=eq.\xff00",
        "ip=eq.10.0.0.1",
        "owner=ilike.A%",
        "owner=eq.ann",
    ];
    let items: Vec<Value> =
        filters.iter().map(|filter| json!({"schema": "public", "table": "d", "filter": filter})).collect();
    let mut watch = rig.watch_as(json!({"sub": "ann"}), json!(items)).await;
    rig.run(ROW).await;
    let seen = rig.seen(&mut watch).await;
    let [message] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!(watch.which(message), (0..filters.len()).collect::<Vec<_>>(), "{message}");
    let expected = json!({
        "id": 1, "at": "2026-03-04", "ts": "2026-03-04T05:06:07+00:00", "span": "-1 days -02:03:04",
        "x": 0.300_000_000_000_000_04, "bin": "ff00", "ip": "10.0.0.1", "owner": "ann", "mark": "<a/>",
    });
    assert_eq!(message["data"]["record"], expected);
    assert_eq!(message["data"]["errors"], Value::Null);
    rig.running.stop().await;
}

#[tokio::test]
async fn invalid_utf8_value_is_reported_in_its_change_alone() {
    crypto();
    let (db, data) = (database_in("SQL_ASCII").await, tempfile::tempdir().unwrap());
    ground(&db, "create table n (id bigint primary key, body text)", "n").await;
    let config = settings(&db, &data);
    let rig = WatchedDaemon::on(db, data, config).await;
    let mut all = rig.watch(json!([{"table": "n"}])).await;
    let mut filtered = rig.watch(json!([{"schema": "public", "table": "n", "filter": "body=neq.x"}])).await;
    rig.run("set client_encoding = 'SQL_ASCII'").await;
    rig.run(r"insert into n values (1, E'gr\xfcn'), (2, 'plain')").await;
    let seen = rig.seen(&mut all).await;
    let told: Vec<_> = seen.iter().map(|it| (&it["data"]["record"], &it["data"]["errors"])).collect();
    assert_eq!(
        told,
        [
            (
                &json!({"id": 1, "body": "gr\u{fffd}n"}),
                &json!(["Error 422: Unprocessable Entity, column body is not UTF-8"])
            ),
            (&json!({"id": 2, "body": "plain"}), &Value::Null),
        ]
    );
    // A filter on it cannot be evaluated.
    let seen = rig.seen(&mut filtered).await;
    assert_eq!(seen.iter().map(|it| &it["data"]["record"]["id"]).collect::<Vec<_>>(), [2]);
    rig.running.stop().await;
}

/// The change log has the column by its old name and the catalog by its new one, so the filter is ambiguous: the
/// channel gets an error, and no hidden row.
#[tokio::test]
async fn change_in_a_transaction_that_renames_its_filter_column_is_delivered() {
    let rig = WatchedDaemon::new("create table r (id bigint primary key, priority int)", "r").await;
    let mut all = rig.watch(json!([{"table": "r"}])).await;
    let items = json!([{"schema": "public", "table": "r", "filter": "priority=eq.5"}]);
    let mut filtered = rig.watch(items).await;
    rig.run("begin; insert into r values (1, 5); alter table r rename priority to urgency; commit").await;
    let seen = rig.seen(&mut all).await;
    assert_eq!(seen.iter().map(|it| &it["data"]["record"]["id"]).collect::<Vec<_>>(), [1]);
    let told = rig.frames(&mut filtered).await;
    let [told] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((&*told.event, &told.payload["status"]), ("system", &json!("error")), "{told:?}");
    assert!(told.payload["message"].as_str().unwrap().contains("priority"), "{told:?}");
    rig.running.stop().await;
}
