//! `convoke.request_task`: requests by SQL, and their errors.
use super::{Harness, profile, request};
use convoke::{
    id::TaskId,
    task::{Config, Request, TaskState, Usage},
};
use serde_json::json;
use std::time::Duration;
use uuid::Uuid;

#[tokio::test]
async fn sql_requests_parts_and_dependencies_of_its_own_org_only() {
    let mut world = Harness::new(vec![profile("a", 2)]).await;
    let first = world.ask(request(json!({}))).await;
    let client = world.database.client().await.unwrap();
    let made = "select convoke.request_task('test', requires => '{work}', org => $1, parent_id => $2::uuid, \
                depends_on => array[$2::uuid])";
    let row = client.query_one(made, &[&"demo", &first.as_uuid()]).await.unwrap();
    let part = TaskId::from(row.get::<_, Uuid>(0));
    let found = world.tasks.get(part).await.unwrap();
    assert_eq!((found.state, found.parent_id, found.root_id), (TaskState::Blocked, Some(first), Some(first)));
    let other = client.query_one(made, &[&"other", &first.as_uuid()]).await.unwrap_err();
    assert!(other.as_db_error().unwrap().message().contains("no such task in org other"), "{other:?}");
    let (start, agent) = world.started(first).await;
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    // No daemon reads the WAL in this test, so the arbiter is notified by hand.
    world.tasks.notify_arbiter();
    world.started(part).await;
    let late = client.query_one(made, &[&"demo", &first.as_uuid()]).await.unwrap_err();
    assert!(late.as_db_error().unwrap().message().contains("the parent is completed"), "{late:?}");
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn task_requested_by_sql_belongs_to_the_trace_that_is_named() {
    let mut world = Harness::new(vec![profile("a", 2)]).await;
    let client = world.database.client().await.unwrap();
    let ask = "select convoke.request_task('test', requires => '{work}', org => 'demo', traceparent => $1)";
    for bad in ["", "x", "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"] {
        let refused = client.query_one(ask, &[&bad]).await.unwrap_err();
        assert_eq!(refused.as_db_error().unwrap().code().code(), "22023", "{bad}: {refused:?}");
    }
    let zero = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
    assert!(client.query_one(ask, &[&zero]).await.is_err());
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let id = TaskId::from(client.query_one(ask, &[&trace]).await.unwrap().get::<_, Uuid>(0));
    world.tasks.notify_arbiter();
    let (start, agent) = world.started(id).await;
    let of_task: convoke::id::TraceContext = trace.parse().unwrap();
    assert_eq!(start.traceparent, Some(of_task.assignment(start.key.assignment_id)));

    // Parts belong to the same trace: below the assignment that requests them, or below the task.
    let org = "demo".parse().unwrap();
    let wish: Request = serde_json::from_value(json!({ "kind": "test", "requires": ["work"] })).unwrap();
    let part = world.tasks.request_part(&org, start.key, &agent, wish).await.unwrap().task.id;
    let by_sql = "select convoke.request_task('test', requires => '{work}', org => 'demo', parent_id => $1)";
    let other: Uuid = client.query_one(by_sql, &[&id.as_uuid()]).await.unwrap().get(0);
    let stored = "select traceparent from convoke.tasks where id = $1";
    let stored = async |id: Uuid| client.query_one(stored, &[&id]).await.unwrap().get::<_, Option<String>>(0);
    assert_eq!(stored(part.as_uuid()).await, Some(of_task.assignment(start.key.assignment_id).to_string()));
    assert_eq!(stored(other).await, Some(of_task.task(id).to_string()));
    assert_eq!(stored(id.as_uuid()).await.as_deref(), Some(trace));

    // A trace that was written by hand and cannot be read is none.
    let broken = "update convoke.tasks set traceparent = 'x' where id = $1";
    client.execute(broken, &[&other]).await.unwrap();
    world.tasks.notify_arbiter();
    let (start, _) = world.started(TaskId::from(other)).await;
    assert_eq!(start.traceparent, None);
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn sql_has_the_limits_and_the_defaults_of_every_other_request() {
    let mut config = Config::default();
    config.policy.attempts_max = 7;
    let world = Harness::with(&config, vec![]).await;
    let client = world.database.client().await.unwrap();
    for (wish, words) in [
        ("'k', requires => array_fill('x'::text, array[51])", "requires has 51 members"),
        ("'k', requires => array[repeat('x', 201)]", "each of requires has 1 to 200 bytes"),
        ("'k', requires => array[E'a\\nb']", "no control characters"),
        ("repeat('k', 201)", "kind has 1 to 200 bytes"),
        ("'k', depends_on => array[gen_random_uuid()]", "no such task in org default"),
        ("'k', on_dependency_failure => 'hope'", "on_dependency_failure is cancel or run"),
        ("'k', idempotency_key => ''", "idempotency_key has 1 to 200 bytes"),
    ] {
        let refused =
            client.query_one(&format!("select convoke.request_task({wish})"), &[]).await.unwrap_err();
        let told = refused.as_db_error().unwrap().message();
        assert!(told.contains(words), "{wish}: {told}");
    }
    let known = "select from convoke.task_defaults where attempts_max = 7";
    while client.query(known, &[]).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let row =
        client.query_one("select convoke.request_task('k', idempotency_key => 'once')", &[]).await.unwrap();
    let made = TaskId::from(row.get::<_, Uuid>(0));
    assert_eq!(world.tasks.get(made).await.unwrap().attempts_max, 7);
    let row =
        client.query_one("select convoke.request_task('k', idempotency_key => 'once')", &[]).await.unwrap();
    assert_eq!(TaskId::from(row.get::<_, Uuid>(0)), made);
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn org_with_a_large_backlog_does_not_delay_others() {
    let mut quiet = profile("quiet", 1);
    quiet.org = "quiet".try_into().unwrap();
    let mut world = Harness::new(vec![profile("loud", 1), quiet]).await;
    let client = world.database.client().await.unwrap();
    // More classes than one batch returns, all of one org and all without an agent.
    client
        .execute(
            "select convoke.request_task('flood', requires => array['need' || n], org => 'demo',
                policy => '{\"rounds_max\": 1, \"backoff\": \"1h\"}') from generate_series(1, 2500) n",
            &[],
        )
        .await
        .unwrap();
    drop(client);
    let wish = Request { requires: vec!["work".into()], ..request(json!({})) };
    let org = "quiet".try_into().unwrap();
    let task = world.tasks.request(&org, "test", wish).await.unwrap().task.id;
    world.tasks.notify_arbiter();
    world.started(task).await;
    world.check().await;
}
