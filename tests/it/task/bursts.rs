//! Coalesced row changes: one task after the quiet time, and a pending task that absorbs later changes.
use super::{Harness, id, profile, request};
use crate::support::PATIENCE;
use convoke::{
    id::{Lsn, TaskId},
    task::{Burst, Filter, Request, TaskState, Usage, Wake},
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

const NOTHING: Duration = Duration::ZERO;

/// Change number `lsn` of a burst, whose task has the number and the count in its input.
fn change(world: &Harness, key: &str, lsn: u64, quiet: Duration, merges: bool) -> Wake {
    let asked = move |changes: i64| -> Result<Request, String> {
        Ok(Request {
            input: json!({ "last": lsn, "changes": changes }),
            ..request(json!({ "confirm": "1h" }))
        })
    };
    Wake {
        trigger: "a#0".into(),
        agent: id("a"),
        org: world.org.clone(),
        lsn: Lsn(lsn),
        index: 0,
        request: asked(1),
        burst: Some(Burst { key: key.into(), quiet, merges, again: Arc::new(asked) }),
    }
}

async fn tasks(world: &Harness) -> Vec<(TaskId, TaskState, Value)> {
    let mut tasks = Vec::new();
    for task in world.tasks.list(&Filter { limit: Some(1000), ..Filter::default() }).await.unwrap() {
        let task = world.tasks.get(task.id).await.unwrap();
        tasks.push((task.id, task.state, task.input));
    }
    // Events of one commit have no order.
    tasks.sort_by_key(|(_, _, input)| input["last"].as_u64());
    tasks
}

async fn inputs(world: &Harness) -> Vec<Value> {
    tasks(world).await.into_iter().map(|(_, _, input)| input).collect()
}

async fn until(world: &Harness, count: usize) -> Vec<Value> {
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            let inputs = inputs(world).await;
            if inputs.len() >= count {
                return inputs;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    found.await.expect("the burst ends")
}

#[tokio::test]
async fn burst_makes_one_task_of_its_last_change_after_its_quiet_time() {
    let world = Harness::new(vec![]).await;
    let quiet = Duration::from_millis(300);
    let wakes = [1, 2, 3].map(|lsn| change(&world, "", lsn, quiet, false));
    world.tasks.triggers().record_wakes(&wakes[..2]).await.unwrap();
    // The WAL repeats some of the changes.
    world.tasks.triggers().record_wakes(&wakes).await.unwrap();
    assert_eq!(inputs(&world).await, Vec::<Value>::new(), "not before the silence");
    assert_eq!(until(&world, 1).await, [json!({ "last": 3, "changes": 3 })]);
    world.tasks.triggers().record_wakes(&wakes).await.unwrap();
    world.tasks.triggers().record_wakes(&[change(&world, "", 4, quiet, false)]).await.unwrap();
    assert_eq!(until(&world, 2).await[1], json!({ "last": 4, "changes": 1 }), "what was told before is over");
    world.check().await;
}

#[tokio::test]
async fn endless_burst_makes_a_task_after_ten_quiet_times() {
    let world = Harness::new(vec![]).await;
    let quiet = Duration::from_millis(200);
    let begun = tokio::time::Instant::now();
    let mut lsn = 0;
    while inputs(&world).await.is_empty() {
        lsn += 1;
        world.tasks.triggers().record_wakes(&[change(&world, "", lsn, quiet, false)]).await.unwrap();
        assert!(begun.elapsed() < PATIENCE, "it never fires");
    }
    assert!(begun.elapsed() >= 5 * quiet, "changes came faster than the silence: {:?}", begun.elapsed());
    world.check().await;
}

#[tokio::test]
async fn unassigned_task_absorbs_later_changes() {
    let mut world = Harness::new(vec![]).await;
    for lsn in 1..=3 {
        let wakes = ["x", "y"].map(|key| change(&world, key, 2 * lsn + u64::from(key == "y"), NOTHING, true));
        world.tasks.triggers().record_wakes(&wakes).await.unwrap();
        world.tasks.triggers().record_wakes(&wakes).await.unwrap();
    }
    let made = tasks(&world).await;
    let input = |last| json!({ "last": last, "changes": 3 });
    let found: Vec<_> = made.iter().map(|(_, state, input)| (*state, input.clone())).collect();
    assert_eq!(found, [(TaskState::Open, input(6)), (TaskState::Open, input(7))]);
    world.tasks.register(vec![profile("a", 2)]).await.unwrap();
    let first = made[0].0;
    let (start, _) = world.started(first).await;
    assert_eq!(start.input, input(6));
    // An agent works on it: the next change begins another burst.
    world.tasks.triggers().record_wakes(&[change(&world, "x", 9, NOTHING, true)]).await.unwrap();
    let inputs = until(&world, 3).await;
    assert_eq!(inputs[2], json!({ "last": 9, "changes": 1 }));
    assert_eq!(inputs[0], input(6));
    world.check().await;
}

#[tokio::test]
async fn burst_by_columns_waits_for_each_value() {
    let world = Harness::new(vec![]).await;
    let quiet = Duration::from_millis(200);
    let wakes = [("x", 1), ("y", 2), ("x", 3)].map(|(key, lsn)| change(&world, key, lsn, quiet, true));
    world.tasks.triggers().record_wakes(&wakes).await.unwrap();
    let inputs = until(&world, 2).await;
    assert_eq!(inputs, [json!({ "last": 2, "changes": 1 }), json!({ "last": 3, "changes": 2 })]);
    world.tasks.triggers().record_wakes(&[change(&world, "y", 4, quiet, true)]).await.unwrap();
    let inputs = self::inputs(&world).await;
    assert_eq!(inputs, [json!({ "last": 3, "changes": 2 }), json!({ "last": 4, "changes": 2 })]);
    world.check().await;
}

#[tokio::test]
async fn refused_last_change_is_recorded_once_and_ends_its_burst() {
    let world = Harness::new(vec![]).await;
    let mut bad = change(&world, "x", 1, NOTHING, true);
    bad.request = Err("input.a: there is no new.a".into());
    world.tasks.triggers().record_wakes(&[bad.clone()]).await.unwrap();
    world.tasks.triggers().record_wakes(&[bad]).await.unwrap();
    let client = world.database.client().await.unwrap();
    let failed = "select count(*) from convoke.events where type = 'wake_failed'";
    assert_eq!(client.query_one(failed, &[]).await.unwrap().get::<_, i64>(0), 1);
    world.tasks.triggers().record_wakes(&[change(&world, "x", 2, NOTHING, true)]).await.unwrap();
    assert_eq!(inputs(&world).await, [json!({ "last": 2, "changes": 1 })]);
    // A bad change into a pending task: the task stays as it is.
    let mut bad = change(&world, "x", 3, NOTHING, true);
    bad.burst.as_mut().unwrap().again = Arc::new(|_| Err("no".into()));
    world.tasks.triggers().record_wakes(&[bad]).await.unwrap();
    assert_eq!(client.query_one(failed, &[]).await.unwrap().get::<_, i64>(0), 2);
    assert_eq!(inputs(&world).await, [json!({ "last": 2, "changes": 1 })]);
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn concurrent_bursts_lose_and_repeat_no_change() {
    let mut world = Harness::new(vec![profile("a", 3)]).await;
    let mut count = 0;
    for round in 0..40_u64 {
        let wakes: Vec<_> = (0..5)
            .map(|n| {
                let key = (round * 7 + n * n) % 4;
                change(&world, &key.to_string(), round * 5 + n, NOTHING, true)
            })
            .collect();
        count += 5;
        world.tasks.triggers().record_wakes(&wakes).await.unwrap();
        if round % 3 == 0 {
            world.tasks.triggers().record_wakes(&wakes).await.unwrap();
        }
        if round % 2 == 0 {
            // An awarded agent accepts and finishes at some time.
            let next = world.hear(|notice| match notice {
                convoke::task::Notice::Assigned(assigned) => Some(assigned.clone()),
                _ => None,
            });
            if let Ok(assigned) = tokio::time::timeout(Duration::from_millis(200), next).await {
                world.tasks.accept(assigned.key, &assigned.agent_id).await.unwrap();
                world
                    .tasks
                    .finish(assigned.key, &assigned.agent_id, json!(1), Usage::default())
                    .await
                    .unwrap();
            }
        }
    }
    let put_together: i64 = inputs(&world).await.iter().map(|input| input["changes"].as_i64().unwrap()).sum();
    assert_eq!(put_together, count);
    world.check().await;
}
