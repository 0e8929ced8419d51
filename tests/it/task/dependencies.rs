//! Dependencies, parts and verifications (`docs/spec/negotiation.md` §5, cases 1, 20, 22).
use super::{Harness, profile, request};
use convoke::{
    id::{AgentId, Requester, TaskId},
    task::{Error, Failure, Request, Start, TaskState, Usage},
};
use serde_json::{Value, json};

fn after(tasks: &[TaskId]) -> Request {
    Request { depends_on: tasks.to_vec(), ..request(json!({})) }
}

impl Harness {
    async fn completed(&mut self, task: TaskId) {
        let (start, agent) = self.started(task).await;
        self.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    }

    async fn failed(&mut self, task: TaskId) {
        let (start, agent) = self.started(task).await;
        let failure =
            Failure { message: "no".into(), retryable: false, outage: false, usage: Usage::default() };
        self.tasks.fail(start.key, &agent, failure).await.unwrap();
    }
}

#[tokio::test]
async fn task_waits_until_all_dependencies_are_completed() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let (one, two) = (world.ask(request(json!({}))).await, world.ask(request(json!({}))).await);
    let last = world.ask(after(&[one, two])).await;
    let after_last = world.ask(after(&[last])).await;
    let blocked = world.tasks.get(last).await.unwrap();
    assert_eq!((blocked.state, blocked.depends_on), (TaskState::Blocked, vec![one, two]));
    world.completed(one).await;
    world.completed(two).await;
    world.completed(last).await;
    world.completed(after_last).await;
    let types = world.event_types(last).await;
    assert_eq!(types, ["requested", "unblocked", "awarded", "started", "finished"]);
    // A completed dependency does not block.
    let at_once = world.ask(after(&[one, last])).await;
    assert_eq!(world.event_types(at_once).await[..2], ["requested", "awarded"]);
    world.check().await;
}

#[tokio::test]
async fn dependent_of_a_failure_is_canceled_or_runs_by_its_setting() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let first = world.ask(request(json!({}))).await;
    let waits = world.ask(after(&[first])).await;
    let then = world.ask(after(&[waits])).await;
    let mut anyway = after(&[first]);
    anyway.on_dependency_failure = convoke::task::OnDependencyFailure::Run;
    let anyway = world.ask(anyway).await;
    world.failed(first).await;
    for task in [waits, then] {
        let canceled = world.in_state(task, TaskState::Canceled).await;
        assert_eq!(canceled.state_reason.as_deref(), Some("dependency"));
    }
    world.completed(anyway).await;
    // The same for a request whose dependency has failed already.
    let late = world.ask(after(&[first])).await;
    world.in_state(late, TaskState::Canceled).await;
    // Requeued, they continue.
    world.tasks.requeue(first, "boss").await.unwrap();
    assert_eq!(world.tasks.requeue(waits, "boss").await.unwrap().state, TaskState::Blocked);
    world.completed(first).await;
    world.completed(waits).await;
    world.check().await;
}

#[tokio::test]
async fn dependencies_must_exist_in_the_same_org() {
    let world = Harness::new(vec![]).await;
    let nowhere = TaskId::generate();
    let unknown = world.tasks.request(&world.org, "test", after(&[nowhere])).await;
    assert!(matches!(unknown, Err(Error::UnknownTask(id)) if id == nowhere), "{unknown:?}");
    let own = world.ask(request(json!({}))).await;
    let other = "other".try_into().unwrap();
    for wish in [after(&[own]), Request { parent_id: Some(own), ..request(json!({})) }] {
        let refused = world.tasks.request(&other, "test", wish).await;
        assert!(matches!(refused, Err(Error::UnknownTask(id)) if id == own), "{refused:?}");
    }
    let many = after(&vec![own; 101]);
    assert!(matches!(world.tasks.request(&world.org, "test", many).await, Err(Error::BadRequest(_))));
    let canceled = world.ask(request(json!({}))).await;
    world.tasks.cancel(canceled, "no").await.unwrap();
    let late = Request { parent_id: Some(canceled), ..request(json!({})) };
    let late = world.tasks.request(&world.org, "test", late).await;
    let ended = Error::ParentEnded { parent: canceled, state: TaskState::Canceled };
    assert_eq!(late.unwrap_err().to_string(), ended.to_string());
    world.check().await;
}

#[tokio::test]
async fn unblocked_task_still_waits_for_its_run_at() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let first = world.ask(request(json!({}))).await;
    let mut wish = after(&[first]);
    wish.run_at = Some(convoke::clock::Clock::System.now() + chrono::TimeDelta::hours(1));
    let later = world.ask(wish).await;
    world.completed(first).await;
    world.in_state(later, TaskState::Scheduled).await;
    world.check().await;
}

impl Harness {
    async fn part(&self, start: &Start, agent: &AgentId, wish: Request) -> Result<TaskId, Error> {
        self.tasks.request_part(&self.org, start.key, agent, wish).await.map(|made| made.task.id)
    }
}

#[tokio::test]
async fn parts_of_a_canceled_task_are_canceled_unless_detached() {
    let mut world = Harness::new(vec![profile("a", 4)]).await;
    let whole = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(whole).await;
    let part = world.part(&start, &agent, request(json!({ "cancel_grace": "50ms" }))).await.unwrap();
    let (part_start, _) = world.started(part).await;
    let grandchild = world.part(&part_start, &agent, after(&[part])).await.unwrap();
    let free = Request { detached: true, ..request(json!({})) };
    let free = world.part(&start, &agent, free).await.unwrap();
    let seen = world.tasks.get(grandchild).await.unwrap();
    let asker = Requester::Agent { org: seen.org.clone(), id: agent.clone() };
    assert_eq!((seen.parent_id, seen.root_id, seen.requester), (Some(part), Some(whole), asker));
    world.tasks.cancel(whole, "enough").await.unwrap();
    for task in [part, grandchild] {
        world.in_state(task, TaskState::Canceled).await;
    }
    let fenced = world.part(&part_start, &agent, request(json!({}))).await;
    assert!(matches!(fenced, Err(Error::Fenced)), "{fenced:?}");
    world.completed(free).await;
    world.in_state(whole, TaskState::Canceling).await;
    let failure =
        Failure { message: "stopped".into(), retryable: true, outage: false, usage: Usage::default() };
    let _ = world.tasks.fail(start.key, &agent, failure).await;
    world.in_state(whole, TaskState::Canceled).await;
    world.check().await;
}

#[tokio::test]
async fn part_is_canceled_with_its_parent_even_if_it_may_run_after_its_failure() {
    let mut world = Harness::new(vec![profile("a", 4)]).await;
    let whole = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(whole).await;
    let mut wish = after(&[whole]);
    wish.on_dependency_failure = convoke::task::OnDependencyFailure::Run;
    let part = world.part(&start, &agent, wish).await.unwrap();
    let failure = Failure { message: "no".into(), retryable: true, outage: false, usage: Usage::default() };
    world.tasks.cancel(whole, "enough").await.unwrap();
    let _ = world.tasks.fail(start.key, &agent, failure).await;
    world.in_state(whole, TaskState::Canceled).await;
    world.in_state(part, TaskState::Canceled).await;
    world.check().await;
}

#[tokio::test]
async fn part_is_requeued_only_after_its_parent() {
    let mut world = Harness::new(vec![profile("a", 4)]).await;
    let whole = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(whole).await;
    let mut far = request(json!({}));
    far.requires = vec!["magic".into()];
    let part = world.part(&start, &agent, far).await.unwrap();
    let failure =
        || Failure { message: "stopped".into(), retryable: true, outage: false, usage: Usage::default() };
    world.tasks.cancel(whole, "enough").await.unwrap();
    let _ = world.tasks.fail(start.key, &agent, failure()).await;
    world.in_state(whole, TaskState::Canceled).await;
    world.in_state(part, TaskState::Canceled).await;

    let early = world.tasks.requeue(part, "boss").await;
    let ended = Error::ParentEnded { parent: whole, state: TaskState::Canceled };
    assert_eq!(early.unwrap_err().to_string(), ended.to_string());
    world.tasks.requeue(whole, "boss").await.unwrap();
    assert_eq!(world.tasks.requeue(part, "boss").await.unwrap().state, TaskState::Open);
    let (start, agent) = world.started(whole).await;
    world.tasks.cancel(whole, "enough again").await.unwrap();
    let _ = world.tasks.fail(start.key, &agent, failure()).await;
    world.in_state(part, TaskState::Canceled).await;
    world.in_state(whole, TaskState::Canceled).await;
    world.check().await;
}

#[tokio::test]
async fn deadline_of_a_parent_ends_its_parts() {
    let mut world = Harness::new(vec![profile("a", 2)]).await;
    let mut wish = request(json!({}));
    wish.deadline = Some(convoke::clock::Clock::System.now() + chrono::TimeDelta::milliseconds(1500));
    let whole = world.ask(wish).await;
    let (start, agent) = world.started(whole).await;
    let mut far = request(json!({}));
    far.requires = vec!["magic".into()];
    let part = world.part(&start, &agent, far).await.unwrap();
    let failed = world.in_state(whole, TaskState::Failed).await;
    assert_eq!(failed.state_reason.as_deref(), Some("deadline"));
    let canceled = world.in_state(part, TaskState::Canceled).await;
    assert_eq!(canceled.state_reason.as_deref(), Some("its parent is failed"));
    world.check().await;
}

/// An agent that verifies, beside the workers.
fn reviewer() -> convoke::task::Profile {
    let mut one = profile("reviewer", 1);
    one.capabilities = vec!["review".into()];
    one
}

fn reviewed(attempts_max: u32) -> Request {
    let verifier = json!({ "kind": "review", "requires": ["review"] });
    request(json!({ "attempts_max": attempts_max, "verifier": verifier }))
}

impl Harness {
    /// The verification of `task`, started.
    async fn review(&mut self) -> (Start, AgentId) {
        let task = self
            .hear(|notice| match notice {
                convoke::task::Notice::Assigned(won) if won.agent_id.as_str() == "reviewer" => {
                    Some(won.clone())
                }
                _ => None,
            })
            .await;
        let start = self.tasks.accept(task.key, &task.agent_id).await.unwrap();
        (start, task.agent_id)
    }

    async fn says(&mut self, verdict: Value) -> Start {
        let (start, reviewer) = self.review().await;
        self.tasks.finish(start.key, &reviewer, verdict, Usage::default()).await.unwrap();
        start
    }
}

#[tokio::test]
async fn result_is_accepted_by_its_verifier() {
    let mut world = Harness::new(vec![profile("a", 1), reviewer()]).await;
    let task = world.ask(reviewed(3)).await;
    let (start, agent) = world.started(task).await;
    for _ in 0..2 {
        let update = world.tasks.finish(start.key, &agent, json!("done"), Usage::default()).await.unwrap();
        assert_eq!(update.state, TaskState::Verifying);
    }
    assert_eq!(world.tasks.agent(&agent).await.unwrap().slots_used, 0, "the worker is free meanwhile");
    let looked = world.says(json!({ "accepted": true })).await;
    assert_eq!(looked.input["result"], "done");
    assert_eq!(looked.input["task"]["id"], json!(task));
    let done = world.in_state(task, TaskState::Completed).await;
    assert_eq!(done.result, Some(json!("done")));
    let types = world.event_types(task).await;
    assert_eq!(types, ["requested", "awarded", "started", "verifying", "verified"]);
    let again = world.tasks.finish(start.key, &agent, json!("done"), Usage::default()).await.unwrap();
    assert_eq!(again.state, TaskState::Completed, "a repeat gets the stored outcome");
    world.check().await;
}

#[tokio::test]
async fn rejected_result_returns_to_its_agent_with_the_reason() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1), reviewer()]).await;
    let task = world.ask(reviewed(2)).await;
    let (first, agent) = world.started(task).await;
    world.tasks.finish(first.key, &agent, json!("bad"), Usage::default()).await.unwrap();
    world.says(json!({ "accepted": false, "reason": "too short" })).await;
    let (second, same) = world.started(task).await;
    assert_eq!((&same, second.attempt), (&agent, 2));
    assert_eq!(second.rejected.as_deref(), Some("too short"));
    world.tasks.finish(second.key, &agent, json!("worse"), Usage::default()).await.unwrap();
    world.says(json!({ "accepted": false, "reason": "shorter" })).await;
    let failed = world.in_state(task, TaskState::Failed).await;
    assert_eq!(failed.state_reason.as_deref(), Some("verification"));
    assert_eq!((failed.error.unwrap()["message"].clone(), failed.result), (json!("shorter"), None));
    world.check().await;
}

#[tokio::test]
async fn verifier_without_a_verdict_fails_the_task() {
    let mut world = Harness::new(vec![profile("a", 2), reviewer()]).await;
    let task = world.ask(reviewed(2)).await;
    let (start, agent) = world.started(task).await;
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    let (look, reviewer) = world.review().await;
    let failure =
        Failure { message: "cannot".into(), retryable: false, outage: false, usage: Usage::default() };
    world.tasks.fail(look.key, &reviewer, failure).await.unwrap();
    let failed = world.in_state(task, TaskState::Failed).await;
    assert_eq!(failed.state_reason.as_deref(), Some("verification"));
    let task = world.ask(reviewed(2)).await;
    let (start, agent) = world.started(task).await;
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    let (look, _) = world.review().await;
    assert_eq!(world.tasks.cancel(task, "enough").await.unwrap().state, TaskState::Canceled);
    world.in_state(look.key.task_id, TaskState::Canceling).await;
    world.check().await;
}
