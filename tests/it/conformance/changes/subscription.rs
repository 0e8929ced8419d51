//! Subscribing: statements 1 to 13, 17 to 19, 21 to 26 and 29.
use crate::{
    changes::watch::{UNABLE, Watch, WatchedDaemon, brief, change, ids, refused, subscribed, token},
    realtime::Socket,
};
use serde_json::{Value, json};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, Ordering::SeqCst},
};

const ORDERS: &str = "create table orders (id int primary key, total int);";

/// 1, 2, 5, 6, 7, 9, 10, 12
#[tokio::test]
async fn each_item_is_echoed_with_an_id_and_one_system_message_follows() {
    let rig = WatchedDaemon::new(ORDERS, "orders").await;
    let filtered =
        json!({"event": "insert", "schema": "public", "table": "orders", "filter": "total=gt.100"});
    let twice = json!({"event": "*", "table": "orders", "note": {"mine": [1, null]}});
    let blank = json!({"event": "DELETE", "schema": "public", "table": "orders", "filter": ""});
    let items = [filtered, Value::Null, twice.clone(), blank, twice];
    let mut socket = rig.socket(json!({})).await;
    let reply = socket.join("room", json!({ "postgres_changes": items })).await;
    reply.ok();
    let echoed = reply.payload["response"]["postgres_changes"].as_array().unwrap();
    let asked: Vec<_> = items.iter().filter(|item| !item.is_null()).collect();
    assert_eq!(echoed.len(), asked.len());
    for (echo, asked) in echoed.iter().zip(asked) {
        let mut without = echo.clone();
        assert!(without.as_object_mut().unwrap().remove("id").unwrap().as_u64().unwrap() > 0);
        assert_eq!(&without, asked);
    }
    let ids = ids(&reply);
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2], "{ids:?}");

    let system = socket.next().await;
    assert_eq!((&system.join_ref, &system.reference), (&json!("1"), &Value::Null));
    assert_eq!((&*system.event, &system.payload), ("system", &subscribed("room")));

    rig.run("insert into orders values (1, 150); insert into orders values (2, 50)").await;
    let first = change(socket.next().await);
    assert_eq!(brief(&first), json!(["INSERT", {"id": 1, "total": 150}]));
    let received: Vec<_> = first["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    assert!(
        received.contains(&ids[0]) && received.contains(&ids[1]) && received.contains(&ids[3]),
        "{received:?} of {ids:?}"
    );
    assert!(!received.contains(&ids[2]));
    let second = change(socket.next().await);
    assert_eq!(second["data"]["record"]["id"], 2);
    assert!(!second["ids"].as_array().unwrap().contains(&json!(ids[0])));
    rig.run("delete from orders where id = 2").await;
    let third = change(socket.next().await);
    assert!(third["ids"].as_array().unwrap().contains(&json!(ids[2])));
    assert!(socket.so_far().await.is_empty(), "one word, and no change twice");
}

/// 3, 4
#[tokio::test]
async fn join_without_items_gets_none_and_no_system_message() {
    let rig = WatchedDaemon::new("", "").await;
    let mut socket = rig.socket(json!({})).await;
    for (at, none) in
        [json!([]), json!(null), json!([null]), json!("orders"), json!({})].into_iter().enumerate()
    {
        let reply = socket.join(&format!("room{at}"), json!({ "postgres_changes": none })).await;
        reply.ok();
        assert_eq!(reply.payload["response"]["postgres_changes"], json!([]), "{none}");
    }
    socket.join("none", json!({})).await.ok();
    assert!(socket.so_far().await.is_empty());
    for wrong in [json!(["orders"]), json!([{"table": "orders"}, 7])] {
        let reply = socket.join("wrong", json!({ "postgres_changes": wrong })).await;
        assert!(reply.reason().starts_with("UnknownErrorOnChannel"), "{reply:?}");
    }
}

/// Writes 1, 2, 3 … each in its own transaction, until it is stopped.
struct Writer {
    /// The last statement that was started; it may be committed.
    begun: AtomicI64,
    over: AtomicBool,
}

impl Writer {
    async fn start(rig: &WatchedDaemon, statement: &'static str) -> (Arc<Self>, tokio::task::JoinHandle<()>) {
        let writer = Arc::new(Self { begun: AtomicI64::new(0), over: AtomicBool::new(false) });
        let (sql, own) = (rig.db.client().await, writer.clone());
        #[expect(clippy::disallowed_methods, reason = "the test waits for it")]
        let task = tokio::spawn(async move {
            while !own.over.load(SeqCst) {
                let next = own.begun.fetch_add(1, SeqCst) + 1;
                sql.execute(statement, &[&next]).await.unwrap();
            }
        });
        (writer, task)
    }
}

/// 8, 9: the reply comes first, and every change committed after it follows.
#[tokio::test]
async fn changes_follow_the_join_reply_without_a_gap() {
    let rig = WatchedDaemon::new("create table n (id bigint primary key)", "n").await;
    let (writer, task) = Writer::start(&rig, "insert into n values ($1)").await;
    for round in 0..30 {
        let vsn = if round % 2 == 0 { "2.0.0" } else { "1.0.0" };
        let mut socket = Socket::open(&rig.url(json!({}), vsn, ""), vsn == "2.0.0").await;
        let reply = socket.join("room", json!({"postgres_changes": [{"event": "*", "table": "n"}]})).await;
        let begun = writer.begun.load(SeqCst);
        assert_eq!(reply.event, "phx_reply");
        reply.ok();
        let system = socket.next().await;
        assert_eq!((&*system.event, &system.payload["status"]), ("system", &json!("ok")), "{system:?}");
        let mut last = None;
        while last.is_none_or(|last| last < begun + 20) {
            let id = change(socket.next().await)["data"]["record"]["id"].as_i64().unwrap();
            match last {
                None => assert!(id <= begun + 1, "{begun} was begun, and {id} came first"),
                Some(last) => assert_eq!(id, last + 1),
            }
            last = Some(id);
        }
    }
    writer.over.store(true, SeqCst);
    task.await.unwrap();
}

/// 13: and any other value, in any case
#[tokio::test]
async fn unknown_change_event_means_all_events() {
    let rig = WatchedDaemon::new(ORDERS, "orders").await;
    let of = |event: Value| json!({"event": event, "table": "orders"});
    let items =
        json!([{"table": "orders"}, of(json!("UPSERT")), of(json!(7)), of(json!(null)), of(json!("update"))]);
    let mut watch = rig.watch(items).await;
    rig.run("insert into orders values (1, 1); update orders set total = 2; delete from orders").await;
    let seen = rig.seen(&mut watch).await;
    let which: Vec<_> =
        seen.iter().map(|it| (it["data"]["type"].as_str().unwrap(), watch.which(it))).collect();
    let all = vec![0, 1, 2, 3];
    assert_eq!(which, [("INSERT", all.clone()), ("UPDATE", vec![0, 1, 2, 3, 4]), ("DELETE", all)]);
}

/// 17, 18, 23, 24
#[tokio::test]
async fn invalid_item_is_reported_and_the_channel_stays() {
    let rig = WatchedDaemon::new(ORDERS, "orders").await;
    let nothing =
        "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: ";
    for item in [
        json!({}),
        json!({"event": "INSERT"}),
        json!({"schema": 1}),
        json!({"schema": "public", "filter": "id=eq.1"}),
        json!({"table": "orders", "filter": "id=eq.1"}),
    ] {
        let received = rig.refusal(json!([item])).await;
        assert!(received.starts_with(nothing), "{item}: {received}");
    }
    assert!(rig.refusal(json!([{"event": "INSERT"}])).await.contains("\"event\" => \"INSERT\""));
    let secret = rig.refusal(json!([{"event": "*", "user_token": "a.b.c", "auth_token": "d.e.f"}])).await;
    assert!(
        secret.starts_with(nothing) && !secret.contains("a.b.c") && !secret.contains("d.e.f"),
        "{secret}"
    );

    let select = |item: Value| json!([item]);
    let text = "Error parsing `select` params: expected a list of column name strings, e.g. select: [\"col1\", \"col2\"]";
    assert_eq!(
        rig.refusal(select(json!({"table": "orders", "schema": "public", "select": "id"}))).await,
        text
    );
    let wild = "Column selection is not supported for wildcard subscriptions. Provide an explicit schema and table name.";
    for item in [
        json!({"schema": "public", "select": ["id"]}),
        json!({"schema": "public", "table": "*", "select": ["id"]}),
        json!({"schema": "*", "table": "orders", "select": ["id"]}),
    ] {
        assert_eq!(rig.refusal(select(item.clone())).await, wild, "{item}");
    }

    let mut socket = rig.socket(json!({})).await;
    socket.join("room", json!({"postgres_changes": [{}], "broadcast": {"ack": true}})).await.ok();
    refused(&mut socket).await;
    socket.ask("room", "broadcast", json!({"event": "x"})).await.ok();
    assert!(socket.so_far().await.is_empty(), "told once, and the channel goes on");
}

/// 19
#[tokio::test]
async fn unpublished_table_is_reported_with_the_parsed_item() {
    let rig = WatchedDaemon::new("create table hidden (id int primary key); create schema empty;", "").await;
    let received = |what: &str| {
        format!(
            "{UNABLE}Please check Realtime is enabled for the given connect parameters: [{what}, filters: [], select: nil]"
        )
    };
    for (item, what) in [
        (
            json!({"event": "*", "schema": "public", "table": "hidden"}),
            "event: *, schema: public, table: hidden",
        ),
        (json!({"event": "insert", "table": "no such"}), "event: INSERT, schema: public, table: no such"),
        (json!({"event": "DELETE", "schema": "empty"}), "event: DELETE, schema: empty, table: *"),
        (json!({"schema": "PUBLIC", "table": "mark"}), "event: *, schema: PUBLIC, table: mark"),
    ] {
        assert_eq!(rig.refusal(json!([item])).await, received(what), "{item}");
    }
    let full = json!({"schema": "public", "table": "hidden", "filter": "id=in.(1,2),id=not.gt.4", "select": ["x", "id"]});
    let received = rig.refusal(json!([full])).await;
    assert!(received.contains("[event: *, schema: public, table: hidden, filters: ["), "{received}");
    for part in [r#"{"id", "in", "{1,2}", false}"#, r#"{"id", "gt", "4", true}"#, r#"select: ["x", "id"]]"#] {
        assert!(received.contains(part), "{part} in {received}");
    }
}

/// 21
#[tokio::test]
async fn one_invalid_item_fails_all_items_with_one_message() {
    let rig = WatchedDaemon::new(ORDERS, "orders").await;
    let mut other = rig.watch(json!([])).await;
    let mut socket = rig.socket(json!({})).await;
    let good = json!({"table": "orders"});
    let items =
        json!([good, {"table": "nope"}, good, {"schema": "public", "table": "orders", "filter": "wrong"}]);
    let reply = socket.join("room", json!({ "postgres_changes": items })).await;
    assert_eq!(ids(&reply).len(), 4);
    refused(&mut socket).await;
    rig.run("insert into orders values (1, 1)").await;
    rig.seen(&mut other).await;
    assert_eq!(socket.so_far().await, []);
}

/// 25
#[tokio::test]
async fn unselectable_column_is_named() {
    let rig = WatchedDaemon::new(
        "create table t (id int primary key, open text, secret text);
         revoke select on t from authenticated; grant select (id, open) on t to authenticated;",
        "t",
    )
    .await;
    for column in ["nope", "secret"] {
        let item = json!({"event": "*", "schema": "public", "table": "t", "select": ["id", column]});
        let received = rig.refusal(json!([item])).await;
        let start = format!(
            "{UNABLE}An exception happened so please check your connect parameters: \
             [event: *, schema: public, table: t, filters: [], select: [\"id\", \"{column}\"]]. Exception: "
        );
        assert!(received.starts_with(&start), "{received}");
        assert!(
            received.contains(&format!("ERROR P0001 (raise_exception) invalid column for select {column}")),
            "{received}"
        );
    }
    let item = json!([{"schema": "public", "table": "t", "select": ["secret", "id"]}]);
    rig.run("grant select on t to service_role").await;
    Watch::start(rig.socket(json!({"role": "service_role"})).await, "room", item, json!({})).await;
    let ghost = rig.refusal_as(json!({"role": "ghost"}), json!([{"table": "t"}])).await;
    assert!(ghost.contains("ERROR 42704 (undefined_object) role \"ghost\" does not exist"), "{ghost}");
}

/// 26
#[tokio::test]
async fn new_token_applies_at_once_and_is_confirmed() {
    let rig = WatchedDaemon::new(
        "create table t (id int primary key, owner text); alter table t enable row level security;
         create policy own on t using (owner = auth.jwt() ->> 'sub');",
        "t",
    )
    .await;
    let mut watch = rig.watch_as(json!({"sub": "ann"}), json!([{"table": "t"}])).await;
    rig.run("insert into t values (1, 'ann'), (2, 'ben')").await;
    assert_eq!(rig.seen(&mut watch).await.len(), 1);
    let renewed = token(json!({"sub": "ben"}));
    watch.socket.push("room", "access_token", json!({"access_token": renewed})).await;
    let system = watch.socket.next().await;
    assert_eq!((&*system.event, &system.payload), ("system", &subscribed("room")));
    rig.run("insert into t values (3, 'ann'), (4, 'ben')").await;
    let seen = rig.seen(&mut watch).await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(
        (&seen[0]["data"]["record"]["id"], watch.which(&seen[0])),
        (&json!(4), vec![0]),
        "with the ids it had"
    );
    watch.socket.push("room", "access_token", json!({"access_token": renewed})).await;
    assert_eq!(rig.frames(&mut watch).await, [], "the same token is nothing new");
}

/// 29
#[tokio::test]
async fn left_channel_receives_no_changes() {
    let rig = WatchedDaemon::new(ORDERS, "orders").await;
    let mut watch = rig.watch(json!([])).await;
    let socket = &mut watch.socket;
    let reply = socket.join("left", json!({"postgres_changes": [{"table": "orders"}]})).await;
    reply.ok();
    assert_eq!(socket.next().await.payload, subscribed("left"));
    rig.run("insert into orders values (1, 1)").await;
    assert_eq!(change(socket.next().await)["data"]["record"]["id"], 1);
    socket.send(reply.join_ref, json!("99"), "realtime:left", "phx_leave", json!({})).await;
    socket.until("phx_close").await;
    rig.run("insert into orders values (2, 2)").await;
    assert_eq!(rig.frames(&mut watch).await, []);
}

/// A join without `config`: its sub-topic is the item, the event is the kind of change, and the payload is the change.
#[tokio::test]
async fn join_without_config_uses_its_topic_as_the_item() {
    let rig = WatchedDaemon::new(ORDERS, "orders").await;
    let mut socket = rig.socket(json!({})).await;
    let topics = ["public:orders:total=gt.100", "public", "public:nothing"];
    for topic in topics {
        let reference = socket.push(topic, "phx_join", json!({})).await;
        let reply = socket.next().await;
        assert_eq!((&*reply.event, &reply.reference), ("phx_reply", &json!(reference)), "{reply:?}");
        reply.ok();
        let received = socket.next().await;
        let expected = if topic == "public:nothing" { "error" } else { "ok" };
        assert_eq!(
            (&*received.event, &received.payload["status"]),
            ("system", &json!(expected)),
            "{received:?}"
        );
    }
    rig.run("insert into orders values (1, 50); insert into orders values (2, 150)").await;
    rig.run("delete from orders where id = 1").await;
    let mut received = Vec::new();
    while received.len() < 4 {
        let got = socket.next().await;
        assert_eq!(got.payload["type"], got.event.as_str(), "{got:?}");
        let row = &got.payload[if got.event == "DELETE" { "old_record" } else { "record" }];
        received.push(format!("{} {} {}", got.topic, got.event, row["id"]));
    }
    received.sort();
    let expected = [
        "realtime:public DELETE 1",
        "realtime:public INSERT 1",
        "realtime:public INSERT 2",
        "realtime:public:orders:total=gt.100 INSERT 2",
    ];
    assert_eq!(received, expected);
}
