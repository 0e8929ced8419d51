//! Timers of `docs/spec/negotiation.md` §4 (cases 8, 10, 13).
use super::{Harness, profile, request};
use convoke::{
    clock::Clock,
    task::{Error, Failure, Notice, Progress, TaskState, Usage},
};
use serde_json::json;

#[tokio::test]
async fn confirmed_winner_must_start_within_its_time() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let task = world.ask(request(json!({ "start": "100ms", "confirm": "5s" }))).await;
    let first = world.assigned(task).await;
    for _ in 0..2 {
        let update = world.tasks.confirm(first.key, &first.agent_id).await.unwrap();
        assert_eq!(update.state, TaskState::Awarded);
    }
    let second = world.assigned(task).await;
    assert_ne!(first.agent_id, second.agent_id);
    let late = world.tasks.accept(first.key, &first.agent_id).await;
    assert!(matches!(late, Err(Error::Fenced)), "{late:?}");
    world.tasks.confirm(second.key, &second.agent_id).await.unwrap();
    let start = world.tasks.accept(second.key, &second.agent_id).await;
    // It may have been too slow for its 100 ms; then it is fenced like the first.
    if let Ok(start) = start {
        assert_eq!(start.attempt, 1, "who did not start has not tried");
    }
    let types = world.event_types(task).await;
    assert_eq!(types[..4], ["requested", "awarded", "confirmed", "start_timeout"]);
    world.check().await;
}

#[tokio::test]
async fn assignee_without_progress_is_nudged_and_then_stalls() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let task = world.ask(request(json!({ "progress": "1s", "lease": "1h" }))).await;
    let (start, stuck) = world.started(task).await;
    let nudged = world
        .hear(|notice| match notice {
            Notice::Nudge { agent_id, key } => Some((agent_id.clone(), *key)),
            _ => None,
        })
        .await;
    assert_eq!(nudged, (stuck.clone(), start.key));
    let (again, other) = world.started(task).await;
    assert_ne!(stuck, other);
    assert_eq!(again.attempt, 2);
    world.tasks.finish(again.key, &other, json!(1), Usage::default()).await.unwrap();
    let types = world.event_types(task).await;
    let stuck = types.iter().filter(|each| *each == "nudged" || *each == "stalled").collect::<Vec<_>>();
    assert_eq!(stuck[..2], ["nudged", "stalled"]);
    world.check().await;
}

#[tokio::test]
async fn progress_after_a_nudge_keeps_the_task() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(request(json!({ "progress": "1s" }))).await;
    let (start, agent) = world.started(task).await;
    let nudge = |notice: &Notice| matches!(notice, Notice::Nudge { .. }).then_some(());
    for at in 0..2 {
        world.hear(nudge).await;
        let progress = Progress { activity: Some(format!("step {at}")), ..Progress::default() };
        world.tasks.progress(start.key, &agent, progress).await.unwrap();
    }
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    assert_eq!(world.tasks.get(task).await.unwrap().attempt, 1);
    world.check().await;
}

#[tokio::test]
async fn stalled_agent_backs_off_even_without_other_agents() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(request(json!({ "progress": "50ms", "lease": "1h" }))).await;
    world.started(task).await;
    let open = world.in_state(task, TaskState::Open).await;
    assert_eq!(open.error.unwrap()["message"], "the agent lived but showed no work");
    let client = world.database.client().await.unwrap();
    let row = client
        // The pause of a minute is drawn from 48 s to 72 s.
        .query_one("select due_at - updated_at > interval '47 s' from convoke.tasks", &[])
        .await
        .unwrap();
    assert!(row.get::<_, bool>(0));
    drop(client);
    world.check().await;
}

#[tokio::test]
async fn deadline_during_canceling_cancels_and_after_a_failure_keeps_its_error() {
    let mut world = Harness::new(vec![profile("a", 2)]).await;
    let soon = || Some(Clock::System.now() + chrono::TimeDelta::milliseconds(1500));
    let mut wish = request(json!({ "cancel_grace": "1h" }));
    wish.deadline = soon();
    let canceled = world.ask(wish).await;
    world.started(canceled).await;
    world.tasks.cancel(canceled, "enough").await.unwrap();
    let mut wish = request(json!({ "attempts_max": 100 }));
    wish.deadline = soon();
    let failing = world.ask(wish).await;
    let (start, agent) = world.started(failing).await;
    let failure = Failure {
        message: "the model answered 429".into(),
        retryable: true,
        outage: false,
        usage: Usage::default(),
    };
    world.tasks.fail(start.key, &agent, failure).await.unwrap();
    let ended = world.in_state(canceled, TaskState::Canceled).await;
    assert_eq!(ended.state_reason.as_deref(), Some("enough"));
    let failed = world.in_state(failing, TaskState::Failed).await;
    assert_eq!(failed.state_reason.as_deref(), Some("deadline"));
    assert_eq!(failed.error.unwrap()["last"]["message"], "the model answered 429");
    world.check().await;
}

#[tokio::test]
async fn frequent_progress_does_not_fill_the_event_log() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let task = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(task).await;
    let checkpoint = json!("x".repeat(10_000));
    for at in 0..20_u8 {
        let progress = Progress {
            progress: Some(f32::from(at) / 20.0),
            activity: None,
            checkpoint: Some(checkpoint.clone()),
        };
        world.tasks.progress(start.key, &agent, progress).await.unwrap();
    }
    let events = world.tasks.events(task, 0, 1000).await.unwrap();
    let told: Vec<_> = events.iter().filter(|event| event.event_type == "progress").collect();
    assert!((1..20).contains(&told.len()), "{}", told.len());
    assert_eq!(told[0].body["checkpoint_bytes"], 10_002);
    assert!(events.iter().all(|event| event.body.to_string().len() < 2_000));
    assert_eq!(world.tasks.get(task).await.unwrap().progress, Some(0.95), "the row knows the latest");
    world.check().await;
}

#[tokio::test]
async fn expired_offer_cannot_win() {
    let speaker = |name: &str| {
        let mut one = profile(name, 1);
        one.terms.computed = false;
        one
    };
    let mut world = Harness::new(vec![speaker("s"), speaker("t")]).await;
    let policy =
        json!({ "bid_window": "500ms", "quiet_gap": "1h", "offer_validity": "20ms", "backoff": "1h" });
    let task = world.ask(request(policy)).await;
    let announced = |notice: &Notice| matches!(notice, Notice::Announced { .. }).then_some(());
    world.hear(announced).await;
    let offer =
        convoke::task::NewOffer { round: 1, cost_microdollars: 1, eta_ms: 1, confidence: 0.5, note: None };
    world.tasks.offer(task, &super::id("s"), offer).await.unwrap();
    world.event(task, "no_offers").await;
    let why = world.tasks.why(task).await.unwrap();
    assert_eq!(why["rounds"][0]["offers"][0]["state"], "expired");
    assert_eq!(world.tasks.get(task).await.unwrap().state, TaskState::Open);
    world.check().await;
}
