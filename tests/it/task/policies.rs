//! Award policies, reputation by outcomes, and their explanation.
use super::rounds::{offer, speaker};
use super::{Harness, id, profile, request};
use convoke::task::{Error, Failure, Notice, TaskState, Usage};
use serde_json::{Value, json};

impl Harness {
    /// Waits until the round of this task is announced. Returns the agents that may offer.
    async fn announced(&mut self, task: convoke::id::TaskId) -> (i32, usize) {
        self.hear(|notice| match notice {
            Notice::Announced { task: of, round, eligible, .. } if of.id == task => {
                Some((*round, eligible.len()))
            }
            _ => None,
        })
        .await
    }

    async fn finish(&mut self, task: convoke::id::TaskId) -> convoke::id::AgentId {
        let (start, agent) = self.started(task).await;
        self.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
        agent
    }
}

fn reasons(why: &Value) -> Vec<(String, String)> {
    let silent = why["rounds"][0]["silent"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    silent.map(|it| (text(&it["agent_id"]), text(&it["reason"]))).collect()
}

#[tokio::test]
async fn direct_task_is_awarded_only_to_the_named_agent() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let named = || request(json!({ "award": "direct", "agent": "b" }));
    let first = world.ask(named()).await;
    let (start, agent) = world.started(first).await;
    assert_eq!(agent, id("b"));
    let why = world.tasks.why(first).await.unwrap();
    assert_eq!(why["rounds"][0]["because"], "the policy names it");
    assert_eq!(reasons(&why), [("a".into(), "the policy names another agent".into())]);

    // b is busy: its task waits, and tasks for any agent do not wait behind it.
    let waiting = [world.ask(named()).await, world.ask(named()).await];
    let open = world.ask(request(json!({}))).await;
    assert_eq!(world.finish(open).await, id("a"));
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    for task in waiting {
        assert_eq!(world.finish(task).await, id("b"));
    }

    let absent = world.ask(request(json!({ "award": "direct", "agent": "zoe", "rounds_max": 1 }))).await;
    let failed = world.in_state(absent, TaskState::Failed).await;
    assert_eq!(failed.state_reason.as_deref(), Some("unallocatable"));
    assert!(failed.error.unwrap()["reasons"].as_str().unwrap().contains("zoe"));
    for bad in [json!({ "award": "direct" }), json!({ "agent": "b" })] {
        let refused = world.tasks.request(&world.org, "test", request(bad)).await;
        assert!(matches!(refused, Err(Error::BadRequest(_))), "{refused:?}");
    }
    world.check().await;
}

#[tokio::test]
async fn failed_direct_task_is_retried_by_the_same_agent() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let task = world.ask(request(json!({ "award": "direct", "agent": "b" }))).await;
    let (start, agent) = world.started(task).await;
    let failure =
        Failure { message: "no luck".into(), retryable: true, outage: false, usage: Usage::default() };
    world.tasks.fail(start.key, &agent, failure).await.unwrap();
    assert_eq!(world.finish(task).await, id("b"));
    world.check().await;
}

#[tokio::test]
async fn requester_chooses_among_the_offers() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1), speaker("s")]).await;
    let task = world.ask(request(json!({ "award": "requester", "choose_within": "1h" }))).await;
    let (round, eligible) = world.announced(task).await;
    assert_eq!(eligible, 3);
    let told = world.hear(|notice| match notice {
        Notice::Offered { task: of, offers, .. } if of.id == task => Some(offers.len()),
        _ => None,
    });
    assert_eq!(told.await, 2, "the requester is shown what the runtime offers");
    let early = world.tasks.choose(task, &id("s"), "test").await;
    assert!(matches!(early, Err(Error::BadRequest(_))), "s has not offered: {early:?}");
    // All have answered, and the round still waits for its requester.
    world.tasks.offer(task, &id("s"), offer(round, 9_000)).await.unwrap();
    world.tasks.choose(task, &id("s"), "test").await.unwrap();
    let assigned = world.assigned(task).await;
    assert_eq!(assigned.agent_id, id("s"), "though it is the dearest");
    let why = world.tasks.why(task).await.unwrap();
    assert_eq!(why["rounds"][0]["because"], "the requester chose it");
    assert!(matches!(world.tasks.choose(task, &id("a"), "test").await, Err(Error::Late)));

    // The chosen agent refuses: the fallback decides among the standing offers.
    world.tasks.refuse(assigned.key, &id("s"), "no").await.unwrap();
    assert_eq!(world.finish(task).await, id("a"));
    let other = world.ask(request(json!({}))).await;
    let wrong = world.tasks.choose(other, &id("a"), "test").await;
    assert!(matches!(wrong, Err(Error::BadRequest(_) | Error::Late)), "{wrong:?}");
    world.check().await;
}

#[tokio::test]
async fn fallback_decides_without_a_choice() {
    let mut dear = profile("a", 1);
    dear.terms.cost_microdollars = 900;
    let mut world = Harness::new(vec![dear, profile("b", 1)]).await;
    let policy = json!({ "award": "requester", "choose_within": "50ms", "fallback": "cheapest" });
    let task = world.ask(request(policy)).await;
    assert_eq!(world.finish(task).await, id("b"));
    let why = world.tasks.why(task).await.unwrap();
    let because = why["rounds"][0]["because"].as_str().unwrap();
    assert!(because.starts_with("nothing was chosen in time; by the fallback it has 1"), "{because}");
    world.check().await;
}

#[tokio::test]
async fn open_offers_of_an_agent_are_bounded_by_its_free_slots() {
    let mut world = Harness::new(vec![speaker("s"), speaker("t")]).await;
    let mut tasks = Vec::new();
    // A poll opens as many rounds as there are free slots, so these come one after the other.
    for _ in 0..4 {
        let task = world.ask(request(json!({ "bid_window": "1h", "quiet_gap": "1h" }))).await;
        tasks.push((task, world.announced(task).await));
    }
    for (task, (round, _)) in &tasks[..3] {
        world.tasks.offer(*task, &id("s"), offer(*round, 1)).await.unwrap();
    }
    // A replaced offer does not count twice.
    world.tasks.offer(tasks[0].0, &id("s"), offer(1, 2)).await.unwrap();
    let more = world.tasks.offer(tasks[3].0, &id("s"), offer(1, 1)).await;
    assert!(matches!(more, Err(Error::Overbid { open: 3, most: 3, .. })), "{more:?}");
    // It is not asked, so the round does not wait for it.
    let task = world.ask(request(json!({ "bid_window": "1h", "quiet_gap": "1h" }))).await;
    assert_eq!(world.announced(task).await, (1, 1));
    let why = world.tasks.why(task).await.unwrap();
    let reason = "no free slot, or as many offers under way as it may have";
    assert!(reasons(&why).contains(&("s".into(), reason.into())), "{why}");
    // An offer of a closed round does not count.
    world.tasks.decline(tasks[0].0, &id("t"), 1, "").await.unwrap();
    world.assigned(tasks[0].0).await;
    world.check().await;
}

#[tokio::test]
async fn outcomes_are_counted_by_confidence_and_give_a_reputation() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let before = world.tasks.agent(&id("a")).await.unwrap().reputation;
    for _ in 0..2 {
        let task = world.ask(request(json!({}))).await;
        world.finish(task).await;
    }
    let good = world.tasks.agent(&id("a")).await.unwrap();
    assert!(good.reputation > before, "{good:?}");
    let failing = world.ask(request(json!({ "attempts_max": 1 }))).await;
    let (start, agent) = world.started(failing).await;
    let failure =
        Failure { message: "no luck".into(), retryable: true, outage: false, usage: Usage::default() };
    world.tasks.fail(start.key, &agent, failure).await.unwrap();
    let after = world.tasks.agent(&id("a")).await.unwrap();
    assert!(after.reputation < good.reputation, "{after:?}");
    let of_kind = &after.statistics["test"];
    assert_eq!((&of_kind["completed"], &of_kind["failed"]), (&json!(2), &json!(1)));
    let calibration = of_kind["calibration"].as_array().unwrap();
    let sum = |name: &str| calibration.iter().map(|it| it[name].as_i64().unwrap()).sum::<i64>();
    assert_eq!((sum("attempts"), sum("completed")), (3, 2), "{of_kind}");
    world.check().await;
}

#[tokio::test]
async fn why_explains_the_award_and_the_agents_without_an_offer() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1), speaker("s"), speaker("t")]).await;
    let task = world.ask(request(json!({ "award": "cheapest", "bid_window": "300ms" }))).await;
    let (round, _) = world.announced(task).await;
    world.tasks.decline(task, &id("t"), round, "not my thing").await.unwrap();
    let agent = world.assigned(task).await.agent_id;
    assert_eq!(agent, id("a"));
    let why = world.tasks.why(task).await.unwrap();
    let told = &why["rounds"][0];
    assert_eq!(told["award"], "cheapest");
    assert_eq!(told["because"], "it is the cheapest: 1, as another has; its name comes first");
    let mut silent = reasons(&why);
    silent.sort();
    let expected = [("s", "no answer before the round closed"), ("t", "it declined: not my thing")];
    assert_eq!(silent, expected.map(|(agent, reason)| (agent.to_owned(), reason.to_owned())));
    let score = &told["offers"][0]["score"];
    for part in ["total", "cost", "speed", "confidence", "load", "reputation"] {
        assert!(score[part].is_i64(), "{part}: {score}");
    }
    world.check().await;
}
