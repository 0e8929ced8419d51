//! Schedules: one task for each time, with any number of schedulers.
use super::{Harness, id, profile, request};
use convoke::task::{Error, Schedule, TaskState};
use serde_json::json;

fn schedule(times: &str) -> Schedule {
    Schedule {
        trigger: "a#schedule.0".into(),
        agent: id("a"),
        org: "demo".try_into().unwrap(),
        times: times.into(),
    }
}

#[tokio::test]
async fn concurrent_schedulers_make_one_task_for_each_time() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let every = schedule("* * * * * UTC");
    let first = world.tasks.triggers().schedule(&every).await.unwrap();
    assert_eq!(world.tasks.triggers().schedule(&every).await.unwrap(), first, "known already");
    let at = world.tasks.triggers().now().await.unwrap();
    let triggers = world.tasks.triggers();
    let fires = (0..8).map(|_| triggers.fire(&every, at, request(json!({}))));
    let made: Vec<_> = futures_util::future::join_all(fires).await.into_iter().map(Result::unwrap).collect();
    let made: Vec<_> = made.into_iter().flatten().collect();
    assert_eq!(made.len(), 1);
    world.started(made[0]).await;
    assert_eq!(world.tasks.get(made[0]).await.unwrap().requester.to_string(), "schedule:a#schedule.0");
    assert_eq!(world.tasks.triggers().fire(&every, at, request(json!({}))).await.unwrap(), None);
    assert_eq!(
        world.tasks.triggers().fire(&every, first, request(json!({}))).await.unwrap(),
        None,
        "long over"
    );
    assert_eq!(world.tasks.triggers().schedule(&every).await.unwrap(), at);
    let begun_anew = world.tasks.triggers().schedule(&schedule("0 * * * * UTC")).await.unwrap();
    assert!(begun_anew > at, "other times: what came before it is not made up for");
    world.check().await;
}

#[tokio::test]
async fn refused_scheduled_request_does_not_block_later_times() {
    let world = Harness::new(vec![]).await;
    let every = schedule("* * * * * UTC");
    world.tasks.triggers().schedule(&every).await.unwrap();
    let at = world.tasks.triggers().now().await.unwrap();
    let refused = world.tasks.triggers().fire(&every, at, request(json!({ "leese": "1s" }))).await;
    assert!(matches!(refused, Err(Error::BadRequest(_))), "{refused:?}");
    let next = at + chrono::TimeDelta::seconds(1);
    let made = world.tasks.triggers().fire(&every, next, request(json!({}))).await.unwrap().unwrap();
    assert_eq!(world.tasks.get(made).await.unwrap().state, TaskState::Open);
    world.check().await;
}
