//! Offers that the daemon computes: kept in the event of their award, and shown like rows.
use super::{Harness, id, profile, request};
use crate::support::database;
use convoke::{
    id::TaskId,
    task::{Assigned, Config, Error, Failure, NewOffer, Profile, Request, Usage},
};
use serde_json::{Value, json};

/// Three agents whose offers differ.
fn three() -> Vec<Profile> {
    let named = |(n, name): (u64, &str)| {
        let mut one = profile(name, 2);
        one.terms.cost_microdollars = 100 + n;
        one
    };
    (0..).zip(["a", "b", "c"]).map(named).collect()
}

/// The offers on a task, without what differs between two databases.
async fn shown(world: &Harness, task: TaskId) -> Value {
    let read = "select coalesce(jsonb_agg(to_jsonb(o) - '{id,task_id,offered_at,valid_until}'::text[]
            || jsonb_build_object('valid', o.valid_until - o.offered_at > interval '59 seconds')
            order by o.round, o.agent_id), '[]') as offers
        from convoke.offers o where o.task_id = $1";
    let client = world.database.client().await.unwrap();
    client.query_one(read, &[&task.as_uuid()]).await.unwrap().get(0)
}

/// Offers with only the type of each figure that depends on when the arbiter last copied slots and outcomes of agents
/// from their rows: two databases do not get their copies at the same step.
fn without_copied(shown: &Value) -> Value {
    let mut offers = shown.clone();
    for offer in offers.as_array_mut().unwrap() {
        for path in ["/eta_ms", "/score/speed", "/score/load", "/score/reputation"] {
            let figure = offer.pointer_mut(path).unwrap();
            assert!(figure.is_i64(), "{path}: {figure}");
            *figure = json!("integer");
        }
    }
    offers
}

async fn rows(world: &Harness) -> i64 {
    let client = world.database.client().await.unwrap();
    client.query_one("select count(*) from convoke.offer_rows", &[]).await.unwrap().get(0)
}

fn states(shown: &Value) -> Vec<&str> {
    shown.as_array().unwrap().iter().map(|offer| offer["state"].as_str().unwrap()).collect()
}

fn of_kind(kind: &str) -> Request {
    Request { kind: kind.into(), ..request(json!({ "award": "cheapest", "backoff": "10ms" })) }
}

async fn accept_and_finish(world: &Harness, won: &Assigned) {
    let start = world.tasks.accept(won.key, &won.agent_id).await.unwrap();
    world.tasks.finish(start.key, &won.agent_id, json!(1), Usage::default()).await.unwrap();
}

#[tokio::test]
async fn offers_of_an_ordinary_life_need_no_row() {
    let mut world = Harness::new(three()).await;
    let task = world.ask(of_kind("k")).await;
    let won = world.assigned(task).await;
    let offers = shown(&world, task).await;
    assert_eq!(states(&offers), ["awarded", "open", "open"]);
    assert_eq!((&offers[2]["cost_microdollars"], &offers[2]["confidence"]), (&json!(102), &json!(0.5)));
    assert_eq!((&offers[0]["score"]["total"], &offers[0]["valid"]), (&json!(1_000_000), &json!(true)));
    let start = world.tasks.accept(won.key, &won.agent_id).await.unwrap();
    assert_eq!(states(&shown(&world, task).await), ["confirmed", "open", "open"]);
    world.tasks.finish(start.key, &won.agent_id, json!(1), Usage::default()).await.unwrap();
    assert_eq!(states(&shown(&world, task).await), ["confirmed", "lost", "lost"]);
    let why = world.tasks.why(task).await.unwrap();
    assert_eq!(why["rounds"][0]["offers"].as_array().unwrap().len(), 3);
    assert_eq!(rows(&world).await, 0);
    world.check().await;
}

/// Every way of an offer from its award on. Returns the offers after each step.
async fn lives(world: &mut Harness) -> Vec<Value> {
    let mut seen = Vec::new();
    // Refused: the next offer of the round gets the award, and fails; the next round has one without the first.
    let task = world.ask(of_kind("refused")).await;
    let won = world.assigned(task).await;
    world.tasks.refuse(won.key, &won.agent_id, "busy").await.unwrap();
    let next = world.assigned(task).await;
    seen.push(shown(world, task).await);
    let start = world.tasks.accept(next.key, &next.agent_id).await.unwrap();
    let failure = Failure { message: "no".into(), retryable: true, outage: false, usage: Usage::default() };
    world.tasks.fail(start.key, &next.agent_id, failure).await.unwrap();
    let third = world.assigned(task).await;
    seen.push(shown(world, task).await);
    accept_and_finish(world, &third).await;
    seen.push(shown(world, task).await);
    // Canceled before the start, and requeued: the offers of before stay lost.
    let task = world.ask(of_kind("canceled")).await;
    world.assigned(task).await;
    world.tasks.cancel(task, "test").await.unwrap();
    seen.push(shown(world, task).await);
    world.tasks.requeue(task, "test").await.unwrap();
    let won = world.assigned(task).await;
    seen.push(shown(world, task).await);
    // Confirmed and not started.
    world.tasks.confirm(won.key, &won.agent_id).await.unwrap();
    seen.push(shown(world, task).await);
    accept_and_finish(world, &won).await;
    seen.push(shown(world, task).await);
    // The assignee is lost before its start.
    let task = world.ask(of_kind("lost")).await;
    let won = world.assigned(task).await;
    world.tasks.lost(won.key, &won.agent_id).await.unwrap();
    let next = world.assigned(task).await;
    seen.push(shown(world, task).await);
    accept_and_finish(world, &next).await;
    seen.push(shown(world, task).await);
    seen
}

#[tokio::test]
async fn published_offers_are_rows_and_look_the_same() {
    let mut kept = Harness::new(three()).await;
    let db = database().await;
    let publish = "create publication watchers; select convoke.observe('watchers')";
    db.client().await.batch_execute(publish).await.unwrap();
    let mut published = Harness::on(db, &Config::default(), three()).await;
    let (kept_seen, published_seen) = (lives(&mut kept).await, lives(&mut published).await);
    for (step, (kept, published)) in kept_seen.iter().zip(&published_seen).enumerate() {
        assert_eq!(without_copied(kept), without_copied(published), "step {step}");
    }
    assert_eq!(kept_seen.len(), 9);
    // In the first database only the two rounds whose winner was out became rows.
    assert!(rows(&kept).await < rows(&published).await);
    kept.check().await;
    published.check().await;
}

#[tokio::test]
async fn late_offer_leaves_the_computed_ones() {
    let mut world = Harness::new(three()).await;
    let task = world.ask(of_kind("k")).await;
    let won = world.assigned(task).await;
    let before = shown(&world, task).await;
    for agent in ["a", "b"] {
        let offer = NewOffer { round: 1, cost_microdollars: 1, eta_ms: 1, confidence: 1.0, note: None };
        let late = world.tasks.offer(task, &id(agent), offer).await;
        assert!(matches!(late, Err(Error::Late)), "{late:?}");
    }
    assert_eq!(shown(&world, task).await, before);
    accept_and_finish(&world, &won).await;
    assert_eq!(states(&shown(&world, task).await), ["confirmed", "lost", "lost"]);
    world.check().await;
}

/// An event may have been written by hand: it shows no offer that cannot be read, and fails no read of the others.
#[tokio::test]
async fn event_written_by_hand_does_not_fail_the_view() {
    let mut world = Harness::new(three()).await;
    let task = world.ask(of_kind("k")).await;
    let won = world.assigned(task).await;
    let client = world.database.client().await.unwrap();
    let bodies = [
        json!({ "computed": 1, "offers": 7 }),
        json!({ "computed": { "valid_ms": "x", "incarnations": {} }, "round": [], "offers": [1, {}, { "agent_id": 3 }] }),
        json!({ "computed": { "valid_ms": 1e300, "incarnations": [1e300] }, "round": 1e300, "offers": [
            { "agent_id": "x", "cost_microdollars": 1e300, "eta_ms": -1, "confidence": 1e300, "score": 1 }] }),
    ];
    for body in bodies {
        let write =
            "insert into convoke.events (org, task_id, type, body) values ('demo', $1, 'awarded', $2)";
        client.execute(write, &[&task.as_uuid(), &body]).await.unwrap();
    }
    let offers = shown(&world, task).await;
    assert_eq!(offers.as_array().unwrap().len(), 4);
    assert_eq!((&offers[3]["agent_id"], &offers[3]["round"]), (&json!("x"), &json!(i32::MAX)));
    world.tasks.why(task).await.unwrap();
    accept_and_finish(&world, &won).await;
}
