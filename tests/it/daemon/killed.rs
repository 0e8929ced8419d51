//! The daemon is killed with SIGKILL between any two steps of a task, and started again:
//! no task lost, none finished twice, no wake lost or doubled.
use super::{fresh, soon};
use crate::support::{PATIENCE, TestDb};
use serde_json::{Value, json};
use std::{os::unix::process::ExitStatusExt, path::Path, process::Stdio};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

const TICKETS: i64 = 4;
const AGENT: &str = r#"
id = "clerk"
org = "demo"
capabilities = ["support.triage"]
slots = 2
[run]
kind = "command"
argv = ["/bin/sh", "-c", "cat > /dev/null; echo '{\"sorted\":true}'"]
[[wake]]
table = "public.tickets"
events = ["INSERT"]
request = { kind = "support.triage", requires = ["support.triage"], input = { id = "{{ new.id }}" } }
"#;

/// The real binary on the test's database. It dies with the value.
pub struct Up {
    process: Child,
    pub url: String,
}

impl Up {
    /// Starts it and waits until it says that it is up.
    pub async fn start(db: &TestDb, folder: &Path, fault: Option<&str>) -> Self {
        let mut command = Self::command(db, folder);
        if let Some(point) = fault {
            command.env("CONVOKE_FAULT", point);
        }
        Self::begin(command).await
    }

    /// The command that starts it.
    pub fn command(db: &TestDb, folder: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
        command
            .args(["up", "--json"])
            .current_dir(folder)
            .env("CONVOKE_DATABASE__URL", &db.url)
            .env("CONVOKE_DATABASE__DATA_DIR", folder.join("data"))
            .env("CONVOKE_WAL__SLOT", db.slot())
            .env("CONVOKE_SERVER__LISTEN", "127.0.0.1:0")
            .env("CONVOKE_TELEMETRY__LOG", "warn")
            .env_remove("CONVOKE_FAULT")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs the command, and waits until the daemon is ready.
    pub async fn begin(mut command: Command) -> Self {
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = soon("the first line of up", lines.next_line()).await.unwrap().expect("up is up");
        let told: Value = serde_json::from_str(&line).unwrap();
        let up = Self { process, url: told["url"].as_str().unwrap().to_owned() };
        soon("readiness", async {
            let ready = format!("{}/health/ready", up.url);
            while !reqwest::get(&ready).await.is_ok_and(|answer| answer.status().is_success()) {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await;
        up
    }

    pub async fn dies_at(mut self, point: &str) {
        let status = soon(point, self.process.wait()).await.unwrap();
        assert_eq!(status.signal(), Some(9), "{point}: {status}");
    }

    pub fn pid(&self) -> u32 {
        self.process.id().unwrap()
    }

    pub fn lives(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    pub async fn kill(mut self) {
        self.process.kill().await.unwrap();
    }

    /// The most memory that it had so far, in kilobytes.
    pub fn memory_peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

async fn prepared() -> (TestDb, tempfile::TempDir) {
    let (db, folder) = fresh().await;
    std::fs::create_dir(folder.path().join("agents")).unwrap();
    std::fs::write(folder.path().join("agents/clerk.toml"), AGENT).unwrap();
    db.client().await.batch_execute("create table tickets (id bigint primary key)").await.unwrap();
    (db, folder)
}

/// Everything ended well, once.
async fn check(db: &TestDb, tasks: i64) {
    let client = db.client().await;
    let left = "select count(*) from convoke.tasks where state = 'completed'";
    soon("all completed", async {
        while client.query_one(left, &[]).await.unwrap().get::<_, i64>(0) < tasks {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    for (what, query) in [
        ("tasks", "select count(*) from convoke.tasks"),
        ("finished", "select count(*) from convoke.events where type = 'finished'"),
        ("finished assignments", "select count(*) from convoke.assignments where state = 'finished'"),
    ] {
        assert_eq!(client.query_one(query, &[]).await.unwrap().get::<_, i64>(0), tasks, "{what}");
    }
    for (name, query) in convoke::task::INVARIANTS {
        let rows = client.query(*query, &[]).await.unwrap();
        assert!(rows.is_empty(), "{name} is broken by {rows:?}");
    }
}

async fn survives(point: &str) {
    let (db, folder) = prepared().await;
    let first = Up::start(&db, folder.path(), Some(point)).await;
    let client = db.client().await;
    for id in 1..=TICKETS {
        client.execute("insert into tickets values ($1)", &[&id]).await.unwrap();
    }
    first.dies_at(point).await;
    let _second = Up::start(&db, folder.path(), None).await;
    check(&db, TICKETS).await;
    let woken = "select count(*), count(distinct task_id) from convoke.wakes";
    let row = client.query_one(woken, &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), (TICKETS, TICKETS), "wakes and their tasks");
}

macro_rules! killed_at {
    ($($name:ident: $point:literal,)*) => {
        $(#[tokio::test]
        async fn $name() {
            survives($point).await;
        })*
    };
}

killed_at! {
    killed_before_a_wake_is_recorded: "wake.received",
    killed_after_a_wake_is_recorded: "wake.recorded",
    killed_after_a_wake_is_confirmed: "wake.confirmed",
    killed_before_an_award_commits: "task.award.before_commit",
    killed_after_an_award: "task.awarded",
    killed_before_an_accept_commits: "task.commands.before_commit",
    killed_after_an_accept: "task.accepted",
    killed_before_the_agent_answers_an_award: "agent.assigned",
    killed_before_the_agent_works: "agent.started",
    killed_before_the_agent_hands_in: "agent.worked",
    killed_with_the_result_in_hand: "task.finishing",
    killed_before_a_later_report_commits: "task.commands.before_commit:2",
    killed_after_a_finish: "task.finished",
    killed_after_the_third_finish: "task.finished:3",
}

#[tokio::test]
async fn killed_after_a_request_its_key_finds_the_same_task() {
    let (db, folder) = prepared().await;
    let point = "task.requested";
    let first = Up::start(&db, folder.path(), Some(point)).await;
    let secret = std::fs::read_to_string(folder.path().join("data/jwt.secret")).unwrap();
    let keys = convoke::auth::Keys::from_secret(&secret.trim().to_owned().into()).unwrap();
    let mut wish = convoke::auth::MintRequest::new(convoke::auth::Role::ServiceRole);
    wish.org = Some("demo".try_into().unwrap());
    let token = convoke::auth::mint(&keys, &wish, convoke::clock::Clock::System.now()).unwrap();
    let ask = |url: String| {
        let body = json!({ "kind": "support.triage", "requires": ["support.triage"] });
        reqwest::Client::new()
            .post(format!("{url}/v1/tasks"))
            .bearer_auth(&token)
            .header("Idempotency-Key", "once")
            .json(&body)
            .timeout(PATIENCE)
            .send()
    };
    assert!(ask(first.url.clone()).await.is_err(), "the daemon died with the answer");
    first.dies_at(point).await;
    let second = Up::start(&db, folder.path(), None).await;
    let answer = ask(second.url.clone()).await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    assert_eq!(answer.json::<Value>().await.unwrap()["replayed"], true);
    check(&db, 1).await;
}

/// The same agent, and every second one task of its own.
const TICKING: &str = r#"
[[schedule]]
cron = "* * * * * *"
missed = "all"
request = { kind = "support.triage", requires = ["support.triage"], input = { at = "{{ scheduled_at }}" } }
"#;

/// Killed while a schedule fires: every time has one task, none is left out.
async fn ticks_through(point: &str) {
    let (db, folder) = prepared().await;
    std::fs::write(folder.path().join("agents/clerk.toml"), format!("{AGENT}{TICKING}")).unwrap();
    Up::start(&db, folder.path(), Some(point)).await.dies_at(point).await;
    let _second = Up::start(&db, folder.path(), None).await;
    let client = db.client().await;
    let done = "select count(*) from convoke.tasks where state = 'completed'";
    soon("six firings", async {
        while client.query_one(done, &[]).await.unwrap().get::<_, i64>(0) < 6 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    let row = client
        .query_one(
            "select count(*), count(distinct input ->> 'at'),
                 extract(epoch from max((input ->> 'at')::timestamptz) - min((input ->> 'at')::timestamptz))::bigint + 1
             from convoke.tasks",
            &[],
        )
        .await
        .unwrap();
    let (tasks, times, seconds): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!((tasks, times), (seconds, seconds), "{point}: one task for each second");
}

#[tokio::test]
async fn killed_before_a_firing_commits() {
    ticks_through("schedule.before_commit:2").await;
}

#[tokio::test]
async fn killed_after_a_firing() {
    ticks_through("schedule.fired:2").await;
}

/// A chain of tasks by SQL: the second waits for the first.
#[tokio::test]
async fn killed_after_dependents_have_moved() {
    let (db, folder) = prepared().await;
    let point = "task.followed";
    let first = Up::start(&db, folder.path(), Some(point)).await;
    let client = db.client().await;
    let chain = "select convoke.request_task('support.triage', requires => '{support.triage}', org => 'demo',
                     run_at => clock_timestamp() + interval '2 s')";
    let row = client.query_one(chain, &[]).await.unwrap();
    let one: uuid::Uuid = row.get(0);
    let after = "select convoke.request_task('support.triage', requires => '{support.triage}', org => 'demo',
                     depends_on => array[$1::uuid])";
    client.query_one(after, &[&one]).await.unwrap();
    first.dies_at(point).await;
    let _second = Up::start(&db, folder.path(), None).await;
    check(&db, 2).await;
}

/// However the daemon dies, every change is in exactly one task, and the last one is not missing.
async fn gathers(point: &str, debounce: &str) {
    let (db, folder) = prepared().await;
    let agent = AGENT
        .replace("events = [\"INSERT\"]", &format!("events = [\"INSERT\"]\n{debounce}"))
        .replace("id = \"{{ new.id }}\"", "id = \"{{ new.id }}\", changes = \"{{ changes }}\"");
    assert!(agent.contains(debounce) && agent.contains("{{ changes }}"));
    std::fs::write(folder.path().join("agents/clerk.toml"), agent).unwrap();
    let mut first = Up::start(&db, folder.path(), Some(point)).await;
    let client = db.client().await;
    for id in 1..=TICKETS {
        client.execute("insert into tickets values ($1)", &[&id]).await.unwrap();
        // One by one while it lives: changes that come together are recorded in one commit.
        let recorded = "select count(*) from convoke.wakes";
        while first.lives() && client.query_one(recorded, &[]).await.unwrap().get::<_, i64>(0) < id {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
    first.dies_at(point).await;
    let _second = Up::start(&db, folder.path(), None).await;
    let done =
        "select coalesce(sum((input->>'changes')::bigint), 0)::bigint, max((input->>'id')::bigint), count(*)
        from convoke.tasks where state = 'completed'";
    let tasks = soon("all changes are in tasks that are done", async {
        loop {
            let row = client.query_one(done, &[]).await.unwrap();
            if row.get::<_, i64>(0) >= TICKETS {
                assert_eq!((row.get(0), row.get(1)), (TICKETS, Some(TICKETS)), "put together, and the last");
                return row.get(2);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    let pending = "select count(*) from convoke.bursts where due_at is not null";
    assert_eq!(client.query_one(pending, &[]).await.unwrap().get::<_, i64>(0), 0);
    check(&db, tasks).await;
}

macro_rules! gathers_when_killed_at {
    ($($name:ident: $point:literal, $debounce:literal,)*) => {
        $(#[tokio::test]
        async fn $name() {
            gathers($point, $debounce).await;
        })*
    };
}

gathers_when_killed_at! {
    killed_before_a_burst_is_recorded: "wake.received", "debounce = '150ms'",
    killed_after_a_burst_is_recorded: "wake.recorded", "debounce = '150ms'",
    killed_after_a_burst_is_confirmed: "wake.confirmed", "debounce = '150ms'",
    killed_before_the_task_of_a_burst_commits: "burst.before_commit", "debounce = '150ms'",
    killed_after_the_task_of_a_burst_is_made: "burst.fired", "debounce = '150ms'",
    killed_after_a_change_went_into_a_task: "wake.recorded:2", "coalesce_by = []",
}
