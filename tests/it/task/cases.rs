//! Cases of `docs/spec/negotiation.md` §5, from the award to the end.
use super::{Harness, id, profile, request};
use crate::support::PATIENCE;
use convoke::task::{Error, Failure, Notice, Progress, TaskState, Usage};
use serde_json::json;
use std::time::Duration;

#[tokio::test]
async fn task_runs_from_request_to_result_with_an_event_for_each_step() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(task).await;
    assert_eq!((start.input.clone(), start.attempt), (json!({ "n": 1 }), 1));
    let progress = Progress { progress: Some(0.5), activity: Some("half".into()), checkpoint: None };
    world.tasks.progress(start.key, &agent, progress).await.unwrap();
    assert_eq!(world.tasks.get(task).await.unwrap().progress, Some(0.5));
    let usage = Usage { tokens: 3, microdollars: 70, presumed: false };
    let update = world.tasks.finish(start.key, &agent, json!({ "ok": true }), usage).await.unwrap();
    assert_eq!(update.state, TaskState::Completed);
    let ended = world.tasks.get(task).await.unwrap();
    assert_eq!((ended.result, ended.agent_id), (Some(json!({ "ok": true })), Some(agent)));
    assert_eq!(world.event_types(task).await, ["requested", "awarded", "started", "progress", "finished"]);
    let status = world.tasks.agent(&id("a")).await.unwrap();
    assert_eq!((status.slots_used, status.statistics["test"]["completed"].clone()), (0, json!(1)));
    world.check().await;
}

#[tokio::test]
async fn repeated_result_gets_the_same_answer() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(task).await;
    let again = world.tasks.accept(start.key, &agent).await.unwrap();
    assert_eq!((again.key, again.attempt), (start.key, 1));
    for _ in 0..2 {
        let update = world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
        assert_eq!(update.state, TaskState::Completed);
    }
    assert_eq!(world.event_types(task).await, ["requested", "awarded", "started", "finished"]);
    world.check().await;
}

#[tokio::test]
async fn failure_is_retried_by_another_agent_until_attempts_are_used_up() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let task = world.ask(request(json!({ "attempts_max": 2 }))).await;
    let mut tried = Vec::new();
    for _ in 0..2 {
        let (start, agent) = world.started(task).await;
        let failure =
            Failure { message: "no luck".into(), retryable: true, outage: false, usage: Usage::default() };
        world.tasks.fail(start.key, &agent, failure).await.unwrap();
        tried.push(agent.to_string());
    }
    tried.sort();
    assert_eq!(tried, ["a", "b"]);
    let failed = world.in_state(task, TaskState::Failed).await;
    assert_eq!(failed.state_reason.as_deref(), Some("attempts_exhausted"));
    assert_eq!(failed.error.unwrap()["message"], "no luck");
    world.check().await;
}

#[tokio::test]
async fn final_failure_ends_the_task_at_once() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(task).await;
    let failure =
        Failure { message: "never".into(), retryable: false, outage: false, usage: Usage::default() };
    world.tasks.fail(start.key, &agent, failure).await.unwrap();
    let failed = world.tasks.get(task).await.unwrap();
    assert_eq!(
        (failed.state, failed.state_reason.as_deref()),
        (TaskState::Failed, Some("attempts_exhausted"))
    );
    world.check().await;
}

#[tokio::test]
async fn final_failure_of_one_agent_leaves_the_task_to_others() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let task = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(task).await;
    let failure =
        Failure { message: "no key".into(), retryable: false, outage: false, usage: Usage::default() };
    let update = world.tasks.fail(start.key, &agent, failure).await.unwrap();
    assert_eq!(update.state, TaskState::Open);
    let (start, other) = world.started(task).await;
    assert_ne!(agent, other);
    world.tasks.finish(start.key, &other, json!(1), Usage::default()).await.unwrap();
    world.check().await;
}

#[tokio::test]
async fn winner_that_does_not_answer_loses_the_award_to_the_next_standby_offer() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let task = world.ask(request(json!({ "confirm": "50ms" }))).await;
    let first = world.assigned(task).await;
    let second = world.assigned(task).await;
    assert_ne!(first.agent_id, second.agent_id);
    assert!(matches!(world.tasks.accept(first.key, &first.agent_id).await, Err(Error::Fenced)));
    let refused = world.tasks.agent(&first.agent_id).await.unwrap();
    assert_eq!(refused.statistics["test"]["refused"], 1);
    assert_eq!(world.tasks.get(task).await.unwrap().round, 1, "a standby needs no new round");
    world.check().await;
}

#[tokio::test]
async fn refused_award_goes_to_the_next_standby_offer_without_an_attempt() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let task = world.ask(request(json!({}))).await;
    let first = world.assigned(task).await;
    world.tasks.refuse(first.key, &first.agent_id, "busy").await.unwrap();
    let (start, agent) = world.started(task).await;
    assert_ne!(agent, first.agent_id);
    assert_eq!(start.attempt, 1);
    world.check().await;
}

#[tokio::test]
async fn expired_lease_reassigns_the_task_and_fences_the_first_agent() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let task = world.ask(request(json!({ "lease": "1s" }))).await;
    let (first, dead) = world.started(task).await;
    let (second, alive) = world.started(task).await;
    assert_ne!(dead, alive);
    assert!(second.key.epoch > first.key.epoch);
    assert!(matches!(world.tasks.heartbeat(first.key, &dead).await, Err(Error::Fenced)));
    for _ in 0..2 {
        let usage = Usage { tokens: 5, microdollars: 9, presumed: false };
        let late = world.tasks.finish(first.key, &dead, json!("late"), usage).await;
        assert!(matches!(late, Err(Error::Fenced)));
    }
    world.tasks.finish(second.key, &alive, json!("good"), Usage::default()).await.unwrap();
    let ended = world.tasks.get(task).await.unwrap();
    assert_eq!((ended.result, ended.attempt), (Some(json!("good")), 2));
    let types = world.event_types(task).await;
    let count = |name: &str| types.iter().filter(|each| *each == name).count();
    assert_eq!((count("orphan_result"), count("lease_lost")), (1, 1), "{types:?}");
    world.check().await;
}

#[tokio::test]
async fn heartbeats_renew_the_lease() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(request(json!({ "lease": "1s" }))).await;
    let (start, agent) = world.started(task).await;
    let until = tokio::time::Instant::now() + Duration::from_millis(1500);
    let mut beat = tokio::time::interval(Duration::from_millis(100));
    while tokio::time::Instant::now() < until {
        beat.tick().await;
        world.tasks.heartbeat(start.key, &agent).await.unwrap();
    }
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    world.check().await;
}

#[tokio::test]
async fn attempt_over_its_time_limit_is_stopped_and_retried() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let task = world.ask(request(json!({ "attempt": "60ms" }))).await;
    let (start, slow) = world.started(task).await;
    let told = world
        .hear(|notice| match notice {
            Notice::Cancel { agent_id, key, .. } => Some((agent_id.clone(), *key)),
            _ => None,
        })
        .await;
    assert_eq!(told, (slow.clone(), start.key));
    let (_, other) = world.started(task).await;
    assert_ne!(slow, other);
    world.check().await;
}

#[tokio::test]
async fn task_without_an_assignee_is_canceled_at_once() {
    let world = Harness::new(vec![]).await;
    let task = world.ask(request(json!({}))).await;
    let update = world.tasks.cancel(task, "not needed").await.unwrap();
    assert_eq!((update.state, update.state_reason.as_deref()), (TaskState::Canceled, Some("not needed")));
    let again = world.tasks.cancel(task, "again").await;
    assert!(matches!(again, Err(Error::Conflict { state: TaskState::Canceled })), "{again:?}");
    world.check().await;
}

#[tokio::test]
async fn running_task_is_canceled_when_its_agent_stops_or_the_grace_period_ends() {
    let mut world = Harness::new(vec![profile("a", 2)]).await;
    let (quick, deaf) =
        (world.ask(request(json!({}))).await, world.ask(request(json!({ "cancel_grace": "50ms" }))).await);
    let (start, agent) = world.started(quick).await;
    world.started(deaf).await;
    for task in [quick, deaf] {
        assert_eq!(world.tasks.cancel(task, "stop").await.unwrap().state, TaskState::Canceling);
        world
            .hear(|notice| match notice {
                Notice::Cancel { key, .. } if key.task_id == task => Some(()),
                _ => None,
            })
            .await;
    }
    let late = world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await;
    assert!(matches!(late, Err(Error::Conflict { state: TaskState::Canceled })), "{late:?}");
    let canceled = world.in_state(quick, TaskState::Canceled).await;
    assert_eq!((canceled.result, canceled.state_reason.as_deref()), (None, Some("stop")));
    world.in_state(deaf, TaskState::Canceled).await;
    world.check().await;
}

#[tokio::test]
async fn deadline_ends_a_task_in_any_state() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let mut wish = request(json!({}));
    wish.deadline = Some(chrono::DateTime::from_timestamp(0, 0).unwrap());
    let late = world.ask(wish).await;
    let failed = world.in_state(late, TaskState::Failed).await;
    assert_eq!(failed.state_reason.as_deref(), Some("deadline"));
    let next = world.ask(request(json!({}))).await;
    world.started(next).await;
    world.check().await;
}

#[tokio::test]
async fn result_that_violates_its_schema_is_rejected_and_retried() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let schema = json!({ "type": "object", "required": ["urgency"] });
    let task = world.ask(request(json!({ "result_schema": schema }))).await;
    let (start, agent) = world.started(task).await;
    let update = world.tasks.finish(start.key, &agent, json!({}), Usage::default()).await.unwrap();
    assert_eq!(update.state, TaskState::Open);
    let (start, agent) = world.started(task).await;
    world.tasks.finish(start.key, &agent, json!({ "urgency": 1 }), Usage::default()).await.unwrap();
    assert!(world.event_types(task).await.contains(&"rejected".to_owned()));
    world.check().await;
}

#[tokio::test]
async fn restarted_host_reassigns_the_tasks_of_its_agents() {
    let mut world = Harness::new(vec![profile("a", 2)]).await;
    let (running, waiting) = (world.ask(request(json!({}))).await, world.ask(request(json!({}))).await);
    let (start, agent) = world.started(running).await;
    world.assigned(waiting).await;
    let lives = world.tasks.register(vec![profile("a", 2)]).await.unwrap();
    assert_eq!(lives[&agent].0, 2);
    assert!(matches!(
        world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await,
        Err(Error::Fenced)
    ));
    let (again, _) = world.started(running).await;
    assert_eq!(again.attempt, 1, "the end of the daemon is no attempt");
    let (first, _) = world.started(waiting).await;
    assert_eq!(first.attempt, 1, "a death before the start does not");
    world.check().await;
}

#[tokio::test]
async fn scheduled_task_opens_at_its_time() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let mut wish = request(json!({}));
    wish.run_at = Some(convoke::clock::Clock::System.now() + chrono::TimeDelta::seconds(3));
    let task = world.ask(wish).await;
    assert_eq!(world.tasks.get(task).await.unwrap().state, TaskState::Scheduled);
    world.started(task).await;
    assert_eq!(world.event_types(task).await, ["requested", "scheduled", "awarded", "started"]);
    world.check().await;
}

#[tokio::test]
async fn released_task_passes_its_checkpoint_on() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let task = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(task).await;
    world.tasks.release(start.key, &agent, "going home", Some(json!({ "page": 7 }))).await.unwrap();
    let (next, other) = world.started(task).await;
    assert_ne!(agent, other);
    assert_eq!(next.checkpoint, Some(json!({ "page": 7 })));
    world.check().await;
}

#[tokio::test]
async fn long_poll_answers_at_the_end_of_the_task() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(request(json!({}))).await;
    let tasks = world.tasks.clone();
    let waiting = async move { tasks.wait(task, PATIENCE).await.unwrap() };
    let working = async {
        let (start, agent) = world.started(task).await;
        world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    };
    let (ended, ()) = tokio::join!(waiting, working);
    assert_eq!(ended.state, TaskState::Completed);
    world.check().await;
}

#[tokio::test]
async fn agent_that_dies_before_the_start_uses_no_attempt() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let task = world.ask(request(json!({ "confirm": "1h", "attempts_max": 1 }))).await;
    let first = world.assigned(task).await;
    world.tasks.lost(first.key, &first.agent_id).await.unwrap();
    let second = world.assigned(task).await;
    assert_ne!(first.agent_id, second.agent_id);
    let start = world.tasks.accept(second.key, &second.agent_id).await.unwrap();
    assert_eq!(start.attempt, 1);
    world.tasks.finish(start.key, &second.agent_id, json!(1), Usage::default()).await.unwrap();
    assert_eq!(world.tasks.get(task).await.unwrap().state, TaskState::Completed);
    world.check().await;
}

#[tokio::test]
async fn agent_that_dies_at_work_passes_its_checkpoint_on() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let task = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(task).await;
    let half = Progress { progress: Some(0.5), activity: None, checkpoint: Some(json!({ "page": 7 })) };
    world.tasks.progress(start.key, &agent, half).await.unwrap();
    world.tasks.lost(start.key, &agent).await.unwrap();
    let (next, other) = world.started(task).await;
    assert_ne!(agent, other);
    assert_eq!((next.attempt, next.checkpoint), (2, Some(json!({ "page": 7 }))));
    // Every report of the first agent is fenced.
    assert!(matches!(world.tasks.heartbeat(start.key, &agent).await, Err(Error::Fenced)));
    let failure = Failure { message: "late".into(), retryable: true, outage: false, usage: Usage::default() };
    assert!(matches!(world.tasks.fail(start.key, &agent, failure).await, Err(Error::Fenced)));
    world.check().await;
}

#[tokio::test]
async fn concurrent_cancel_and_finish_have_one_winner() {
    let mut world = Harness::new(vec![profile("a", 20)]).await;
    let (mut completed, mut canceled) = (0, 0);
    for _ in 0..20 {
        let task = world.ask(request(json!({ "cancel_grace": "1h" }))).await;
        let (start, agent) = world.started(task).await;
        let (finish, cancel) = tokio::join!(
            world.tasks.finish(start.key, &agent, json!(1), Usage::default()),
            world.tasks.cancel(task, "no longer needed"),
        );
        let ended = world.tasks.get(task).await.unwrap().state;
        match (finish, cancel) {
            (Ok(_), Err(Error::Conflict { state: TaskState::Completed })) => {
                assert_eq!(ended, TaskState::Completed);
                completed += 1;
            }
            // The finish shows that the agent has stopped, so the grace period is not awaited.
            (Err(Error::Conflict { state: TaskState::Canceled }), Ok(_)) => {
                assert_eq!(ended, TaskState::Canceled);
                canceled += 1;
            }
            other => panic!("{other:?} and {ended:?}"),
        }
    }
    assert_eq!(completed + canceled, 20);
    world.check().await;
}
