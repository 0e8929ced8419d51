//! Questions, answers and requeues (`docs/spec/negotiation.md` §5, case 18).
use super::{Harness, id, profile, request};
use convoke::{
    id::Requester,
    task::{AssignmentKey, Error, Question, TaskState, Usage, WaitFor},
};
use serde_json::{Value, json};

pub fn question(wait_for: WaitFor, text: &str, checkpoint: Option<Value>) -> Question {
    Question {
        wait_for,
        question: text.into(),
        checkpoint,
        usage: Usage { tokens: 7, microdollars: 0, presumed: false },
        calls: Vec::new(),
        approvers: Vec::new(),
    }
}

#[tokio::test]
async fn question_frees_the_slot_and_its_answer_resumes_with_the_same_agent() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let task = world.ask(request(json!({ "attempts_max": 1 }))).await;
    let (start, agent) = world.started(task).await;
    let asked = question(WaitFor::Approval, "may I?", Some(json!({ "page": 3 })));
    for _ in 0..2 {
        let update = world.tasks.ask(start.key, &agent, asked.clone()).await.unwrap();
        assert_eq!(update.state, TaskState::Waiting);
    }
    let waiting = world.tasks.get(task).await.unwrap();
    assert_eq!(waiting.state_reason.as_deref(), Some("approval"));
    let told = waiting.question.unwrap();
    assert_eq!((&told["question"], &told["for"]), (&json!("may I?"), &json!("approval")));
    assert_eq!(world.tasks.agent(&agent).await.unwrap().slots_used, 0);
    // A heartbeat is allowed, and there is no lease that could expire.
    world.tasks.heartbeat(start.key, &agent).await.unwrap();
    let itself = Requester::Agent { org: waiting.org, id: agent.clone() };
    let own = world.tasks.answer(task, itself, json!("yes")).await;
    assert!(matches!(own, Err(Error::Forbidden(_))), "{own:?}");
    world.tasks.answer(task, "boss", json!({ "ok": true })).await.unwrap();
    let (again, same) = world.started(task).await;
    assert_eq!((&same, again.attempt, again.checkpoint), (&agent, 1, Some(json!({ "page": 3 }))));
    assert!(again.key.epoch > start.key.epoch);
    assert_eq!(again.answers[0]["answer"], json!({ "ok": true }));
    assert_eq!((&again.answers[0]["by"], &again.answers[0]["question"]), (&json!("boss"), &json!("may I?")));
    assert!(matches!(world.tasks.heartbeat(start.key, &agent).await, Err(Error::Fenced)));
    world.tasks.finish(again.key, &agent, json!(1), Usage::default()).await.unwrap();
    let twice = world.tasks.answer(task, "boss", json!(1)).await;
    assert!(matches!(twice, Err(Error::Conflict { state: TaskState::Completed })), "{twice:?}");
    let types = world.event_types(task).await;
    let expected =
        ["requested", "awarded", "started", "waiting", "answered", "awarded", "started", "finished"];
    assert_eq!(types, expected);
    world.check().await;
}

#[tokio::test]
async fn answered_task_goes_to_another_agent_if_the_asker_is_busy() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let task = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(task).await;
    world.tasks.ask(start.key, &agent, question(WaitFor::Input, "which?", None)).await.unwrap();
    // Both agents get other work, and the other agent finishes first.
    let mut busy = Vec::new();
    for _ in 0..2 {
        let other = world.ask(request(json!({}))).await;
        busy.push(world.started(other).await);
    }
    world.tasks.answer(task, "boss", json!("this")).await.unwrap();
    let (free, _) = busy.iter().find(|(_, holder)| *holder != agent).cloned().unwrap();
    world.tasks.finish(free.key, &free_agent(&busy, free.key), json!(1), Usage::default()).await.unwrap();
    let (again, other) = world.started(task).await;
    assert_ne!(other, agent);
    assert_eq!(again.answers.len(), 1);
    world.check().await;
}

fn free_agent(
    busy: &[(convoke::task::Start, convoke::id::AgentId)],
    key: AssignmentKey,
) -> convoke::id::AgentId {
    busy.iter().find(|(start, _)| start.key == key).unwrap().1.clone()
}

#[tokio::test]
async fn question_survives_a_restart_of_the_host() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(task).await;
    world.tasks.ask(start.key, &agent, question(WaitFor::Input, "which?", None)).await.unwrap();
    world.tasks.register(vec![profile("a", 1)]).await.unwrap();
    assert_eq!(world.tasks.get(task).await.unwrap().state, TaskState::Waiting);
    world.tasks.answer(task, "boss", json!("this")).await.unwrap();
    let (again, _) = world.started(task).await;
    assert_eq!((again.attempt, again.answers.len()), (1, 1));
    world.check().await;
}

#[tokio::test]
async fn unanswered_question_fails_or_escalates() {
    let mut world = Harness::new(vec![profile("a", 3)]).await;
    let mut tasks = Vec::new();
    for (what, policy) in [
        (WaitFor::Input, json!({ "input": "50ms" })),
        (WaitFor::Budget, json!({ "input": "50ms" })),
        (WaitFor::Input, json!({ "input": "50ms", "on_input_timeout": "escalate" })),
    ] {
        let task = world.ask(request(policy)).await;
        let (start, agent) = world.started(task).await;
        world.tasks.ask(start.key, &agent, question(what, "?", None)).await.unwrap();
        tasks.push(task);
    }
    for (task, reason) in [(tasks[0], "deadline"), (tasks[1], "budget")] {
        let failed = world.in_state(task, TaskState::Failed).await;
        assert_eq!(failed.state_reason.as_deref(), Some(reason));
        assert_eq!(failed.question, None);
    }
    world
        .hear(|notice| match notice {
            convoke::task::Notice::Updated(update)
                if update.id == tasks[2] && update.state == TaskState::Waiting =>
            {
                Some(())
            }
            _ => None,
        })
        .await;
    world.event(tasks[2], "escalated").await;
    assert_eq!(world.tasks.get(tasks[2]).await.unwrap().state, TaskState::Waiting);
    world.tasks.answer(tasks[2], "boss", json!(1)).await.unwrap();
    world.check().await;
}

#[tokio::test]
async fn waiting_task_is_canceled_at_once() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(task).await;
    world.tasks.ask(start.key, &agent, question(WaitFor::Input, "?", None)).await.unwrap();
    assert_eq!(world.tasks.cancel(task, "enough").await.unwrap().state, TaskState::Canceled);
    assert_eq!(world.tasks.agent(&id("a")).await.unwrap().slots_used, 0);
    world.check().await;
}

#[tokio::test]
async fn question_is_validated() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(task).await;
    let empty = world.tasks.ask(start.key, &agent, question(WaitFor::Input, " ", None)).await;
    assert!(matches!(empty, Err(Error::BadRequest(_))), "{empty:?}");
    let long = world.tasks.ask(start.key, &agent, question(WaitFor::Input, &"x".repeat(5000), None)).await;
    assert!(matches!(long, Err(Error::TooLarge { .. })), "{long:?}");
    let nothing = world.tasks.answer(task, "boss", json!(1)).await;
    assert!(matches!(nothing, Err(Error::Conflict { state: TaskState::Running })), "{nothing:?}");
    world.check().await;
}

#[tokio::test]
async fn requeued_task_has_fresh_attempts_and_a_higher_epoch() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(request(json!({ "attempts_max": 1 }))).await;
    let (start, agent) = world.started(task).await;
    let failure = convoke::task::Failure {
        message: "no luck".into(),
        retryable: true,
        outage: false,
        usage: Usage::default(),
    };
    world.tasks.fail(start.key, &agent, failure).await.unwrap();
    assert_eq!(world.tasks.get(task).await.unwrap().state, TaskState::Failed);
    assert_eq!(world.tasks.requeue(task, "boss").await.unwrap().state, TaskState::Open);
    let (again, _) = world.started(task).await;
    assert_eq!(again.attempt, 1);
    assert!(again.key.epoch > start.key.epoch);
    let running = world.tasks.requeue(task, "boss").await;
    assert!(matches!(running, Err(Error::Conflict { state: TaskState::Running })), "{running:?}");
    world.tasks.finish(again.key, &agent, json!(2), Usage::default()).await.unwrap();
    let done = world.tasks.get(task).await.unwrap();
    assert_eq!((done.result, done.error), (Some(json!(2)), None));
    assert!(matches!(world.tasks.requeue(task, "boss").await, Err(Error::Conflict { .. })));
    world.check().await;
}
