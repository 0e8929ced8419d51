//! Requesting, from Rust and from SQL.
use super::{World, id, profile, request};
use crate::support::PATIENCE;
use convoke::{
    id::TaskId,
    task::{Error, Filter, Request, TaskState, Usage, Wake},
};
use serde_json::json;

#[tokio::test]
async fn the_same_key_gives_the_same_task_and_another_body_is_a_conflict() {
    let world = World::new(vec![]).await;
    let mut wish = request(json!({}));
    wish.idempotency_key = Some("k".into());
    let first = world.tasks.request(&world.org, "test", wish.clone()).await.unwrap();
    let (second, third) = tokio::join!(
        world.tasks.request(&world.org, "test", wish.clone()),
        world.tasks.request(&world.org, "test", wish.clone())
    );
    for again in [second.unwrap(), third.unwrap()] {
        assert_eq!((again.task.id, again.replayed, first.replayed), (first.task.id, true, false));
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
async fn a_key_may_be_used_again_a_day_after_the_end_and_not_before() {
    let world = World::new(vec![]).await;
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
async fn bad_requests_are_refused_with_the_member_that_is_wrong() {
    let world = World::new(vec![]).await;
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
async fn a_task_requested_in_sql_belongs_to_the_callers_transaction() {
    let mut world = World::new(vec![profile("a", 1)]).await;
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
    world.tasks.poke();
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
async fn a_policy_that_sql_let_through_ends_the_task_with_the_reason() {
    let world = World::new(vec![profile("a", 1)]).await;
    let client = world.database.client().await.unwrap();
    let call = "select convoke.request_task(kind => 'k', org => 'demo', policy => '{\"lease\": \"soon\"}')";
    let made: uuid::Uuid = client.query_one(call, &[]).await.unwrap().get(0);
    world.tasks.poke();
    let failed = world.in_state(made.into(), TaskState::Failed).await;
    assert_eq!(failed.state_reason.as_deref(), Some("unallocatable"));
    assert!(failed.error.unwrap()["message"].as_str().unwrap().contains("policy"));
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn unknown_things_are_named() {
    let world = World::new(vec![]).await;
    let nobody = convoke::id::TaskId::generate();
    assert!(matches!(world.tasks.get(nobody).await, Err(Error::UnknownTask(of)) if of == nobody));
    assert!(matches!(world.tasks.cancel(nobody, "x").await, Err(Error::UnknownTask(_))));
    assert!(matches!(world.tasks.events(nobody, 0, 10).await, Err(Error::UnknownTask(_))));
    assert!(matches!(world.tasks.agent(&id("nobody")).await, Err(Error::UnknownAgent(_))));
    world.check().await;
}

#[tokio::test]
async fn what_is_answered_is_on_disk() {
    let world = World::new(vec![]).await;
    let client = world.database.client().await.unwrap();
    // Where the log was when each request committed; other tests write to the same log.
    let watch = "create table commits (at pg_lsn);
        create function note_commit() returns trigger language plpgsql security definer as
            $$ begin insert into public.commits values (pg_current_wal_insert_lsn()); return null; end $$;
        create constraint trigger note_commit after insert on convoke.tasks
            deferrable initially deferred for each row execute function note_commit()";
    client.batch_execute(watch).await.unwrap();
    let flushed = "select pg_current_wal_flush_lsn() > max(at) from commits";
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
async fn a_wake_that_the_database_does_not_take_holds_up_no_other() {
    let mut world = World::new(vec![profile("a", 1)]).await;
    let wake = |index, deadline| Wake {
        trigger: "a#0".into(),
        agent: id("a"),
        org: world.org.clone(),
        lsn: convoke::id::Lsn(77),
        index,
        request: Ok(Request { deadline, ..request(json!({})) }),
        burst: None,
    };
    // Postgres knows no such year.
    let wakes = [wake(0, Some(chrono::DateTime::<chrono::Utc>::MIN_UTC)), wake(1, None)];
    for _ in 0..2 {
        world.tasks.wake(&wakes).await.unwrap();
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

#[tokio::test]
async fn wakes_are_forgotten_only_when_the_log_cannot_tell_them_again() {
    let world = World::new(vec![]).await;
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
async fn a_list_of_large_tasks_is_short() {
    let world = World::new(vec![]).await;
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
async fn without_the_log_a_task_requested_in_sql_is_found_by_the_periodic_look() {
    // Nobody reads the log here.
    let mut world = World::new(vec![profile("a", 1)]).await;
    let client = world.database.client().await.unwrap();
    let call = "select convoke.request_task('test', requires => '{work}', org => 'demo')";
    let task = TaskId::from(client.query_one(call, &[]).await.unwrap().get::<_, uuid::Uuid>(0));
    let (start, agent) = world.started(task).await;
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    drop(client);
    world.check().await;
}
