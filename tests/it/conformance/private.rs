//! Private channels with policies on `realtime.messages`: statements 79 to 81, 99 to 107, 115,
//! 124, 125, 144 and 145, and 108 to 111 of the checklist of row changes.
use crate::{
    realtime::{Server, Socket, http},
    support::{TestDb, database, postgres},
};
use convoke::{
    access,
    auth::Role,
    clock::Clock,
    db::Database,
    scope::{OnExit, Scope},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio_postgres::Client;

const ADA: &str = "7a3f0b0e-4c1e-4f59-8d36-3a4f1c1b2d10";
const BOB: &str = "9d1c2b3a-0000-4f59-8d36-3a4f1c1b2d11";
const DENIED: &str = "Unauthorized: You do not have permissions to read from this Channel topic: den:7";

/// A gateway on its own database.
struct Den {
    server: Server,
    sql: Client,
    database: Database,
    _scope: Scope,
    _db: TestDb,
}

impl Den {
    async fn new(policies: &str) -> Self {
        Self::with(policies, access::Config::default()).await
    }

    async fn with(policies: &str, config: access::Config) -> Self {
        let (db, scope) = (database().await, Scope::default());
        let sql = db.client().await;
        sql.batch_execute(policies).await.unwrap();
        let database = db.open(&scope).await;
        let server = Server::asking(&database, config).await;
        Self { server, sql, database, _scope: scope, _db: db }
    }

    fn token(&self, sub: &str) -> String {
        self.token_with(json!({ "sub": sub }))
    }

    fn token_with(&self, more: Value) -> String {
        let exp = Clock::System.now().timestamp() + 3600;
        let mut claims = json!({"role": "authenticated", "exp": exp});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.server.sign(&claims)
    }

    /// A socket that sent a join for `den:7`, and the reply.
    async fn join(&self, token: &str, config: Value) -> (Socket, crate::realtime::Got) {
        let mut socket = self.server.v2().await;
        let mut config = config;
        config["private"] = json!(true);
        let got = socket.join_with("den:7", json!({"config": config, "access_token": token})).await;
        (socket, got)
    }

    async fn joined(&self, token: &str, config: Value) -> Socket {
        let (socket, got) = self.join(token, config).await;
        got.ok();
        socket
    }

    async fn broadcast(&self, text: &str) {
        let url = self.server.http("/api/broadcast/den:7/events/said?private=true");
        let service = self.server.token(Role::ServiceRole);
        let request = http().post(url).bearer_auth(service).header("content-type", "application/json");
        let response = request.body(json!({ "text": text }).to_string()).send().await.unwrap();
        assert_eq!(response.status(), 202);
    }
}

fn policy(name: &str, to: &str, check: &str) -> String {
    format!("create policy {name} on realtime.messages for {to} to authenticated {check};")
}

fn may_read(extension: &str) -> String {
    policy(&format!("read_{extension}"), "select", &format!("using (extension = '{extension}')"))
}

fn may_write(extension: &str) -> String {
    policy(&format!("write_{extension}"), "insert", &format!("with check (extension = '{extension}')"))
}

fn everything() -> String {
    policy("r", "select", "using (true)") + &policy("w", "insert", "with check (true)")
}

async fn received(socket: &mut Socket) -> Value {
    let frame = socket.binary().await;
    let at = frame.iter().position(|byte| *byte == b'{').unwrap();
    serde_json::from_slice(&frame[at..]).unwrap()
}

async fn ending(socket: &mut Socket) -> String {
    let system = socket.until("system").await;
    assert_eq!(socket.next().await.event, "phx_close");
    system.payload["message"].as_str().unwrap().to_owned()
}

/// 99, 102, 107, 111
#[tokio::test]
async fn without_policies_only_the_service_role_joins_and_no_probe_row_remains() {
    let den = Den::new("").await;
    assert_eq!(den.join(&den.token(ADA), json!({})).await.1.reason(), DENIED);
    let mut service =
        den.joined(&den.server.token(Role::ServiceRole), json!({"broadcast": {"ack": true}})).await;
    service.ask("den:7", "broadcast", json!({"event": "x"})).await.ok();
    den.sql.batch_execute(&everything()).await.unwrap();
    let mut ada = den.joined(&den.token(ADA), json!({"broadcast": {"ack": true}})).await;
    ada.ask("den:7", "broadcast", json!({"event": "x"})).await.ok();
    ada.track("den:7", json!({})).await;
    ada.until("phx_reply").await.ok();
    let rows: i64 = den.sql.query_one("select count(*) from realtime.messages", &[]).await.unwrap().get(0);
    assert_eq!(rows, 0);
}

/// 100, 101: and a token cannot name the daemon's own role or a superuser.
#[tokio::test]
async fn failing_policy_and_unknown_role_grant_nothing() {
    let den = Den::new(
        &(may_read("broadcast")
            + "create policy broken on realtime.messages for select to authenticated
               using (extension = 'presence' and 1 / (length(topic) - length(topic)) = 1);"),
    )
    .await;
    den.joined(&den.token(ADA), json!({})).await;
    assert_eq!(den.join(&den.token(ADA), json!({"presence": {"enabled": true}})).await.1.reason(), DENIED);
    for role in ["no_such_role", "none", "None", "convoke", "postgres", "", "anon\u{0}"] {
        let token = den.token_with(json!({ "role": role }));
        assert_eq!(den.join(&token, json!({})).await.1.reason(), DENIED, "{role}");
    }
}

/// 83, 109: policies can read claims, `auth.uid()`, `realtime.topic()` and headers.
#[tokio::test]
async fn policies_see_claims_topic_and_headers() {
    let den = Den::new(
        "create table members (uid uuid, room text);
         grant select on members to authenticated;
         create policy members on realtime.messages for select to authenticated using (
           extension in ('broadcast', 'presence') and topic = realtime.topic()
           and auth.role() = 'authenticated' and auth.jwt() ->> 'team' = 'red'
           and (current_setting('request.headers')::jsonb ? 'x-api-key') is not null
           and exists (select from members m where m.uid = auth.uid() and m.room = realtime.topic()));",
    )
    .await;
    let ada = den.token_with(json!({"sub": ADA, "team": "red"}));
    assert_eq!(den.join(&ada, json!({})).await.1.reason(), DENIED);
    den.sql.execute("insert into members values ($1::text::uuid, 'den:7')", &[&ADA]).await.unwrap();
    den.joined(&ada, json!({})).await;
    let blue = den.token_with(json!({"sub": ADA, "team": "blue"}));
    assert_eq!(den.join(&blue, json!({})).await.1.reason(), DENIED);
    assert_eq!(
        den.join(&den.token_with(json!({"sub": BOB, "team": "red"})), json!({})).await.1.reason(),
        DENIED
    );
}

/// 103: differs from Supabase Realtime: with `ack`, a refused broadcast gets a reason.
#[tokio::test]
async fn read_only_client_receives_and_its_broadcast_is_refused() {
    let den = Den::new(&may_read("broadcast")).await;
    let mut ada = den.joined(&den.token(ADA), json!({"broadcast": {"ack": true}})).await;
    let mut bob = den.joined(&den.token(BOB), json!({})).await;
    let refused = ada.ask("den:7", "broadcast", json!({"event": "x"})).await;
    assert_eq!(refused.reason(), "You do not have permissions to write to this Channel topic: den:7");
    bob.push("den:7", "broadcast", json!({"event": "x"})).await;
    den.broadcast("hello").await;
    assert_eq!(received(&mut ada).await, json!({"text": "hello"}));
    assert_eq!(received(&mut bob).await, json!({"text": "hello"}));
}

/// 104, 108
#[tokio::test]
async fn presence_only_client_joins_and_receives_no_broadcast() {
    let den = Den::new(&(may_read("presence") + &may_write("presence"))).await;
    assert_eq!(den.join(&den.token(ADA), json!({})).await.1.reason(), DENIED, "presence is not asked for");
    let mut ada = den.joined(&den.token(ADA), json!({"presence": {"enabled": true, "key": "ada"}})).await;
    assert_eq!(ada.next().await.event, "presence_state");
    den.broadcast("hello").await;
    ada.track("den:7", json!({"name": "ada"})).await;
    assert!(ada.until("presence_diff").await.payload["joins"]["ada"].is_object());
    assert!(ada.so_far().await.iter().all(|frame| frame.event != "broadcast"));
}

/// 105
#[tokio::test]
async fn right_to_write_is_checked_once_for_each_token() {
    let den = Den::new(&everything()).await;
    let mut ada = den.joined(&den.token(ADA), json!({"broadcast": {"ack": true}})).await;
    ada.ask("den:7", "broadcast", json!({"event": "x"})).await.ok();
    den.sql.batch_execute("drop policy w on realtime.messages").await.unwrap();
    ada.ask("den:7", "broadcast", json!({"event": "x"})).await.ok();
    let other = den.token_with(json!({"sub": ADA, "n": 2}));
    ada.push("den:7", "access_token", json!({ "access_token": other })).await;
    let refused = ada.ask("den:7", "broadcast", json!({"event": "x"})).await;
    assert_eq!(refused.reason(), "You do not have permissions to write to this Channel topic: den:7");
    den.sql.batch_execute(&policy("w", "insert", "with check (true)")).await.unwrap();
    ada.ask("den:7", "broadcast", json!({"event": "x"})).await.reason();
}

/// 106
#[tokio::test]
async fn client_without_read_access_may_write() {
    let den = Den::new(
        &(policy("r", "select", "using (extension = 'presence')")
            + &policy("w", "insert", "with check (true)")),
    )
    .await;
    let config = json!({"broadcast": {"ack": true}, "presence": {"enabled": true}});
    let mut ada = den.joined(&den.token(ADA), config).await;
    assert_eq!(ada.next().await.event, "presence_state");
    ada.ask("den:7", "broadcast", json!({"event": "x"})).await.ok();
}

/// Broadcasts sent while the rights are being checked are delivered in order.
#[tokio::test]
async fn broadcasts_during_a_rights_check_keep_their_order() {
    let den = Den::new(&everything()).await;
    let mut bob = den.joined(&den.token(BOB), json!({})).await;
    let mut ada = den.joined(&den.token(ADA), json!({})).await;
    for n in 0..300 {
        ada.push("den:7", "broadcast", json!({ "n": n })).await;
    }
    for n in 0..300 {
        assert_eq!(bob.next().await.payload, json!({ "n": n }));
    }
}

/// 79, 80, 81
#[tokio::test]
async fn rights_of_a_new_token_apply_at_once() {
    let team = |name: &str, extension: &str| {
        let check = format!("using (extension = '{extension}' and auth.jwt() ->> '{extension}' = 'yes')");
        policy(name, "select", &check)
    };
    let den = Den::new(&(team("b", "broadcast") + &team("p", "presence"))).await;
    let both = den.token_with(json!({"broadcast": "yes", "presence": "yes"}));
    let hears = den.token_with(json!({"broadcast": "yes"}));
    let sees = den.token_with(json!({"presence": "yes"}));
    let presence = || json!({"presence": {"enabled": true}});
    let renew = async |socket: &mut Socket, token: &str| {
        socket.push("den:7", "access_token", json!({ "access_token": token })).await;
    };

    let mut socket = den.joined(&both, presence()).await;
    renew(&mut socket, &den.token(ADA)).await;
    let none = "You do not have permissions to read from this Channel topic: den:7";
    assert_eq!(ending(&mut socket).await, none);

    for fewer in [&hears, &sees] {
        let mut socket = den.joined(&both, presence()).await;
        renew(&mut socket, fewer).await;
        let lost = "You no longer have permission to read from this Channel topic: den:7";
        assert_eq!(ending(&mut socket).await, lost);
    }

    let mut socket = den.joined(&sees, presence()).await;
    assert_eq!(socket.next().await.event, "presence_state");
    renew(&mut socket, &both).await;
    socket.ask("den:7", "presence", json!({"event": "untrack"})).await.ok();
    den.broadcast("now").await;
    assert_eq!(received(&mut socket).await, json!({"text": "now"}));
}

/// 115, 124, 125
#[tokio::test]
async fn private_message_over_http_needs_the_right_to_write() {
    let den = Den::new(
        &(may_read("broadcast")
            + &policy("w", "insert", "with check (realtime.topic() = 'den:7' and extension = 'broadcast')")),
    )
    .await;
    let mut ada = den.joined(&den.token(ADA), json!({})).await;
    let post = async |path: &str, token: &str, body: Value| {
        let request = http().post(den.server.http(path)).bearer_auth(token).json(&body);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let message =
        |topic: &str, n: u32| json!({"topic": topic, "event": "e", "payload": {"n": n}, "private": true});
    let batch = json!({"messages": [message("den:8", 1), message("den:7", 2), message("den:7", 3)]});
    assert_eq!(post("/api/broadcast", &den.server.anon(), batch.clone()).await, (202, String::new()));
    assert_eq!(post("/api/broadcast", &den.token(ADA), batch).await, (202, String::new()));
    for n in [2, 3] {
        assert_eq!(ada.next().await.payload["payload"], json!({ "n": n }));
    }
    let single = "/api/broadcast/den%3A7/events/e?private=true";
    assert_eq!(post(single, &den.token(ADA), json!({"n": 4})).await.0, 202);
    assert_eq!(received(&mut ada).await, json!({"n": 4}));
    let denied = (403, json!({"message": "Unauthorized"}).to_string());
    assert_eq!(post(single, &den.server.anon(), json!({})).await, denied);
    let unknown = den.token_with(json!({"role": "no_such_role"}));
    assert_eq!(
        post(single, &unknown, json!({})).await,
        (422, json!({"message": "RLS policy error"}).to_string())
    );
}

/// 144, 145
#[tokio::test]
async fn presence_is_delivered_to_permitted_clients_from_their_first_track() {
    let den = Den::new(&(may_read("broadcast") + &may_write("presence"))).await;
    let mut blind = den.joined(&den.token(ADA), json!({"presence": {"enabled": true}})).await;
    blind.track("den:7", json!({})).await;
    blind.next().await.ok();
    assert!(blind.so_far().await.is_empty(), "neither state nor differences");

    den.sql.batch_execute(&may_read("presence")).await.unwrap();
    let mut late = den.joined(&den.token(BOB), json!({"presence": {"key": "bob"}})).await;
    assert!(late.so_far().await.is_empty());
    late.track("den:7", json!({"n": 1})).await;
    assert!(late.until("presence_diff").await.payload["joins"]["bob"].is_object());
}

/// A denied track checks again, a denied broadcast does not (`docs/spec/realtime-protocol.md` §7.5).
#[tokio::test]
async fn denied_track_is_checked_again_after_policies_change() {
    let den = Den::new(&(may_read("broadcast") + &may_read("presence"))).await;
    let mut ada = den.joined(&den.token(ADA), json!({"presence": {"enabled": true}})).await;
    assert_eq!(ada.next().await.event, "presence_state");
    let track = json!({"event": "track", "payload": {}});
    assert_eq!(ada.ask("den:7", "presence", track.clone()).await.payload["status"], "error");
    den.sql.batch_execute(&may_write("presence")).await.unwrap();
    ada.push("den:7", "presence", track).await;
    ada.until("phx_reply").await.ok();
}

/// Heartbeats and other topics continue during a slow policy, which has a timeout.
#[tokio::test]
async fn slow_policy_delays_only_its_own_topic() {
    let config = access::Config {
        policy_timeout: Duration::from_millis(300),
        connections_max: 1,
        ..access::Config::default()
    };
    let den = Den::with(
        "create policy slow on realtime.messages for select to authenticated using (pg_sleep(60) is null);",
        config,
    )
    .await;
    let mut socket = den.server.v2().await;
    let join = json!({"config": {"private": true}, "access_token": den.token(ADA)});
    socket.send(json!("1"), json!("1"), "realtime:den:7", "phx_join", join).await;
    socket.join("open", json!({})).await.ok();
    assert_eq!(
        socket.until("phx_reply").await.reason(),
        "QueryCanceled: canceling statement due to statement timeout"
    );
    let lanes: i64 =
        den.database.client().await.unwrap().query_one("select 1::bigint", &[]).await.unwrap().get(0);
    assert_eq!(lanes, 1);
}

/// One socket uses at most two of four connections.
#[tokio::test]
async fn sixty_slow_joins_of_one_socket_do_not_delay_another() {
    const SLOW: Duration = Duration::from_millis(1500);
    let den = Den::new(
        "create policy slow on realtime.messages for select to authenticated using (
            current_setting('realtime.topic') not like 'slow:%' or pg_sleep(1.5) is not null);",
    )
    .await;
    let mut greedy = den.server.v2().await;
    for room in 0..60 {
        let join = json!({"config": {"private": true}, "access_token": den.token(ADA)});
        greedy.send(json!("1"), json!("1"), &format!("realtime:slow:{room}"), "phx_join", join).await;
    }
    greedy.until("phx_reply").await.ok();
    for _ in 0..10 {
        let began = tokio::time::Instant::now();
        let (_socket, reply) = den.join(&den.token(BOB), json!({})).await;
        reply.ok();
        assert!(began.elapsed() < SLOW, "waited {:?} for another socket", began.elapsed());
    }
}

#[tokio::test]
async fn unavailable_database_is_named_in_the_refusal() {
    let den = Den::new(&everything()).await;
    let mut ada = den.joined(&den.token(ADA), json!({"broadcast": {"ack": true}})).await;
    let (admin, connection) = tokio_postgres::connect(postgres().await, tokio_postgres::NoTls).await.unwrap();
    Scope::default().spawn("admin", OnExit::Log, |_| async move { Ok(connection.await?) });
    let sql = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{}' and pid <> pg_backend_pid()",
        den._db.name
    );
    admin.batch_execute(&format!("alter database {} allow_connections false", den._db.name)).await.unwrap();
    admin.batch_execute(&sql).await.unwrap();
    let refused = ada.ask("den:7", "broadcast", json!({"event": "x"})).await;
    let away = "UnableToConnectToProject: Realtime was unable to connect to the project database";
    assert_eq!(refused.reason(), away);
    assert_eq!(den.join(&den.token(BOB), json!({})).await.1.reason(), away);
    ada.push("den:7", "access_token", json!({"access_token": den.token(BOB)})).await;
    assert_eq!(ending(&mut ada).await, "Realtime was unable to connect to the project database");
}
