//! Budgets of tasks: reserved before use, settled after it, never exceeded.
use super::{Harness, id, profile, request};
use convoke::task::{Budget, Error, Failure, Request, Task, TaskState, Usage};
use serde_json::{Value, json};

fn with(budget: Value) -> Request {
    let mut wish = request(json!({}));
    wish.budget = serde_json::from_value(budget).unwrap();
    wish
}

fn money(task: &Task, of: &str) -> (i64, i64) {
    let of = &task.budget.as_ref().unwrap()[of]["microdollars"];
    (of["reserved"].as_i64().unwrap(), of["spent"].as_i64().unwrap())
}

fn used(microdollars: u64) -> Usage {
    Usage { tokens: 5, microdollars, presumed: false }
}

fn budget(value: Value) -> Budget {
    serde_json::from_value(value).unwrap()
}

#[tokio::test]
async fn budget_is_reserved_and_settled_and_the_next_attempt_waits_for_more() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let task = world.ask(with(json!({ "microdollars": 150, "tokens": 1000 }))).await;
    let (start, agent) = world.started(task).await;
    assert_eq!(money(&world.tasks.get(task).await.unwrap(), "task"), (100, 0), "as it was offered");
    let failure = Failure { message: "no luck".into(), retryable: true, outage: false, usage: used(90) };
    world.tasks.fail(start.key, &agent, failure).await.unwrap();

    // The next attempt would cost 100 again, and 60 are left.
    let assigned = world.assigned(task).await;
    let short = world.tasks.accept(assigned.key, &assigned.agent_id).await;
    assert!(matches!(short, Err(Error::Conflict { state: TaskState::Waiting })), "{short:?}");
    let waiting = world.in_state(task, TaskState::Waiting).await;
    assert_eq!((waiting.state_reason.as_deref(), money(&waiting, "task")), (Some("budget"), (0, 90)));
    let less = world.tasks.set_budget(task, "boss", budget(json!({ "microdollars": 10 }))).await;
    assert!(matches!(less, Err(Error::BadRequest(_))), "{less:?}");
    world.tasks.set_budget(task, "boss", budget(json!({ "microdollars": 200 }))).await.unwrap();
    let (start, agent) = world.started(task).await;
    world.tasks.finish(start.key, &agent, json!(1), used(1_000_000)).await.unwrap();
    let done = world.in_state(task, TaskState::Completed).await;
    assert_eq!(money(&done, "task"), (0, 200), "beyond the limit nothing is spent of it");
    let over = world.tasks.set_budget(task, "boss", budget(json!({ "microdollars": 900 }))).await;
    assert!(matches!(over, Err(Error::Conflict { .. })), "{over:?}");
    world.check().await;
}

#[tokio::test]
async fn unreported_usage_counts_as_spent_until_a_late_report() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let task = world.ask(with(json!({ "microdollars": 1000 }))).await;
    let (first, lost) = world.started(task).await;
    world.expire_lease(first.key).await;
    let (second, agent) = world.started(task).await;
    assert_ne!(lost, agent);
    assert_eq!(money(&world.tasks.get(task).await.unwrap(), "task"), (100, 100));
    for _ in 0..2 {
        let late = world.tasks.finish(first.key, &lost, json!("late"), used(30)).await;
        assert!(matches!(late, Err(Error::Fenced)), "{late:?}");
    }
    assert_eq!(money(&world.tasks.get(task).await.unwrap(), "task"), (100, 30), "charged once");
    world.tasks.finish(second.key, &agent, json!(1), used(70)).await.unwrap();
    assert_eq!(money(&world.tasks.get(task).await.unwrap(), "task"), (0, 100));
    world.check().await;
}

#[tokio::test]
async fn concurrent_parts_never_exceed_the_budget_of_the_tree() {
    let mut world = Harness::new(vec![profile("a", 20)]).await;
    let mut wish = with(json!({ "tree": { "microdollars": 350 } }));
    wish.policy = serde_json::from_value(json!({ "lease": "1m" })).unwrap();
    let root = world.ask(wish).await;
    let (_held, _) = world.started(root).await;
    let mut part = request(json!({ "lease": "1m" }));
    part.parent_id = Some(root);
    for _ in 0..6 {
        world.ask(part.clone()).await;
    }
    let mut awards = Vec::new();
    for _ in 0..6 {
        awards.push(
            world
                .hear(|notice| match notice {
                    convoke::task::Notice::Assigned(assigned) => Some(assigned.clone()),
                    _ => None,
                })
                .await,
        );
    }
    let tasks = &world.tasks;
    let accepts = awards.iter().map(|award| tasks.accept(award.key, &award.agent_id));
    let accepts = futures_util::future::join_all(accepts).await;
    let started = accepts.iter().filter(|accept| accept.is_ok()).count();
    assert_eq!(started, 2, "the root itself holds 100 of 350");
    let tree = world.tasks.get(root).await.unwrap();
    assert_eq!(money(&tree, "tree"), (300, 0));
    let mut bad = part;
    bad.budget = Some(budget(json!({ "tree": { "microdollars": 1 } })));
    let refused = world.tasks.request(&world.org, "test", bad).await;
    assert!(matches!(refused, Err(Error::BadRequest(_))), "{refused:?}");
    world.tasks.cancel(root, "enough").await.unwrap();
    world.check().await;
}

#[tokio::test]
async fn hourly_budget_of_an_agent_covers_all_its_tasks() {
    let mut world = Harness::new(vec![profile("a", 2)]).await;
    let (first, second) = (world.ask(request(json!({}))).await, world.ask(request(json!({}))).await);
    let (one, agent) = world.started(first).await;
    let (two, _) = world.started(second).await;
    let (tasks, a) = (&world.tasks, id("a"));
    let (x, y) = tokio::join!(
        tasks.reserve(one.key, &a, used(60), Some(100)),
        tasks.reserve(two.key, &a, used(60), Some(100)),
    );
    let fit = [x.unwrap(), y.unwrap()].iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(fit, 1, "not both, though they asked at once");
    for start in [one, two] {
        world.tasks.finish(start.key, &agent, json!(1), used(10)).await.unwrap();
    }
    world.check().await;
}

#[tokio::test]
async fn absurd_usage_is_limited_and_sums_do_not_overflow() {
    let mut world = Harness::new(vec![profile("a", 4)]).await;
    let mut wish = with(json!({ "tree": { "tokens": u64::MAX, "microdollars": u64::MAX } }));
    wish.policy = serde_json::from_value(json!({ "lease": "1m" })).unwrap();
    let root = world.ask(wish).await;
    let mut part = with(json!({ "microdollars": 1000 }));
    part.parent_id = Some(root);
    part.policy = serde_json::from_value(json!({ "lease": "1m" })).unwrap();
    let (held, agent) = world.started(root).await;
    let widest = "update convoke.budgets set tokens_max = 9223372036854775807,
        microdollars_max = 9223372036854775807 where tree";
    world.database.client().await.unwrap().execute(widest, &[]).await.unwrap();
    let most = Usage { tokens: u64::MAX, microdollars: u64::MAX, presumed: false };
    for kind in ["first", "second"] {
        // Each of its own kind: an offer for a kind whose measured cost is absurd has no room, and the task waits.
        let task = world.ask(Request { kind: kind.into(), ..part.clone() }).await;
        let (start, agent) = world.started(task).await;
        world.tasks.finish(start.key, &agent, json!(1), most).await.unwrap();
        assert_eq!(money(&world.tasks.get(task).await.unwrap(), "task"), (0, 1000), "the rest is over");
    }
    let (tasks, client) = (&world.tasks, world.database.client().await.unwrap());
    client
        .execute("update convoke.budgets set tokens_spent = tokens_max - 1, tokens_over = 9223372036854775807 where tree", &[])
        .await
        .unwrap();
    let fits = tasks.reserve(held.key, &agent, most, Some(u64::MAX)).await.unwrap();
    assert!(fits.is_err(), "{fits:?}");
    tasks.finish(held.key, &agent, json!(1), most).await.unwrap();
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn unreported_usage_counts_as_reserved_and_is_marked() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(with(json!({ "microdollars": 150 }))).await;
    let (start, agent) = world.started(task).await;
    world.tasks.finish(start.key, &agent, json!(1), Usage::unreported()).await.unwrap();
    assert_eq!(money(&world.tasks.get(task).await.unwrap(), "task"), (0, 100), "as it was offered");
    let why = world.tasks.why(task).await.unwrap();
    assert_eq!(why["paid"], json!({ "tokens": 0, "microdollars": 100, "presumed": true }));
    world.check().await;
}
