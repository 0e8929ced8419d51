//! Subscribing: statements 1 to 13, 17 to 19, 21 to 26 and 29.
use crate::{
    changes::watch::{House, UNABLE, Watch, brief, change, ids, refused, subscribed, token},
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
async fn each_item_comes_back_as_it_was_sent_with_an_id_and_one_word_follows() {
    let house = House::new(ORDERS, "orders").await;
    let filtered =
        json!({"event": "insert", "schema": "public", "table": "orders", "filter": "total=gt.100"});
    let twice = json!({"event": "*", "table": "orders", "note": {"mine": [1, null]}});
    let blank = json!({"event": "DELETE", "schema": "public", "table": "orders", "filter": ""});
    let items = [filtered, Value::Null, twice.clone(), blank, twice];
    let mut socket = house.socket(json!({})).await;
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

    house.run("insert into orders values (1, 150); insert into orders values (2, 50)").await;
    let first = change(socket.next().await);
    assert_eq!(brief(&first), json!(["INSERT", {"id": 1, "total": 150}]));
    let heard: Vec<_> = first["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    assert!(
        heard.contains(&ids[0]) && heard.contains(&ids[1]) && heard.contains(&ids[3]),
        "{heard:?} of {ids:?}"
    );
    assert!(!heard.contains(&ids[2]));
    let second = change(socket.next().await);
    assert_eq!(second["data"]["record"]["id"], 2);
    assert!(!second["ids"].as_array().unwrap().contains(&json!(ids[0])));
    house.run("delete from orders where id = 2").await;
    let third = change(socket.next().await);
    assert!(third["ids"].as_array().unwrap().contains(&json!(ids[2])));
    assert!(socket.so_far().await.is_empty(), "one word, and no change twice");
}

/// 3, 4
#[tokio::test]
async fn no_items_are_answered_with_none_and_no_word_follows() {
    let house = House::new("", "").await;
    let mut socket = house.socket(json!({})).await;
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

/// Writes 1, 2, 3 … each in a transaction of its own, until it is over.
struct Writer {
    /// The last statement that was begun: it may be committed.
    begun: AtomicI64,
    over: AtomicBool,
}

impl Writer {
    async fn start(house: &House, statement: &'static str) -> (Arc<Self>, tokio::task::JoinHandle<()>) {
        let writer = Arc::new(Self { begun: AtomicI64::new(0), over: AtomicBool::new(false) });
        let (sql, own) = (house.db.client().await, writer.clone());
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

/// 8, 9: the reply comes first, and everything that is committed when it is there follows it.
#[tokio::test]
async fn nothing_comes_before_the_reply_and_no_later_change_is_missed() {
    let house = House::new("create table n (id bigint primary key)", "n").await;
    let (writer, task) = Writer::start(&house, "insert into n values ($1)").await;
    for round in 0..30 {
        let vsn = if round % 2 == 0 { "2.0.0" } else { "1.0.0" };
        let mut socket = Socket::open(&house.url(json!({}), vsn, ""), vsn == "2.0.0").await;
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

/// 13: and any other word, of any case
#[tokio::test]
async fn an_event_that_is_none_means_all_of_them() {
    let house = House::new(ORDERS, "orders").await;
    let of = |event: Value| json!({"event": event, "table": "orders"});
    let items =
        json!([{"table": "orders"}, of(json!("UPSERT")), of(json!(7)), of(json!(null)), of(json!("update"))]);
    let mut watch = house.watch(items).await;
    house.run("insert into orders values (1, 1); update orders set total = 2; delete from orders").await;
    let seen = house.seen(&mut watch).await;
    let which: Vec<_> =
        seen.iter().map(|it| (it["data"]["type"].as_str().unwrap(), watch.which(it))).collect();
    let all = vec![0, 1, 2, 3];
    assert_eq!(which, [("INSERT", all.clone()), ("UPDATE", vec![0, 1, 2, 3, 4]), ("DELETE", all)]);
}

/// 17, 18, 23, 24
#[tokio::test]
async fn an_item_that_means_nothing_is_told_and_the_channel_stays() {
    let house = House::new(ORDERS, "orders").await;
    let nothing =
        "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: ";
    for item in [
        json!({}),
        json!({"event": "INSERT"}),
        json!({"schema": 1}),
        json!({"schema": "public", "filter": "id=eq.1"}),
        json!({"table": "orders", "filter": "id=eq.1"}),
    ] {
        let told = house.refusal(json!([item])).await;
        assert!(told.starts_with(nothing), "{item}: {told}");
    }
    assert!(house.refusal(json!([{"event": "INSERT"}])).await.contains("\"event\" => \"INSERT\""));
    let secret = house.refusal(json!([{"event": "*", "user_token": "a.b.c", "auth_token": "d.e.f"}])).await;
    assert!(
        secret.starts_with(nothing) && !secret.contains("a.b.c") && !secret.contains("d.e.f"),
        "{secret}"
    );

    let select = |item: Value| json!([item]);
    let text = "Error parsing `select` params: expected a list of column name strings, e.g. select: [\"col1\", \"col2\"]";
    assert_eq!(
        house.refusal(select(json!({"table": "orders", "schema": "public", "select": "id"}))).await,
        text
    );
    let wild = "Column selection is not supported for wildcard subscriptions. Provide an explicit schema and table name.";
    for item in [
        json!({"schema": "public", "select": ["id"]}),
        json!({"schema": "public", "table": "*", "select": ["id"]}),
        json!({"schema": "*", "table": "orders", "select": ["id"]}),
    ] {
        assert_eq!(house.refusal(select(item.clone())).await, wild, "{item}");
    }

    let mut socket = house.socket(json!({})).await;
    socket.join("room", json!({"postgres_changes": [{}], "broadcast": {"ack": true}})).await.ok();
    refused(&mut socket).await;
    socket.ask("room", "broadcast", json!({"event": "x"})).await.ok();
    assert!(socket.so_far().await.is_empty(), "told once, and the channel goes on");
}

/// 19
#[tokio::test]
async fn a_table_that_is_not_published_is_told_with_what_was_understood() {
    let house = House::new("create table hidden (id int primary key); create schema empty;", "").await;
    let told = |what: &str| {
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
        assert_eq!(house.refusal(json!([item])).await, told(what), "{item}");
    }
    let full = json!({"schema": "public", "table": "hidden", "filter": "id=in.(1,2),id=not.gt.4", "select": ["x", "id"]});
    let told = house.refusal(json!([full])).await;
    assert!(told.contains("[event: *, schema: public, table: hidden, filters: ["), "{told}");
    for part in [r#"{"id", "in", "{1,2}", false}"#, r#"{"id", "gt", "4", true}"#, r#"select: ["x", "id"]]"#] {
        assert!(told.contains(part), "{part} in {told}");
    }
}

/// 21
#[tokio::test]
async fn one_bad_item_among_good_ones_fails_all_of_them_with_one_word() {
    let house = House::new(ORDERS, "orders").await;
    let mut other = house.watch(json!([])).await;
    let mut socket = house.socket(json!({})).await;
    let good = json!({"table": "orders"});
    let items =
        json!([good, {"table": "nope"}, good, {"schema": "public", "table": "orders", "filter": "wrong"}]);
    let reply = socket.join("room", json!({ "postgres_changes": items })).await;
    assert_eq!(ids(&reply).len(), 4);
    refused(&mut socket).await;
    house.run("insert into orders values (1, 1)").await;
    house.seen(&mut other).await;
    assert_eq!(socket.so_far().await, []);
}

/// 25
#[tokio::test]
async fn a_column_that_cannot_be_selected_is_named() {
    let house = House::new(
        "create table t (id int primary key, open text, secret text);
         revoke select on t from authenticated; grant select (id, open) on t to authenticated;",
        "t",
    )
    .await;
    for column in ["nope", "secret"] {
        let item = json!({"event": "*", "schema": "public", "table": "t", "select": ["id", column]});
        let told = house.refusal(json!([item])).await;
        let start = format!(
            "{UNABLE}An exception happened so please check your connect parameters: \
             [event: *, schema: public, table: t, filters: [], select: [\"id\", \"{column}\"]]. Exception: "
        );
        assert!(told.starts_with(&start), "{told}");
        assert!(
            told.contains(&format!("ERROR P0001 (raise_exception) invalid column for select {column}")),
            "{told}"
        );
    }
    let item = json!([{"schema": "public", "table": "t", "select": ["secret", "id"]}]);
    house.run("grant select on t to service_role").await;
    Watch::start(house.socket(json!({"role": "service_role"})).await, "room", item, json!({})).await;
    let ghost = house.refusal_as(json!({"role": "ghost"}), json!([{"table": "t"}])).await;
    assert!(ghost.contains("ERROR 42704 (undefined_object) role \"ghost\" does not exist"), "{ghost}");
}

/// 26
#[tokio::test]
async fn a_new_token_counts_at_once_and_is_confirmed() {
    let house = House::new(
        "create table t (id int primary key, owner text); alter table t enable row level security;
         create policy own on t using (owner = auth.jwt() ->> 'sub');",
        "t",
    )
    .await;
    let mut watch = house.watch_as(json!({"sub": "ann"}), json!([{"table": "t"}])).await;
    house.run("insert into t values (1, 'ann'), (2, 'ben')").await;
    assert_eq!(house.seen(&mut watch).await.len(), 1);
    let renewed = token(json!({"sub": "ben"}));
    watch.socket.push("room", "access_token", json!({"access_token": renewed})).await;
    let system = watch.socket.next().await;
    assert_eq!((&*system.event, &system.payload), ("system", &subscribed("room")));
    house.run("insert into t values (3, 'ann'), (4, 'ben')").await;
    let seen = house.seen(&mut watch).await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(
        (&seen[0]["data"]["record"]["id"], watch.which(&seen[0])),
        (&json!(4), vec![0]),
        "with the ids it had"
    );
    watch.socket.push("room", "access_token", json!({"access_token": renewed})).await;
    assert_eq!(house.frames(&mut watch).await, [], "the same token is nothing new");
}

/// 29
#[tokio::test]
async fn a_channel_that_was_left_hears_no_more() {
    let house = House::new(ORDERS, "orders").await;
    let mut watch = house.watch(json!([])).await;
    let socket = &mut watch.socket;
    let reply = socket.join("left", json!({"postgres_changes": [{"table": "orders"}]})).await;
    reply.ok();
    assert_eq!(socket.next().await.payload, subscribed("left"));
    house.run("insert into orders values (1, 1)").await;
    assert_eq!(change(socket.next().await)["data"]["record"]["id"], 1);
    socket.send(reply.join_ref, json!("99"), "realtime:left", "phx_leave", json!({})).await;
    socket.until("phx_close").await;
    house.run("insert into orders values (2, 2)").await;
    assert_eq!(house.frames(&mut watch).await, []);
}

/// A join without `config`: its sub-topic is the item, the event is that of the row, and the payload is the change.
#[tokio::test]
async fn a_join_without_config_takes_its_topic_for_the_item() {
    let house = House::new(ORDERS, "orders").await;
    let mut socket = house.socket(json!({})).await;
    let topics = ["public:orders:total=gt.100", "public", "public:nothing"];
    for topic in topics {
        let reference = socket.push(topic, "phx_join", json!({})).await;
        let reply = socket.next().await;
        assert_eq!((&*reply.event, &reply.reference), ("phx_reply", &json!(reference)), "{reply:?}");
        reply.ok();
        let told = socket.next().await;
        let expected = if topic == "public:nothing" { "error" } else { "ok" };
        assert_eq!((&*told.event, &told.payload["status"]), ("system", &json!(expected)), "{told:?}");
    }
    house.run("insert into orders values (1, 50); insert into orders values (2, 150)").await;
    house.run("delete from orders where id = 1").await;
    let mut heard = Vec::new();
    while heard.len() < 4 {
        let got = socket.next().await;
        assert_eq!(got.payload["type"], got.event.as_str(), "{got:?}");
        let row = &got.payload[if got.event == "DELETE" { "old_record" } else { "record" }];
        heard.push(format!("{} {} {}", got.topic, got.event, row["id"]));
    }
    heard.sort();
    let expected = [
        "realtime:public DELETE 1",
        "realtime:public INSERT 1",
        "realtime:public INSERT 2",
        "realtime:public:orders:total=gt.100 INSERT 2",
    ];
    assert_eq!(heard, expected);
}
