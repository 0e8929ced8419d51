//! States of the database that pass: read-only for a while, publications and tables that go and come.
use super::{Echo, Running, config, definition, fresh, soon};
use crate::support::{PATIENCE, TestDb, hostile_database};
use convoke::{
    agent::{Agent, Definition},
    auth::{MintRequest, Role, mint},
    clock::Clock,
    hub::Room,
    id::Topic,
    wal,
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};
use tokio_postgres::Client;

/// How soon a table that is there must wake its agents.
const WATCHED_WITHIN: Duration = Duration::from_secs(1);

const WAKE: &str = r#"
[[wake]]
table = "public.tickets"
events = ["INSERT"]
request = { kind = "triage", requires = ["work"], input = { ticket = "{{ new.id }}" } }
"#;

struct TicketDaemon {
    running: Running,
    sql: Client,
    db: TestDb,
    woken: mpsc::Receiver<Value>,
    _data: tempfile::TempDir,
}

impl TicketDaemon {
    /// A daemon with an agent that is woken by tickets, on a database in which `schema` was run.
    async fn new(schema: &str) -> Self {
        let (db, data) = fresh().await;
        let alter = format!("alter database {} set search_path = public", db.name);
        db.client().await.batch_execute(&alter).await.unwrap();
        let sql = db.client().await;
        sql.batch_execute(schema).await.unwrap();
        let (told, woken) = mpsc::channel(16);
        let agent: (Definition, Arc<dyn Agent>) = (definition("echo", WAKE), Arc::new(Echo(told)));
        let running = Running::start(config(&db, data.path()), vec![agent]).await;
        Self { running, sql, db, woken, _data: data }
    }

    async fn run(&self, sql: &str) {
        self.sql.batch_execute(sql).await.unwrap();
    }

    async fn woken(&mut self) -> Value {
        soon("the agent", self.woken.recv()).await.unwrap()
    }

    async fn health(&self) -> Value {
        let url = format!("http://{}/health", self.running.parts.addr);
        reqwest::get(url).await.unwrap().json::<Value>().await.unwrap()["parts"].clone()
    }

    /// Waits until a part says so.
    async fn until(&self, part: &str, state: &str, says: &str) {
        soon(&format!("{part} {state}: {says}"), async {
            loop {
                let health = self.health().await[part].clone();
                if health["state"] == state && health["detail"].as_str().unwrap().contains(says) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    async fn request(&self) -> reqwest::Response {
        let key = MintRequest { ttl: Duration::from_secs(60), ..MintRequest::new(Role::ServiceRole) };
        let token = mint(&self.running.parts.keys, &key, Clock::System.now()).unwrap();
        let url = format!("http://{}/v1/tasks?org=demo", self.running.parts.addr);
        // No agent can, so that the one of the test hears of its tickets only.
        let body = json!({"kind": "k", "requires": ["other"]}).to_string();
        reqwest::Client::new().post(url).bearer_auth(token).body(body).send().await.unwrap()
    }

    async fn ready_status(&self) -> u16 {
        let url = format!("http://{}/health/ready", self.running.parts.addr);
        reqwest::get(url).await.unwrap().status().as_u16()
    }

    /// Ends the sessions of the daemon, so that it logs in again.
    async fn end_sessions(&self) {
        let sql = "select pg_terminate_backend(pid, 5000) from pg_stat_activity
                   where datname = current_database() and pid <> pg_backend_pid()";
        self.sql.execute(sql, &[]).await.unwrap();
    }
}

#[tokio::test]
async fn daemon_that_starts_on_a_read_only_database_waits_until_it_is_writable() {
    let (db, data) = fresh().await;
    let sql = db.client().await;
    let set = |to: &str| format!("alter database {} {to} default_transaction_read_only", db.name);
    sql.batch_execute(&format!("{} = on", set("set"))).await.unwrap();
    let starting = Running::start(config(&db, data.path()), Vec::new());
    let mended = async {
        let waits = "select count(*) from pg_stat_activity
                     where datname = current_database() and application_name = 'convoke migrate'";
        // A session of the first try, and its end.
        for sessions in [1, 0] {
            while sql.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) != sessions {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        sql.batch_execute(&set("reset")).await.unwrap();
    };
    let (running, ()) = tokio::join!(starting, soon("a try to migrate", mended));
    running.stop().await;
}

#[tokio::test]
async fn read_only_database_is_unavailable_until_it_accepts_writes() {
    let rig = TicketDaemon::new("create table tickets (id bigint primary key)").await;
    assert_eq!(rig.request().await.status(), 201);
    let set = |to: &str| format!("alter database {} {to} default_transaction_read_only", rig.db.name);
    // This session keeps its own default.
    rig.run(&format!("{} = on", set("set"))).await;
    rig.end_sessions().await;
    rig.until("database", "down", "is read-only").await;
    let answer = rig.request().await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["retry-after"], "1");
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["code"], "unavailable", "{problem}");
    assert_eq!(rig.ready_status().await, 503);

    rig.run(&set("reset")).await;
    let healed = Instant::now();
    soon("a writable database", async {
        while rig.ready_status().await != 200 || rig.request().await.status() != 201 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    println!("healed after {:?}", healed.elapsed());
    assert!(healed.elapsed() < Duration::from_secs(15));
    // None of its sessions is left that may not write.
    for _ in 0..20 {
        assert_eq!(rig.request().await.status(), 201);
    }
    rig.running.stop().await;
}

#[tokio::test]
async fn wakes_and_database_broadcasts_work_without_the_clients_publication() {
    let mut rig = TicketDaemon::new("create table tickets (id bigint primary key)").await;
    let room = Room::public(Topic::new("news").unwrap());
    let mut heard = rig.running.parts.hub.listen(room, 16);
    rig.run("drop publication supabase_realtime").await;
    rig.until("publications", "degraded", "supabase_realtime does not exist").await;
    rig.run("insert into tickets values (1)").await;
    assert_eq!(rig.woken().await["ticket"], 1);
    rig.run(r#"select realtime.send('{"n": 1}', 'e', 'news', false)"#).await;
    soon("the broadcast", heard.recv()).await.unwrap();
    rig.run("create publication supabase_realtime for table tickets").await;
    rig.until("publications", "ready", "").await;
    rig.run("insert into tickets values (2)").await;
    assert_eq!(rig.woken().await["ticket"], 2);
    assert_eq!(rig.ready_status().await, 200);
    rig.running.stop().await;
}

#[tokio::test]
async fn dropped_publication_of_the_daemon_is_created_again() {
    let mut rig = TicketDaemon::new("create table tickets (id bigint primary key)").await;
    rig.run("drop publication convoke").await;
    let published = "select from pg_publication_tables where pubname = 'convoke' and tablename = 'tickets'";
    soon("the publication", async {
        while rig.sql.query_opt(published, &[]).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    // The stream may still be before the place where it exists again.
    let mut id = 0_i64;
    let woken = soon("the agent", async {
        loop {
            id += 1;
            rig.run(&format!("insert into tickets values ({id})")).await;
            let woken = tokio::time::timeout(Duration::from_millis(200), rig.woken.recv()).await;
            if let Ok(Some(woken)) = woken {
                return woken;
            }
        }
    })
    .await;
    assert!(woken["ticket"].as_i64().unwrap() <= id);
    rig.running.stop().await;
}

/// Inserts tickets from `first` until one wakes the agent; how long that took.
async fn until_woken(rig: &mut TicketDaemon, first: i64) -> Duration {
    let (began, mut id) = (Instant::now(), first);
    loop {
        rig.run(&format!("insert into tickets values ({id})")).await;
        let woken = tokio::time::timeout(Duration::from_millis(50), rig.woken.recv()).await;
        // On a busy machine, a ticket of the step before may still wake the agent.
        if let Ok(Some(woken)) = woken
            && woken["ticket"].as_i64().unwrap() >= first
        {
            return began.elapsed();
        }
        assert!(began.elapsed() < PATIENCE);
        id += 1;
    }
}

/// What `convoke doctor` finds for an agent with these wakes.
async fn doctor(db: &TestDb, wakes: &str) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("agents")).unwrap();
    let agent = format!("id = \"echo\"\norg = \"demo\"\n[run]\nkind = \"remote\"\n{wakes}");
    std::fs::write(folder.path().join("agents/echo.toml"), agent).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_convoke"));
    command.args(["doctor", "--json"]).current_dir(folder.path());
    command.env("CONVOKE_DATABASE__URL", &db.url).env("CONVOKE_WAL__SLOT", db.slot());
    let output = command.output().await.unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    told["findings"].as_array().unwrap().clone()
}

/// Takes what is on its way.
async fn settle(rig: &mut TicketDaemon) {
    while tokio::time::timeout(Duration::from_millis(300), rig.woken.recv()).await.is_ok() {}
}

#[tokio::test]
async fn created_recreated_or_swapped_table_wakes_within_a_second() {
    let mut rig = TicketDaemon::new("").await;
    rig.until("publications", "degraded", "wakes wait for table public.tickets").await;
    let steps = [
        ("made after the start", "create table tickets (id bigint primary key)"),
        ("made again", "drop table tickets; create table tickets (id bigint primary key)"),
        (
            "swapped by rename",
            "create table fresh (id bigint primary key); alter table tickets rename to old;
             alter table fresh rename to tickets",
        ),
    ];
    for (at, (what, sql)) in (1..).zip(steps) {
        rig.run(sql).await;
        let within = until_woken(&mut rig, at * 1000).await;
        println!("{what}: {within:?}");
        // A busy machine may be late by itself.
        assert!(within < WATCHED_WITHIN * 3, "{what}: {within:?}");
        settle(&mut rig).await;
    }
    rig.until("publications", "ready", "").await;
    rig.run("drop table tickets").await;
    rig.until("publications", "degraded", "wakes wait for table public.tickets").await;
    rig.running.stop().await;
}

/// The role is no superuser, so it can publish its own tables only.
#[tokio::test]
async fn table_of_another_owner_is_left_out_until_its_role_is_granted() {
    let (db, data) = (hostile_database().await, tempfile::tempdir().unwrap());
    let admin = db.admin().await;
    let owner = format!("{}_owner", db.name);
    let theirs = format!(
        "create role {owner}; create table public.foreign_one (id bigint primary key);
         alter table public.foreign_one owner to {owner}"
    );
    admin.batch_execute(&theirs).await.unwrap();
    let sql = db.client().await;
    sql.batch_execute("create table tickets (id bigint primary key)").await.unwrap();
    let wakes = format!("{WAKE}{}", WAKE.replace("public.tickets", "public.foreign_one"));
    let (told, woken) = mpsc::channel(16);
    let agent: (Definition, Arc<dyn Agent>) = (definition("echo", &wakes), Arc::new(Echo(told)));
    let running = Running::start(config(&db, data.path()), vec![agent]).await;
    let mut rig = TicketDaemon { running, sql, db, woken, _data: data };
    rig.until("publications", "degraded", "wakes wait for table public.foreign_one").await;
    rig.run("insert into tickets values (1)").await;
    assert_eq!(rig.woken().await["ticket"], 1);

    let tables =
        [("public".to_owned(), "foreign_one".to_owned()), ("public".to_owned(), "tickets".to_owned())];
    let problems = wal::unpublishable(&rig.sql, "convoke", &tables, &[]).await.unwrap();
    let [(_, problem)] = problems.as_slice() else { panic!("{problems:?}") };
    let remedy = format!("grant \"{owner}\" to \"hostile\"");
    assert!(problem.to_string().ends_with(&remedy), "{problem}");
    let findings = doctor(&rig.db, &wakes).await;
    assert!(
        findings.iter().any(|found| found["ok"] == false && found.to_string().contains(&owner)),
        "{findings:?}"
    );
    admin.batch_execute(&remedy).await.unwrap();
    rig.until("publications", "ready", "").await;
    admin.batch_execute("insert into public.foreign_one values (2)").await.unwrap();
    assert_eq!(rig.woken().await["ticket"], 2);
    rig.running.stop().await;
    drop(rig.sql);
    let gone = format!("drop table public.foreign_one; drop role {owner}");
    admin.batch_execute(&gone).await.unwrap();
}
