//! `sql:read`: selects that a model writes, and everything that such a select may try.
use super::{Say, Thinking, World, call, finish, text};
use crate::{
    agent::definition,
    daemon::{Running, config, fresh, soon},
    support::{TestDb, database},
};
use convoke::db::{ReadError, ReadRows, Reader, Reading, Target};
use serde_json::{Value, json};
use std::time::Duration;

/// Passwords come from the environment of the process, which a test cannot change. This variable is the same in every
/// process of a user, and so in every run that uses the same server.
const PASSWORD_ENV: &str = "HOME";

/// Orders of two customers; a reader sees those whose `reader` is its role.
async fn orders(db: &TestDb, role: &str, attributes: &str) {
    let password = std::env::var(PASSWORD_ENV).unwrap().replace('\'', "''");
    // Roles belong to the whole server: tests create the same ones, also at once.
    let sql = format!(
        "do $$ begin
             create role {role} login {attributes} password '{password}';
         exception when duplicate_object or unique_violation then
             begin
                 alter role {role} password '{password}';
             exception when others then null; -- Another test has just done the same.
             end;
         end $$;
         create table public.orders (id int primary key, reader text, note text);
         alter table public.orders enable row level security;
         create policy own on public.orders for select using (reader = current_user);
         insert into public.orders values (1, '{role}', 'mine'), (2, 'another', 'not mine');
         create table public.secrets (words text);
         create sequence public.numbers;
         grant select on public.orders to {role};
         grant usage on sequence public.numbers to {role}"
    );
    db.admin().await.batch_execute(&sql).await.unwrap();
}

fn reading(role: &str, timeout: Duration) -> Reading<'_> {
    let password = Some(std::env::var(PASSWORD_ENV).unwrap().into());
    Reading {
        role,
        password,
        application_name: "convoke:reader",
        timeout,
        rows_max: 200,
        bytes_max: 64 << 10,
    }
}

/// Reads as `think_reader`, with a time limit that no good statement reaches.
async fn read(db: &TestDb, statement: &str) -> Result<ReadRows, ReadError> {
    let reader = Reader::new(Target::parse(&db.url).unwrap());
    reader.read(&reading("think_reader", Duration::from_secs(60)), statement).await
}

async fn sqlstate(db: &TestDb, statement: &str) -> String {
    match read(db, statement).await {
        Err(ReadError::Refused { sqlstate, .. }) => sqlstate,
        other => panic!("{statement}: {other:?}"),
    }
}

#[tokio::test]
async fn select_returns_rows_within_its_limits() {
    let db = database().await;
    orders(&db, "think_reader", "").await;
    let found = read(&db, "select id, note, null as nothing from orders -- mine").await.unwrap();
    assert_eq!(found.columns, ["id", "note", "nothing"]);
    assert_eq!(found.rows, [[Some("1".to_owned()), Some("mine".to_owned()), None]]);
    assert!(!found.more);
    for (statement, rows, more) in [
        ("values (1), (2)", 2, false),
        ("with a as (select 1) table a", 1, false),
        ("select 1 where false", 0, false),
        ("select generate_series(1, 200)", 200, false),
        ("select generate_series(1, 201)", 200, true),
        ("select repeat('x', 20000) from generate_series(1, 9)", 3, true),
        // Rows are made as they are fetched: all of these would take hours.
        ("select pg_catalog.md5(generate_series(1, 1000000000000)::text)", 200, true),
    ] {
        let found = read(&db, statement).await.unwrap();
        assert_eq!((found.rows.len(), found.more), (rows, more), "{statement}");
    }
}

#[tokio::test]
async fn nothing_but_one_select_is_run() {
    let db = database().await;
    orders(&db, "think_reader", "").await;
    let mut wrong = Vec::new();
    for (statement, state) in [
        ("select 1; commit", "42601"),
        ("select 1; drop table orders", "42601"),
        ("select 1;; select 2", "42601"),
        ("commit", "42601"),
        ("", "42601"),
        ("insert into orders values (3)", "42601"),
        ("explain analyze delete from orders", "42601"),
        ("copy orders to program 'true'", "42601"),
        ("set role postgres", "42601"),
        ("do $$ begin end $$", "42601"),
        ("select $1::int", "42P02"),
        ("with w as (insert into orders values (3) returning id) select * from w", "0A000"),
        ("select 1 as one into copied", "42601"),
        ("select * from secrets", "42501"),
        ("select nextval('numbers')", "25006"),
        ("select set_config('transaction_read_only', 'off', true)", "25001"),
        ("select set_config('default_transaction_read_only', 'off', true), nextval('numbers')", "25006"),
        ("select pg_read_file('/etc/passwd')", "42501"),
        ("select lo_import('/etc/passwd')", "42501"),
        ("select pg_reload_conf()", "42501"),
    ] {
        let found = sqlstate(&db, statement).await;
        if found != state {
            wrong.push((statement, found));
        }
    }
    assert_eq!(wrong, []);
    let error = read(&db, "select id from orders where idd = 1").await.unwrap_err();
    let ReadError::Refused { sqlstate, position, .. } = error else { panic!("{error:?}") };
    assert_eq!((sqlstate.as_str(), position), ("42703", Some(29)));
}

#[tokio::test]
async fn select_cannot_become_another_role_or_change_what_policies_see() {
    let db = database().await;
    orders(&db, "think_reader", "").await;
    let owner = Target::parse(&db.url).unwrap().user;
    let become_owner = format!("select set_config('role', '{owner}', true)");
    assert_eq!(sqlstate(&db, &become_owner).await, "42501");
    // The same by a function that runs a text, as in a session of the daemon.
    let by_text = format!(
        "select set_config('role', '{owner}', true), query_to_xml('select * from secrets', true, true, '')"
    );
    assert_eq!(sqlstate(&db, &by_text).await, "42501");
    let session = format!("select set_config('session_authorization', '{owner}', true)");
    assert_eq!(sqlstate(&db, &session).await, "42501");
    let off = "select set_config('row_security', 'off', true), query_to_xml('select * from orders', true, true, '')";
    assert_eq!(sqlstate(&db, off).await, "42501");
    let claims = "select set_config('request.jwt.claims', '{\"role\":\"service_role\"}', true), \
                  query_to_xml('select note from orders', true, true, '')::text";
    let found = read(&db, claims).await.unwrap();
    assert!(!found.rows[0][1].as_ref().unwrap().contains("not mine"), "{found:?}");
}

#[tokio::test]
async fn select_that_switches_its_time_limit_off_still_ends() {
    let db = database().await;
    orders(&db, "think_reader", "").await;
    let reader = Reader::new(Target::parse(&db.url).unwrap());
    let off = "set_config('statement_timeout', '0', true)";
    for statement in [
        "select pg_sleep(1000)".to_owned(),
        format!("select {off}, pg_sleep(1000)"),
        format!("select {off}, case when n > 15 then pg_sleep(1000) end from generate_series(1, 20) as n"),
    ] {
        let error =
            reader.read(&reading("think_reader", Duration::from_millis(300)), &statement).await.unwrap_err();
        let is_late = match &error {
            ReadError::Late(_) => true,
            ReadError::Refused { sqlstate, .. } => sqlstate == "57014",
            _ => false,
        };
        assert!(is_late, "{statement}: {error:?}");
    }
    let admin = db.admin().await;
    soon("no session is left", async {
        let left = "select count(*) from pg_stat_activity where datname = current_database() and usename = 'think_reader'";
        while admin.query_one(left, &[]).await.unwrap().get::<_, i64>(0) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn select_leaves_no_lock_no_notification_and_no_setting() {
    let db = database().await;
    orders(&db, "think_reader", "").await;
    let admin = db.admin().await;
    let (listener, mut connection) = tokio_postgres::connect(&db.url, tokio_postgres::NoTls).await.unwrap();
    let (sender, mut notified) = tokio::sync::mpsc::unbounded_channel();
    #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let tokio_postgres::AsyncMessage::Notification(it) = message {
                let _ = sender.send(it.payload().to_owned());
            }
        }
    });
    listener.batch_execute("listen news").await.unwrap();
    read(&db, "select pg_notify('news', 'forged'), pg_advisory_lock(42), set_config('app.x', 'y', false)")
        .await
        .unwrap();
    admin.batch_execute("notify news, 'real'").await.unwrap();
    assert_eq!(notified.recv().await.as_deref(), Some("real"));
    soon("the lock is free", async {
        while !admin.query_one("select pg_try_advisory_lock(42)", &[]).await.unwrap().get::<_, bool>(0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let found = read(&db, "select current_setting('app.x', true)").await.unwrap();
    assert_eq!(found.rows, [[None::<String>]]);
}

#[tokio::test]
async fn value_of_a_hundred_megabytes_is_not_received() {
    let db = database().await;
    orders(&db, "think_reader", "").await;
    let error = read(&db, "select repeat('x', 100000000)").await.unwrap_err();
    assert!(matches!(error, ReadError::TooLarge), "{error:?}");
}

#[tokio::test]
async fn role_with_more_rights_than_a_reader_is_refused() {
    let db = database().await;
    orders(&db, "think_reader", "").await;
    let admin = db.admin().await;
    let reader = Reader::new(Target::parse(&db.url).unwrap());
    let minute = Duration::from_secs(60);
    let unfit = async |role: &str| match reader.check(&reading(role, minute)).await {
        Err(ReadError::Unfit(why)) => why,
        other => format!("{other:?}"),
    };
    let password = std::env::var(PASSWORD_ENV).unwrap().replace('\'', "''");
    for (role, attributes, more, why) in [
        ("think_reader_bypass", "bypassrls", "", "it bypasses row security"),
        ("think_reader_super", "superuser", "", "it is a superuser, or a member of one"),
        ("think_reader_repl", "replication", "", "it may replicate"),
        (
            "think_reader_files",
            "",
            "grant pg_read_server_files to think_reader_files",
            "it may run programs, touch files or end sessions of the server",
        ),
        (
            "think_reader_member",
            "",
            "grant think_reader_bypass to think_reader_member",
            "it bypasses row security",
        ),
        (
            "think_reader_owner",
            "",
            "alter table public.secrets owner to think_reader_owner",
            "it owns secrets",
        ),
    ] {
        let sql = format!(
            "do $$ begin create role {role} login {attributes} password '{password}';
             exception when duplicate_object or unique_violation then
                 begin alter role {role} password '{password}'; exception when others then null; end;
             end $$"
        );
        admin.batch_execute(&sql).await.unwrap();
        // Granting the same role in two databases at once can fail; the other one has granted it then.
        let _ = admin.batch_execute(more).await;
        assert_eq!(unfit(role).await, why, "{role}");
    }
    assert_eq!(unfit("think_reader").await, "Ok(())");
    admin
        .batch_execute(
            "create function public.org() returns text stable return current_setting('request.jwt.claims', true);
             create table public.of_org (org text);
             alter table public.of_org enable row level security;
             create policy by_claims on public.of_org using (org = public.org())",
        )
        .await
        .unwrap();
    assert_eq!(unfit("think_reader").await, "Ok(())", "it may not read that table");
    admin.batch_execute("grant select on public.of_org to think_reader").await.unwrap();
    assert_eq!(unfit("think_reader").await, "a policy of of_org reads a setting, which a select can change");
    let error = reader.read(&reading("think_reader", minute), "select 1").await.unwrap_err();
    assert!(matches!(error, ReadError::Unfit(_)), "looked at before each select: {error:?}");
}

/// A daemon with an agent that has `sql:read` as this role.
async fn thinking(script: Vec<Say>, role: &str, attributes: &str) -> Thinking {
    let world = World::start(script).await;
    let (db, folder) = fresh().await;
    orders(&db, role, attributes).await;
    let text = text(&world, &format!("[run.sql]\nrole = \"{role}\"\npassword_env = \"{PASSWORD_ENV}\""));
    let start = text.find("tools = [").unwrap();
    let end = start + text[start..].find(']').unwrap() + 1;
    let mut text = format!("{}tools = [\"sql:read\"]{}", &text[..start], &text[end..]);
    text.truncate(text.find("[[tool]]").unwrap());
    let running = Running::start_with(config(&db, folder.path()), vec![definition(&text)]).await;
    Thinking { running, world, db, _folder: folder }
}

#[tokio::test]
async fn model_reads_with_sql_and_is_shown_no_message_of_an_error() {
    let script = vec![
        Say::Calls(vec![
            ("sql_read", json!({ "query": "select id, note from orders" })),
            ("sql_read", json!({ "query": "select note::int from orders" })),
            ("sql_read", json!({ "query": 7 })),
        ]),
        finish(json!("read")),
    ];
    let thinking = thinking(script, "think_reader", "").await;
    let id = thinking.request(json!({})).await;
    thinking.in_state(id, "completed").await;
    let steps = thinking.steps(id).await;
    let results: Vec<Value> = (2..5)
        .map(|at: usize| serde_json::from_str(steps[at]["result"].as_str().unwrap()).unwrap())
        .collect();
    assert_eq!(results[0], json!({ "columns": ["id", "note"], "rows": [["1", "mine"]], "more": false }));
    assert_eq!(
        results[1]["error"]["message"], "the database refused the query (SQLSTATE 22P02)",
        "the message would contain the value"
    );
    assert_eq!(results[2]["error"]["code"], "bad_arguments");
    thinking.stop().await;
}

#[tokio::test]
async fn agent_with_an_unfit_role_is_left_out() {
    let thinking = thinking(vec![call("finish", json!({}))], "think_reader_bypass", "bypassrls").await;
    let unavailable = thinking.running.parts.agents.unavailable();
    assert_eq!(unavailable[0].1, "role think_reader_bypass of sql:read is unfit: it bypasses row security");
    thinking.stop().await;
}
