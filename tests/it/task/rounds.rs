//! Rounds: the agents that are asked, the winner, and rounds without an offer.
use super::{Harness, id, profile, request};
use convoke::{
    id::TaskId,
    task::{AssignmentKey, Error, Failure, NewOffer, Notice, Profile, Request, TaskState, Usage},
};
use serde_json::{Value, json};

/// An agent that makes its own offers.
pub fn speaker(name: &str) -> Profile {
    let mut speaker = profile(name, 1);
    speaker.terms.computed = false;
    speaker
}

pub fn offer(round: i32, cost_microdollars: u64) -> NewOffer {
    NewOffer { round, cost_microdollars, eta_ms: 10, confidence: 0.9, note: None }
}

#[tokio::test]
async fn cheapest_of_eight_wins_and_why_explains_it() {
    let profiles = (0..8).map(|n| {
        let mut one = profile(&format!("a{n}"), 1);
        one.terms.cost_microdollars = 100 - n;
        one
    });
    let mut world = Harness::new(profiles.collect()).await;
    let task = world.ask(request(json!({ "award": "cheapest" }))).await;
    let assigned = world.assigned(task).await;
    assert_eq!(assigned.agent_id, id("a7"));
    let why = world.tasks.why(task).await.unwrap();
    let round = &why["rounds"][0];
    assert_eq!((round["winner"].clone(), round["offers"].as_array().unwrap().len()), (json!("a7"), 8));
    assert_eq!(round["offers"][0]["score"]["total"], 1_000_000);
    world.check().await;
}

#[tokio::test]
async fn backlog_waits_for_free_slots_without_losing_rounds() {
    let mut world = Harness::new(vec![profile("a", 2)]).await;
    let mut tasks = Vec::new();
    for _ in 0..6 {
        tasks.push(world.ask(request(json!({ "rounds_max": 1 }))).await);
    }
    for _ in 0..6 {
        let assigned = world
            .hear(|notice| match notice {
                Notice::Assigned(assigned) => Some(assigned.clone()),
                _ => None,
            })
            .await;
        assert!(world.tasks.agent(&id("a")).await.unwrap().slots_used <= 2);
        let start = world.tasks.accept(assigned.key, &assigned.agent_id).await.unwrap();
        world.tasks.finish(start.key, &assigned.agent_id, json!(1), Usage::default()).await.unwrap();
    }
    for task in tasks {
        assert_eq!(world.tasks.get(task).await.unwrap().state, TaskState::Completed);
    }
    world.check().await;
}

#[tokio::test]
async fn task_without_a_capable_agent_ends_unallocatable() {
    let world = Harness::new(vec![profile("a", 1)]).await;
    let mut wish = request(json!({ "rounds_max": 1 }));
    wish.requires = vec!["magic".into()];
    let task = world.ask(wish).await;
    let failed = world.in_state(task, TaskState::Failed).await;
    assert_eq!(failed.state_reason.as_deref(), Some("unallocatable"));
    let mut wish = request(json!({ "rounds_max": 2 }));
    wish.requires = vec!["magic".into()];
    let patient = world.ask(wish).await;
    world.in_state(patient, TaskState::Failed).await;
    assert!(world.event_types(patient).await.contains(&"no_offers".to_owned()));
    world.check().await;
}

#[tokio::test]
async fn round_closes_early_when_all_asked_agents_have_answered() {
    let mut world = Harness::new(vec![speaker("s"), speaker("t"), profile("a", 1)]).await;
    let task =
        world.ask(request(json!({ "award": "cheapest", "bid_window": "1h", "quiet_gap": "1h" }))).await;
    let round = world
        .hear(|notice| match notice {
            Notice::Announced { task: of, round, eligible, .. } if of.id == task => {
                assert_eq!(eligible.len(), 3);
                Some(*round)
            }
            _ => None,
        })
        .await;
    world.tasks.offer(task, &id("s"), offer(round, 1)).await.unwrap();
    world.tasks.decline(task, &id("t"), round, "not my thing").await.unwrap();
    let assigned = world.assigned(task).await;
    assert_eq!(assigned.agent_id, id("s"));
    assert!(matches!(world.tasks.offer(task, &id("t"), offer(round, 0)).await, Err(Error::Late)));
    let stranger = world.tasks.offer(task, &id("x"), offer(round, 0)).await;
    assert!(matches!(stranger, Err(Error::NotEligible(_))), "{stranger:?}");
    world.check().await;
}

#[tokio::test]
async fn round_closes_at_the_end_of_its_window() {
    let mut world = Harness::new(vec![speaker("s"), speaker("t")]).await;
    let task =
        world.ask(request(json!({ "bid_window": "200ms", "quiet_gap": "1h", "award": "cheapest" }))).await;
    world
        .hear(|notice| matches!(notice, Notice::Announced { task: of, .. } if of.id == task).then_some(()))
        .await;
    world.tasks.offer(task, &id("s"), offer(1, 9)).await.unwrap();
    world.tasks.offer(task, &id("t"), offer(1, 5)).await.unwrap();
    let first = world.assigned(task).await;
    assert_eq!(first.agent_id, id("t"));
    // A late answer changes nothing, and offers for rounds that never were are not stored.
    for round in [1, 9] {
        assert!(matches!(world.tasks.offer(task, &id("s"), offer(round, 1)).await, Err(Error::Late)));
    }
    let why = world.tasks.why(task).await.unwrap();
    assert_eq!(why["rounds"][0]["offers"].as_array().unwrap().len(), 2);
    world.tasks.refuse(first.key, &id("t"), "busy").await.unwrap();
    assert_eq!(world.assigned(task).await.agent_id, id("s"));
    world.check().await;
}

#[tokio::test]
async fn higher_priority_goes_first() {
    let mut world = Harness::new(vec![profile("a", 1)]).await;
    let first = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(first).await;
    let low = world.ask(request(json!({}))).await;
    let mut wish = request(json!({}));
    wish.priority = 9;
    let high = world.ask(wish).await;
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    let (start, agent) = world.started(high).await;
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    world.started(low).await;
    world.check().await;
}

#[tokio::test]
async fn tasks_for_a_busy_agent_do_not_block_later_tasks() {
    let mut world = Harness::new(vec![profile("a", 1), profile("b", 1)]).await;
    let fail = Failure { message: "no luck".into(), retryable: true, outage: false, usage: Usage::default() };
    // One agent is busy with a long task, and the other has failed at a task.
    let long = world.ask(request(json!({}))).await;
    let (long, busy) = world.started(long).await;
    let failing = world.ask(request(json!({}))).await;
    let (start, free) = world.started(failing).await;
    assert_ne!(busy, free);
    world.tasks.fail(start.key, &free, fail).await.unwrap();
    // The free agent gets the next task, although the task before it waits for the other agent.
    let next = world.ask(request(json!({}))).await;
    let (start, agent) = world.started(next).await;
    assert_eq!(agent, free);
    assert_eq!(world.tasks.get(failing).await.unwrap().state, TaskState::Open);
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    world.tasks.finish(long.key, &busy, json!(1), Usage::default()).await.unwrap();
    let (start, agent) = world.started(failing).await;
    assert_eq!(agent, busy);
    world.tasks.finish(start.key, &agent, json!(1), Usage::default()).await.unwrap();
    world.check().await;
}

/// Waits until a round of this task is announced.
async fn announced(world: &mut Harness, task: TaskId) -> i32 {
    world
        .hear(|notice| match notice {
            Notice::Announced { task: of, round, .. } if of.id == task => Some(*round),
            _ => None,
        })
        .await
}

/// A policy whose rounds only an answer can close.
fn patient(more: Value) -> Request {
    let mut policy = json!({ "award": "cheapest", "bid_window": "1h", "quiet_gap": "1h" });
    policy.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request(policy)
}

#[tokio::test]
async fn second_offer_replaces_the_first_and_a_withdrawn_offer_cannot_win() {
    let mut world = Harness::new(vec![speaker("s"), speaker("t")]).await;
    let task = world.ask(patient(json!({}))).await;
    let round = announced(&mut world, task).await;
    world.tasks.offer(task, &id("s"), offer(round, 5)).await.unwrap();
    world.tasks.offer(task, &id("s"), offer(round, 50)).await.unwrap();
    world.tasks.offer(task, &id("t"), offer(round, 9)).await.unwrap();
    let first = world.assigned(task).await;
    assert_eq!(first.agent_id, id("t"), "the first offer of s counts no more");

    let late = world.tasks.decline(task, &id("t"), round, "changed my mind").await;
    assert!(matches!(late, Err(Error::Late)), "after the award it must refuse: {late:?}");
    world.tasks.refuse(first.key, &id("t"), "changed my mind").await.unwrap();
    assert_eq!(world.assigned(task).await.agent_id, id("s"));
    world.check().await;

    let mut world = Harness::new(vec![speaker("s"), speaker("t")]).await;
    let task = world.ask(patient(json!({ "backoff": "1h" }))).await;
    let round = announced(&mut world, task).await;
    world.tasks.offer(task, &id("s"), offer(round, 1)).await.unwrap();
    world.tasks.decline(task, &id("s"), round, "changed my mind").await.unwrap();
    world.tasks.offer(task, &id("t"), offer(round, 9)).await.unwrap();
    assert_eq!(world.assigned(task).await.agent_id, id("t"));
    let why = world.tasks.why(task).await.unwrap();
    let offers = why["rounds"][0]["offers"].as_array().unwrap();
    let withdrawn = offers.iter().find(|offer| offer["agent_id"] == "s").unwrap();
    assert_eq!((&withdrawn["state"], &withdrawn["cost_microdollars"]), (&json!("withdrawn"), &json!(1)));
    assert_eq!(withdrawn["note"], "changed my mind");
    world.check().await;
}

#[tokio::test]
async fn round_closes_early_with_enough_offers_or_a_good_enough_one() {
    let mut world = Harness::new(vec![speaker("s"), speaker("t"), speaker("u")]).await;
    let task = world.ask(patient(json!({ "offers_min": 2 }))).await;
    let round = announced(&mut world, task).await;
    world.tasks.offer(task, &id("s"), offer(round, 5)).await.unwrap();
    world.tasks.offer(task, &id("t"), offer(round, 7)).await.unwrap();
    let won = world.assigned(task).await;
    assert_eq!(won.agent_id, id("s"));
    world.tasks.refuse(won.key, &id("s"), "no").await.unwrap();
    let won = world.assigned(task).await;
    assert_eq!(won.agent_id, id("t"));
    world.tasks.accept(won.key, &id("t")).await.unwrap();

    let task = world.ask(patient(json!({ "good_enough": { "cost": 10, "confidence": 0.5 } }))).await;
    let round = announced(&mut world, task).await;
    world.tasks.offer(task, &id("s"), offer(round, 11)).await.unwrap();
    assert_eq!(world.tasks.get(task).await.unwrap().state, TaskState::Open, "too dear to be enough");
    world.tasks.offer(task, &id("u"), offer(round, 10)).await.unwrap();
    assert_eq!(world.assigned(task).await.agent_id, id("u"));
    world.check().await;

    // A computed offer may be good enough as well: then no agent is asked.
    let mut world = Harness::new(vec![profile("a", 1), speaker("s")]).await;
    let task = world.ask(patient(json!({ "good_enough": { "cost": 100 } }))).await;
    assert_eq!(world.assigned(task).await.agent_id, id("a"));
    for bad in [json!({}), json!({ "confidence": 2 }), json!({ "price": 1 })] {
        let refused = world.tasks.request(&world.org, "test", patient(json!({ "good_enough": bad }))).await;
        assert!(matches!(refused, Err(Error::BadRequest(_))), "{refused:?}");
    }
    world.check().await;
}

#[tokio::test]
async fn round_with_an_offer_closes_after_the_quiet_gap() {
    let mut world = Harness::new(vec![speaker("s"), speaker("t")]).await;
    let task = world.ask(patient(json!({ "quiet_gap": "100ms" }))).await;
    let round = announced(&mut world, task).await;
    world.tasks.offer(task, &id("s"), offer(round, 5)).await.unwrap();
    assert_eq!(world.assigned(task).await.agent_id, id("s"));
    world.check().await;
}

#[tokio::test]
async fn award_without_a_free_slot_goes_to_the_next_offer() {
    let mut cheap = profile("a", 1);
    cheap.terms.cost_microdollars = 1;
    let mut world = Harness::new(vec![cheap, profile("b", 1)]).await;
    let client = world.database.client().await.unwrap();
    // Another node takes the slot between this node's refresh and its award.
    let slots = "update convoke.agents set slots_used = $1 where id = 'a'";
    client.execute(slots, &[&1_i32]).await.unwrap();
    let task = world.ask(request(json!({ "award": "cheapest" }))).await;
    let won = world.assigned(task).await;
    assert_eq!(won.agent_id, id("b"));
    client.execute(slots, &[&0_i32]).await.unwrap();
    drop(client);
    world.tasks.accept(won.key, &won.agent_id).await.unwrap();
    world.check().await;
}

/// An accept of an award that this node has just made reads nothing before it starts: the fence is in the statement.
#[tokio::test]
async fn award_that_has_changed_is_not_started() {
    let mut world = Harness::new(vec![profile("a", 4), profile("b", 4)]).await;
    let accept =
        async |world: &Harness, key: AssignmentKey, agent: &str| world.tasks.accept(key, &id(agent)).await;

    // Another agent, and another epoch, start nothing; the award stands.
    let task = world.ask(request(json!({ "agent": "a", "award": "direct" }))).await;
    let key = world.assigned(task).await.key;
    let other = accept(&world, key, "b").await;
    assert!(matches!(other, Err(Error::Fenced)), "{other:?}");
    let later = AssignmentKey { epoch: convoke::id::Epoch(key.epoch.0 + 1), ..key };
    let later = accept(&world, later, "a").await;
    assert!(matches!(later, Err(Error::Fenced)), "{later:?}");
    let start = accept(&world, key, "a").await.unwrap();
    // Repeated: its answer was lost.
    let again = accept(&world, key, "a").await.unwrap();
    assert_eq!((again.attempt, &again.input), (start.attempt, &start.input));
    assert_eq!(world.event_types(task).await, ["requested", "awarded", "started"]);

    // Canceled before it is accepted.
    let task = world.ask(request(json!({ "agent": "a", "award": "direct" }))).await;
    let key = world.assigned(task).await.key;
    world.tasks.cancel(task, "no longer").await.unwrap();
    let canceled = accept(&world, key, "a").await;
    assert!(matches!(canceled, Err(Error::Fenced)), "{canceled:?}");
    assert_eq!(world.tasks.get(task).await.unwrap().state, TaskState::Canceled);

    // Its time to accept is over, and the arbiter has not seen that yet.
    let task = world.ask(request(json!({ "agent": "a", "award": "direct" }))).await;
    let key = world.assigned(task).await.key;
    let client = world.database.client().await.unwrap();
    let over = "update convoke.assignments set confirm_by = clock_timestamp() where id = $1";
    client.execute(over, &[&key.assignment_id.as_uuid()]).await.unwrap();
    drop(client);
    let late = accept(&world, key, "a").await;
    assert!(matches!(late, Err(Error::Fenced)), "{late:?}");
    assert_eq!(world.event_types(task).await, ["requested", "awarded"]);

    // One that stands and one that does not, accepted together.
    let two = [world.ask(request(json!({}))).await, world.ask(request(json!({}))).await];
    let (first, second) = (world.assigned(two[0]).await, world.assigned(two[1]).await);
    world.tasks.cancel(two[1], "no longer").await.unwrap();
    let (started, canceled) = tokio::join!(
        world.tasks.accept(first.key, &first.agent_id),
        world.tasks.accept(second.key, &second.agent_id)
    );
    assert_eq!(started.unwrap().key, first.key);
    assert!(matches!(canceled, Err(Error::Fenced)), "{canceled:?}");
    world.check().await;
}
