//! What tasks may cost: reserved before, settled after, never exceeded.
use super::{World, id, profile, request};
use convoke::task::{Budget, Error, Failure, Request, Task, TaskState, Usage};
use serde_json::{Value, json};

fn with(budget: Value) -> Request {
    let mut wish = request(json!({ "lease": "200ms" }));
    wish.budget = serde_json::from_value(budget).unwrap();
    wish
}

fn money(task: &Task, of: &str) -> (i64, i64) {
    let of = &task.budget.as_ref().unwrap()[of]["microdollars"];
    (of["reserved"].as_i64().unwrap(), of["spent"].as_i64().unwrap())
}

fn used(microdollars: u64) -> Usage {
    Usage { tokens: 5, microdollars }
}

fn budget(value: Value) -> Budget {
    serde_json::from_value(value).unwrap()
}

#[tokio::test]
async fn an_attempt_is_reserved_settled_and_the_next_waits_for_what_is_missing() {
    let mut world = World::new(vec![profile("a", 1), profile("b", 1)]).await;
    let task = world.ask(with(json!({ "microdollars": 150, "tokens": 1000 }))).await;
    let (start, agent) = world.started(task).await;
    assert_eq!(money(&world.tasks.get(task).await.unwrap(), "task"), (100, 0), "as it was offered");
    let failure = Failure { message: "no luck".into(), retryable: true, usage: used(90) };
    world.tasks.fail(start.key, &agent, failure).await.unwrap();

    // The other would cost 100 again, and 60 are left.
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
async fn what_ends_without_a_word_counts_as_spent_until_a_late_report_says_less() {
    let mut world = World::new(vec![profile("a", 1), profile("b", 1)]).await;
    let task = world.ask(with(json!({ "microdollars": 1000 }))).await;
    let (first, lost) = world.started(task).await;
    // Its lease runs out.
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
async fn a_tree_never_uses_more_than_its_root_allows_however_many_parts_start_at_once() {
    let mut world = World::new(vec![profile("a", 20)]).await;
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
async fn an_agents_hour_is_bounded_over_all_its_tasks() {
    let mut world = World::new(vec![profile("a", 2)]).await;
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
