//! Rows with values that Postgres stores and the daemon cannot read: each fails alone, and all other work continues.
use super::{Harness, id, profile, request};
use crate::support::PATIENCE;
use convoke::{
    db::Database,
    id::{NodeId, TaskId},
    scope::Scope,
    task::{Config, Error, Filter, Metrics, Progress, Task, TaskState, Tasks, Usage},
};
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;

/// A column of `convoke.tasks`, and the value that is written into it. A bad `input` is found at the start of the work,
/// the others when the arbiter reads the row.
pub const BAD_CELLS: &[(&str, &str)] = &[
    ("input", "(repeat('[', 200) || '1' || repeat(']', 200))::jsonb"),
    ("input", "'{\"n\": 1e400}'"),
    ("policy", "(repeat('[', 200) || '1' || repeat(']', 200))::jsonb"),
    ("policy", "'{\"weights\": {\"cost\": -1e400}}'"),
    ("policy", "jsonb_build_object('a', repeat('[', 300))"),
    ("policy", "'[]'"),
    ("policy", "'null'"),
    ("deadline_at", "'-infinity'"),
    ("deadline_at", "'infinity'"),
    ("deadline_at", "'294276-12-31'"),
    ("run_at", "'infinity'"),
    ("run_at", "'-infinity'"),
    ("due_at", "'-infinity'"),
    ("requires", "array['work', null]"),
    ("requires", "'{{work,work},{work,work}}'"),
    ("tried", "array[null]::text[]"),
    ("tried", "'{{a},{b}}'"),
    ("round", "2147483647"),
    ("round", "-2147483648"),
    ("rounds_empty", "2147483647"),
    ("attempt", "-2147483648"),
    ("epoch", "9223372036854775807"),
    ("epoch", "-9223372036854775808"),
    ("version", "9223372036854775807"),
    ("answers", "'{\"n\": 1e400}'"),
    ("answers", "'7'"),
    ("error", "'\"text\"'"),
    ("question", "'3'"),
    ("prefer", "E'\\u0001'"),
    ("kind", "repeat(E'k\\n', 5000)"),
    ("kind", "''"),
    ("depends_on", "array[null]::uuid[]"),
];

/// Inserts a task of org `demo` for capability `work` with one bad cell.
pub async fn bad_task(database: &Database, column: &str, value: &str) -> TaskId {
    let client = database.client().await.unwrap();
    let made = "with made as (
            insert into convoke.tasks (id, org, kind, requires, class, requester, root_id, state, input, policy)
            select id, 'demo', 'test', array['work'], convoke.task_class('demo', array['work']), 'sql:old', id, 'scheduled',
                '{\"n\": 1}', '{\"confirm\": \"1h\", \"rounds_max\": 1000}' from (select convoke.uuid_v7() as id) new returning *)
        insert into convoke.events (org, task_id, epoch, type, body)
        select org, id, 0, 'requested', jsonb_build_object('kind', kind, 'requires', requires, 'requester', requester,
            'priority', 0) from made
        returning task_id";
    let id: Uuid = client.query_one(made, &[]).await.unwrap().get(0);
    let due =
        if column == "due_at" || value.contains("due_at") { "" } else { ", due_at = clock_timestamp()" };
    let write =
        format!("update convoke.tasks set {column} = {value}, state = 'scheduled'{due} where id = $1");
    client.execute(&write, &[&id]).await.unwrap_or_else(|e| panic!("{column} = {value}: {e:?}"));
    id.into()
}

/// Waits until the task has ended; reads only its state, which is readable.
async fn ended(database: &Database, id: TaskId) -> (String, Option<String>) {
    let client = database.client().await.unwrap();
    let read = "select state, state_reason from convoke.tasks where id = $1";
    let end = tokio::time::timeout(PATIENCE, async {
        loop {
            let row = client.query_one(read, &[&id.as_uuid()]).await.unwrap();
            let state: String = row.get(0);
            if matches!(state.as_str(), "failed" | "completed" | "canceled") {
                return (state, row.get(1));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    end.await.unwrap_or_else(|_| panic!("task {id} never ended"))
}

/// Works on every task that is awarded until this one has ended, and returns its state and reason.
async fn work_until_ended(world: &Harness, last: TaskId) -> (String, Option<String>) {
    let client = world.database.client().await.unwrap();
    let work = async {
        loop {
            let held = "select task_id, id, epoch, agent_id from convoke.assignments where ended_at is null";
            for row in client.query(held, &[]).await.unwrap() {
                let key = convoke::task::AssignmentKey {
                    task_id: row.get::<_, Uuid>(0).into(),
                    assignment_id: row.get::<_, Uuid>(1).into(),
                    epoch: convoke::id::Epoch(row.get(2)),
                };
                let agent = id(row.get(3));
                // An unreadable task is fenced here and ends.
                if world.tasks.accept(key, &agent).await.is_ok() {
                    let _ = world.tasks.finish(key, &agent, json!(1), Usage::default()).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        end = ended(&world.database, last) => end,
        () = work => unreachable!("the work goes on until the task has ended"),
    }
}

#[tokio::test]
async fn unreadable_row_fails_alone_and_is_listed() {
    let world = Harness::new(vec![profile("a", 4), profile("b", 4)]).await;
    let mut bad = Vec::new();
    for (column, value) in BAD_CELLS {
        bad.push((bad_task(&world.database, column, value).await, *column, *value));
    }
    world.tasks.notify_arbiter();
    let good = world.ask(request(json!({}))).await;
    assert_eq!(work_until_ended(&world, good).await, ("completed".into(), None));
    for (task, column, value) in &bad {
        // A bad cell that the work does not need leaves the task like any other.
        let harmless = matches!(*column, "error" | "question" | "prefer" | "due_at" | "kind" | "depends_on")
            || (*column == "answers" && *value == "'7'")
            || (*column == "policy" && value.contains("'[]'"));
        // Its award may come after that of every other task: an agent whose slots are full declines.
        let (state, reason) = work_until_ended(&world, *task).await;
        if harmless && *column != "policy" {
            assert_eq!((state.as_str(), reason), ("completed", None), "{column} = {value}");
        } else {
            assert_eq!(state, "failed", "{column} = {value}");
            let reason = reason.unwrap();
            assert!(
                matches!(reason.as_str(), "unreadable" | "unallocatable"),
                "{column} = {value}: {reason}"
            );
        }
    }
    let listed: Vec<Task> =
        world.tasks.list(&Filter { limit: Some(1000), ..Filter::default() }).await.unwrap();
    for (task, column, value) in &bad {
        let shown =
            listed.iter().find(|shown| shown.id == *task).unwrap_or_else(|| panic!("{column} = {value}"));
        if shown.state_reason.as_deref() == Some("unreadable") {
            let told = shown.error.as_ref().unwrap()["message"].as_str().unwrap();
            assert!(
                told.starts_with(column) || told.starts_with("the database"),
                "{column} = {value}: {told}"
            );
        }
        world.tasks.get(*task).await.unwrap();
        world.tasks.why(*task).await.unwrap();
        world.tasks.events(*task, 0, 100).await.unwrap();
    }
    let deep = listed.iter().find(|shown| shown.id == bad[0].0).unwrap();
    assert_eq!((&deep.unreadable, &deep.input), (&vec!["input".to_owned()], &Value::Null));
    assert_eq!(world.tasks.arbiter_stalled(), None);
    let replayed = convoke::task::replay(&world.database).await.unwrap();
    assert!(replayed.unreadable >= 2, "{replayed:?}");
}

/// What `why` says of it must not depend on a time that a hand wrote.
#[tokio::test]
async fn why_explains_a_task_in_any_state_with_times_that_cannot_be_read() {
    let world = Harness::new(vec![]).await;
    let client = world.database.client().await.unwrap();
    let columns = ["due_at", "bids_close_at", "unattended_since", "outage_since", "run_at", "deadline_at"];
    for state in [
        "blocked",
        "scheduled",
        "open",
        "awarded",
        "running",
        "verifying",
        "waiting",
        "canceling",
        "completed",
    ] {
        for column in columns {
            let due = if column == "due_at" { "" } else { " and due_at is null" };
            let written = format!("state = '{state}' and {column} = 'infinity'{due}");
            let why = loop {
                let task = bad_task(&world.database, "due_at", "null").await;
                let write = format!(
                    "update convoke.tasks set state = '{state}', {column} = 'infinity' where id = $1"
                );
                client.execute(&write, &[&task.as_uuid()]).await.unwrap();
                let why = world.tasks.why(task).await.unwrap_or_else(|e| panic!("{state} {column}: {e}"));
                // The arbiter continues a task without a due time, perhaps before it was explained.
                let read = format!("select 1 from convoke.tasks where id = $1 and {written}");
                if client.query_opt(&read, &[&task.as_uuid()]).await.unwrap().is_some() {
                    break why;
                }
            };
            assert_eq!(why["waits_for"].is_null(), state == "completed", "{state} {column}: {why}");
            let tells = match state {
                "open" => matches!(column, "due_at" | "bids_close_at" | "unattended_since"),
                "awarded" | "canceling" => column == "due_at",
                _ => false,
            };
            let told = why["waits_for"].to_string().contains("a time that cannot be read");
            assert_eq!(told, tells, "{state} {column}: {why}");
        }
    }
}

#[tokio::test]
async fn row_that_becomes_unreadable_in_any_state_fails_alone() {
    let mut world = Harness::new(vec![profile("a", 40)]).await;
    let client = world.database.client().await.unwrap();
    for (column, value) in [
        ("policy", "'{\"n\": 1e400}'"),
        ("deadline_at", "'-infinity'"),
        ("epoch", "9223372036854775807"),
        ("attempt", "-2147483648"),
        ("tried", "'{{a},{b}}'"),
    ] {
        let write =
            format!("update convoke.tasks set {column} = {value}, due_at = clock_timestamp() where id = $1");
        // Awarded, running, waiting and canceling.
        let awarded = world.ask(request(json!({ "confirm": "1h" }))).await;
        world.assigned(awarded).await;
        let running = world.ask(request(json!({ "confirm": "1h" }))).await;
        let (start, agent) = world.started(running).await;
        let waiting = world.ask(request(json!({ "confirm": "1h" }))).await;
        let (asks, asker) = world.started(waiting).await;
        let question = serde_json::from_value(json!({ "question": "which?" })).unwrap();
        world.tasks.ask(asks.key, &asker, question).await.unwrap();
        let stopping = world.ask(request(json!({ "confirm": "1h", "cancel_grace": "1h" }))).await;
        world.started(stopping).await;
        world.tasks.cancel(stopping, "test").await.unwrap();
        for task in [awarded, running, waiting, stopping] {
            client.execute(&write, &[&task.as_uuid()]).await.unwrap();
        }
        world.tasks.notify_arbiter();
        let late = world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await;
        assert!(matches!(late, Err(Error::Fenced)), "{column} = {value}: {late:?}");
        for task in [awarded, running, waiting, stopping] {
            let end = ended(&world.database, task).await;
            assert_eq!(end, ("failed".into(), Some("unreadable".into())), "{column} = {value}");
        }
        let canceled = world.tasks.cancel(running, "again").await;
        assert!(canceled.is_err(), "{canceled:?}");
    }
    // The slots are free, and the next task is done.
    let good = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(good).await;
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    for (name, query) in convoke::task::INVARIANTS {
        // The epoch was written by hand and has no award.
        if !name.starts_with("I2") {
            let rows = client.query(*query, &[]).await.unwrap();
            assert!(rows.is_empty(), "{name} is broken by {rows:?}");
        }
    }
}

#[tokio::test]
async fn daemon_starts_with_unreadable_rows_of_every_state() {
    let world = Harness::new(vec![profile("a", 10)]).await;
    let mut world = world;
    let client = world.database.client().await.unwrap();
    let running = world.ask(request(json!({}))).await;
    world.started(running).await;
    let open = bad_task(&world.database, "policy", "'{\"n\": 1e400}'").await;
    let write = "update convoke.tasks set policy = '{\"n\": 1e400}', deadline_at = 'infinity' where id = $1";
    client.execute(write, &[&running.as_uuid()]).await.unwrap();
    // The host starts again: tasks of its earlier incarnation are reassigned, this one among them.
    world.tasks.register(vec![profile("a", 10)]).await.unwrap();
    for task in [running, open] {
        assert_eq!(ended(&world.database, task).await, ("failed".into(), Some("unreadable".into())));
    }
    let good = world.ask(request(json!({}))).await;
    world.started(good).await;
}

#[tokio::test]
async fn task_due_at_infinity_ends_at_the_start() {
    let world = Harness::new(vec![profile("a", 1)]).await;
    let task = bad_task(&world.database, "run_at", "'infinity', due_at = 'infinity'").await;
    // Another daemon starts.
    let scope = Scope::default();
    let (tasks, _notices) = Tasks::start(
        &scope,
        world.database.clone(),
        NodeId::generate(),
        &Config::default(),
        Metrics::default(),
    );
    tasks.arbitrate(&scope);
    assert_eq!(ended(&world.database, task).await, ("failed".into(), Some("unreadable".into())));
    scope.drain(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn agent_with_an_unreadable_row_is_left_out_alone() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let client = world.database.client().await.unwrap();
    for (column, value) in [
        ("capabilities", "array['work', null]"),
        ("capabilities", "'{{work},{work}}'"),
        ("terms", "'{\"cost_microdollars\": 1e400}'"),
        ("incarnation", "-1"),
        ("incarnation", "9223372036854775807"),
        ("last_seen_at", "'infinity'"),
        ("org", "'No Org'"),
    ] {
        client
            .execute(&format!("update convoke.agents set {column} = {value} where id = 'a'"), &[])
            .await
            .unwrap();
        world.tasks.agents(None).await.unwrap();
        let task = world.ask(request(json!({ "award": "direct", "agent": "b" }))).await;
        let (start, agent) = world.started(task).await;
        assert_eq!(agent, id("b"));
        world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
        world.tasks.register(vec![profile("a", 1), profile("b", 1)]).await.unwrap();
    }
}

#[tokio::test]
async fn exponential_schema_in_a_row_fails_that_task_alone() {
    let mut world = Harness::new(vec![profile("a", 4)]).await;
    let mut defs = serde_json::Map::new();
    for at in 0..60 {
        let next = json!({ "$ref": format!("#/$defs/d{}", at + 1) });
        defs.insert(format!("d{at}"), json!({ "allOf": [next, next] }));
    }
    defs.insert("d60".into(), json!({ "type": "object" }));
    let doubling = json!({ "result_schema": { "$ref": "#/$defs/d0", "$defs": defs } });
    let refused = world.tasks.request(&world.org, "test", request(doubling.clone())).await.unwrap_err();
    assert!(refused.to_string().contains("expand it to more than"), "{refused}");
    // SQL cannot detect it; the arbiter can.
    let client = world.database.client().await.unwrap();
    let call = "select convoke.request_task('test', requires => '{work}', org => 'demo', policy => $1)";
    let open: Uuid = client.query_one(call, &[&doubling]).await.unwrap().get(0);
    // A running task gets the schema.
    let running = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(running).await;
    let write = "update convoke.tasks set policy = $2 where id = $1";
    client.execute(write, &[&running.as_uuid(), &doubling]).await.unwrap();
    let late = world.tasks.finish(start.key, &agent, json!({}), Usage::default()).await;
    assert!(matches!(late, Err(Error::Fenced)), "{late:?}");
    world.tasks.notify_arbiter();
    for (task, reason) in [(open.into(), "unallocatable"), (running, "unreadable")] {
        assert_eq!(ended(&world.database, task).await, ("failed".into(), Some(reason.into())));
    }
    // A validation that grows with the result is stopped while other tasks continue.
    let schema = json!({ "items": { "allOf": [{ "$ref": "#" }, { "$ref": "#" }] } });
    let slow = world.ask(request(json!({ "result_schema": schema, "attempts_max": 1 }))).await;
    let (start, agent) = world.started(slow).await;
    let deep = (0..80).fold(json!(1), |inner, _| json!([inner]));
    let tasks = world.tasks.clone();
    let order = std::cell::RefCell::new(Vec::new());
    let slowly = async {
        let ended = tasks.finish(start.key, &agent, deep, Usage::default()).await.unwrap();
        order.borrow_mut().push("slow");
        ended
    };
    let meanwhile = async {
        let good = world.ask(request(json!({}))).await;
        let (start, agent) = world.started(good).await;
        world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
        order.borrow_mut().push("good");
    };
    let (ended, ()) = tokio::join!(slowly, meanwhile);
    assert_eq!(*order.borrow(), ["good", "slow"], "nothing waits while a result is checked");
    assert_eq!(ended.state, TaskState::Failed);
    let told = world.tasks.get(slow).await.unwrap().error.unwrap();
    assert!(told["message"].as_str().unwrap().contains("needs more than 2s of processor time"), "{told}");
    // The policy was written by hand and has no event.
    let mend = r#"update convoke.tasks set policy = '{"confirm": "1m"}' where id = $1"#;
    client.execute(mend, &[&running.as_uuid()]).await.unwrap();
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn reports_of_agents_are_bounded() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(task).await;
    let deep = (0..101).fold(json!(1), |inner, _| json!([inner]));
    let progress = Progress { checkpoint: Some(deep.clone()), ..Progress::default() };
    for refused in [
        world.tasks.progress(start.key, &agent, progress).await.unwrap_err(),
        world.tasks.release(start.key, &agent, "x", Some(deep.clone())).await.unwrap_err(),
        world.tasks.finish(start.key, &agent, deep, Usage::default()).await.unwrap_err(),
    ] {
        assert!(
            matches!(&refused, Error::BadRequest(why) if why.contains("nested more than 100 deep")),
            "{refused}"
        );
    }
    // Amounts above the largest stored amount are stored as that.
    let usage = Usage { tokens: u64::MAX, microdollars: u64::MAX, presumed: false };
    world.tasks.finish(start.key, &agent, json!(1), usage).await.unwrap();
    world.check().await;
}

#[tokio::test]
async fn unreadable_burst_does_not_block_others() {
    let mut world = Harness::new(vec![profile("a", 4)]).await;
    let client = world.database.client().await.unwrap();
    let burst =
        "insert into convoke.bursts (trigger, key, agent_id, org, merges, changes, first_at, due_at, request)
        values ($1, 'k', 'a', 'demo', false, 1, now(), $2::text::timestamptz, $3::text::jsonb)";
    let good = r#"{"kind": "k", "requires": ["work"], "input": 1, "priority": 0, "deadline": null, "policy": {}, "attempts_max": 3}"#;
    for (trigger, due, request) in [
        ("bad#1", "-infinity", "{}"),
        ("bad#2", "2020-01-01", &good.replace("\"priority\": 0", "\"priority\": 1e9")),
        ("bad#3", "2020-01-01", &good.replace("\"deadline\": null", "\"deadline\": \"soon\"")),
        ("bad#4", "2020-01-01", &good.replace("[\"work\"]", "{}")),
        ("bad#5", "2020-01-01", &good.replace("\"input\": 1", "\"input\": 1e400")),
        ("good#1", "2020-01-01", good),
    ] {
        client.execute(burst, &[&trigger, &due, &request]).await.unwrap();
    }
    world.tasks.notify_arbiter();
    let task = world
        .hear(|notice| match notice {
            convoke::task::Notice::Assigned(assigned) if assigned.requester.to_string() == "wake:good#1" => {
                Some(assigned.key.task_id)
            }
            _ => None,
        })
        .await;
    assert_eq!(world.tasks.get(task).await.unwrap().kind, "k");
    let left = "select count(*) from convoke.bursts where due_at is not null";
    let gone = tokio::time::timeout(PATIENCE, async {
        while client.query_one(left, &[]).await.unwrap().get::<_, i64>(0) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    gone.await.expect("the unreadable tasks have failed");
    let told =
        "select count(*) from convoke.events where type = 'wake_failed' and body ->> 'trigger' like 'bad#%'";
    assert!(client.query_one(told, &[]).await.unwrap().get::<_, i64>(0) >= 3);
}
