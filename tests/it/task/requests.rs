//! Requesting, from Rust and from SQL.
use super::{World, id, profile, request};
use convoke::task::{Error, Filter, TaskState};
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
    assert_eq!(failed.state_reason.as_deref(), Some("bad_request"));
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
