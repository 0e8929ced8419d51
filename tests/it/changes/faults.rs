//! Daemons and servers that are killed, restarted, cut off and filled up: nothing is lost in silence, order is kept.
use super::{
    listener::{Listener, Writer, at},
    resume::{prove, resumable, resume},
    watch::{Watch, WatchedDaemon, change, ground, settings, subscribed, token},
};
use crate::{
    daemon::{Echo, Running, Up, definition, fresh, soon},
    realtime::{SECRET, Socket},
    support::{DedicatedServer, Proxy, crypto, database_on_its_own_server, from_environment},
};
use convoke::{config::Config, db};
use secrecy::SecretString;
use serde_json::{Value, json};
use std::{path::Path, sync::Arc, time::Duration};

const N: &str = "create table n (id bigint primary key, body text);";
/// How many times a daemon is killed.
const KILLS: u32 = 4;

fn items() -> Value {
    json!([{"event": "INSERT", "schema": "public", "table": "n"}])
}

/// The settings of a daemon that is a process of its own.
fn write_settings(folder: &Path, idle_timeout: &str) {
    let text = format!(
        "[auth]\njwt_secret = '{SECRET}'\n[gateway]\nidle_timeout = '{idle_timeout}'\n\
         [[channels]]\ntopic = 'room*'\nhistory = '10m'\nresume = true\n"
    );
    std::fs::write(folder.join("convoke.toml"), text).unwrap();
}

fn socket_url(http: &str, client: &str) -> String {
    let address = http.replacen("http", "ws", 1);
    let key = token(json!({"sub": "listener"}));
    format!("{address}/realtime/v1/websocket?apikey={key}&vsn=2.0.0&client_id={client}")
}

/// 112
#[tokio::test]
async fn repeated_kills_lose_no_change_of_resuming_clients() {
    let kills = from_environment("CONVOKE_CHANGES_KILLS", KILLS);
    let (db, folder) = fresh().await;
    ground(&db, N, "n").await;
    write_settings(folder.path(), "5s");
    let mut up = Up::start(&db, folder.path(), None).await;
    let (place, url) = at(socket_url(&up.url, "one"));
    let mut listener = Listener::start(url.clone(), items());
    listener.joined().await;
    let mut writer = Writer::start(db.url.clone(), Duration::from_millis(2));
    for kill in 0..kills {
        writer.more(100 + i64::from(kill * 37 % 100)).await;
        up.kill().await;
        writer.more(50).await;
        up = Up::start(&db, folder.path(), None).await;
        place.send_replace(socket_url(&up.url, "one"));
    }
    writer.more(100).await;
    let last = writer.stop().await;
    let heard = listener.until(last).await;
    println!("killed {kills} times: {last} rows, {heard:?}");
    assert!(heard.first <= Some(2) && heard.gaps.is_empty() && heard.joins > u64::from(kills), "{heard:?}");
    assert!(heard.replayed > 0, "{heard:?}");
}

/// The daemon dies between any two steps of taking a change to its clients.
#[tokio::test]
async fn killed_at_any_step_it_loses_and_doubles_nothing_that_is_not_marked() {
    for point in ["changes.received", "changes.logged", "changes.published"] {
        let (db, folder) = fresh().await;
        ground(&db, N, "n").await;
        write_settings(folder.path(), "5s");
        let up = Up::start(&db, folder.path(), Some(&format!("{point}:3"))).await;
        let (place, url) = at(socket_url(&up.url, "one"));
        let mut listener = Listener::start(url, items());
        listener.joined().await;
        let mut writer = Writer::start(db.url.clone(), Duration::from_millis(5));
        up.dies_at(point).await;
        writer.more(20).await;
        let up = Up::start(&db, folder.path(), None).await;
        place.send_replace(socket_url(&up.url, "one"));
        writer.more(20).await;
        let last = writer.stop().await;
        let heard = listener.until(last).await;
        assert!(heard.first <= Some(2) && heard.gaps.is_empty(), "{point}: {heard:?}");
    }
}

/// A daemon on a server of the test's own: `N` and the publication are there.
async fn on_own(
    own: &DedicatedServer,
    data: &tempfile::TempDir,
    change: impl FnOnce(&mut Config),
) -> Running {
    let database = db::Config { url: Some(SecretString::from(own.url.clone())), ..db::Config::default() };
    let scope = convoke::scope::Scope::default();
    let opened = db::Database::open(&database, &scope).await.unwrap();
    db::migrate(&opened).await.unwrap();
    let sql = opened.client().await.unwrap();
    let publication = "create publication supabase_realtime for table public.n, public.mark";
    let ground = format!(
        "set search_path = public; create table mark (id bigint primary key); {N} {publication};
         grant select on n, mark to anon, authenticated, service_role"
    );
    sql.batch_execute(&ground).await.unwrap();
    drop(sql);
    opened.stop().await.unwrap();
    let mut config = Config { database, ..Config::default() };
    config.database.data_dir = data.path().to_owned();
    config.server.listen.set_port(0);
    config.auth.jwt_secret = Some(SECRET.into());
    config.gateway.join_error_delay = Duration::ZERO;
    change(&mut config);
    Running::start(config, Vec::new()).await
}

/// A fast and an immediate restart, and a kill: who stays connected hears every row once.
#[tokio::test]
async fn server_restart_loses_no_change() {
    crypto();
    let (mut own, data) = (DedicatedServer::start().await, tempfile::tempdir().unwrap());
    let running = on_own(&own, &data, |_| ()).await;
    let (_place, url) = at(socket_url(&format!("http://{}", running.parts.addr), ""));
    let mut listener = Listener::start(url, items());
    listener.joined().await;
    let mut writer = Writer::start(own.url.clone(), Duration::from_millis(2));
    for round in 0..3 {
        writer.more(100).await;
        match round {
            0 => own.stop().await,
            1 => own.quit().await,
            _ => own.kill(),
        }
        own.again().await;
    }
    writer.more(100).await;
    let last = writer.stop().await;
    let heard = listener.until(last).await;
    assert!(heard.first <= Some(2) && heard.again == 0 && heard.gaps.is_empty(), "{heard:?}");
    running.stop().await;
    own.stop().await;
}

/// 22: different: the join itself waits for the database, and is refused when it does not come.
#[tokio::test]
async fn while_the_database_is_away_a_join_waits_and_is_then_refused_by_name() {
    crypto();
    let (mut own, data) = (DedicatedServer::start().await, tempfile::tempdir().unwrap());
    let running = on_own(&own, &data, |_| ()).await;
    let http = format!("http://{}", running.parts.addr);
    own.stop().await;
    let mut socket = Socket::open(&socket_url(&http, ""), true).await;
    let reply = socket.join("room", json!({"postgres_changes": items()})).await;
    let unable = "UnableToConnectToProject: Realtime was unable to connect to the project database";
    assert_eq!(reply.reason(), unable);

    // Clients try again by themselves.
    let mut socket = Socket::open(&socket_url(&http, ""), true).await;
    let joining = async {
        loop {
            let reply = socket.join("room", json!({"postgres_changes": items()})).await;
            if reply.payload["status"] == "ok" {
                break;
            }
            assert_eq!(reply.reason(), unable);
        }
    };
    tokio::join!(soon("the join", joining), own.again());
    assert_eq!(socket.next().await.payload, subscribed("room"));
    connected(&own.url).await.batch_execute("insert into public.n values (1)").await.unwrap();
    assert_eq!(change(socket.next().await)["data"]["record"]["id"], 1);
    drop(socket);
    running.stop().await;
    own.stop().await;
}

/// 114: cut, and half open: both ends believe in a connection on which nothing moves.
#[tokio::test]
async fn sockets_to_the_server_that_are_cut_or_fall_silent_cost_nothing() {
    crypto();
    // What is frozen in a transaction would hold up the slots of other tests.
    let (mut own, data) = (DedicatedServer::start().await, tempfile::tempdir().unwrap());
    let proxy = Proxy::start(&own.url).await;
    let running = on_own(&own, &data, |config| {
        config.database.url = Some(SecretString::from(proxy.url.clone()));
        config.wal.liveness_timeout = Duration::from_secs(1);
    })
    .await;
    let (_place, url) = at(socket_url(&format!("http://{}", running.parts.addr), ""));
    let mut listener = Listener::start(url, items());
    listener.joined().await;
    let mut writer = Writer::start(own.url.clone(), Duration::from_millis(2));
    for round in 0..4 {
        writer.more(100).await;
        if round % 2 == 0 {
            proxy.cut();
        } else {
            proxy.freeze();
            // The server still believes in the old connection, and would for 15 seconds.
            writer.more(100).await;
            let sql = connected(&own.url).await;
            let end =
                "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'walsender'";
            sql.batch_execute(end).await.unwrap();
        }
    }
    writer.more(100).await;
    let last = writer.stop().await;
    let heard = listener.until(last).await;
    assert!(heard.first <= Some(2) && heard.again == 0 && heard.gaps.is_empty(), "{heard:?}");
    running.stop().await;
    own.stop().await;
}

async fn connected(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "it ends with the client")]
    tokio::spawn(connection);
    client
}

/// What no test wrote is not there.
pub async fn rows(watch: &mut Watch, count: usize) -> Vec<i64> {
    let mut ids = Vec::new();
    while ids.len() < count {
        ids.push(watch.next().await["data"]["record"]["id"].as_i64().unwrap());
    }
    ids
}

/// 115
#[tokio::test]
async fn lost_slot_sends_every_subscriber_a_gap_and_delivery_goes_on() {
    let rig = WatchedDaemon::with(N, "n", resumable).await;
    let mut live = rig.watch(items()).await;
    let (mut away, _) = resume(&rig, "away", json!({}), items()).await;
    rig.run("insert into n values (1)").await;
    assert_eq!(rows(&mut live, 1).await, [1]);
    assert_eq!(change(away.next().await)["data"]["record"]["id"], 1);
    prove(&mut away).await;
    drop(away);
    let slot = rig.db.slot();
    let dropped = async {
        loop {
            let end = "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where slot_name = $1";
            rig.sql.execute(end, &[&slot]).await.unwrap();
            if rig.sql.execute("select pg_drop_replication_slot($1)", &[&slot]).await.is_ok() {
                break;
            }
        }
    };
    soon("the slot is dropped", dropped).await;
    let told = live.socket.next().await;
    assert_eq!(
        (&*told.event, &told.payload["extension"]),
        ("system", &json!("postgres_changes")),
        "{told:?}"
    );
    assert_eq!((&told.payload["status"], &told.payload["channel"]), (&json!("error"), &json!("room")));
    println!("told: {}", told.payload["message"]);
    rig.run("insert into n values (3)").await;
    let frames = rig.frames(&mut live).await;
    let changes: Vec<_> = frames.iter().filter(|got| got.event == "postgres_changes").collect();
    assert_eq!(changes.len(), 1, "{frames:?}");
    assert_eq!(changes[0].payload["data"]["record"]["id"], 3);

    let (mut away, told) = resume(&rig, "away", json!({}), items()).await;
    assert_eq!(told["status"], "error", "{told}");
    assert!(told["meta"]["gap"]["reason"].is_string(), "{told}");
    let next = change(away.next().await);
    assert_eq!((&next["data"]["record"]["id"], &next["meta"]["replayed"]), (&json!(3), &json!(true)));
}

/// A full disk of the daemon: connected subscribers receive everything, and returning ones get a gap.
#[tokio::test]
async fn full_disk_stops_no_delivery_and_is_reported() {
    let small = |config: &mut Config| {
        resumable(config);
        config.changes.log_bytes_max = 1 << 20;
    };
    let rig = WatchedDaemon::with(N, "n", small).await;
    let mut live = rig.watch(items()).await;
    let (mut away, _) = resume(&rig, "away", json!({}), items()).await;
    let add = |ids: std::ops::RangeInclusive<i64>| {
        let large = format!(
            "insert into n select i, repeat('x', 9000) from generate_series({}, {}) i",
            ids.start(),
            ids.end()
        );
        let rig = &rig;
        async move { rig.run(&large).await }
    };
    add(1..=1).await;
    assert_eq!(rows(&mut live, 1).await, [1]);
    assert_eq!(change(away.next().await)["data"]["record"]["id"], 1);
    prove(&mut away).await;
    drop(away);
    assert_eq!(health(&rig).await["state"], "ready");
    // The next file of the log cannot be made, as when the disk is full.
    let log = rig.data.path().join("changes");
    let next = (0..9).rev().find(|n| log.join(format!("{n:010}.log")).exists()).unwrap() + 1;
    let next = log.join(format!("{next:010}.log"));
    std::fs::create_dir(&next).unwrap();
    add(2..=40).await;
    assert_eq!(rows(&mut live, 39).await, (2..=40).collect::<Vec<_>>());
    add(41..=80).await;
    assert_eq!(rows(&mut live, 40).await, (41..=80).collect::<Vec<_>>());
    let told = health(&rig).await;
    assert_eq!(told["state"], "degraded", "{told}");
    std::fs::remove_dir(&next).unwrap();
    add(81..=120).await;
    assert_eq!(rows(&mut live, 40).await, (81..=120).collect::<Vec<_>>());
    let mended = async {
        while health(&rig).await["state"] != "ready" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("the health", mended).await;

    drop(live);
    let WatchedDaemon { running, db, data, .. } = rig;
    running.stop().await;
    let mut config = settings(&db, &data);
    small(&mut config);
    let rig = WatchedDaemon::on(db, data, config).await;
    let (mut away, told) = resume(&rig, "away", json!({}), items()).await;
    assert_eq!(
        (&told["status"], &told["meta"]["gap"]["reason"]),
        (&json!("error"), &json!("expired")),
        "{told}"
    );
    let mut got = Vec::new();
    while got.last() != Some(&120) {
        got.push(change(away.next().await)["data"]["record"]["id"].as_i64().unwrap());
    }
    assert_eq!(got, (81..=120).collect::<Vec<_>>(), "what was kept behind the hole");
    rig.running.stop().await;
}

/// What `/health` says of row changes.
async fn health(rig: &WatchedDaemon) -> Value {
    let url = format!("http://{}/health", rig.running.parts.addr);
    reqwest::get(url).await.unwrap().json::<Value>().await.unwrap()["parts"]["changes"].clone()
}

const WAKE: &str = r#"
[[wake]]
table = "public.calls"
events = ["INSERT"]
request = { kind = "triage", requires = ["work"], input = { call = "{{ new.id }}" } }
"#;

/// Row security that takes its time delays its viewers alone.
#[tokio::test]
async fn a_slow_policy_delays_its_viewers_and_neither_agents_nor_others() {
    let (db, data) = fresh().await;
    let slow = "create table calls (id int primary key); create table slow (id bigint primary key);
        alter table slow enable row level security;
        create function wait() returns boolean language plpgsql as $$ begin perform pg_sleep(0.01); return true; end $$;
        create policy p on slow to authenticated using (id > 0 and wait());
        create policy q on slow to anon using (true);";
    ground(&db, slow, "slow").await;
    let (told, mut inputs) = tokio::sync::mpsc::channel(16);
    let agent = (definition("echo", WAKE), Arc::new(Echo(told)) as _);
    let running = Running::start(settings(&db, &data), vec![agent]).await;
    let rig = WatchedDaemon::around(running, db, data).await;
    let mut viewer = rig.watch(json!([{"table": "slow"}])).await;
    rig.run("insert into slow select generate_series(1, 300)").await;
    rig.run("insert into calls values (7)").await;
    let woken = soon("the agent", inputs.recv());
    let seen = async {
        let mut seen = 0;
        while seen < 300 {
            viewer.next().await;
            seen += 1;
        }
    };
    tokio::pin!(seen);
    tokio::select! {
        biased;
        woken = woken => assert_eq!(woken.unwrap()["call"], 7),
        () = &mut seen => panic!("the agent waited for the policy"),
    }
    seen.await;
    rig.running.stop().await;
}

/// A transaction of half a million rows among small ones: each subscriber gets what it asked for, in order.
#[tokio::test]
async fn huge_transaction_is_delivered_in_order_in_bounded_memory() {
    let rows_in_it = from_environment("CONVOKE_CHANGES_HUGE", 100_000_i64);
    crypto();
    let (db, folder) = (database_on_its_own_server().await, tempfile::tempdir().unwrap());
    ground(&db, N, "n").await;
    write_settings(folder.path(), "10m");
    let up = Up::start(&db, folder.path(), None).await;
    let some = json!([
        {"event": "INSERT", "schema": "public", "table": "n", "filter": "body=eq.small"},
        {"event": "INSERT", "schema": "public", "table": "n", "filter": "body=like.%0000"},
    ]);
    let mut socket = Socket::open(&socket_url(&up.url, ""), true).await;
    // Nothing of it is delivered before all of it is in the change log.
    socket.patience = Duration::from_secs(300);
    let mut watch = Watch::start(socket, "room", some, json!({})).await;
    let sql = db.client().await;
    sql.batch_execute("insert into n values (-3, 'small')").await.unwrap();
    assert_eq!(rows(&mut watch, 1).await, [-3]);
    let before = up.memory_peak();
    let huge =
        format!("insert into n select i, repeat('x', 100) || i from generate_series(1, {rows_in_it}) i");
    let open = db.client().await;
    open.batch_execute("begin").await.unwrap();
    open.batch_execute(&huge).await.unwrap();
    sql.batch_execute("insert into n values (-2, 'small')").await.unwrap();
    assert_eq!(rows(&mut watch, 1).await, [-2], "an open transaction delays no other");
    open.batch_execute("commit").await.unwrap();
    sql.batch_execute("insert into n values (-1, 'small')").await.unwrap();
    let mut told = Vec::new();
    while told.last() != Some(&-1) {
        told.extend(rows(&mut watch, 1).await);
    }
    let expected: Vec<i64> = (1..=rows_in_it / 10_000).map(|i| i * 10_000).chain([-1]).collect();
    assert_eq!(told, expected);
    let grown = up.memory_peak() - before;
    println!("{rows_in_it} rows: {grown} kB more");
    // The log's reader may hold 64 MiB, the change log 32; the rest is a debug build's.
    assert!(grown < 300_000, "{grown} kB");
}
