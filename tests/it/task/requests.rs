//! Requesting, from Rust and from SQL.
use super::{Harness, id, profile, request};
use crate::support::PATIENCE;
use convoke::{
    id::TaskId,
    task::{Error, Filter, Request, TaskState, Usage, Wake},
};
use serde_json::json;

#[tokio::test]
async fn same_key_returns_the_same_task_and_another_body_conflicts() {
    let world = Harness::new(vec![]).await;
    let mut wish = request(json!({}));
    wish.idempotency_key = Some("k".into());
    let first = world.tasks.request(&world.org, "test", wish.clone()).await.unwrap();
    let (second, third) = tokio::join!(
        world.tasks.request(&world.org, "test", wish.clone()),
        world.tasks.request(&world.org, "test", wish.clone())
    );
    for again in [second.unwrap(), third.unwrap()] {
        assert_eq!((again.task.id, again.replayed, first.replayed), (first.task.id, true, false));
        assert_eq!((&again.task.input, &first.task.input), (&wish.input, &wish.input));
    }
    let mut other = wish.clone();
    other.input = json!("other");
    let refused = world.tasks.request(&world.org, "test", other).await;
    assert!(matches!(refused, Err(Error::IdempotencyConflict(of)) if of == first.task.id), "{refused:?}");
    let elsewhere = world.tasks.request(&world.org, "someone", wish).await.unwrap();
    assert_ne!(elsewhere.task.id, first.task.id, "a key belongs to its requester");
    world.check().await;
}

#[tokio::test]
async fn key_is_free_again_24_hours_after_the_end() {
    let world = Harness::new(vec![]).await;
    let keyed =
        |input: i32| Request { idempotency_key: Some("k".into()), input: json!(input), ..request(json!({})) };
    let first = world.ask(keyed(1)).await;
    world.tasks.cancel(first, "done with it").await.unwrap();
    let client = world.database.client().await.unwrap();
    let ended = "update convoke.tasks set updated_at = clock_timestamp() - $1::text::interval where id = $2";
    client.execute(ended, &[&"23 h", &first.as_uuid()]).await.unwrap();
    let early = world.tasks.request(&world.org, "test", keyed(2)).await;
    assert!(matches!(early, Err(Error::IdempotencyConflict(of)) if of == first), "{early:?}");
    client.execute(ended, &[&"25 h", &first.as_uuid()]).await.unwrap();
    assert_ne!(world.ask(keyed(2)).await, first);
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn bad_request_names_the_wrong_member() {
    let world = Harness::new(vec![]).await;
    let refused = |change: fn(&mut convoke::task::Request)| {
        let mut wish = request(json!({}));
        change(&mut wish);
        let (tasks, org) = (world.tasks.clone(), world.org.clone());
        async move { tasks.request(&org, "test", wish).await.unwrap_err().to_string() }
    };
    assert!(refused(|wish| wish.kind = String::new()).await.starts_with("kind has 1 to 200 bytes"));
    assert!(refused(|wish| wish.requires = vec!["a\n".into()]).await.starts_with("requires[0]"));
    assert!(refused(|wish| wish.input = json!("\u{0}")).await.contains("U+0000"));
    assert!(refused(|wish| wish.input = json!("x".repeat(2_000_000))).await.contains("1048576"));
    assert!(refused(|w| drop(w.policy.insert("lease".into(), json!("0s")))).await.contains("policy.lease"));
    assert!(refused(|w| drop(w.policy.insert("leese".into(), json!("1s")))).await.contains("leese"));
    assert!(
        refused(|w| drop(w.policy.insert("attempts_max".into(), json!(0)))).await.contains("attempts_max")
    );
    world.check().await;
}

#[tokio::test]
async fn sql_request_belongs_to_the_transaction_of_the_caller() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let mut client = world.database.client().await.unwrap();
    let call = "select convoke.request_task(kind => 'sql', input => '{\"x\":1}', requires => '{work}', \
                org => 'demo', idempotency_key => 'once')";
    let tx = client.transaction().await.unwrap();
    tx.query_one(call, &[]).await.unwrap();
    tx.rollback().await.unwrap();
    assert!(world.tasks.list(&Filter::default()).await.unwrap().is_empty());
    let made: uuid::Uuid = client.query_one(call, &[]).await.unwrap().get(0);
    let again: uuid::Uuid = client.query_one(call, &[]).await.unwrap().get(0);
    assert_eq!(made, again);
    world.tasks.notify_arbiter();
    let (start, _) = world.started(made.into()).await;
    assert_eq!(start.input, json!({ "x": 1 }));
    let other = client.query_one(&call.replace("\"x\":1", "\"x\":2"), &[]).await.unwrap_err();
    assert!(other.as_db_error().unwrap().message().contains("was used for another request"));
    for (bad, says) in [
        ("kind => ''", "kind has 1 to 200"),
        ("kind => 'k', org => 'No'", "is not a name"),
        ("kind => 'k', policy => '[]'", "policy is not a JSON object"),
        ("kind => 'k', priority => 99999", "priority 99999"),
    ] {
        let query = format!("select convoke.request_task({bad})");
        let error = client.query(&query, &[]).await.unwrap_err();
        assert!(error.as_db_error().unwrap().message().contains(says), "{bad}: {error:?}");
    }
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn bad_policy_written_by_sql_fails_the_task_with_the_reason() {
    let world = Harness::new(vec![profile("a", 1)]).await;
    let client = world.database.client().await.unwrap();
    // Written past the function, like by a version that did not check policies.
    let call = "with made as (
            insert into convoke.tasks (id, org, kind, class, requester, root_id, state, policy)
            select id, 'demo', 'k', convoke.task_class('demo', '{}'), 'sql:old', id, 'open', '{\"lease\": \"soon\"}'
            from (select convoke.uuid_v7() as id) new returning *)
        insert into convoke.events (org, task_id, epoch, type, body)
        select org, id, 0, 'requested', jsonb_build_object('kind', kind, 'requires', '[]'::jsonb, 'requester', requester,
            'priority', 0) from made
        returning task_id";
    let made: uuid::Uuid = client.query_one(call, &[]).await.unwrap().get(0);
    world.tasks.notify_arbiter();
    let failed = world.in_state(made.into(), TaskState::Failed).await;
    assert_eq!(failed.state_reason.as_deref(), Some("unallocatable"));
    assert!(failed.error.unwrap()["message"].as_str().unwrap().contains("policy"));
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn error_names_the_unknown_id() {
    let world = Harness::new(vec![]).await;
    let unknown = convoke::id::TaskId::generate();
    assert!(matches!(world.tasks.get(unknown).await, Err(Error::UnknownTask(of)) if of == unknown));
    assert!(matches!(world.tasks.cancel(unknown, "x").await, Err(Error::UnknownTask(_))));
    assert!(matches!(world.tasks.events(unknown, 0, 10).await, Err(Error::UnknownTask(_))));
    assert!(matches!(world.tasks.agent(&id("unknown")).await, Err(Error::UnknownAgent(_))));
    world.check().await;
}

#[tokio::test]
async fn answered_command_is_on_disk() {
    let world = Harness::new(vec![]).await;
    let client = world.database.client().await.unwrap();
    // The WAL position at each commit; other tests write to the same WAL.
    let watch = "create table public.commits (at pg_lsn);
        create function public.note_commit() returns trigger language plpgsql security definer as
            $$ begin insert into public.commits values (pg_current_wal_insert_lsn()); return null; end $$;
        create constraint trigger note_commit after insert on convoke.tasks
            deferrable initially deferred for each row execute function public.note_commit()";
    client.batch_execute(watch).await.unwrap();
    let flushed = "select pg_current_wal_flush_lsn() > max(at) from public.commits";
    for _ in 0..20 {
        world.ask(request(json!({}))).await;
        assert!(
            client.query_one(flushed, &[]).await.unwrap().get::<_, bool>(0),
            "answered before it was on disk"
        );
    }
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn refused_wake_does_not_block_others() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let wake = |index, deadline| Wake {
        trigger: "a#0".into(),
        agent: id("a"),
        org: world.org.clone(),
        lsn: convoke::id::Lsn(77),
        index,
        request: Ok(Request { deadline, ..request(json!({})) }),
        burst: None,
    };
    // A year that Postgres cannot store.
    let wakes = [wake(0, Some(chrono::DateTime::<chrono::Utc>::MIN_UTC)), wake(1, None)];
    for _ in 0..2 {
        world.tasks.triggers().record_wakes(&wakes).await.unwrap();
    }
    let tasks = world.tasks.list(&Filter::default()).await.unwrap();
    assert_eq!(tasks.len(), 1, "{tasks:?}");
    world.started(tasks[0].id).await;
    let client = world.database.client().await.unwrap();
    let failed = "select count(*) from convoke.events where type = 'wake_failed'";
    assert_eq!(client.query_one(failed, &[]).await.unwrap().get::<_, i64>(0), 1);
    drop(client);
    world.check().await;
}

/// The second wake of a class is inserted and awarded in one exchange, before the database says what is recorded.
#[tokio::test]
async fn repeated_wake_makes_no_task_and_takes_no_slot() {
    let mut world = Harness::new(vec![profile("a", 4)]).await;
    let org = world.org.clone();
    let wake = |index| Wake {
        trigger: "a#0".into(),
        agent: id("a"),
        org: org.clone(),
        lsn: convoke::id::Lsn(78),
        index,
        request: Ok(request(json!({}))),
        burst: None,
    };
    let triggers = world.tasks.triggers();
    triggers.record_wakes(&[wake(0)]).await.unwrap();
    triggers.record_wakes(&[wake(1)]).await.unwrap();
    // Both are known: one alone, and both beside a new one.
    triggers.record_wakes(&[wake(1)]).await.unwrap();
    triggers.record_wakes(&[wake(0), wake(1), wake(2)]).await.unwrap();
    let tasks = world.tasks.list(&Filter::default()).await.unwrap();
    assert_eq!(tasks.len(), 3, "{tasks:?}");
    for task in &tasks {
        world.started(task.id).await;
        assert_eq!(world.event_types(task.id).await, ["requested", "awarded", "started"]);
    }
    let client = world.database.client().await.unwrap();
    let used = "select slots_used from convoke.agents where id = 'a'";
    assert_eq!(client.query_one(used, &[]).await.unwrap().get::<_, i32>(0), 3);
    // The last slot is still awarded, and a further wake waits for one.
    triggers.record_wakes(&[wake(3), wake(4)]).await.unwrap();
    let mut states: Vec<TaskState> =
        world.tasks.list(&Filter::default()).await.unwrap().iter().map(|task| task.state).collect();
    states.sort_by_key(|state| state.as_str());
    let (awarded, open, running) = (TaskState::Awarded, TaskState::Open, TaskState::Running);
    assert_eq!(states, [awarded, open, running, running, running]);
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn wakes_are_deleted_only_when_the_wal_cannot_repeat_them() {
    let world = Harness::new(vec![]).await;
    let client = world.database.client().await.unwrap();
    client
        .batch_execute(
            "insert into convoke.wal_position (slot, lsn) values ('s', '0/20');
             insert into convoke.wakes (trigger, agent_id, lsn, index, at) values
                 ('old', 'a', '0/10', 0, now() - interval '2 hours'),
                 ('may come again', 'a', '0/20', 0, now() - interval '2 hours'),
                 ('fresh', 'a', '0/10', 0, now())",
        )
        .await
        .unwrap();
    let arbiter = convoke::scope::Scope::default();
    world.tasks.arbitrate(&arbiter);
    let left = "select string_agg(trigger, ', ' order by trigger) from convoke.wakes";
    let forgotten = async {
        while client.query_one(left, &[]).await.unwrap().get::<_, String>(0) != "fresh, may come again" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, forgotten).await.unwrap();
    arbiter.drain(PATIENCE).await.unwrap();
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn list_of_large_tasks_is_cut_at_its_byte_limit() {
    let world = Harness::new(vec![]).await;
    for _ in 0..20 {
        let input = json!("x".repeat(1_000_000));
        world.ask(Request { input, ..request(json!({})) }).await;
    }
    let tasks = world.tasks.list(&Filter::default()).await.unwrap();
    assert_eq!(tasks.len(), 16);
    let before = tasks.last().map(|task| task.id);
    assert_eq!(world.tasks.list(&Filter { before, ..Filter::default() }).await.unwrap().len(), 4);
    world.check().await;
}

#[tokio::test]
async fn sql_request_without_a_wal_signal_is_found_by_the_periodic_poll() {
    // No daemon reads the WAL here.
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let client = world.database.client().await.unwrap();
    let call = "select convoke.request_task('test', requires => '{work}', org => 'demo')";
    let task = TaskId::from(client.query_one(call, &[]).await.unwrap().get::<_, uuid::Uuid>(0));
    let (start, agent) = world.started(task).await;
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    drop(client);
    world.check().await;
}
