//! Row security and column privileges of subscribers: statements 39 and 82 to 91.
use crate::changes::watch::{ANN, BEN, Watch, WatchedDaemon, brief, briefs};
use serde_json::{Value, json};

const OWN: &str = "
    create table t (id int primary key, owner uuid, body text); alter table t enable row level security;
    create policy own on t for select to authenticated using (owner = auth.uid());";
const FULL: &str = "alter table t replica identity full;";

impl WatchedDaemon {
    async fn of(&self, sub: &str) -> Watch {
        self.watch_as(json!({"sub": sub}), json!([{"table": "t"}])).await
    }
    async fn received(&self, watch: &mut Watch) -> Vec<Value> {
        briefs(&self.seen(watch).await)
    }
}

fn row(id: i32, owner: &str, body: &str) -> Value {
    json!({"id": id, "owner": owner, "body": body})
}

/// 82, 87
#[tokio::test]
async fn each_user_gets_only_own_rows_and_the_service_role_all() {
    let rig = WatchedDaemon::new(OWN, "t").await;
    let (mut ann, mut ben) = (rig.of(ANN).await, rig.of(BEN).await);
    let mut anon = rig.watch_as(json!({"role": "anon", "sub": ANN}), json!([{"table": "t"}])).await;
    let mut service = rig.watch_as(json!({"role": "service_role"}), json!([{"table": "t"}])).await;
    rig
        .run(&format!(
            "insert into t values (1, '{ANN}', 'a'), (2, '{BEN}', 'b'), (3, null, 'c');
             update t set body = body || '!'; update t set owner = '{BEN}' where id = 1; update t set owner = '{ANN}' where id = 3"
        ))
        .await;
    let key = |id: i32| json!({"id": id});
    let expected = [
        json!(["INSERT", row(1, ANN, "a")]),
        json!(["UPDATE", row(1, ANN, "a!"), key(1)]),
        json!(["UPDATE", row(3, ANN, "c!"), key(3)]),
    ];
    assert_eq!(rig.received(&mut ann).await, expected);
    let expected = [
        json!(["INSERT", row(2, BEN, "b")]),
        json!(["UPDATE", row(2, BEN, "b!"), key(2)]),
        json!(["UPDATE", row(1, BEN, "a!"), key(1)]),
    ];
    assert_eq!(rig.received(&mut ben).await, expected);
    assert_eq!(rig.seen(&mut service).await.len(), 8);
    assert_eq!(rig.received(&mut anon).await, [] as [Value; 0], "the policy is not for this role");
}

/// 83
#[tokio::test]
async fn policies_see_every_claim() {
    let rig = WatchedDaemon::new(
        "create table t (id int primary key, org text, level int); alter table t enable row level security;
         create policy p on t using (
             org = auth.jwt() -> 'app' ->> 'org' and level <= (current_setting('request.jwt.claims')::jsonb ->> 'level')::int
             and auth.role() = 'authenticated');",
        "t",
    )
    .await;
    let claims = |org: &str, level: i32| json!({"app": {"org": org}, "level": level});
    let (mut high, mut low) = (
        rig.watch_as(claims("red", 5), json!([{"table": "t"}])).await,
        rig.watch_as(claims("red", 1), json!([{"table": "t"}])).await,
    );
    let mut blue = rig.watch_as(claims("blue", 9), json!([{"table": "t"}])).await;
    rig.run("insert into t values (1, 'red', 1), (2, 'red', 3), (3, 'green', 0), (4, 'blue', 9)").await;
    for (watch, ids) in [(&mut high, vec![1, 2]), (&mut low, vec![1]), (&mut blue, vec![4])] {
        let seen = rig.seen(watch).await;
        assert_eq!(
            seen.iter().map(|it| it["data"]["record"]["id"].as_i64().unwrap()).collect::<Vec<_>>(),
            ids
        );
    }
}

/// 39, 84, W15, W19
#[tokio::test]
async fn old_rows_are_sent_only_to_users_that_could_read_them() {
    let rig = WatchedDaemon::new(&format!("{OWN}{FULL}"), "t").await;
    let (mut ann, mut ben) = (rig.of(ANN).await, rig.of(BEN).await);
    let mut service = rig.watch_as(json!({"role": "service_role"}), json!([{"table": "t"}])).await;
    rig
        .run(&format!(
            "insert into t values (1, '{ANN}', 'secret'), (2, '{BEN}', 'b');
             update t set body = 'x' where id = 1; update t set owner = '{BEN}', body = 'y' where id = 1; delete from t"
        ))
        .await;
    let expected = [
        json!(["INSERT", row(1, ANN, "secret")]),
        json!(["UPDATE", row(1, ANN, "x"), row(1, ANN, "secret")]),
    ];
    assert_eq!(rig.received(&mut ann).await, expected);
    let mut received = rig.received(&mut ben).await;
    received[2..].sort_by_key(|it| it[1]["id"].as_i64());
    let expected = [
        json!(["INSERT", row(2, BEN, "b")]),
        json!(["UPDATE", row(1, BEN, "y"), {"id": 1}]),
        json!(["DELETE", {"id": 1}]),
        json!(["DELETE", {"id": 2}]),
    ];
    assert_eq!(received, expected);
    let received = rig.received(&mut service).await;
    assert!(received.contains(&json!(["DELETE", row(2, BEN, "b")])), "nothing limits it: {received:?}");
}

/// 84: differs from Supabase Realtime by default: a row that no policy can judge is sent to no one.
#[tokio::test]
async fn without_a_policy_nothing_is_sent_and_deletes_only_in_supabase_mode() {
    use convoke::access::rows::UnknownDeletes;
    let schema = "create table t (id int primary key, body text); alter table t enable row level security;";
    for (unknown, expected) in
        [(UnknownDeletes::Hide, vec![]), (UnknownDeletes::ShowKey, vec![json!(["DELETE", {"id": 1}])])]
    {
        let rig = WatchedDaemon::with(schema, "t", |config| {
            config.access.rows.unknown_deletes = unknown;
        })
        .await;
        let mut watch = rig.of(ANN).await;
        rig.run("insert into t values (1, 'x'); update t set body = 'y'; delete from t").await;
        assert_eq!(rig.received(&mut watch).await, expected);
    }
}

/// 85, W20
#[tokio::test]
async fn role_that_cannot_read_the_key_gets_one_error() {
    let rig = WatchedDaemon::new(
        "create table t (id int primary key, open text, secret text); alter table t replica identity full;
         revoke select on t from authenticated; grant select (open) on t to authenticated;
         create table other (id int primary key);",
        "t, other",
    )
    .await;
    let filtered = json!({"schema": "public", "table": "t", "filter": "open=eq.never"});
    let mut watch = rig.watch(json!([{"table": "t"}, {"table": "other"}, filtered])).await;
    rig.run("insert into t values (1, 'a', 'b'); insert into t values (2, 'a', 'b'); insert into other values (1); delete from t where id = 1").await;
    let seen = rig.seen(&mut watch).await;
    let (errors, rest): (Vec<_>, Vec<_>) = seen.iter().partition(|it| !it["data"]["errors"].is_null());
    let error = json!({
        "schema": "public", "table": "t", "type": "INSERT", "commit_timestamp": null, "columns": [], "record": {},
        "errors": ["Error 401: Unauthorized"],
    });
    assert!(errors.iter().all(|it| it["data"] == error), "{errors:?}");
    let mut received: Vec<_> = errors.iter().flat_map(|it| watch.which(it)).collect();
    received.sort_unstable();
    assert_eq!(received, [0, 2], "each once, whatever its filter says");
    assert_eq!(brief(rest[0]), json!(["INSERT", {"id": 1}]));
    assert_eq!(rest[1..].iter().map(|it| brief(it)).collect::<Vec<_>>(), [json!(["DELETE", {"open": "a"}])]);
}

/// 86
#[tokio::test]
async fn unreadable_columns_are_omitted() {
    let rig = WatchedDaemon::new(
        "create table t (id int primary key, secret text, open text); alter table t replica identity full;
         revoke select on t from authenticated; grant select (id, open) on t to authenticated;",
        "t",
    )
    .await;
    let mut watch = rig.watch(json!([{"table": "t"}])).await;
    let mut anon = rig.watch_as(json!({"role": "anon"}), json!([{"table": "t"}])).await;
    rig.run("insert into t values (1, 's', 'a'); update t set secret = 'r', open = 'b'; delete from t").await;
    let seen = rig.seen(&mut watch).await;
    let row = |open: &str| json!({"id": 1, "open": open});
    assert_eq!(
        briefs(&seen),
        [json!(["INSERT", row("a")]), json!(["UPDATE", row("b"), row("a")]), json!(["DELETE", row("b")])]
    );
    let columns = json!([{"name": "id", "type": "int4"}, {"name": "open", "type": "text"}]);
    assert!(seen.iter().all(|it| it["data"]["columns"] == columns));
    let seen = rig.seen(&mut anon).await;
    assert_eq!(seen[0]["data"]["columns"].as_array().unwrap().len(), 3);
}

/// 88, 89: policies judge the row version of the change, whatever happened to the row since.
#[tokio::test]
async fn superseded_row_versions_reach_the_right_users() {
    let rig = WatchedDaemon::new(&format!("{OWN}{FULL}"), "t").await;
    let (mut ann, mut ben) = (rig.of(ANN).await, rig.of(BEN).await);
    let mut statements = String::new();
    for id in 0..50 {
        statements += &format!("insert into t values ({id}, '{ANN}', 'first');");
        match id % 3 {
            0 => statements += &format!("delete from t where id = {id};"),
            1 => {
                statements += &format!(
                    "update t set owner = '{BEN}', body = 'second' where id = {id}; update t set body = 'third' where id = {id};"
                )
            }
            _ => {}
        }
    }
    for statement in statements.split_terminator(';') {
        rig.run(statement).await;
    }
    let received = rig.received(&mut ann).await;
    let count = |received: &[Value], kind: &str| received.iter().filter(|it| it[0] == kind).count();
    assert_eq!(
        (count(&received, "INSERT"), count(&received, "UPDATE"), count(&received, "DELETE")),
        (50, 0, 17)
    );
    let received = rig.received(&mut ben).await;
    assert_eq!(
        (count(&received, "INSERT"), count(&received, "UPDATE"), count(&received, "DELETE")),
        (0, 34, 0)
    );
    assert!(!json!(received).to_string().contains("first"), "{received:?}");
}

/// 90
#[tokio::test]
async fn failing_policy_withholds_rows_and_reports_an_error() {
    let rig = WatchedDaemon::new(
        "create table t (id int primary key, n int); alter table t enable row level security;
         create policy p on t to authenticated using (10 / n > 0); create policy a on t to anon using (true);
         create table other (id int primary key);",
        "t, other",
    )
    .await;
    let items = json!([{"table": "t"}, {"table": "other"}]);
    let mut fails = rig.watch(items.clone()).await;
    let mut fine = rig.watch_as(json!({"role": "anon"}), items).await;
    rig.run("insert into t values (1, 0); insert into other values (1); insert into t values (2, 0); insert into t values (3, 5)").await;
    let frames = rig.frames(&mut fails).await;
    let (system, changes): (Vec<_>, Vec<_>) = frames.iter().partition(|got| got.event == "system");
    assert_eq!(system.len(), 1, "{frames:?}");
    let payload = &system[0].payload;
    assert_eq!((&payload["status"], &payload["extension"]), (&json!("error"), &json!("postgres_changes")));
    assert!(
        payload["message"].as_str().unwrap().ends_with(": a row security policy of the table failed"),
        "{payload}"
    );
    assert!(!payload.to_string().contains("zero"), "the database's own words stay inside: {payload}");
    let received: Vec<_> = changes.iter().map(|got| got.payload["data"]["record"].clone()).collect();
    assert_eq!(received, [json!({"id": 1}), json!({"id": 3, "n": 5})]);
    assert_eq!(rig.seen(&mut fine).await.len(), 4);
}

/// 91
#[tokio::test]
async fn columns_renamed_or_dropped_in_flight_lose_no_change() {
    let rig = WatchedDaemon::new(
        &format!("{OWN} create table other (id bigint primary key); create table free (id bigint primary key, a int, b int);"),
        "t, other, free",
    )
    .await;
    let mut watch = rig
        .watch_as(json!({"sub": ANN}), json!([{"table": "t"}, {"table": "other"}, {"table": "free"}]))
        .await;
    let sql = rig.db.client().await;
    let rows = 150_i64;
    let write = async {
        for id in 1..=rows {
            let statement = format!(
                "insert into other values ({id}); insert into free (id) values ({id}); insert into t (id) values ({id})"
            );
            sql.batch_execute(&statement).await.unwrap();
        }
    };
    let change = async {
        // In the writer's lock order.
        for round in 0..6 {
            rig.run(&format!("alter table free drop a; alter table free add a text; alter table t rename body to body{round}")).await;
            rig.run(&format!("alter table free rename b to c; alter table free rename c to b; alter table t rename body{round} to body")).await;
        }
    };
    tokio::join!(write, change);
    let seen = rig.seen(&mut watch).await;
    for table in ["other", "free"] {
        let of = seen.iter().filter(|it| it["data"]["table"] == table);
        let ids: Vec<_> = of.map(|it| it["data"]["record"]["id"].as_i64().unwrap()).collect();
        assert_eq!(ids, (1..=rows).collect::<Vec<_>>(), "{table}");
    }
    assert!(seen.iter().all(|it| it["data"]["errors"].is_null()));
}

/// A view cannot be published: the rows of `convoke.offer_rows` come under the name of the view `convoke.offers`.
#[tokio::test]
async fn published_offers_have_the_name_of_their_view_and_are_limited_to_their_org() {
    let rig = WatchedDaemon::new("", "convoke.offer_rows").await;
    let items = json!([{"schema": "convoke", "table": "offers"}]);
    let mut ours = rig.watch_as(json!({"org": "demo"}), items.clone()).await;
    let mut theirs = rig.watch_as(json!({"org": "else"}), items).await;
    rig.run(
        "with made as (
             insert into convoke.tasks (id, org, kind, class, requester, root_id, state)
             select id, 'demo', 'k', 1, 'r', id, 'completed' from (select gen_random_uuid() as id) new returning id
         )
         insert into convoke.offer_rows (task_id, round, agent_id, incarnation, state, valid_until)
         select id, 1, 'a', 1, 'lost', clock_timestamp() from made",
    )
    .await;
    let seen = rig.seen(&mut ours).await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    let data = &seen[0]["data"];
    let expected = (&json!("convoke"), &json!("offers"), &json!("a"));
    assert_eq!((&data["schema"], &data["table"], &data["record"]["agent_id"]), expected);
    assert_eq!(rig.seen(&mut theirs).await, [] as [Value; 0]);
}
