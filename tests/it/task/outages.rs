//! Temporary failures: absent agents, services that are down, daemons that end.
use super::rounds::speaker;
use super::{Harness, id, profile, request};
use convoke::{
    id::{AgentId, Requester, TaskId},
    task::{AgentKind, AssignmentKey, Failure, Notice, Requeue, TaskState, Usage},
};
use serde_json::{Value, json};

fn failure(message: &str, retryable: bool, outage: bool) -> Failure {
    Failure { message: message.into(), retryable, outage, usage: Usage::default() }
}

/// A policy whose rounds wait for every answer and follow each other at once.
fn wish(more: Value) -> convoke::task::Request {
    let mut policy = json!({ "bid_window": "1h", "quiet_gap": "1h", "backoff": "20ms" });
    policy.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request(policy)
}

/// Declines every round as `who` until the task is awarded to another agent.
async fn awarded_while_declining(world: &mut Harness, task: TaskId, who: &str) -> (AssignmentKey, AgentId) {
    loop {
        let heard = world
            .hear(|notice| match notice {
                Notice::Announced { task: of, round, .. } if of.id == task => Some(Err(*round)),
                Notice::Assigned(assigned) if assigned.key.task_id == task => {
                    Some(Ok((assigned.key, assigned.agent_id.clone())))
                }
                _ => None,
            })
            .await;
        match heard {
            Ok(award) => return award,
            Err(round) => {
                let _ = world.tasks.decline(task, &id(who), round, "never mine").await;
            }
        }
    }
}

async fn column(world: &Harness, task: TaskId, expression: &str) -> String {
    let client = world.database.client().await.unwrap();
    let query = format!("select ({expression})::text from convoke.tasks where id = $1");
    let row = client.query_one(&query, &[&task.as_uuid()]).await.unwrap();
    row.try_get::<_, Option<String>>(0).unwrap().unwrap_or_default()
}

#[tokio::test]
async fn agent_that_tried_is_asked_again_when_all_others_decline() {
    let mut world = Harness::new(vec![profile("a", 1), speaker("s")]).await;
    let task = world.ask(wish(json!({ "attempts_max": 4 }))).await;
    for attempt in 1..=3 {
        let (key, agent) = awarded_while_declining(&mut world, task, "s").await;
        assert_eq!(agent, id("a"));
        let start = world.tasks.accept(key, &agent).await.unwrap();
        assert_eq!(start.attempt, attempt);
        match attempt {
            1 => drop(world.tasks.fail(key, &agent, failure("no luck", true, false)).await.unwrap()),
            // Killed while it worked.
            2 => drop(world.tasks.lost(key, &agent).await.unwrap()),
            _ => drop(world.tasks.finish(key, &agent, json!("done"), Usage::default()).await.unwrap()),
        }
    }
    assert_eq!(world.tasks.get(task).await.unwrap().state, TaskState::Completed);
    world.check().await;
}

#[tokio::test]
async fn agent_with_a_final_failure_is_not_asked_again() {
    let mut world = Harness::new(vec![profile("a", 1), speaker("s")]).await;
    let task = world.ask(wish(json!({ "rounds_max": 3, "absence": "0s" }))).await;
    let (key, agent) = awarded_while_declining(&mut world, task, "s").await;
    world.tasks.accept(key, &agent).await.unwrap();
    world.tasks.fail(key, &agent, failure("the key is refused", false, false)).await.unwrap();
    let decline = async {
        loop {
            let round = world
                .hear(|notice| match notice {
                    Notice::Announced { task: of, round, eligible, .. } if of.id == task => {
                        assert_eq!(*eligible, [id("s")]);
                        Some(Some(*round))
                    }
                    Notice::Updated(update) if update.id == task && update.state == TaskState::Failed => {
                        Some(None)
                    }
                    _ => None,
                })
                .await;
            match round {
                Some(round) => drop(world.tasks.decline(task, &id("s"), round, "").await),
                None => break,
            }
        }
    };
    decline.await;
    let ended = world.tasks.get(task).await.unwrap();
    assert_eq!((ended.state_reason.as_deref(), ended.attempt), (Some("unallocatable"), 1));
    assert_eq!(ended.error.unwrap()["last"]["message"], "the key is refused");
    world.check().await;
}

#[tokio::test]
async fn task_waits_for_an_agent_that_was_here_and_is_awarded_when_it_is_back() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    world.tasks.register(vec![]).await.unwrap();
    let task = world.ask(request(json!({ "rounds_max": 1, "backoff": "1h" }))).await;
    world.event(task, "no_offers").await;
    let why = world.tasks.why(task).await.unwrap();
    let waits = why["waits_for"].as_str().unwrap();
    assert!(waits.contains("for an agent since") && waits.contains("away: a;"), "{waits}");
    world.tasks.register(vec![profile("a", 1)]).await.unwrap();
    // Long before the end of its backoff of an hour.
    let (start, agent) = world.started(task).await;
    assert_eq!(column(&world, task, "unattended_since").await, "");
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    world.check().await;
}

#[tokio::test]
async fn task_waits_for_an_agent_that_is_defined_and_has_never_been_here() {
    let mut world = Harness::new(vec![]).await;
    let mut far = speaker("far");
    far.kind = AgentKind::Remote;
    world.tasks.expect(std::slice::from_ref(&far)).await.unwrap();
    let agent = world.tasks.agent(&id("far")).await.unwrap();
    assert_eq!((agent.status.as_str(), agent.last_seen_at), ("gone", None));
    let task = world.ask(wish(json!({ "rounds_max": 1 }))).await;
    let direct = world.ask(wish(json!({ "rounds_max": 1, "award": "direct", "agent": "far" }))).await;
    let unknown = world.ask(wish(json!({ "rounds_max": 1, "award": "direct", "agent": "other" }))).await;
    let mut magic = wish(json!({ "rounds_max": 1 }));
    magic.requires = vec!["magic".into()];
    let magic = world.ask(magic).await;
    // A task without any capable agent ends when its rounds are used up.
    for lost in [unknown, magic] {
        let failed = world.in_state(lost, TaskState::Failed).await;
        assert_eq!(failed.state_reason.as_deref(), Some("unallocatable"));
    }
    for waiting in [task, direct] {
        world.event(waiting, "no_offers").await;
        assert_eq!(world.tasks.get(waiting).await.unwrap().state, TaskState::Open);
    }
    world.tasks.join_remote(far, None).await.unwrap();
    let (key, winner) = {
        world
            .hear(|notice| match notice {
                Notice::Announced { task: of, .. } if of.id == task => Some(()),
                _ => None,
            })
            .await;
        let round = world.tasks.get(task).await.unwrap().round;
        world.tasks.offer(task, &id("far"), super::rounds::offer(round, 1)).await.unwrap();
        let assigned = world.assigned(task).await;
        (assigned.key, assigned.agent_id)
    };
    world.tasks.accept(key, &winner).await.unwrap();
    world.tasks.finish(key, &winner, json!(1), Usage::default()).await.unwrap();
    // An agent whose definition is removed is no longer expected.
    world.tasks.expect(&[]).await.unwrap();
    world.check().await;
}

#[tokio::test]
async fn absence_has_an_end_and_can_be_turned_off() {
    let world = Harness::new(vec![profile("a", 1)]).await;
    world.tasks.register(vec![]).await.unwrap();
    let off = world.ask(wish(json!({ "rounds_max": 1, "absence": "0s" }))).await;
    let short = world.ask(wish(json!({ "rounds_max": 1, "absence": "3s" }))).await;
    for task in [off, short] {
        let failed = world.in_state(task, TaskState::Failed).await;
        assert_eq!(failed.state_reason.as_deref(), Some("unallocatable"));
    }
    assert_eq!(world.tasks.get(off).await.unwrap().round, 0, "its first round was its last");
    assert!(world.tasks.get(short).await.unwrap().round > 1);
    world.check().await;
}

#[tokio::test]
async fn outage_uses_no_attempt_and_backs_off_longer_each_time() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(request(json!({ "attempts_max": 1 }))).await;
    let mut waits = Vec::new();
    for outages in 1..=3 {
        let (start, agent) = world.started(task).await;
        assert_eq!(start.attempt, 1);
        world.tasks.fail(start.key, &agent, failure("connection refused", true, true)).await.unwrap();
        let open = world.tasks.get(task).await.unwrap();
        assert_eq!((open.state, open.attempt), (TaskState::Open, 0));
        assert_eq!(column(&world, task, "outages").await, outages.to_string());
        let wait = column(&world, task, "round(extract(epoch from due_at - updated_at) * 1000)").await;
        waits.push(wait.parse::<i64>().unwrap());
        // A repeated report gets the same answer.
        world.tasks.fail(start.key, &agent, failure("connection refused", true, true)).await.unwrap();
    }
    for (wait, expected) in waits.iter().zip([1_000, 2_000, 4_000]) {
        assert!((expected * 3 / 4..=expected * 5 / 4).contains(wait), "{waits:?}");
    }
    let why = world.tasks.why(task).await.unwrap();
    assert_eq!(why["attempts"][0]["error"], "connection refused");
    let waits_for = why["waits_for"].as_str().unwrap();
    assert!(
        waits_for.contains("for the end of an outage since") && waits_for.contains("3 attempts"),
        "{waits_for}"
    );
    let (start, agent) = world.started(task).await;
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    let done = world.tasks.get(task).await.unwrap();
    assert_eq!((done.state, done.attempt), (TaskState::Completed, 1));
    assert_eq!(column(&world, task, "outages").await, "0");
    world.check().await;
}

#[tokio::test]
async fn outage_that_lasts_too_long_counts_and_another_agent_is_asked_first() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let off = world.ask(request(json!({ "attempts_max": 1, "outage": "0s" }))).await;
    let (start, agent) = world.started(off).await;
    world.tasks.fail(start.key, &agent, failure("down", true, true)).await.unwrap();
    let failed = world.in_state(off, TaskState::Failed).await;
    assert_eq!(failed.state_reason.as_deref(), Some("attempts_exhausted"));

    let task = world.ask(request(json!({ "attempts_max": 1 }))).await;
    let (start, first) = world.started(task).await;
    world
        .tasks
        .postpone(start.key, &first, "the daemon is stopping", Some(json!({ "page": 7 })))
        .await
        .unwrap();
    let (start, second) = world.started(task).await;
    assert_ne!(first, second, "another may depend on something else");
    assert_eq!((start.attempt, start.checkpoint), (1, Some(json!({ "page": 7 }))));
    world.tasks.finish(start.key, &second, json!(1), Usage::default()).await.unwrap();
    world.check().await;
}

#[tokio::test]
async fn end_of_the_daemon_uses_no_attempt_as_often_as_there_are_attempts() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(request(json!({ "attempts_max": 1 }))).await;
    let (start, _) = world.started(task).await;
    assert_eq!(start.attempt, 1);
    world.tasks.register(vec![profile("a", 1)]).await.unwrap();
    let (again, _) = world.started(task).await;
    assert_eq!(again.attempt, 1);
    // The task itself may crash the daemon.
    world.tasks.register(vec![profile("a", 1)]).await.unwrap();
    let failed = world.in_state(task, TaskState::Failed).await;
    assert_eq!(failed.state_reason.as_deref(), Some("attempts_exhausted"));
    assert_eq!(failed.error.unwrap()["message"], "the daemon ended while the agent worked");
    world.check().await;
}

#[tokio::test]
async fn task_waits_for_an_agent_that_refuses_temporarily() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(wish(json!({ "rounds_max": 1 }))).await;
    let first = world.assigned(task).await;
    world
        .tasks
        .refuse(first.key, &first.agent_id, "the agent's budget for this hour is used up")
        .await
        .unwrap();
    let (start, agent) = world.started(task).await;
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    world.check().await;
}

#[tokio::test]
async fn tasks_selected_by_a_filter_are_requeued_together() {
    let world = Harness::new(vec![]).await;
    let mut failed = Vec::new();
    for n in 0..3 {
        let mut wish = request(json!({ "rounds_max": 1 }));
        wish.kind = if n == 2 { "other".into() } else { "test".into() };
        let task = world.ask(wish).await;
        world.in_state(task, TaskState::Failed).await;
        failed.push(task);
    }
    let of = |more: Value| serde_json::from_value::<Requeue>(more).unwrap();
    let all = |filter: Requeue| {
        let tasks = world.tasks.clone();
        async move { tasks.requeue_all(None, None, &Requester::Service, &filter).await.unwrap() }
    };
    let dry = all(of(json!({ "reason": "unallocatable", "dry_run": true }))).await;
    assert_eq!((dry.tasks, dry.more), (failed.clone(), false));
    assert_eq!(all(of(json!({ "reason": "deadline", "dry_run": true }))).await.tasks, []);
    let first = all(of(json!({ "kind": "test", "limit": 1, "dry_run": true }))).await;
    assert_eq!((first.tasks, first.more), (vec![failed[0]], true));
    let rest = all(of(json!({ "kind": "test", "after": failed[0], "dry_run": true }))).await;
    assert_eq!(rest.tasks, [failed[1]]);
    let stranger = Requester::Token("stranger".into());
    let strangers = world.tasks.requeue_all(None, Some(&stranger), &stranger, &of(json!({}))).await.unwrap();
    assert_eq!(strangers.tasks, []);
    let wrong =
        world.tasks.requeue_all(None, None, &Requester::Service, &of(json!({ "state": "open" }))).await;
    assert!(wrong.unwrap_err().to_string().contains("state is open"));
    world.tasks.register(vec![profile("a", 3)]).await.unwrap();
    let done = all(of(json!({ "kind": "test" }))).await;
    assert_eq!((done.tasks, done.refused.len()), (failed[..2].to_vec(), 0));
    for task in &failed[..2] {
        world.event(*task, "awarded").await;
    }
    assert_eq!(world.tasks.get(failed[2]).await.unwrap().state, TaskState::Failed);
    world.check().await;
}
