//! Row security and privileges, as subscribers meet them: statements 39 and 82 to 91.
use crate::changes::watch::{ANN, BEN, House, Watch, brief, briefs};
use serde_json::{Value, json};

const OWN: &str = "
    create table t (id int primary key, owner uuid, body text); alter table t enable row level security;
    create policy own on t for select to authenticated using (owner = auth.uid());";
const FULL: &str = "alter table t replica identity full;";

impl House {
    async fn of(&self, sub: &str) -> Watch {
        self.watch_as(json!({"sub": sub}), json!([{"table": "t"}])).await
    }
    async fn told(&self, watch: &mut Watch) -> Vec<Value> {
        briefs(&self.seen(watch).await)
    }
}

fn row(id: i32, owner: &str, body: &str) -> Value {
    json!({"id": id, "owner": owner, "body": body})
}

/// 82, 87
#[tokio::test]
async fn each_user_hears_of_own_rows_alone_and_the_service_of_all() {
    let house = House::new(OWN, "t").await;
    let (mut ann, mut ben) = (house.of(ANN).await, house.of(BEN).await);
    let mut anon = house.watch_as(json!({"role": "anon", "sub": ANN}), json!([{"table": "t"}])).await;
    let mut service = house.watch_as(json!({"role": "service_role"}), json!([{"table": "t"}])).await;
    house
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
    assert_eq!(house.told(&mut ann).await, expected);
    let expected = [
        json!(["INSERT", row(2, BEN, "b")]),
        json!(["UPDATE", row(2, BEN, "b!"), key(2)]),
        json!(["UPDATE", row(1, BEN, "a!"), key(1)]),
    ];
    assert_eq!(house.told(&mut ben).await, expected);
    assert_eq!(house.seen(&mut service).await.len(), 8);
    assert_eq!(house.told(&mut anon).await, [] as [Value; 0], "the policy is not for this role");
}

/// 83
#[tokio::test]
async fn policies_know_every_claim() {
    let house = House::new(
        "create table t (id int primary key, org text, level int); alter table t enable row level security;
         create policy p on t using (
             org = auth.jwt() -> 'app' ->> 'org' and level <= (current_setting('request.jwt.claims')::jsonb ->> 'level')::int
             and auth.role() = 'authenticated');",
        "t",
    )
    .await;
    let claims = |org: &str, level: i32| json!({"app": {"org": org}, "level": level});
    let (mut high, mut low) = (
        house.watch_as(claims("red", 5), json!([{"table": "t"}])).await,
        house.watch_as(claims("red", 1), json!([{"table": "t"}])).await,
    );
    let mut blue = house.watch_as(claims("blue", 9), json!([{"table": "t"}])).await;
    house.run("insert into t values (1, 'red', 1), (2, 'red', 3), (3, 'green', 0), (4, 'blue', 9)").await;
    for (watch, ids) in [(&mut high, vec![1, 2]), (&mut low, vec![1]), (&mut blue, vec![4])] {
        let seen = house.seen(watch).await;
        assert_eq!(
            seen.iter().map(|it| it["data"]["record"]["id"].as_i64().unwrap()).collect::<Vec<_>>(),
            ids
        );
    }
}

/// 39, 84, W15, W19
#[tokio::test]
async fn old_rows_are_told_only_to_those_who_could_see_them() {
    let house = House::new(&format!("{OWN}{FULL}"), "t").await;
    let (mut ann, mut ben) = (house.of(ANN).await, house.of(BEN).await);
    let mut service = house.watch_as(json!({"role": "service_role"}), json!([{"table": "t"}])).await;
    house
        .run(&format!(
            "insert into t values (1, '{ANN}', 'secret'), (2, '{BEN}', 'b');
             update t set body = 'x' where id = 1; update t set owner = '{BEN}', body = 'y' where id = 1; delete from t"
        ))
        .await;
    let expected = [
        json!(["INSERT", row(1, ANN, "secret")]),
        json!(["UPDATE", row(1, ANN, "x"), row(1, ANN, "secret")]),
    ];
    assert_eq!(house.told(&mut ann).await, expected);
    let mut told = house.told(&mut ben).await;
    told[2..].sort_by_key(|it| it[1]["id"].as_i64());
    let expected = [
        json!(["INSERT", row(2, BEN, "b")]),
        json!(["UPDATE", row(1, BEN, "y"), {"id": 1}]),
        json!(["DELETE", {"id": 1}]),
        json!(["DELETE", {"id": 2}]),
    ];
    assert_eq!(told, expected);
    let told = house.told(&mut service).await;
    assert!(told.contains(&json!(["DELETE", row(2, BEN, "b")])), "nothing limits it: {told:?}");
}

/// 84: different: what nobody can judge is told to nobody, unless that is wanted.
#[tokio::test]
async fn without_a_policy_nothing_is_told_and_deletes_only_where_the_original_is_wanted() {
    use convoke::access::rows::UnknownDeletes;
    let schema = "create table t (id int primary key, body text); alter table t enable row level security;";
    for (unknown, expected) in
        [(UnknownDeletes::Hide, vec![]), (UnknownDeletes::ShowKey, vec![json!(["DELETE", {"id": 1}])])]
    {
        let house = House::with(schema, "t", |config| {
            config.access.rows.unknown_deletes = unknown;
        })
        .await;
        let mut watch = house.of(ANN).await;
        house.run("insert into t values (1, 'x'); update t set body = 'y'; delete from t").await;
        assert_eq!(house.told(&mut watch).await, expected);
    }
}

/// 85, W20
#[tokio::test]
async fn a_role_that_cannot_read_the_key_is_told_so_once() {
    let house = House::new(
        "create table t (id int primary key, open text, secret text); alter table t replica identity full;
         revoke select on t from authenticated; grant select (open) on t to authenticated;
         create table other (id int primary key);",
        "t, other",
    )
    .await;
    let filtered = json!({"schema": "public", "table": "t", "filter": "open=eq.never"});
    let mut watch = house.watch(json!([{"table": "t"}, {"table": "other"}, filtered])).await;
    house.run("insert into t values (1, 'a', 'b'); insert into t values (2, 'a', 'b'); insert into other values (1); delete from t where id = 1").await;
    let seen = house.seen(&mut watch).await;
    let (errors, rest): (Vec<_>, Vec<_>) = seen.iter().partition(|it| !it["data"]["errors"].is_null());
    let error = json!({
        "schema": "public", "table": "t", "type": "INSERT", "commit_timestamp": null, "columns": [], "record": {},
        "errors": ["Error 401: Unauthorized"],
    });
    assert!(errors.iter().all(|it| it["data"] == error), "{errors:?}");
    let mut told: Vec<_> = errors.iter().flat_map(|it| watch.which(it)).collect();
    told.sort_unstable();
    assert_eq!(told, [0, 2], "each once, whatever its filter says");
    assert_eq!(brief(rest[0]), json!(["INSERT", {"id": 1}]));
    assert_eq!(rest[1..].iter().map(|it| brief(it)).collect::<Vec<_>>(), [json!(["DELETE", {"open": "a"}])]);
}

/// 86
#[tokio::test]
async fn columns_that_a_role_cannot_read_are_not_there() {
    let house = House::new(
        "create table t (id int primary key, secret text, open text); alter table t replica identity full;
         revoke select on t from authenticated; grant select (id, open) on t to authenticated;",
        "t",
    )
    .await;
    let mut watch = house.watch(json!([{"table": "t"}])).await;
    let mut anon = house.watch_as(json!({"role": "anon"}), json!([{"table": "t"}])).await;
    house
        .run("insert into t values (1, 's', 'a'); update t set secret = 'r', open = 'b'; delete from t")
        .await;
    let seen = house.seen(&mut watch).await;
    let row = |open: &str| json!({"id": 1, "open": open});
    assert_eq!(
        briefs(&seen),
        [json!(["INSERT", row("a")]), json!(["UPDATE", row("b"), row("a")]), json!(["DELETE", row("b")])]
    );
    let columns = json!([{"name": "id", "type": "int4"}, {"name": "open", "type": "text"}]);
    assert!(seen.iter().all(|it| it["data"]["columns"] == columns));
    let seen = house.seen(&mut anon).await;
    assert_eq!(seen[0]["data"]["columns"].as_array().unwrap().len(), 3);
}

/// 88, 89: what is judged is the row as it was changed, whatever has become of it.
#[tokio::test]
async fn versions_that_are_gone_already_are_told_to_the_right_users() {
    let house = House::new(&format!("{OWN}{FULL}"), "t").await;
    let (mut ann, mut ben) = (house.of(ANN).await, house.of(BEN).await);
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
        house.run(statement).await;
    }
    let told = house.told(&mut ann).await;
    let count = |told: &[Value], kind: &str| told.iter().filter(|it| it[0] == kind).count();
    assert_eq!((count(&told, "INSERT"), count(&told, "UPDATE"), count(&told, "DELETE")), (50, 0, 17));
    let told = house.told(&mut ben).await;
    assert_eq!((count(&told, "INSERT"), count(&told, "UPDATE"), count(&told, "DELETE")), (0, 34, 0));
    assert!(!json!(told).to_string().contains("first"), "{told:?}");
}

/// 90
#[tokio::test]
async fn a_policy_that_fails_silences_its_own_viewers_and_tells_them() {
    let house = House::new(
        "create table t (id int primary key, n int); alter table t enable row level security;
         create policy p on t to authenticated using (10 / n > 0); create policy a on t to anon using (true);
         create table other (id int primary key);",
        "t, other",
    )
    .await;
    let items = json!([{"table": "t"}, {"table": "other"}]);
    let mut fails = house.watch(items.clone()).await;
    let mut fine = house.watch_as(json!({"role": "anon"}), items).await;
    house.run("insert into t values (1, 0); insert into other values (1); insert into t values (2, 0); insert into t values (3, 5)").await;
    let frames = house.frames(&mut fails).await;
    let (system, changes): (Vec<_>, Vec<_>) = frames.iter().partition(|got| got.event == "system");
    assert_eq!(system.len(), 1, "{frames:?}");
    let payload = &system[0].payload;
    assert_eq!((&payload["status"], &payload["extension"]), (&json!("error"), &json!("postgres_changes")));
    assert!(
        payload["message"].as_str().unwrap().ends_with(": a row security policy of the table failed"),
        "{payload}"
    );
    assert!(!payload.to_string().contains("zero"), "the database's own words stay inside: {payload}");
    let told: Vec<_> = changes.iter().map(|got| got.payload["data"]["record"].clone()).collect();
    assert_eq!(told, [json!({"id": 1}), json!({"id": 3, "n": 5})]);
    assert_eq!(house.seen(&mut fine).await.len(), 4);
}

/// 91
#[tokio::test]
async fn columns_that_are_renamed_and_dropped_in_flight_cost_nobody_a_change() {
    let house = House::new(
        &format!("{OWN} create table other (id bigint primary key); create table free (id bigint primary key, a int, b int);"),
        "t, other, free",
    )
    .await;
    let mut watch = house
        .watch_as(json!({"sub": ANN}), json!([{"table": "t"}, {"table": "other"}, {"table": "free"}]))
        .await;
    let sql = house.db.client().await;
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
        // In the order in which the writer locks them.
        for round in 0..6 {
            house.run(&format!("alter table free drop a; alter table free add a text; alter table t rename body to body{round}")).await;
            house.run(&format!("alter table free rename b to c; alter table free rename c to b; alter table t rename body{round} to body")).await;
        }
    };
    tokio::join!(write, change);
    let seen = house.seen(&mut watch).await;
    for table in ["other", "free"] {
        let of = seen.iter().filter(|it| it["data"]["table"] == table);
        let ids: Vec<_> = of.map(|it| it["data"]["record"]["id"].as_i64().unwrap()).collect();
        assert_eq!(ids, (1..=rows).collect::<Vec<_>>(), "{table}");
    }
    assert!(seen.iter().all(|it| it["data"]["errors"].is_null()));
}
